"""Without a C compiler or without Python.h, runs still complete. One line reports each feature that they cannot use."""

import os
import sysconfig

import pytest

from tests import programs
from tests.trainer.test_resume import assert_equal
from trainer.snapshots.writer import newest_valid

# A run on a CPU that behaves as on a GPU: Triton builds its launcher, and DALI looks for the JPEG engine.
AS_ON_A_CARD = """
import sys, sysconfig
from triton.backends.nvidia.driver import CudaDriver
from pipelines.backends import Backends
from trainer.cli import main

include, *sys.argv[1:] = sys.argv[1:]
sysconfig.get_paths = lambda scheme: {"include": include}
CudaDriver.is_active = staticmethod(lambda: True)
Backends.fastest = classmethod(lambda backends, device, say: backends("mixed", "kernel", say))
main()
"""
INCLUDE = sysconfig.get_paths()["include"]


@pytest.fixture
def train(tiny, environment, tmp_path):
    """Return a function that trains two steps by `python WORDS`, and returns the log and the snapshot's state."""

    def run(name, *words, path=tmp_path):
        hidden = {"PATH": str(path), "TRITON_CACHE_DIR": str(tmp_path / "cache"), "TRITON_LIBCUDA_PATH": str(tmp_path)}
        kept = {key: value for key, value in environment.items() if key not in ("TRITON_INTERPRET", "CC", "CXX")}
        more = ("--max-steps", "2", "--work-dir", tmp_path / name)
        done = programs.run_forked(*words, *tiny, *more, environment=kept | hidden)
        assert done.returncode == 0, done.stdout + done.stderr
        snapshot = newest_valid(tmp_path / name, print)
        assert snapshot is not None
        return (tmp_path / name / "train.log").read_text(), snapshot.state

    return run


def test_runs_without_a_compiler_or_python_h(train, tmp_path):
    log, expected = train("demo", "-m", "trainer")  # `make demo` on a CPU has these settings and needs no compiler
    assert "slower" not in log
    on_a_card = ("-c", AS_ON_A_CARD)
    without_cc = train("cc", *on_a_card, INCLUDE, "--set", "compile=True")
    without_header = train("header", *on_a_card, tmp_path, "--set", "compile=True", path=os.environ["PATH"])
    for (log, state), compiling, drawing in (
        (without_cc, "there is no C++ compiler", "there is no C compiler; install gcc"),
        (without_header, f"{tmp_path} has no Python.h", f"{tmp_path} has no Python.h; install python3."),
    ):
        lines = [line.partition("INFO - ")[2] for line in log.splitlines() if "slower" in line]
        starts = (
            compiling,
            "the GPU cannot decode JPEG frames (Assert on",
            f"the heatmap kernel cannot be used ({drawing}",
        )
        assert len(lines) == len(starts), log
        for line, start in zip(sorted(lines), sorted(starts), strict=True):
            assert line.startswith(start)
        for part in ("model", "optimizer"):
            assert_equal(state[part], expected[part])
