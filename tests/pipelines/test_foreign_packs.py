"""Packs may come from strangers: no line of the manifest and no link lets a program touch files outside the pack."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from kernels.program import UserError
from pipelines.packs.format import read_index, read_manifest
from pipelines.packs.lines import leads_out
from pipelines.prepare.inventory import drop
from pipelines.sealed_arrays import array_file
from tests.programs import run_here

pytestmark = pytest.mark.usefixtures("build_here")


def lines_of(pack: Path) -> list[dict]:
    return [json.loads(line) for line in (pack / "manifest.jsonl").read_text().splitlines()]


def write(pack: Path, lines: list) -> None:
    (pack / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def pack(scene, tmp_path) -> Path:
    made = scene(8, 9)
    made.prepare()
    (tmp_path / "precious.mov").write_bytes(b"precious")
    return made.out


OUT = (
    "../precious.mov",
    "clips/../../precious.mov",
    "clips/./../../precious.mov",
    "{above}/precious.mov",
    "clips/a\0b",
)


@pytest.mark.parametrize("file", OUT)
def test_no_line_leads_out_of_the_pack(pack, tmp_path, file):
    """A line of the manifest or of the index is ignored if it names a file outside the pack.

    The clip of this line counts as missing, and the file outside the pack is kept.
    """
    file = file.format(above=tmp_path)
    good, bad = lines_of(pack)
    write(pack, [good, bad | {"file": file}])
    assert [*read_manifest(pack)] == [good["clip"]]
    assert leads_out([file])
    if "\0" not in file:
        index = pack / "index"
        (index / "file.npy").write_bytes(array_file(np.array([good["file"], file])))
        (index / "manifest_bytes.npy").write_bytes(array_file(np.array((pack / "manifest.jsonl").stat().st_size)))
    assert read_index(pack).columns["clip"].tolist() == [good["clip"]]
    done = run_here("-m", "pipelines.prepare", "--check", pack)
    assert done.stdout == ""
    for each in (tmp_path / "scene.pkl", tmp_path / "annotations.pkl"):
        each.unlink(missing_ok=True)
    drop(pack, tmp_path / "cache", Console(file=io.StringIO()))
    assert (tmp_path / "precious.mov").read_bytes() == b"precious"


ODD = (
    *([1], 7, None, "text", {"clip": "a"}, {"name": 5}, {"clip": ["a"]}),
    *(
        {"region": [0, 0]},
        {"stamps": [[1]]},
        {"packets": "x"},
        {"packets": "AAAA"},
        {"num_frames": -1},
        {"fewest": 1 << 40},
    ),
    *({"frame_size": [1 << 70, 1]}, {"source_size": "ab"}, {"bad": None}, {"num_frames": True}),
)


def test_odd_lines_are_passed_over(pack):
    first, second = lines_of(pack)
    odd = [second | {"clip": f"x{i}"} | line if isinstance(line, dict) else line for i, line in enumerate(ODD)]
    odd[5] = {"name": 5}
    write(pack, [first, *odd, second])
    with open(pack / "manifest.jsonl", "ab") as file:
        file.write(b"[" * 100_000 + b"\n\xff\xfe\n" + json.dumps(first).encode()[:50])
    assert set(read_manifest(pack)) == {first["clip"], second["clip"], "a"}
    assert len(read_index(pack).columns["clip"]) == 3


def test_paths_for_xargs_end_with_zero_bytes_and_others_are_escaped(pack):
    lines = lines_of(pack)
    write(pack, [line | {"file": f"clips/x\n{pack.parent}/precious.mov.{i}"} for i, line in enumerate(lines)])
    plain, zero = (run_here("-m", "pipelines.prepare", "--check", pack, *more) for more in ((), ("-0",)))
    assert plain.returncode == zero.returncode == 2
    assert [path.count("\\n") for path in plain.stdout.splitlines()] == [1, 1]
    assert len(zero.stdout.split("\0")) == 3
    assert all(path.startswith(f"{pack}/clips/") for path in zero.stdout.split("\0")[:-1])


def test_what_lies_behind_a_link_is_not_removed(pack, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (pack / "clips").rename(elsewhere)
    (elsewhere / "notes.txt").write_text("precious")
    (pack / "clips").symlink_to(elsewhere)
    before = sorted(elsewhere.iterdir())
    with pytest.raises(UserError, match="clips is a link to a place outside of the pack"):
        drop(pack, tmp_path / "cache", Console(file=io.StringIO()))
    assert sorted(elsewhere.iterdir()) == before
    for file in elsewhere.glob("*.mov"):
        file.write_bytes(b"damaged")
    done = run_here("-m", "pipelines.prepare", "--check", pack, "--null")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"is outside of {pack}: check the pack that it is in" in done.stderr
    (pack / "clips").unlink()
    elsewhere.rename(pack / "clips")
    drop(pack, tmp_path / "cache", Console(file=io.StringIO()))
