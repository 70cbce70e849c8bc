"""Videos with known content and their annotations, for the tests of pipelines."""

import io
import pickle
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from rich.console import Console

from pipelines.annotations import table as annotation_table
from pipelines.annotations.build import build
from pipelines.annotations.table import ClipTable, open_table
from pipelines.packs.format import PackSettings
from pipelines.packs.pack import Pack
from pipelines.prepare.make import prepare
from pipelines.prepare.users import User

BITS = 8


class Film:
    """Makes videos with the frame number drawn into each frame, and reads this number from decoded frames."""

    @staticmethod
    def frames(count: int, width: int, height: int, seed: int = 0) -> list[np.ndarray]:
        """Return RGB frames of a moving texture. 8 black or white columns in the top left encode the frame number."""
        rng = np.random.default_rng(seed)
        blocks = rng.integers(60, 200, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
        texture = np.kron(blocks, np.ones((16, 16, 1), np.uint8))
        frames = []
        for number in range(count):
            frame = np.roll(texture, 2 * number, axis=1)[:height, :width].copy()
            bits = [(number >> bit) & 1 for bit in range(BITS)]
            code = np.repeat(bits, width // 2 // BITS) * 255
            frame[: height // 2, : len(code)] = code[None, :, None]
            frames.append(frame)
        return frames

    @staticmethod
    def number(picture: np.ndarray, box: tuple[float, float, float, float]) -> int:
        """Return the frame number that is drawn in `picture` [H, W, 3].

        box: the area of `picture` that the frame covers.
        """
        left, top, right, bottom = box
        row = picture[int(top + (bottom - top) / 4)].mean(axis=1)
        centres = left + (np.arange(BITS) + 0.5) * (right - left) / 2 / BITS
        return sum(int(row[int(centre)] > 128) << bit for bit, centre in enumerate(centres))

    @staticmethod
    def write(path: Path, frames: list[np.ndarray], codec: str = "libx264", **options: str) -> Path:
        """Encode RGB frames, with B-frames and one key frame."""
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = frames[0].shape[:2]
        with av.open(path, "w") as container:
            stream = container.add_stream(codec, rate=30, options={"bf": "2", "g": "250"} | options)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.thread_count = 1
            for number, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 30)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    @staticmethod
    def person(count: int, width: int, height: int, seed: int = 0) -> np.ndarray:
        """Return joints [1, count, 17, 3] (x, y, score): a cloud of points, as large as a person, that moves."""
        rng = np.random.default_rng(seed)
        shape = rng.uniform(-0.5, 0.5, (17, 2)) * (0.15 * width, 0.6 * height)
        path = np.linspace(rng.uniform(0.3, 0.7, 2), rng.uniform(0.3, 0.7, 2), count) * (width, height)
        joints = (path[:, None] + shape).clip(1, (width - 2, height - 2))
        return np.concatenate([joints, np.ones((count, 17, 1))], axis=-1)[None]

    @staticmethod
    def annotation(name: str, joints: np.ndarray, width: int, height: int, label: int = 0) -> dict:
        return {
            "frame_dir": name,
            "label": label,
            "img_shape": (height, width),
            "total_frames": joints.shape[1],
            "keypoint": joints[..., :2].astype(np.float16),
            "keypoint_score": joints[..., 2].astype(np.float16),
        }

    @staticmethod
    def table(folder: Path, clips: list[dict]) -> ClipTable:
        path = folder / "annotations.pkl"
        path.write_bytes(pickle.dumps(clips))
        return open_table(path, folder / "cache")

    @staticmethod
    def prepare(table: ClipTable, folder: Path, count: int, box_pixels: int) -> Pack:
        settings = PackSettings(count=count, box_pixels=box_pixels, quality=2)
        return prepare(table, folder / "videos", folder / "pack", settings, workers=1, console=Console(quiet=True))


class Scene:
    """A folder of videos with annotations, from which tests make packs. All videos have `size` (width, height)."""

    size = (160, 120)
    settings = PackSettings(count=8, box_pixels=64)

    def __init__(self, folder: Path, lengths: list[int]):
        self.folder, self.videos, self.out = folder, folder / "videos", folder / "pack"
        self.names = [f"S001C001P001R001A{number + 1:03}" for number in range(len(lengths))]
        self.clips = []
        for number, (name, length) in enumerate(zip(self.names, lengths, strict=True)):
            Film.write(self.video(number), Film.frames(length, *self.size, seed=number), preset="ultrafast")
            joints = Film.person(length, *self.size, seed=number)
            self.clips.append(Film.annotation(name, joints, *self.size, label=number % 4))

    def video(self, number: int) -> Path:
        return self.videos / f"{self.names[number]}.mp4"

    def table(self) -> ClipTable:
        return Film.table(self.folder, self.clips)

    def clip(self, number: int, out: Path | None = None) -> Path:
        """Return the packed file of a clip."""
        (file,) = ((out or self.out) / "clips").glob(f"{self.names[number]}.*.mov")
        return file

    def prepare(self, out: Path | None = None, settings: PackSettings | None = None, **options) -> tuple[Pack, str]:
        """Make a pack of the videos. Returns the pack and the messages that were printed."""
        said = io.StringIO()
        options = {"workers": 1, "max_bad": 0.5, "console": Console(file=said)} | options
        pack = prepare(self.table(), self.videos, out or self.out, settings or self.settings, **options)
        return pack, said.getvalue()


@pytest.fixture(scope="session")
def film() -> type[Film]:
    return Film


@pytest.fixture
def scene(tmp_path) -> Callable[..., Scene]:
    """Return a function that makes a Scene. Its arguments are the lengths of the videos in frames."""
    return lambda *lengths: Scene(tmp_path, list(lengths))


@pytest.fixture(scope="session")
def scene_class() -> type[Scene]:
    return Scene


@pytest.fixture
def build_here(monkeypatch) -> None:
    """Build tables of annotations in this process, for tests that build many of them.

    The process in which programs build tables is started in tests such as test_hostile_annotations.py.
    """
    monkeypatch.setattr(annotation_table, "build_in_child", build)


class Data:
    """A folder with 24 tiny videos, their annotations, and a pack."""

    settings = PackSettings(box_pixels=64, count=48)

    def __init__(self, folder: Path, count: int = 24):
        self.folder, self.packs, self.videos = folder, folder / "packs", folder / "videos"
        self.clips = []
        for number in range(count):
            name, length = f"S001C001P001R001A{number + 1:03}", 8 + number % 3
            Film.write(self.videos / f"{name}.mp4", Film.frames(length, 128, 96, seed=number), preset="ultrafast")
            joints = Film.person(length, 128, 96, seed=number)
            self.clips.append(Film.annotation(name, joints, 128, 96, label=number % 4))

    def table(self, content, name: str = "annotations.pkl") -> ClipTable:
        (self.folder / name).write_bytes(pickle.dumps(content))
        return open_table(self.folder / name, self.folder / "cache")

    def pack(self, content, name: str = "annotations.pkl", **options) -> tuple[Pack, str]:
        """Make the pack. Returns the pack and the messages that were printed.

        `options`, `out` and `settings` are those of `prepare`.
        """
        said, table = io.StringIO(), self.table(content, name)
        options = {"workers": 1, "console": Console(file=said), "user": User(self.folder / name)} | options
        out, settings = options.pop("out", self.packs), options.pop("settings", self.settings)
        return prepare(table, self.videos, out, settings, **options), said.getvalue()

    def encoded(self, content, *more, **options) -> int:
        """Make the pack, and return the number of clips that were encoded for it."""
        before = len(list(self.packs.rglob("*.mov")))
        pack, said = self.pack(content, *more, **options)
        new = len(list(self.packs.rglob("*.mov"))) - before
        assert ("packing" in said) == (new > 0), said
        assert not pack.bad
        return new


@pytest.fixture(scope="session")
def packed_data(tmp_path_factory) -> Data:
    data = Data(tmp_path_factory.mktemp("shared"))
    assert data.encoded(data.clips) == 24
    return data


@pytest.fixture
def data(packed_data, tmp_path) -> Data:
    """Return a copy of the annotations and the pack of `packed_data`. The video files are shared."""
    own = Data(tmp_path, 0)
    own.clips, own.videos = [dict(clip) for clip in packed_data.clips], packed_data.videos
    shutil.copytree(packed_data.packs, own.packs, ignore=shutil.ignore_patterns("users"))
    return own


@pytest.fixture(scope="session")
def data_class() -> type[Data]:
    return Data
