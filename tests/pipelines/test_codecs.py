"""A packed clip has all frames of its video in the right order, for every codec and container."""

import io
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from pipelines.prepare.encode import Job, encode_clip


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Describes how a video is written. `time` is a key of TIMES; `first` is the number of the first frame shown."""

    file: str
    codec: str
    options: dict[str, str] = field(default_factory=dict)
    size: tuple[int, int] = (160, 120)
    pixels: str = "yuv420p"
    audio: bool = False
    container: dict[str, str] = field(default_factory=dict)
    time: str = "even"
    first: int = 0


# Each function maps the number of a frame to its time in units of 1/30 s.
TIMES = {
    "even": lambda number: number,
    "uneven": lambda number: 2 * number + (number % 5 == 0) + 20 * (number > 10),  # a variable frame rate and a gap
    "late": lambda number: number + 30,
    "early": lambda number: number - 10,  # the edit list of an .mp4 file hides frames before time 0
}
B = {"bf": "2", "g": "250"}
OPEN = {"x264-params": "open-gop=1:keyint=10:min-keyint=10:bframes=3:b-adapt=0"}
HEVC = {"x265-params": "open-gop=1:keyint=10:bframes=4:log-level=none"}
VP9 = {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8", "b": "500k"}
EDITED = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
FEW = {
    "NTU: H.264 with B-frames in .avi": Kind(file="a.avi", codec="libx264", options=B),
    "MA-52: portrait with sound": Kind(file="a.mp4", codec="libx264", options=B, size=(112, 134), audio=True),
    "H.264, open GOP": Kind(file="a.mp4", codec="libx264", options=OPEN),
    "HEVC, open GOP": Kind(file="a.mp4", codec="libx265", options=HEVC),
    "MPEG-4 with B-frames in .avi": Kind(file="a.avi", codec="mpeg4", options=B | {"qscale": "3"}),
    "VP9, odd sides": Kind(file="a.webm", codec="libvpx-vp9", options=VP9, size=(161, 121)),
    "H.264, variable frame rate": Kind(file="a.mp4", codec="libx264", options=B, time="uneven"),
    "H.264, edit list": Kind(file="a.mp4", codec="libx264", options=B, container=EDITED, time="early", first=10),
}
MORE = {
    "H.264": Kind(file="a.mp4", codec="libx264", options=B),
    "H.264 in .mkv, open GOP": Kind(file="a.mkv", codec="libx264", options=OPEN),
    "H.264 in .ts": Kind(file="a.ts", codec="libx264", options=B),
    "H.264, late start": Kind(file="a.mov", codec="libx264", options=B, time="late"),
    "H.264, every frame a key frame": Kind(file="a.mp4", codec="libx264", options={"g": "1"}),
    "H.264, 10 bits": Kind(file="a.mp4", codec="libx264", options=B, pixels="yuv420p10le"),
    "H.264, 4:4:4, odd sides": Kind(file="a.mp4", codec="libx264", options=B, pixels="yuv444p", size=(161, 121)),
    "H.264, variable frame rate in .mkv": Kind(file="a.mkv", codec="libx264", options=B, time="uneven"),
    "HEVC in .mkv": Kind(file="a.mkv", codec="libx265", options={"x265-params": "bframes=4:log-level=none"}),
    "MPEG-4, no B-frames": Kind(file="a.mp4", codec="mpeg4", options={"qscale": "3"}),
    "MS-MPEG-4": Kind(file="a.avi", codec="msmpeg4v2", options={"qscale": "3"}),
    "MPEG-2 in .mpg": Kind(file="a.mpg", codec="mpeg2video", options={"bf": "2", "qscale": "3"}),
    "VP9 in .mp4": Kind(file="a.mp4", codec="libvpx-vp9", options=VP9),
    "AV1": Kind(file="a.mp4", codec="libsvtav1", options={"preset": "12"}),
    "FFV1, odd sides": Kind(file="a.mkv", codec="ffv1", size=(161, 121)),
    "Motion JPEG, odd sides": Kind(file="a.avi", codec="mjpeg", pixels="yuvj420p", size=(161, 121)),
}


def write(path: Path, kind: Kind, frames: list[np.ndarray]) -> Path:
    with av.open(path, "w", options=kind.container) as container:
        stream = container.add_stream(kind.codec, rate=30, options=kind.options)
        (stream.width, stream.height), stream.pix_fmt = kind.size, kind.pixels
        stream.codec_context.thread_count = 1
        sound = container.add_stream("aac", rate=8000) if kind.audio else None
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = TIMES[kind.time](number), Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
            silence.rate = 8000
            container.mux(sound.encode(silence))
            container.mux(sound.encode())
    return path


def prepared(folder: Path, film, kind: Kind, count: int) -> list[int]:
    """Write and pack a video, and return the frame numbers that are drawn in the packed clip."""
    video = write(folder / kind.file, kind, film.frames(count, *kind.size))
    width, height = kind.size
    job = Job(
        **{"name": "a", "video": str(video), "target": str(folder / "clip.mov"), "num_frames": count - kind.first},
        **{"region": (0, 0, width, height), "side": float(height), "fewest": 1, "width": width, "height": height},
        **{"box_pixels": 96, "quality": 3},
    )
    encoded = encode_clip(job)
    scale = np.tile(np.divide(encoded.frame_size, np.subtract(encoded.region[2:], encoded.region[:2])), 2)
    box = (np.array([0, 0, width, height]) - encoded.region[:2] * 2) * scale
    content, start, numbers = Path(job.target).read_bytes(), encoded.first, []
    for size in encoded.sizes:
        picture = np.asarray(Image.open(io.BytesIO(content[start : start + size])).convert("RGB"))
        numbers.append(film.number(picture, tuple(box)))
        start += size
    return numbers


@pytest.mark.parametrize("kind", FEW.values(), ids=FEW)
def test_every_frame_is_its_own(tmp_path, film, kind):
    assert prepared(tmp_path, film, kind, 33) == list(range(kind.first, 33))


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", (FEW | MORE).values(), ids=FEW | MORE)
def test_every_frame_of_every_codec(tmp_path, film, kind):
    """Checks clips of 11 to 250 frames."""
    for count in (11, 16, 47, 103, 250):
        assert prepared(tmp_path, film, kind, count) == list(range(kind.first, count)), count


def test_ntus_timestamps_do_lie(tmp_path, film):
    """The decoder returns the frames of an .avi file like NTU's in order, but their timestamps are not in order."""
    video = write(tmp_path / "a.avi", FEW["NTU: H.264 with B-frames in .avi"], film.frames(33, 160, 120))
    with av.open(video) as container:
        frames = list(container.decode(video=0))
    times = [frame.pts for frame in frames]
    assert times != sorted(times)
    numbers = [film.number(frame.to_ndarray(format="rgb24"), (0, 0, 160, 120)) for frame in frames]
    assert numbers == list(range(33))
