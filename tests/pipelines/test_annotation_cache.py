"""The table of a pickle is built once and then read from the cache. A damaged table is built again."""

import os
import pickle
import subprocess
from pathlib import Path

import numpy as np
import pytest

from kernels.program import UserError
from kernels.whole_files import read_sealed
from pipelines.annotations.schema import AnnotationError
from pipelines.annotations.stored_joints import StoredJoints
from pipelines.annotations.table import open_table
from pipelines.sealed_arrays import array_file
from tests.pipelines.annotated import clip, table_of
from tests.programs import start


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*.*")) if path.suffix != ".digest"}


def test_a_known_pickle_is_not_read_again(tmp_path):
    table = table_of(tmp_path, [clip("a"), clip("b", 2)])
    assert isinstance(table.joints, StoredJoints)
    assert not table.clip_joints(0).flags.writeable
    made = files(tmp_path / "cache")
    (folder,) = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    again = table_of(tmp_path, [clip("a"), clip("b", 2)])
    assert files(tmp_path / "cache") == made
    assert again.digest == table.digest
    # the cache finds the table by the content of the pickle, not by its name
    (tmp_path / "poses.pkl").rename(tmp_path / "renamed.pkl")
    # changes the cached table, so that the test sees whether the cache is read
    changed = array_file(np.array([7, 8], np.int32))
    (folder / "label.npy").write_bytes(changed)
    assert open_table(tmp_path / "renamed.pkl", tmp_path / "cache").label.tolist() == [7, 8]
    other = table_of(tmp_path, [clip("a"), clip("b", 2, label=4)])
    assert other.digest != table.digest
    assert other.label.tolist() == [3, 4]


@pytest.mark.parametrize("damage", ["lost", "empty", "cut", "garbage", "bit"])
@pytest.mark.parametrize("file", ["joints.npy", "label.npy", "measures.npy", "splits.json", "class_names.json"])
def test_a_damaged_cache_is_made_anew(tmp_path, file, damage):
    content = {"split": {"val": ["b"]}, "annotations": [clip("a"), clip("b", 2)], "class_names": list("abcd")}
    table = table_of(tmp_path, content)
    joints = table.joints[:]
    (path,) = tmp_path.rglob(file)
    whole = path.read_bytes()
    path.unlink()
    if damage != "lost":
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 16]) + whole[middle + 1 :]
        damages = {"empty": b"", "cut": whole[:middle], "garbage": b"\xff" * len(whole), "bit": flipped}
        path.write_bytes(damages[damage])
    again = table_of(tmp_path, content)
    assert path.read_bytes() == whole
    np.testing.assert_array_equal(again.joints[:], joints)
    assert again.names.tolist() == ["a", "b"]
    assert again.rows_in_split("val").tolist() == [1]
    assert again.class_names == table.class_names == ("a", "b", "c", "d")


def test_what_a_kill_left_is_cleared(tmp_path):
    table_of(tmp_path, [clip("a")])
    (folder,) = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    part = folder.rename(folder.with_name(f"{folder.name}.tmp"))
    (part / "label.npy").unlink()
    (part / "names.npy").write_bytes(b"half")
    assert table_of(tmp_path, [clip("a")]).label.tolist() == [3]
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [folder.name]


OPEN = """
import sys
from pathlib import Path
from pipelines.annotations.table import open_table

print("ready", flush=True)
sys.stdin.readline()
table = open_table(Path(sys.argv[1]), Path(sys.argv[2]))
print(len(table), int(table.label.sum()), float(table.joints[:][..., 2].astype("f8").sum()))
"""


def test_processes_at_once_share_one_cache(tmp_path):
    clips = [clip(f"clip{number}", 1 + number % 2, 40, label=number) for number in range(300)]
    path, cache = tmp_path / "poses.pkl", tmp_path / "cache"
    path.write_bytes(pickle.dumps(clips))
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [start("-c", OPEN, path, cache, **pipes) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    shown = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * 3, shown
    assert len({out for out, _ in shown}) == 1
    assert shown[0][0].startswith(f"300 {sum(range(300))} ")
    assert len([entry for entry in cache.iterdir() if entry.is_dir()]) == 1
    assert read_sealed(next(cache.rglob("splits.json"))) == b"{}"


def test_places_that_cannot_be_used(tmp_path):
    with pytest.raises(AnnotationError, match=r"nowhere.pkl cannot be opened \(No such file.*; set data.annotations"):
        open_table(tmp_path / "nowhere.pkl", tmp_path)
    with pytest.raises(AnnotationError, match="is a folder, not a file"):
        open_table(tmp_path, tmp_path)
    path = tmp_path / "poses.pkl"
    path.write_bytes(pickle.dumps([clip()]))
    for cache in (Path("/proc/cache"), path / "cache"):
        with pytest.raises(AnnotationError, match=rf"{cache} cannot be written \(.*\); set data.cache"):
            open_table(path, cache)


def test_a_table_that_is_cut_while_it_is_in_use_ends_in_a_sentence(tmp_path):
    """If the file were memory-mapped, cutting it would kill the process with SIGBUS."""
    table = table_of(tmp_path, [clip("a", frames=300), clip("b", frames=300)])
    (path,) = tmp_path.rglob("joints.npy")
    os.truncate(path, 4096)
    assert len(table.joints[0:10]) == 10
    with pytest.raises(UserError, match=rf"{path} was truncated by another program while it was in use; start again"):
        table.clip_joints(1)
    assert table_of(tmp_path, [clip("a", frames=300), clip("b", frames=300)]).clip_joints(1).shape == (1, 300, 17, 3)
