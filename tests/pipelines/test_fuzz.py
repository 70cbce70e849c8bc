"""Broken videos among good videos, and packs that are damaged during training.

Each bad clip is named once, the good clips keep their order in training, and nothing hangs.
"""

import io
import os
import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from pipelines.config import ClipConfig
from pipelines.loader import Loader
from pipelines.packs.format import PackSettings
from pipelines.packs.source import PackFrames
from pipelines.prepare import pool as prepare_pool
from pipelines.prepare.make import prepare
from pipelines.skeleton import COCO_17
from pipelines.videos.header import read_header

SIZE, FRAMES = (96, 64), 9
CONFIG = ClipConfig(
    skeleton=COCO_17, rgb_frames=3, pose_frames=8, rgb_size=32, rgb_size_val=32, heatmap_size=8, heatmap_size_val=8
)
CODECS = {"mp4": "libx264", "avi": "libx264", "mkv": "mpeg4", "webm": "libvpx-vp9", "mov": "libx265"}
QUIET = {"libx265": {"x265-params": "log-level=none"}, "libvpx-vp9": {"cpu-used": "8"}}


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(1, len(content))]


def flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 10, 100, 1000])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def zeroed(content: bytes, rng: random.Random) -> bytes:
    start, length = rng.randrange(len(content)), rng.randrange(1, 4096)
    return content[:start] + bytes(min(length, len(content) - start)) + content[start + length :]


def shuffled(content: bytes, rng: random.Random) -> bytes:
    """Shuffle the blocks of a file, as a bad repair of a disk does."""
    blocks = [content[start : start + 512] for start in range(0, len(content), 512)]
    rng.shuffle(blocks)
    return b"".join(blocks)


def with_changed_header(content: bytes, rng: random.Random) -> bytes:
    """Overwrite some bytes near the start of the file, where headers contain sizes, counts and lengths."""
    changed = bytearray(content)
    for _ in range(rng.randrange(1, 8)):
        start = rng.randrange(min(600, len(changed) - 4))
        changed[start : start + 4] = rng.choice(
            [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\0\x75\x30"]
        )
    return bytes(changed)


def huge(content: bytes, rng: random.Random) -> bytes:
    """Replace width and height by 30000, wherever the file contains them next to each other."""
    for order in ("big", "little"):
        for bytes_each in (2, 4):
            sides = b"".join(side.to_bytes(bytes_each, order) for side in SIZE)
            content = content.replace(sides, (30000).to_bytes(bytes_each, order) * 2)
            sides = b"".join(side.to_bytes(bytes_each, order) for side in reversed(SIZE))
            content = content.replace(sides, (30000).to_bytes(bytes_each, order) * 2)
    return content


FUZZ = {
    "empty": lambda content, rng: b"",
    "noise": lambda content, rng: rng.randbytes(rng.randrange(1, 20_000)),
    "text": lambda content, rng: b"<html>404 not found</html>" * rng.randrange(1, 50),
    **{maker.__name__: maker for maker in (cut, flipped, zeroed, shuffled, with_changed_header, huge)},
}
NEVER_GOOD = ("empty", "noise", "text")


class Fuzzed:
    """A folder with `good` intact videos and `bad` fuzzed videos, in random order."""

    def __init__(self, film, folder: Path, good: int, bad: int, seed: int = 0):
        self.film, self.folder, self.rng = film, folder, random.Random(seed)
        originals = []
        for number, (extension, codec) in enumerate(CODECS.items()):
            path = folder / "originals" / f"{number}.{extension}"
            path.parent.mkdir(exist_ok=True)
            originals.append(film.write(path, film.frames(FRAMES, *SIZE, seed=number), codec, **QUIET.get(codec, {})))
        self.videos = folder / "videos"
        self.videos.mkdir()
        kinds = [list(FUZZ)[number % len(FUZZ)] for number in range(bad)] + ["good"] * good
        self.rng.shuffle(kinds)
        self.kind_of = {f"clip {number:05}": kind for number, kind in enumerate(kinds)}
        for number, (name, kind) in enumerate(self.kind_of.items()):
            original = originals[number % len(originals)]
            if kind == "good":
                os.link(original, self.videos / (name + original.suffix))
                continue
            # often the wrong extension for the content
            suffix = self.rng.choice([original.suffix, ".avi", ".mp4", ".ts"])
            (self.videos / (name + suffix)).write_bytes(FUZZ[kind](original.read_bytes(), self.rng))
        self.clips = [
            film.annotation(name, film.person(FRAMES, *SIZE, seed=number), *SIZE)
            for number, name in enumerate(self.kind_of)
        ]

    def table(self, names: list[str] | None = None):
        folder = self.folder / ("all" if names is None else "some")
        folder.mkdir(exist_ok=True)
        return self.film.table(folder, [clip for clip in self.clips if names is None or clip["frame_dir"] in names])


def order_of(table, pack, epoch: int) -> list[str]:
    """Return the names of the clips in the order in which training gets them."""
    frames = PackFrames(table, pack)
    rows = np.flatnonzero(frames.has_frames())
    work = loader(table, frames, rows)
    seen = np.concatenate([work.plan(epoch, step).row for step in range(work.num_batches)])
    return table.names[seen[: len(rows)]].tolist()


def loader(table, frames: PackFrames, rows: np.ndarray, **changes) -> Loader:
    values = {"table": table, "frames": frames, "rows": rows, "config": CONFIG, "coarse_map": (0,), "train": True}
    values |= {"batch_size": 10, "device": torch.device("cpu"), "threads": 1}
    return Loader(**values | changes)


def survive(film, folder: Path, monkeypatch, good: int, bad: int, seed: int = 0) -> str:
    """Prepare a fuzzed folder, check the pack and train on it. Returns a sentence about the result."""
    work = Fuzzed(film, folder, good, bad, seed)
    monkeypatch.setattr(prepare_pool, "time_limit", lambda job: 10.0)
    start = time.monotonic()
    table = work.table()
    pack, said = packed(work, table)
    seconds = time.monotonic() - start
    assert "took longer" not in said
    for video in work.videos.iterdir():
        read_header(str(video))  # `verify` reads headers too, and must not fail on broken ones
    named = [name for name in work.kind_of if f"{name}: " in said]
    assert all(said.count(f"{name}: ") == 1 for name in named)
    assert sorted(named) == sorted(pack.bad)
    assert not [name for name in named if work.kind_of[name] == "good"]
    assert all(name in named for name, kind in work.kind_of.items() if kind in NEVER_GOOD)
    assert len(named) >= bad // 2
    some = work.table([name for name in work.kind_of if name not in named])
    for epoch in range(3):
        assert order_of(table, pack, epoch) == order_of(some, packed(work, some)[0], epoch)
    frames = PackFrames(table, pack)
    work_loader = loader(table, frames, np.flatnonzero(frames.has_frames()))
    assert sum(1 for _ in work_loader.epoch(0)) == work_loader.num_batches
    assert frames.damaged == set()
    assert "left out: " in packed(work, table)[1]  # a second run does not try bad videos again
    died = said.count("the decoder was killed")
    return f"{len(named)} of {bad} fuzzed videos bad, {died} decoders died, {seconds:.0f} s for {good + bad}"


def packed(work: Fuzzed, table):
    said = io.StringIO()
    settings = PackSettings(count=CONFIG.pose_frames, box_pixels=32)
    quiet = {"workers": 2, "max_bad": 0.6, "console": Console(file=said)}
    pack = prepare(table, work.videos, work.folder / "pack", settings, **quiet)
    return pack, said.getvalue()


def test_fuzzed_videos_cost_only_themselves(tmp_path, film, monkeypatch):
    survive(film, tmp_path, monkeypatch, good=40, bad=20)


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_500_fuzzed_videos_among_1500(tmp_path, film, monkeypatch, seed):
    print(survive(film, tmp_path, monkeypatch, good=1500, bad=500, seed=seed))


def test_packs_damaged_under_a_running_training(tmp_path, film):
    """After training has begun, one byte is damaged in each of five clips out of two hundred.

    The damaged frames are named and replaced by their neighbours. All other pixels of the epoch stay the same.
    """
    work = Fuzzed(film, tmp_path, good=200, bad=0)
    table = work.table()
    pack, _ = packed(work, table)
    config, rows = replace(CONFIG, rgb_frames=FRAMES), np.arange(200)  # reads every frame of a clip
    whole = {
        int(row): rgb.clone() for row, rgb in clips(loader(table, PackFrames(table, pack), rows, config=config), 0)
    }
    said, frames = [], PackFrames(table, pack)
    running = loader(table, frames, rows, config=config, say=said.append)
    late = [int(row) for step in range(8, 20) for row in running.plan(0, step).row]
    rng, damaged, seen = random.Random(5), {}, 0
    for row, rgb in clips(running, 0):
        seen += 1
        if seen == 30:
            damaged = {row: rng.randrange(FRAMES) for row in rng.sample(late, 5)}
            for victim, frame in damaged.items():
                flip_a_byte(pack, victim, frame, rng)
        expected = whole[row]
        if row in damaged:
            frame = damaged[row]
            expected = expected.clone()
            expected[frame] = expected[frame - 1 if frame else 1]
        assert torch.equal(rgb, expected), row
    assert seen == 200
    assert sum(1 for _ in clips(running, 1)) == 200  # the second epoch does not report a frame again
    names = {(str(table.names[row]), frame) for row, frame in damaged.items()}
    assert frames.damaged == names
    assert sorted(said) == sorted(
        f"{name}: frame {frame} in the pack is damaged, so the nearest good frame is used instead"
        for name, frame in names
    )


def clips(work: Loader, epoch: int):
    """Yield (row, frames) for each clip of an epoch."""
    for batch in work.epoch(epoch):
        yield from zip(batch.index.tolist(), batch.rgb, strict=True)


def flip_a_byte(pack, row: int, frame: int, rng: random.Random) -> None:
    first = int(pack.first_packet[row])
    start = int(pack.columns["first"][row]) + int(pack.packets[first : first + frame, 0].sum())
    path = pack.clip_file(row)
    with open(path, "r+b") as file:
        file.seek(start + rng.randrange(int(pack.packets[first + frame, 0])))
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1 << rng.randrange(8)]))
