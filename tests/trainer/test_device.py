"""If there is a driver but torch sees no GPU, --device auto and `doctor` say so. Runs do not silently use the CPU."""

import pytest
import torch

from kernels.driver import Driver
from tests.fake_driver import NEWEST_CUDA, machine_with
from tests.programs import run_forked
from trainer.cli import run_command
from trainer.commands.doctor import cpu, dali
from trainer.runtime.ranks import device_of

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU")
# If the installed torch is built for CUDA, it fits some of these drivers, and messages then suggest no other build.
BUILT_FOR_CUDA = torch.version.cuda is not None


@pytest.fixture(params=NEWEST_CUDA)
def version(request, tmp_path, monkeypatch) -> str:
    """Return the version of a fake driver.

    In this process, only the fake nvidia-smi is found. New processes also find the fake libcuda.
    """
    monkeypatch.setenv("PATH", machine_with(tmp_path, request.param)["PATH"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return request.param


def wheels(version: str) -> str:
    return "cu13" if version.startswith("580") else "cu12"


@pytest.mark.parametrize("command", ["", "eval", "predict", "view"])
def test_no_command_takes_the_cpu_of_a_machine_with_a_driver(version, command, tmp_path, capsys):
    more = {"eval": ["--checkpoint", "x.pth"], "predict": ["a.mp4", "--checkpoint", "x.pth"]}.get(command, [])
    folder = ["--work-dir", str(tmp_path / "run")] if not command else []
    assert run_command([*([command] if command else []), "--exp", "demo", *more, *folder]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: --device auto: this machine has NVIDIA driver ")
    assert shown.err.count("\n") == 1
    assert version in shown.err
    assert shown.err.endswith("or use --device cpu\n")
    assert f"run make CUDA={wheels(version)} in the checkout" in shown.err or BUILT_FOR_CUDA
    assert not (tmp_path / "run").exists()


def test_the_cpu_is_taken_where_it_is_asked_for(version, monkeypatch):
    assert device_of("cpu") == "cpu"
    for hides in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hides)
        assert device_of("auto") == "cpu"
    with pytest.raises(ValueError, match="--device cuda: torch sees no GPU here"):
        device_of("cuda")


def test_the_doctor_says_what_to_do_about_the_driver(version, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert run_command(["doctor"]) == 2
    shown = capsys.readouterr().out
    assert "fix these first: GPU" in shown
    assert f"NVIDIA driver {version}" in " ".join(shown.split())
    assert f"make CUDA={wheels(version)}" in shown or BUILT_FOR_CUDA
    assert run_command(["doctor", "--device", "cpu"]) == 0
    assert "none: training runs on the CPU, slowly" in capsys.readouterr().out


def test_a_container_with_libcuda_but_no_nvidia_smi(tmp_path):
    environment = machine_with(tmp_path, cuda=12020)
    code = f"import ctypes; ctypes.CDLL('{tmp_path}/libcuda.so.1'); from trainer.cli import main; main()"
    done = run_forked("-c", code, "--exp", "demo", "--work-dir", tmp_path / "run", environment=environment)
    assert done.returncode == 2
    assert "this machine has the NVIDIA driver for CUDA 12.2, but torch" in done.stderr
    assert "run make CUDA=cu12 in the checkout" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_dali_that_is_too_new_for_the_driver():
    old, new = Driver("535.161.08", (12, 2)), Driver("580.65.06", (13, 0))
    assert dali(new, on_gpu=True).state == dali(old, on_gpu=False).state == "ok"
    finding = dali(old, on_gpu=True)
    assert (finding.state, finding.fix) == ("bad", "run make CUDA=cu12 in the checkout")


def test_a_job_with_too_few_cores_for_its_gpus():
    assert cpu(8, 2).state == cpu(1, 0).state == "ok"
    finding = cpu(7, 2)
    assert finding.state == "note"
    assert "too few for 2 GPUs" in finding.details
    assert "--cpus-per-task" in finding.fix
