"""`prepare --check` finds all damage to a pack, names each damaged clip once, and lists the files to remove."""

from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from rich.console import Console

from kernels.whole_files import seal
from pipelines.packs.format import PackError
from pipelines.prepare.check import check_pack
from tests.programs import run_here

pytestmark = pytest.mark.usefixtures("build_here")


def faults(folder: Path) -> list[tuple[str, Path, str]]:
    return list(check_pack(folder, Console(quiet=True)))


def command(folder: Path) -> CompletedProcess:
    return run_here("-m", "pipelines.prepare", "--check", folder)


@pytest.fixture
def work(scene):
    made = scene(8, 9, 10, 11, 12)
    made.video(4).unlink()  # a clip that was never made does not count as damaged
    made.prepare()
    return made


def test_a_whole_pack_is_whole(work):
    assert faults(work.out) == []
    done = command(work.out)
    assert (done.returncode, done.stdout) == (0, "")
    assert f"{work.out}: all 4 clips are undamaged" in done.stderr


def test_damage_of_every_kind_is_named_once_and_mended(work):
    cut, lost, flipped = (work.clip(number) for number in (0, 1, 3))
    size = cut.stat().st_size
    cut.write_bytes(cut.read_bytes()[:-1])
    lost.unlink()
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    done = command(work.out)
    assert done.returncode == 2
    assert sorted(done.stdout.splitlines()) == [str(cut), str(lost), str(flipped)]
    assert f"{work.names[0]}: the file has {size - 1:,} bytes, but had {size:,} when it was written\n" in done.stderr
    assert f"{work.names[1]}: the file cannot be read (No such file or directory)\n" in done.stderr
    assert f"{work.names[3]}: damaged frames: 1 of 11 (" in done.stderr
    assert all(done.stderr.count(name) == 1 for name in (work.names[0], work.names[1], work.names[3]))
    assert done.stderr.endswith(
        "3 of 4 clips are damaged; remove their files and run python -m pipelines.prepare again\n"
    )
    for path in done.stdout.splitlines():
        Path(path).unlink(missing_ok=True)
    assert "3 whose file in the pack is missing or has a different size" in work.prepare()[1]
    assert faults(work.out) == []


def test_every_flipped_bit_of_a_packet_is_found(work):
    pack, _ = work.prepare()
    path = work.clip(2)
    whole, first = path.read_bytes(), int(pack.columns["first"][2])
    for position in np.linspace(first, first + int(pack.packets[17:27, 0].sum()) - 1, 25).astype(int):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 16]) + whole[position + 1 :])
        (fault,) = faults(work.out)
        assert fault[0] == work.names[2]


@pytest.mark.parametrize("column", ["num_frames", "region", "packets", "name"])
def test_an_index_that_is_not_the_manifests(work, column):
    path = work.out / "index" / f"{column}.npy"
    array = np.load(path)
    array.flat[0] = "X" if column == "name" else array.flat[0] + 1
    np.save(path, array)
    seal(path)  # without a valid seal, the program would build the index again from the manifest
    with pytest.raises(PackError, match=f"the index differs from manifest.jsonl in {column}; remove .*index and run"):
        faults(work.out)
    done = command(work.out)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_no_pack_is_one_sentence(tmp_path):
    done = command(tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path} contains no finished pack; make one with python -m pipelines.prepare\n"
