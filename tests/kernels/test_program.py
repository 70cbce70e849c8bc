"""Every program checks before it starts where its packages come from, and whether all of them are installed."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from kernels.program import REQUIREMENTS, UserError, check_origin, check_torch
from tests.programs import ROOT, run


def test_all_packages_come_from_here():
    check_origin()


def test_a_foreign_package_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").touch()
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from trainer.cli import main; main()"
    done = run("-c", code, "--list")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: the package 'kernels' would come from {tmp_path}, not from {ROOT}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("version", ["2.11.0", "2.13.0+cpu", "3.0.0"])
def test_new_torch_is_taken(version):
    check_torch(version)


@pytest.mark.parametrize("version", ["2.9.1", "2.10.0"])
def test_old_torch_is_refused(version):
    with pytest.raises(UserError, match=f"torch {version} is too old: install 2.11"):
        check_torch(version)


def without(missing: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program with all packages of this environment except `missing`. If `missing` is "all", all are absent."""
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        hidden = missing == "all" or entry.name.startswith((missing, "__editable__")) or entry.suffix == ".pth"
        if not hidden:
            (folder / entry.name).symlink_to(entry)
    command = [sys._base_executable, "-S", "-m", *words]  # pyright: ignore[reportAttributeAccessIssue]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="the tests do not run in a virtual environment")
@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("all", ("trainer", "--exp", "demo")),
        ("nvidia", ("trainer", "doctor")),
        ("av", ("pipelines.verify", "a.pkl", "--videos", "v")),
        ("safetensors", ("models.weights", "inspect", "a.pth")),
    ],
)
def test_a_missing_package_is_told_in_one_sentence(tmp_path, missing, words):
    done = without(missing, tmp_path, *words)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    named = "torch, numpy, tyro" if missing == "all" else "nvidia-dali" if missing == "nvidia" else missing
    assert f"has no {named}" in done.stderr
    assert "bin/activate" in done.stderr or "make install" in done.stderr


def test_the_required_packages_are_those_of_setup_py():
    required = re.findall(r'^        "([a-z0-9-]+)[>=;]', (ROOT / "setup.py").read_text(), re.MULTILINE)
    listed = {package for package in REQUIREMENTS.values() if not package.startswith("nvidia-dali")}
    assert listed == {*required[: required.index("nvtx") + 1]} - {"triton"}
