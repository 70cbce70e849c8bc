"""Makes videos for benchmarks of the data path: clips of the demo with one person, encoded like the videos of NTU."""

import pickle
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image
from rich.console import Console

from pipelines.annotations.table import open_table
from pipelines.config import ClipConfig
from pipelines.demo.classes import ClipId, DemoConfig
from pipelines.demo.clip import annotate, fill, film
from pipelines.packs.format import PackSettings
from pipelines.packs.source import PackFrames
from pipelines.prepare.make import prepare

SPLIT = "xsub_train"
ALONE = 9  # the first nine classes of the demo show a single person
# Standard deviation of the noise in luma, in grey levels. With this noise, a frame has as many bytes as a frame of NTU
# (1.15 kB, according to ROSE Lab).
NOISE = 1.3


@dataclass(frozen=True, kw_only=True, slots=True)
class Videos:
    """Number, size (width, height) in pixels, and length in frames of the videos. They have 30 frames per second."""

    count: int = 16
    size: tuple[int, int] = (960, 540)
    frames: int = 90


TOY = Videos(count=3, size=(128, 96), frames=24)


@dataclass(frozen=True, kw_only=True, slots=True)
class Files:
    """The annotation file, the folder of its videos, and the mean size of a video."""

    annotations: Path
    videos: Path
    kib_per_video: float


def make_videos(videos: Videos, folder: Path) -> Files:
    """Write the videos and their skeletons.

    The videos have x264's medium preset, crf 23, a single key frame, and light noise in luma.
    """
    config = DemoConfig(size=videos.size, num_frames=(videos.frames, videos.frames))
    clips = [ClipId(split=SPLIT, label=number % ALONE, take=number // ALONE) for number in range(videos.count)]
    target = folder / "videos"
    target.mkdir(parents=True)
    for clip in clips:
        _encode(film(config, clip), target / f"{clip.name}.mp4", np.random.default_rng(clip.number))
    annotations, names = folder / "annotations.pkl", [clip.name for clip in clips]
    content = {"split": {SPLIT: names}, "annotations": [annotate(config, clip) for clip in clips]}
    annotations.write_bytes(pickle.dumps(content))
    kib = float(np.mean([file.stat().st_size for file in target.iterdir()])) / 1024
    return Files(annotations=annotations, videos=target, kib_per_video=kib)


def _encode(frames: list[Image.Image], file: Path, rng: np.random.Generator) -> None:
    with av.open(file, "w", format="mp4") as container:
        options = {"preset": "medium", "crf": "23", "g": "250"}
        stream = container.add_stream("libx264", rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, "yuv420p"
        for image in frames:
            luma, *chroma = image.split()
            frame = av.VideoFrame(*image.size, "yuv420p")
            noisy = np.asarray(luma) + rng.normal(0, NOISE, image.size[::-1])
            fill(frame.planes[0], np.rint(noisy).clip(0, 255).astype(np.uint8))
            for plane, channel in zip(list(frame.planes)[1:], chroma, strict=True):
                fill(plane, np.asarray(channel.reduce(2)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def pack(files: Files, config: ClipConfig, folder: Path) -> PackFrames:
    """Make the pack of the videos, and open it as training does."""
    table = open_table(files.annotations, folder / "cache")
    settings = PackSettings.of(config)
    packed = prepare(table, files.videos, folder / "packs", settings, console=Console(quiet=True))
    return PackFrames(table, packed)
