"""`prepare` and `annotate` are killed with SIGKILL. When they run again, they make the same files as an unbroken run.

The tests count their kills, and fail if a process ends in another way.
"""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from tests import programs
from tests.pipelines.test_annotate import RTMLIB
from tests.pipelines.test_prepare import digests, words_of

DRIVER = Path(__file__).with_name("killed_at_call.py")


def run(words, point=0, environment=None):
    return programs.run_forked(DRIVER, point, *words, environment=environment)


def kill_at_points(words, state, environment=None, count=2):
    """Kill a program at `count` points, of which the last is its last system call, each time in a new folder.

    Then run it again until it ends.

    words: returns the program's command line for a folder. state: returns what the program has made in a folder.
    Returns the number of kills, and the state after a run that was not killed.
    """
    whole = run(words("whole"), 0, environment)
    assert whole.returncode == 0, whole.stderr
    expected, calls, kills = state("whole"), int(whole.stdout.splitlines()[-1]), 0
    assert calls >= count
    for point in np.linspace(0, calls, count + 1)[1:].astype(int).tolist():
        killed = run(words(f"killed{point}"), point, environment)
        kills += killed.returncode == -signal.SIGKILL
        again = run(words(f"killed{point}"), 0, environment)
        assert again.returncode == 0, again.stderr
        assert state(f"killed{point}") == expected, point
    return kills, expected


@pytest.mark.parametrize("count", [2, pytest.param(20, marks=pytest.mark.soak)])
def test_a_prepare_that_is_killed_makes_the_same_pack(scene, count):
    work = scene(8, 9, 10, 11)
    work.prepare(work.folder / "unbroken")
    first, second, *rest = words_of(work, "--workers", "1")
    place = rest.index("--out") + 1

    def words(name):
        return [second, *rest[:place], work.folder / name, *rest[place + 1 :]]

    assert first == "-m"
    expected = digests(work.folder / "unbroken")
    assert kill_at_points(words, lambda name: digests(work.folder / name), count=count) == (count, expected)


def arrays_of(path):
    """Return the arrays of an .npz file. Its bytes cannot be compared, because they contain the time of writing."""
    with np.load(path) as content:
        return {name: (content[name].shape, content[name].tobytes()) for name in content.files}


@pytest.mark.parametrize("count", [2, pytest.param(12, marks=pytest.mark.soak)])
def test_an_annotate_that_is_killed_makes_the_same_file(scene, tmp_path, count):
    work = scene(8, 9, 10, 11)
    (tmp_path / "rtmlib.py").write_text(RTMLIB.replace("if self.frames % 13 != 4 else", "if True else"))
    lines = [f"{name}.mp4,{number % 2},{'train' if number < 2 else 'val'}" for number, name in enumerate(work.names)]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}

    def words(name):
        (tmp_path / name).mkdir(exist_ok=True)
        out = ("--out", tmp_path / name / "my.pkl", "--estimator", "rtmlib")
        return ["pipelines.annotate", work.videos, tmp_path / "labels.csv", *out]

    def made(name):
        folder = tmp_path / name / "my_poses"
        assert not list(folder.glob("*.tmp*"))
        poses = {path.name: arrays_of(path) for path in folder.glob("*.npz")}
        return poses | {"my.pkl": (tmp_path / name / "my.pkl").read_bytes()}

    kills, expected = kill_at_points(words, made, environment, count)
    assert kills == count
    assert len(expected) == 5
