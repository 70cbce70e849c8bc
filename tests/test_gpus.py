"""On a machine with GPUs, `make test` runs the tests as on a CPU, and only `pytest -m gpu` sees the GPUs."""

import os

import pytest

from tests.gpus import SEES_GPUS, hide_gpus_unless_selected, selects_gpu_tests

DECIDED = os.environ.get(SEES_GPUS), os.environ.get("CUDA_VISIBLE_DEVICES")  # while pytest imports the tests


def test_conftest_decides_before_any_test_runs():
    assert DECIDED[0] is not None
    assert DECIDED[0] == "1" or DECIDED[1] == ""


@pytest.mark.parametrize(
    "line", ["-m gpu", "-mgpu", "-q -m gpu tests/test_card.py", "-m gpu and not soak -x", "-m=gpu"]
)
def test_gpu_tests_are_selected(line):
    assert selects_gpu_tests(line.split(" "))


@pytest.mark.parametrize("line", ["", "-n 2 --dist worksteal", "-m soak", "-m not gpu and not soak", "-k gpu -m soak"])
def test_gpu_tests_are_not_selected(line):
    assert not selects_gpu_tests(line.split(" "))


def test_gpus_are_hidden_from_this_process_and_its_children(monkeypatch):
    for arguments, devices in ((["-n", "2"], ""), (["-m", "gpu"], "0,1")):
        monkeypatch.delenv(SEES_GPUS, raising=False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
        hide_gpus_unless_selected(arguments)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == devices
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
        hide_gpus_unless_selected([])  # a worker of pytest-xdist does not get the arguments
        assert os.environ["CUDA_VISIBLE_DEVICES"] == devices
