"""If a disk is too small for a pack, the program reports it after the first clips and keeps them.

The tests mount a small disk.
"""

import shutil
import subprocess

import pytest

from kernels.program import UserError
from pipelines.prepare import room as pack_room
from pipelines.prepare.make import prepare_shard
from pipelines.prepare.room import FEW, Room, spread_first
from pipelines.prepare.shard import Shard


@pytest.fixture
def small_disk(tmp_path):
    """Return a folder on a separate disk of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"this machine does not allow mounting a tmpfs: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_too_small_a_disk_is_told_before_it_is_full(scene, small_disk, monkeypatch):
    """Sixty clips of about 90 KB do not fit into 4 MB.

    The first run stops after about sixteen clips. The next run stops at once.
    """
    work = scene(*[26] * 60)
    for number in range(1, 60):
        shutil.copy(work.video(0), work.video(number))
    monkeypatch.setattr(pack_room, "SPARE", 1 << 20)
    out = small_disk / "pack"
    with pytest.raises(UserError, match=r"needs \d+\.\d MB more, but its disk has only \d\.\d MB free; free some"):
        work.prepare(out)
    made = len(list((out / "clips").glob("*.mov")))
    assert FEW <= made <= FEW + 2
    with pytest.raises(UserError, match=r"choose another folder \(--out, --packs, data.packs\)"):
        work.prepare(out)
    assert len(list((out / "clips").glob("*.mov"))) == made
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    pack, said = work.prepare(out)
    assert "the remaining clips need about" in said
    assert (pack.num_frames == 26).all()
    assert 40_000 < pack.columns["clip_bytes"].min() < pack.columns["clip_bytes"].max() < 150_000
    assert f"{60 - made} made" in said


def test_a_shard_leaves_room_for_the_others(scene, small_disk, monkeypatch):
    """The twenty clips of one shard would fit on the disk, but the sixty clips of all shards would not."""
    work = scene(*[26] * 60)
    for number in range(1, 60):
        shutil.copy(work.video(0), work.video(number))
    monkeypatch.setattr(pack_room, "SPARE", 1 << 20)
    with pytest.raises(UserError, match=r"needs \d+\.\d MB more, but its disk has only \d\.\d MB free; free some"):
        prepare_shard(work.table(), work.videos, small_disk / "pack", work.settings, Shard(0, 3), workers=1)


def test_the_estimate_is_right(scene):
    """The estimate after sixteen of forty clips agrees with the final size of the pack."""
    work = scene(*[8 + number % 5 for number in range(40)])
    pack, said = work.prepare()
    (line,) = [line for line in said.splitlines() if "remaining clips" in line]
    amount, unit = line.partition("about ")[2].split()[:2]
    assert unit == "MB;"
    rest = pack.columns["clip_bytes"].sum() * 24 / 40 / 1e6
    assert float(amount) == pytest.approx(rest, rel=0.15)


def test_a_full_disk_in_the_middle_of_a_clip_is_one_sentence(scene, small_disk):
    """There are too few clips for an estimate, so the run goes on until it fails to write a clip."""
    work = scene(8, 9, 10)
    filling = small_disk / "filling"
    filling.write_bytes(bytes(shutil.disk_usage(small_disk).free - (40 << 10)))
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        work.prepare(small_disk / "pack")
    filling.unlink()
    assert work.prepare(small_disk / "pack")[0].num_frames.tolist() == [8, 9, 10]


def test_the_first_clips_come_from_all_over():
    for count in (0, 1, 15, 16, 17, 100, 57_000):
        rows = list(range(count))
        order = spread_first(rows)
        assert sorted(order) == rows
        if count >= FEW:
            assert max(order[: FEW // 2]) - min(order[: FEW // 2]) >= count // 4


def test_bad_clips_count_for_nothing(tmp_path):
    room = Room(tmp_path, [], 1000)
    for _ in range(100):
        assert room.add({"bad": "the video cannot be decoded", "num_frames": 0, "clip_bytes": 0}, 10) is None
    assert not room.can_estimate
