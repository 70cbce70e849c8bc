"""Frames that are decoded directly from videos equal the frames of a pack, whether DALI or PyAV decodes them.

PyAV is used if DALI fails. In place of a GPU, DALI's CPU decoder reads Motion JPEG and VP9. On a GPU the same tests run
with H.264 (`-m gpu`).
"""

import contextlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from rich.console import Console

from kernels.program import UserError
from models.networks import build_model
from pipelines.backends import Backends
from pipelines.config import ClipConfig
from pipelines.loader import Loader
from pipelines.packs.source import PackFrames
from pipelines.skeleton import COCO_17
from pipelines.videos import dali as dali_video
from pipelines.videos.dali import decode_frames
from pipelines.videos.decode import decode
from pipelines.videos.source import VideoFrames, VideoMismatch, check_videos, compare, open_videos
from tests.programs import run_forked
from trainer.experiments import EXPERIMENTS

CPU = torch.device("cpu")
WIDTH, HEIGHT = 160, 120
LENGTHS = (24, 17, 9)
CODECS = {"mjpeg": (".mov", {}), "libvpx-vp9": (".webm", {"deadline": "realtime", "cpu-used": "8", "crf": "10"})}
CONFIG = ClipConfig(
    skeleton=COCO_17, rgb_frames=4, pose_frames=8, rgb_size=64, rgb_size_val=72, heatmap_size=16, heatmap_size_val=18
)


def write(film, path: Path, frames: list[np.ndarray], codec: str, **options: str) -> Path:
    if codec != "mjpeg":
        return film.write(path, frames, codec, **options)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=30, options={"qmin": "2", "qmax": "2"} | options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuvj420p"
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


class Set:
    """Three clips with the same codec. The annotations are for images that are twice as wide and high as the videos."""

    def __init__(self, film, folder: Path, codec: str):
        extension, options = CODECS.get(codec, (".mp4", {}))
        self.folder, self.videos, self.codec, clips = folder, [], codec, []
        for number, length in enumerate(LENGTHS):
            name, frames = f"clip{number}", film.frames(length, WIDTH, HEIGHT, seed=number)
            self.videos.append(write(film, folder / "videos" / f"{name}{extension}", frames, codec, **options))
            # Joints lie near the left edge, so that boxes extend beyond the picture.
            joints = film.person(length, 2 * WIDTH, 2 * HEIGHT, seed=number)
            joints[..., 0] -= joints[..., 0].min() - 2
            clips.append(film.annotation(name, joints, 2 * WIDTH, 2 * HEIGHT, label=number))
        self.table = film.table(folder, clips)

    def open(self, device: torch.device = CPU, max_bad: float = 0.0, **options) -> VideoFrames:
        options = {"max_bad": max_bad, "console": Console(quiet=True)} | options
        return open_videos(self.table, self.folder / "videos", self.folder / "cache", device, **options)

    def loader(self, frames, device: torch.device = CPU, **changes) -> Loader:
        values = {"rows": np.arange(len(LENGTHS)), "config": CONFIG, "coarse_map": (0, 1, 2), "threads": 1}
        values |= {"train": True, "batch_size": 3, "frames": frames, "device": device}
        if isinstance(frames, VideoFrames):
            values["backends"] = Backends("mixed", "reference", pytest.fail)
        return Loader(table=self.table, **values | changes)


@pytest.fixture(scope="module", params=CODECS)
def videos(request, film, tmp_path_factory) -> Set:
    return Set(film, tmp_path_factory.mktemp(request.param), request.param)


def close_to_pack(data: Set, film, device: torch.device, backends: Backends | None = None) -> None:
    """Assert that batches nearly equal those of a pack.

    They must have the same frames, boxes and flips, and be black outside the image.
    """
    changes = {"backends": backends} if backends else {}
    pack = PackFrames(data.table, film.prepare(data.table, data.folder, CONFIG.pose_frames, 400))
    flips, black = set(), 0
    for train, epochs in ((True, 4), (False, 1)):
        ours = data.loader(data.open(device), device, train=train, **changes)
        theirs = data.loader(pack, train=train)
        for epoch in range(epochs):
            flips |= set(ours.plan(epoch, 0).flip.tolist())
            for one, other in zip(ours.epoch(epoch), theirs.epoch(epoch), strict=True):
                assert one.rgb.shape == other.rgb.shape
                first, second = one.rgb.cpu().float(), other.rgb.float()
                error = (first - second).abs()
                # mean difference of each frame; for wrong frames it would be 15 or more
                assert error.mean(dim=(2, 3, 4)).max() < 8
                dark = second.amax(dim=-1) < 8
                outside = dark.all(dim=2, keepdim=True).expand_as(dark)  # whole columns
                black += int(outside.sum())
                assert first.amax(dim=-1)[outside].float().quantile(0.95) < 24 if outside.any() else True
                assert torch.equal(one.index.cpu(), other.index)
    assert flips == {True, False}
    assert black > 1000


def test_batches_are_those_of_a_pack(videos, film):
    close_to_pack(videos, film, CPU)


def test_pyav_decodes_h264_which_dali_refuses_here(film, tmp_path):
    """DALI needs a GPU for H.264, so PyAV decodes it here, and one line says so.

    On a machine with a GPU, PyAV decodes if the video engine is missing or does not know the codec.
    """
    said = []
    close_to_pack(Set(film, tmp_path, "libx264"), film, CPU, Backends("mixed", "reference", said.append))
    (line,) = said
    assert line.startswith(f"the GPU cannot decode the videos ({tmp_path}/videos/clip0.mp4: ")
    assert "so the CPU decodes them, which is much slower than training from packs" in line


@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_pyav_takes_over_at_any_step(videos, monkeypatch, fails_at):
    frames, real, runs, said = videos.open(), dali_video._run, [], []
    loaders = {name: videos.loader(frames, batch_size=1) for name in ("mixed", "cpu")}
    loaders["cpu"].backends.decoder = "cpu"
    by_dali, by_pyav = ([batch.rgb for batch in loader.epoch(5)] for loader in loaders.values())
    for one, other in zip(by_dali, by_pyav, strict=True):
        error = (one.float() - other.float()).abs()
        assert error.mean() < 1.5
        assert (error > 16).float().mean() < 0.005

    def run(pipeline):
        runs.append(pipeline)
        if len(runs) > fails_at:
            raise dali_video.VideoDecodeError("NVDEC: error 209")
        return real(pipeline)

    monkeypatch.setattr(dali_video, "_run", run)
    work = videos.loader(frames, batch_size=1, backends=Backends("mixed", "reference", said.append))
    for _ in range(2):
        batches = list(work.epoch(5))
        expected = [by_dali[step] if step < fails_at and len(runs) else by_pyav[step] for step in range(3)]
        assert all(torch.equal(one.rgb, other) for one, other in zip(batches, expected, strict=True))
        fails_at = 0
    assert len(said) == 1
    assert said[0].startswith("the GPU cannot decode the videos (NVDEC: error 209), so the CPU decodes them")


def test_ranks_starts_and_depths_do_not_change_a_batch(videos):
    frames = videos.open()
    whole = list(videos.loader(frames, batch_size=2).epoch(5))
    assert len(whole) == 2
    deep = list(videos.loader(frames, batch_size=2, prefetch=3).epoch(5))
    late = list(videos.loader(frames, batch_size=2).epoch(5, first=1))
    ranks = [list(videos.loader(frames, batch_size=2, rank=rank, world_size=2).epoch(5)) for rank in (0, 1)]
    for step, batch in enumerate(whole):
        assert torch.equal(batch.rgb, deep[step].rgb)
        assert torch.equal(batch.rgb, torch.cat([ranks[0][step].rgb, ranks[1][step].rgb]))
    assert torch.equal(late[0].rgb, whole[1].rgb)


def test_headers_are_read_once(videos, monkeypatch, film):
    first = videos.open()
    asked = []
    monkeypatch.setattr("pipelines.videos.source.read_headers", lambda new, _: asked.append(new))
    second = videos.open()
    assert asked == []
    assert np.array_equal(first.sizes, second.sizes)
    assert first.lengths.tolist() == second.lengths.tolist() == list(LENGTHS)
    assert first.sizes.tolist() == [[WIDTH, HEIGHT]] * 3


@pytest.fixture
def own(film, tmp_path) -> Set:
    """Return a set of videos that the test may damage."""
    return Set(film, tmp_path, "mjpeg")


def test_unusable_videos_are_left_out_up_to_a_limit(own):
    own.videos[1].unlink()
    with pytest.raises(
        ValueError, match=r"1 of 3 clips have no usable video, and at most 0.0% may .* clip1: there is no"
    ):
        own.open()
    frames = own.open(max_bad=0.5)
    assert frames.has_frames().tolist() == [True, False, True]
    content = own.videos[2].read_bytes()
    own.videos[2].write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="2 of 3 clips"):
        own.open(max_bad=0.5)


def test_a_video_that_pyav_cannot_decode_either_is_named(own):
    frames, said = own.open(), []
    content = bytearray(own.videos[1].read_bytes())
    content[60 : len(content) // 2] = bytes(len(content) // 2 - 60)
    own.videos[1].write_bytes(content)
    work = own.loader(frames, backends=Backends("mixed", "reference", said.append))
    with pytest.raises(ValueError, match=r"clip1\.mov cannot be used: .*python -m pipelines\.prepare"):
        list(work.epoch(0))
    assert len(said) == 1
    own.videos[1].unlink()
    with pytest.raises(ValueError, match=r"clip1\.mov cannot be read"):
        list(own.loader(frames).epoch(0))


def test_guard_passes_what_dali_decodes_right(videos):
    check_videos([(str(path), length) for path, length in zip(videos.videos, LENGTHS, strict=True)], CPU)


def test_guard_refuses_what_dali_cannot_decode_here(film, tmp_path):
    path = film.write(tmp_path / "clip.mp4", film.frames(6, 64, 48))
    with pytest.raises(VideoMismatch, match=r"clip\.mp4: ") as error:
        check_videos([(str(path), 6)], CPU)
    assert "\n" not in str(error.value)


def test_guard_refuses_a_file_whose_timestamps_hide_frames(own, tmp_path):
    """DALI would return wrong frames at the end of such a file."""
    path = tmp_path / "shuffled.mov"
    with av.open(own.videos[0]) as source, av.open(path, "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            packet.stream, packet.time_base = stream, Fraction(1, 30)
            packet.dts, packet.pts = number, (number ^ 1) + 2
            target.mux(packet)
    with pytest.raises(
        ValueError, match=r"shuffled\.mov has 22 frames, but its header says 24; train with data.source=packs"
    ):
        check_videos([(str(path), LENGTHS[0])], CPU)


ORDERS = {
    "shuffled": [0, 1, 3, 2, *range(4, 12)],
    "late by one": [0, *range(11)],
    "early by one": [*range(1, 12), 11],
    "one wrong": [*range(7), 0, *range(8, 12)],
}


@pytest.mark.parametrize("order", ORDERS)
def test_guard_refuses_frames_out_of_order(film, order):
    right = np.stack(film.frames(12, 96, 64)).astype(np.float32) * 0.06  # small differences between neighbouring frames
    noise = np.random.default_rng(0).normal(0, 3, right.shape)
    compare("clip.avi", right, right + noise, np.arange(12))
    found = (right + noise)[ORDERS[order]]
    with pytest.raises(VideoMismatch, match=r"clip\.avi: DALI returns frame \d+ instead of frame \d+, because "):
        compare("clip.avi", right, found, np.arange(12))


def test_guard_puts_up_with_still_scenes_but_not_with_other_colours(film):
    still = np.repeat(film.frames(1, 96, 64)[0][None], 12, axis=0).astype(np.float32)
    compare("clip.mp4", still, still[::-1] + 2, np.arange(12))
    with pytest.raises(VideoMismatch, match=r"clip\.mp4: DALI's colours are 9\.0 levels off, .* BT\.601"):
        compare("clip.mp4", still, still + 9, np.arange(12))


def test_graph_for_the_gpu_is_a_graph(own):
    """Without a GPU, a DALI pipeline for the GPU can be serialised but not built."""
    frames = own.open()
    plan = own.loader(frames).plan(0, 0)
    step = frames.step(plan, [frames.read(plan, clip) for clip in range(len(plan.row))])
    pipeline = dali_video.graph(
        lambda _: step, 64, "mixed", batch_size=3, num_threads=1, device_id=None, prefetch_queue_depth=2
    )
    assert len(pipeline.serialize()) > 1000


def test_guard_refuses_colours_that_dali_does_not_know(tmp_path):
    """DALI decodes BT.709, the tag of MA-52's videos, as BT.601.

    The error is large only for strong colours.
    """
    blocks = np.random.default_rng(0).integers(0, 2, (4, 5, 3), dtype=np.uint8) * 200 + 20
    pixels = np.kron(blocks, np.ones((32, 32, 1), np.uint8))
    paths = {space: tmp_path / f"{space}.webm" for space in ("ITU601", "ITU709")}
    for space, path in paths.items():
        with av.open(path, "w") as container:
            stream = container.add_stream("libvpx-vp9", rate=30, options=CODECS["libvpx-vp9"][1])
            stream.height, stream.width = pixels.shape[:2]
            stream.pix_fmt, stream.codec_context.colorspace = "yuv420p", {"ITU601": 5, "ITU709": 1}[space]
            for number in range(4):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame = frame.reformat(format="yuv420p", dst_colorspace=space)
                frame.pts, frame.time_base = number, Fraction(1, 30)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    check_videos([(str(paths["ITU601"]), 4)], CPU)
    with pytest.raises(VideoMismatch, match=r"ITU709\.webm: DALI's colours are 1\d\.\d levels off"):
        check_videos([(str(paths["ITU709"]), 4)], CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("command", ["--work-dir", "eval"])
def test_without_a_gpu_the_command_names_prepare(tmp_path, tmp_path_factory, command):
    weights = tmp_path_factory.mktemp("weights") / "net.pth"
    torch.save(build_model(EXPERIMENTS["demo"].model).state_dict(), weights)
    own = {"--work-dir": ("--work-dir", "run"), "eval": ("eval", weights)}[command]
    words = ("-m", "trainer", *own, "--exp", "demo", "--set", "data.source=video")
    done = run_forked(*words, cwd=tmp_path)  # writes into another folder, so that a failure leaves the checkout clean
    assert done.returncode == 2
    assert done.stderr == (
        "error: data.source=video decodes videos on a GPU, and this run has none: leave this setting out to use "
        "clip packs, which are made automatically\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "mjpeg", "libvpx-vp9"])
def test_gpu_batches_are_those_of_a_pack(film, tmp_path, codec):
    close_to_pack(Set(film, tmp_path, codec), film, torch.device("cuda"))


@pytest.mark.gpu
def test_gpu_decodes_real_videos_right_or_the_guard_refuses_them(real_videos):
    """For NTU's original .avi files, DALI returns the right frames or the guard refuses the file."""
    for path, frames in (("S001C001P001R001A001_rgb.avi", 103), ("ntu_sample.avi", 72)):
        video = real_videos / path
        with contextlib.suppress(VideoMismatch, UserError):
            check_videos([(str(video), frames)], torch.device("cuda"))
            found = decode_frames(np.fromfile(video, np.uint8), np.arange(frames), torch.device("cuda"))
            for number, frame in enumerate(decode(str(video), frames)):
                difference = np.abs(frame.to_ndarray(format="rgb24").astype(np.int16) - found[number])
                assert difference.mean() < 6, (path, number)


@pytest.mark.gpu
def test_gpu_counts_frames_of_open_gops(film, tmp_path):
    frames = film.frames(60, WIDTH, HEIGHT)
    path = film.write(tmp_path / "open.mp4", frames, **{"x264-params": "open-gop=1:keyint=8:bframes=3"})
    found = decode_frames(np.fromfile(path, np.uint8), np.arange(60), torch.device("cuda"))
    assert [film.number(frame, (0, 0, WIDTH, HEIGHT)) for frame in found] == list(range(60))
