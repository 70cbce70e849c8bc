"""Snapshot files are complete or absent, damage is always found, and code in the files never runs."""

import hashlib
import os
import pickle
import struct
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from models.weights.files import MAGIC, TRAILER, SnapshotError, WeightsError, load, read_file, save
from tests.programs import run_forked


def state(seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        "model": {
            "weight": torch.randn(40, 30, generator=generator),
            "half": torch.randn(7, generator=generator).bfloat16(),
            "count": torch.tensor(3),
            "mask": torch.tensor([True, False]),
            "channels_last": torch.randn(2, 3, 4, 5, generator=generator).to(memory_format=torch.channels_last),
        },
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "groups": [{"lr": 0.1, "params": [0, 1]}]},
        "cursor": {"epoch": 3, "best": -float("inf"), "name": "best_acc_RGBPose_1:1_top1", "none": None, "on": True},
        "pair": (1, 2.5),
    }


def assert_equal(found, expected) -> None:
    if isinstance(expected, torch.Tensor):
        assert (found.dtype, found.stride()) == (expected.dtype, expected.stride())
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_equal(found[key], expected[key])
    else:
        assert type(found) is type(expected)
        assert found == expected


def seal(path: Path, archive: bytes) -> None:
    """Write `archive` with a correct trailer, as an attacker who knows the format could."""
    length = len(archive)
    archive = archive[:-2] + struct.pack("<H", TRAILER.size)
    path.write_bytes(archive + TRAILER.pack(MAGIC, length, hashlib.sha256(archive).digest()))


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    save(tmp_path / "a.pth", state())
    assert_equal(load(tmp_path / "a.pth"), state())
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_torch_and_zip_read_the_file_as_it_is(tmp_path: Path) -> None:
    save(tmp_path / "a.pth", state())
    assert_equal(torch.load(tmp_path / "a.pth", weights_only=True), state())
    assert zipfile.ZipFile(tmp_path / "a.pth").testzip() is None


def test_every_single_bit_flip_is_found(tmp_path: Path) -> None:
    """Flips each bit of the first 30 bytes and of the last 80 bytes (which include the trailer), and 200 other bits."""
    path = tmp_path / "a.pth"
    save(path, state())
    whole = path.read_bytes()
    bits = len(whole) * 8
    chosen = {*range(30 * 8), *range(bits - 80 * 8, bits), *np.random.default_rng(0).integers(bits, size=200).tolist()}
    for bit in chosen:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(SnapshotError, match=r"a\.pth"):
            load(path)


def test_every_truncation_and_every_tail_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    save(path, state())
    whole = path.read_bytes()
    near_the_end = range(len(whole) - 60, len(whole))
    for length in {*(i * len(whole) // 64 for i in range(64)), *near_the_end}:
        path.write_bytes(whole[:length])
        with pytest.raises(SnapshotError, match=r"a\.pth \(\d+ bytes\) is cut short|a\.pth is damaged"):
            load(path)
    for tail in (b"\0", whole[-48:], whole):
        path.write_bytes(whole + tail)
        with pytest.raises(SnapshotError):
            load(path)


def test_a_zeroed_block_is_found(tmp_path: Path) -> None:
    """A power loss leaves zeros if the disk has the new length of a file, but not yet its content."""
    path = tmp_path / "a.pth"
    save(path, state())
    whole = bytearray(path.read_bytes())
    whole[1024:2048] = bytes(1024)
    path.write_bytes(whole)
    with pytest.raises(SnapshotError, match=r"a\.pth is damaged"):
        load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match=r"absent\.pth cannot be read as a snapshot: .*No such file"):
        load(tmp_path / "absent.pth")


class Hostile:
    def __init__(self, call, *arguments: str) -> None:
        self.reduced = call, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("call", [os.system, eval, exec, os.mkdir, open, getattr, __import__, subprocess.getoutput])
def test_a_foreign_pickle_is_refused_and_not_run(tmp_path: Path, call) -> None:
    """Tries a plain pickle, torch's own format, and torch's format with a correct digest."""
    marker = tmp_path / "marker"
    arguments = {os.mkdir: (str(marker),), open: (str(marker), "w")}.get(call, (f"touch {marker}",))
    hostile, path = {"model": Hostile(call, *arguments)}, tmp_path / "a.pth"
    torch.save(hostile, tmp_path / "torch.pth")
    for content in (pickle.dumps(hostile), (tmp_path / "torch.pth").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(SnapshotError, match="not a snapshot of this program"):
            load(path)
    seal(path, (tmp_path / "torch.pth").read_bytes())
    with pytest.raises(SnapshotError, match=r"a\.pth cannot be read as a snapshot"):
        load(path)
    assert not marker.exists()


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("archive/data.pkl", bytes(50_000_000))
    seal(tmp_path / "a.pth", (tmp_path / "bomb.zip").read_bytes())
    with pytest.raises(SnapshotError, match="unpacks to more than its"):
        load(tmp_path / "a.pth")


FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from models.weights.files import SnapshotError, save
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))  # no file grows beyond
for size in (25_000, 200_000, 1_000_000):  # the first passes torch's writer and meets the limit at its end
    try:
        save(Path(sys.argv[1]), {"weight": torch.zeros(size)})
    except SnapshotError as error:
        print(error)
"""


def test_a_full_disk_leaves_the_old_file_and_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    save(path, state())
    ran = run_forked("-c", FULL_DISK, path)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"{path} could not be written (") and "--resume" in line for line in lines)
    assert_equal(load(path), state())
    assert os.listdir(tmp_path) == ["a.pth"]


def test_weights_are_read_from_no_damaged_snapshot(tmp_path):
    """`eval`, `predict`, `export` and --init read snapshots with the function that reads all checkpoints."""
    path = tmp_path / "latest.pth"
    save(path, {"model": {"weight": torch.arange(4096.0)}})
    assert read_file(path)["weight"].tolist() == list(range(4096))
    whole = path.read_bytes()
    for place in range(0, len(whole) - TRAILER.size, len(whole) // 40):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        with pytest.raises(WeightsError, match=f"{path} is damaged: its bytes do not match the digest in it"):
            read_file(path)
