"""The demo's data set is the same for any number of processes and after any kill. Files of the user are kept."""

import hashlib
import os
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.demo.classes import DemoConfig, clip_ids
from pipelines.demo.clip import encode, film, generator
from pipelines.demo.make import alone, claim, make_demo
from tests import programs

SHIPPED = DemoConfig()
TINY = DemoConfig(num_train=12, num_val=4, size=(160, 120), num_frames=(6, 9))


def digests(root: Path) -> dict[str, str]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_bytes_depend_on_no_number_of_workers(tmp_path):
    made = []
    for workers in (1, 3):
        make_demo(tmp_path / str(workers), TINY, workers)
        made.append(digests(tmp_path / str(workers)))
    assert made[0] == made[1]
    assert len(made[0]) == 16 + 2
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    make_demo(tmp_path / "1", TINY, 2)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert digests(make_demo(tmp_path / "other", replace(TINY, seed=1)).parent) != made[0]


LONGER = replace(TINY, num_frames=(30, 40))


def test_bytes_depend_on_nothing_left_in_memory(tmp_path):
    """Clips are encoded without x264's macroblock tree, which reads uninitialised memory (with AVX-512).

    With it, the bytes would differ when one process encodes eight clips.
    """
    clips = clip_ids(LONGER)[:8]
    made: list[set[bytes]] = [set() for _ in clips]
    for _ in range(5):
        for clip, bytes_seen in zip(clips, made, strict=True):
            encode(film(LONGER, clip), tmp_path / "clip.mp4", LONGER, generator(LONGER, clip, 3))
            bytes_seen.add((tmp_path / "clip.mp4").read_bytes())
    assert [len(bytes_seen) for bytes_seen in made] == [1] * 8


MAKE = """
import sys
from pathlib import Path
from pipelines.demo.make import make_demo
from tests.pipelines.test_demo_runs import LONGER
make_demo(Path(sys.argv[1]), LONGER, workers=2)
"""


def making(root: Path) -> subprocess.Popen:
    return programs.start("-c", MAKE, root, stdout=None, stderr=subprocess.DEVNULL)


def test_killed_runs_go_on_to_the_same_bytes_even_two_at_once(tmp_path):
    whole = digests(make_demo(tmp_path / "whole", LONGER).parent)
    root = tmp_path / "killed"
    videos, deadline = root / "videos", time.monotonic() + 60
    process = making(root)
    # waits until a worker is writing a clip
    while not (len(list(videos.glob("*.mp4"))) >= 2 and list(videos.glob("*.tmp*"))):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while any(Path(f"/proc/{worker}/exe").exists() for worker in workers):
        assert time.monotonic() < deadline, "workers are still running after their run has ended"
        time.sleep(0.01)
    assert not (root / "annotations.pkl").exists()
    assert len(list(videos.glob("*.mp4"))) < 16
    (videos / f"{clip_ids(TINY)[-1].name}.123.tmp").write_bytes(b"half a clip")
    again = [making(root) for _ in range(2)]
    assert [process.wait(60) for process in again] == [0, 0]
    assert digests(root) == whole


def test_a_second_run_waits_for_the_first(tmp_path):
    root = tmp_path / "demo"
    two_clips = replace(TINY, num_train=1, num_val=1)
    with alone(root):
        second = threading.Thread(target=make_demo, args=(root, two_clips), daemon=True)
        second.start()
        second.join(0.3)
        assert list(root.iterdir()) == []
    second.join(60)
    assert len(digests(root)) == 2 + 2


def test_a_folder_of_another_config_is_replaced(tmp_path):
    old = digests(make_demo(tmp_path / "demo", replace(TINY, seed=3, num_train=4)).parent)
    new = digests(make_demo(tmp_path / "demo", replace(TINY, num_train=3)).parent)
    assert len(old) == 4 + 4 + 2
    assert len(new) == 3 + 4 + 2
    assert not set(old.values()) & set(new.values())


def test_foreign_videos_are_refused_and_kept(tmp_path):
    video = tmp_path / "videos" / "holiday.mp4"
    video.parent.mkdir()
    video.write_bytes(b"mine")
    for record in (None, "", "{}", "[]", '{"digest": 1'):
        if record is not None:
            (tmp_path / "demo.json").write_text(record)
        with pytest.raises(ValueError, match=f"{video.parent} contains files that the demo did not make"):
            make_demo(tmp_path, TINY)
        assert video.read_bytes() == b"mine"


@pytest.mark.parametrize("file", ["annotations.pkl", "labels.csv"])
def test_files_of_ones_own_are_refused_and_kept(tmp_path, file):
    """A user may name their own folder, as in `--exp demo --set data.annotations=mine/annotations.pkl`."""
    mine = tmp_path / file
    mine.write_bytes(b"mine")
    with pytest.raises(ValueError, match=f"{mine} was not made by the demo"):
        make_demo(tmp_path, TINY)
    assert mine.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [mine]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        ValueError, match=r"the demo's data cannot be written to .*\(Not a directory\); choose another folder"
    ):
        make_demo(tmp_path / "file" / "demo", TINY)


def run(*arguments: str) -> subprocess.CompletedProcess:
    return programs.run("-m", "pipelines.demo", *arguments)


def test_command_line(tmp_path):
    """A complete folder is not changed, and the exit code is 0. A mistake gives one sentence and exit code 2."""
    root = tmp_path / "demo"
    claim(root, SHIPPED)
    for clip in clip_ids(SHIPPED):
        (root / "videos" / f"{clip.name}.mp4").touch()
    (root / "annotations.pkl").write_bytes(b"complete")
    done = run("--out", str(root))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"demo data: {root / 'annotations.pkl'}\n"
    assert done.stderr == ""
    assert (root / "annotations.pkl").read_bytes() == b"complete"
    (root / "demo.json").unlink()
    for out, reason in ((str(root), "contains files that the demo did not make"), ("/proc/demo", "/proc/demo")):
        bad = programs.run_here("-m", "pipelines.demo", "--out", out)
        assert bad.returncode == 2
        assert reason in bad.stderr
        assert bad.stderr.count("\n") == 1
    assert programs.run_here("-m", "pipelines.demo", "--size", "9").returncode == 2
