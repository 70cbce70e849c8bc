"""A hostile or broken video can cost only limited resources, and a run with nothing to do is fast.

A video is not decoded if its header shows that it is too large. A video cannot make a worker open other files. A
worker's memory is limited.
"""

import json
import pickle
import struct
import subprocess
import time
from pathlib import Path

import av
import numpy as np
import pytest
from rich.console import Console

from pipelines.annotations.table import open_table
from pipelines.packs.format import PackSettings, clip_id, packets_text, write_index
from pipelines.prepare.content import Stamp
from pipelines.prepare.encode import Job, encode_clip
from pipelines.prepare.make import prepare
from pipelines.prepare.survey import joints_digest
from pipelines.prepare.worker import READY
from pipelines.videos.container import VideoError
from pipelines.videos.header import read_header
from tests.programs import start


def job(video: Path, folder: Path, frames: int = 20) -> Job:
    return Job(
        **{"name": "clip", "video": str(video), "target": str(folder / "clip.mov"), "num_frames": frames},
        **{
            "region": (0, 0, 160, 120),
            "side": 100.0,
            "fewest": 1,
            "width": 160,
            "height": 120,
            "box_pixels": 64,
            "quality": 3,
        },
    )


def claiming(path: Path, width: int, height: int) -> Path:
    """Write twenty Motion JPEG frames of 160x120. The headers of the file and of each frame claim another size."""
    with av.open(path, "w") as container:
        stream = container.add_stream("mjpeg", rate=30)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuvj420p"
        for _ in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((120, 160, 3), 99, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    content = path.read_bytes()
    at = content.index(b"strf") + 12
    content = content[:at] + struct.pack("<ii", width, height) + content[at + 8 :]
    # the marker of a JPEG frame, the length of its header and the bits per sample; height and width follow
    start_of_frame = b"\xff\xc0\x00\x11\x08"
    parts = content.split(start_of_frame)
    size = struct.pack(">HH", height, width)
    path.write_bytes(start_of_frame.join([parts[0], *(size + part[4:] for part in parts[1:])]))
    return path


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((30000, 30000), "the header contains no usable frame size"),  # this is FFmpeg's own limit
        ((12000, 12000), "the header claims 12000x12000 pixels, more than 67,108,864"),
        ((160, 120), None),
    ],
)
def test_a_huge_size_is_refused_from_the_header(tmp_path, size, expected):
    video = claiming(tmp_path / "a.avi", *size)
    if expected is None:
        assert len(encode_clip(job(video, tmp_path)).sizes) == 20
        return
    start = time.monotonic()
    with pytest.raises(VideoError, match=expected):
        encode_clip(job(video, tmp_path))
    assert time.monotonic() - start < 2
    assert not (tmp_path / "clip.mov").exists()


def test_a_huge_number_of_frames_is_refused_from_the_header(tmp_path, film):
    """The header of a small file can claim any number of frames."""
    video = film.write(tmp_path / "a.avi", film.frames(20, 160, 120), "mpeg4")
    content = video.read_bytes()
    at = content.index(b"strh") + 8 + 32  # dwLength in the header of the stream
    assert struct.unpack_from("<I", content, at) == (20,)
    video.write_bytes(content[:at] + struct.pack("<I", 50_000_000) + content[at + 4 :])
    with pytest.raises(VideoError, match="the header claims 50,000,000 frames, more than 1,048,576"):
        encode_clip(job(video, tmp_path))


def test_texts_that_are_no_utf8_do_no_harm(tmp_path, film):
    """A camera may write titles in the local encoding of its country instead of UTF-8."""
    video = tmp_path / "a.mkv"
    with av.open(video, "w") as container:
        container.metadata["title"] = "XXXXXXXX"
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for frame in film.frames(20, 160, 120):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    content = video.read_bytes()
    assert b"XXXXXXXX" in content
    video.write_bytes(content.replace(b"XXXXXXXX", b"\xff\xfe\x93\xfa\x96\x7b\x8c\xea"))
    assert len(encode_clip(job(video, tmp_path)).sizes) == 20
    assert read_header(str(video)).reason == ""


def test_an_unknown_codec_is_one_sentence(tmp_path, film):
    video = film.write(tmp_path / "a.mp4", film.frames(20, 160, 120))
    content = video.read_bytes()
    at = content.index(b"avc1", content.index(b"stsd"))
    video.write_bytes(content[:at] + b"zzzz" + content[at + 4 :])
    with pytest.raises(VideoError, match="the video has a codec that FFmpeg does not know"):
        encode_clip(job(video, tmp_path))
    assert read_header(str(video)).reason == "the video has a codec that FFmpeg does not know"


PLAYLISTS = {
    "concat": "ffconcat version 1.0\nfile '{other}'\n",
    "concat without its name": "file '{other}'\n",
    "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{other}\n#EXT-X-ENDLIST\n",
    "m3u8 from the network": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
    "dash": '<?xml version="1.0"?><MPD><Period><AdaptationSet><Representation><BaseURL>{other}</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
}


@pytest.mark.parametrize("extension", ["avi", "mp4", "ts"])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_no_file_leads_to_another(tmp_path, film, kind, extension):
    other = film.write(tmp_path / "other.ts", film.frames(20, 160, 120))
    video = tmp_path / f"a.{extension}"
    video.write_text(PLAYLISTS[kind].format(other=other))
    with pytest.raises(VideoError, match="the video cannot be decoded"):
        encode_clip(job(video, tmp_path))


MEMORY_HOG = """
import os, sys
from pipelines.prepare import worker
sys.argv = ["worker", str(os.getppid())]
worker.MEMORY = 700 << 20
def hog(job):
    return bytearray(4 << 30)
worker.encode_clip = hog
worker.main()
"""


def test_a_worker_keeps_to_its_memory():
    """A real worker with a low limit gets a job that needs more memory. It reports this, and takes the next job."""
    job_line = '{"name":"a","video":"","target":"","region":[0,0,1,1],"side":1,"fewest":1,"height":1,"width":1,' + (
        '"num_frames":1,"box_pixels":1,"quality":3}\n'
    )
    worker = start("-c", MEMORY_HOG, stdin=subprocess.PIPE, stderr=None)
    assert worker.stdin is not None
    assert worker.stdout is not None
    assert worker.stdout.readline().strip() == READY
    for _ in range(2):
        worker.stdin.write(job_line)
        worker.stdin.flush()
        assert json.loads(worker.stdout.readline()) == {"bad": "encoding the video needs more than 0 GiB of memory"}
    worker.stdin.close()
    assert worker.wait(10) == 0


@pytest.mark.soak
def test_a_run_with_nothing_to_do_takes_seconds_with_114000_clips(tmp_path):
    """Tiny files stand in for videos and clips. Manifest and index are complete, as a second run would find them."""
    settings, count = PackSettings(count=8), 114_000
    videos, out = tmp_path / "videos", tmp_path / "pack"
    videos.mkdir()
    (out / "clips").mkdir(parents=True)
    names = [f"S001C001P001R001A{number:05}" for number in range(count)]
    joints = np.random.default_rng(0).uniform(5, 1000, (count, 1, 20, 17, 2)).astype(np.float16)
    clips = [
        {"frame_dir": name, "label": 0, "img_shape": (1080, 1920), "total_frames": 20, "keypoint": own}
        for name, own in zip(names, joints, strict=True)
    ]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(clips))
    table = open_table(tmp_path / "a.pkl", tmp_path / "cache")
    lines = []
    for row, name in enumerate(names):
        video = videos / f"{name}_rgb.avi"
        video.write_bytes(b"video")
        (out / "clips" / f"{name}.mov").write_bytes(b"clip")
        digests = {"settings": settings.digest(), "joints": joints_digest(table, row), "source": "s", "bad": ""}
        digests |= {"clip": clip_id("s", digests["joints"], digests["settings"]), "file": f"clips/{name}.mov"}
        stat = video.stat()
        stamp = {"stamps": Stamp(5, stat.st_mtime_ns, stat.st_ino).before([])}
        stamp |= {"clip_bytes": 4, "first": 0, "fewest": 1}
        shape = {"source_size": [1920, 1080], "region": [0, 0, 9, 9], "frame_size": [32, 32], "num_frames": 20}
        packets = {"packets": packets_text([1] * 20, [2] * 20)}
        lines.append({"name": name} | digests | stamp | shape | packets)
    write_index(out, lines)
    for _ in range(2):  # only the second run has a time limit; the first one also computes the digests of the joints
        start = time.monotonic()
        pack = prepare(table, videos, out, settings, console=Console(quiet=True))
        seconds = time.monotonic() - start
        assert (pack.num_frames == 20).all()
        print(f"{seconds:.2f} s")
    assert seconds < 20, seconds
