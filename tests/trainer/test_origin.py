"""The program is whole and runs on a torch that it can trust."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.origin import check_origin, check_torch

ROOT = Path(__file__).resolve().parents[2]


def test_all_packages_come_from_here():
    check_origin()


def test_a_foreign_package_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").touch()
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from trainer.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--list"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: the package 'kernels' would come from {tmp_path}, not from {ROOT}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("version", ["2.11.0", "2.13.0+cpu", "3.0.0"])
def test_new_torch_is_taken(version):
    check_torch(version)


@pytest.mark.parametrize(("version", "reason"), [("2.9.1", "conv3d is broken"), ("2.10.0", "too old")])
def test_old_torch_is_refused_with_the_reason(version, reason):
    with pytest.raises(ImportError, match=reason):
        check_torch(version)
