"""Checks which wheels `make` installs for which driver, and the message that appears if torch and driver do not fit."""

import os
import re
import subprocess
import sys
import threading
import venv
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kernels import driver
from tests.fake_driver import NEWEST_CUDA, machine_with
from tests.programs import ROOT, run

INDEX = "https://download.pytorch.org/whl"
# The arguments of pip for each choice of wheels.
COMMANDS = {
    "cu13": ("install -q torch -c constraints.txt", "install -q -e '.[cu13,test]' -c constraints.txt"),
    "cu12": (
        f"install -q torch==2.13.0+cu126 --extra-index-url {INDEX}/cu126 -c constraints.txt",
        "install -q -e '.[cu12,test]' -c constraints.txt",
    ),
    "cpu": (
        f"install -q torch==2.13.0+cpu --extra-index-url {INDEX}/cpu -c constraints.txt",
        "install -q -e '.[cu13,test]' -c constraints.txt",
    ),
}
# The packages that each choice of wheels installs in .venv.
INSTALLED = {
    "cu13": ("torch-2.13.0", "nvidia_dali_cuda130-2.4.0", "nvidia_cudnn_cu13-9.20", "cuda_toolkit-13.0.3"),
    "cu12": ("torch-2.13.0+cu126", "nvidia_dali_cuda120-2.4.0", "nvidia_cudnn_cu12-9.10.2"),
    "cpu": ("torch-2.13.0+cpu", "nvidia_dali_cuda130-2.4.0"),
}


@pytest.fixture
def checkout(tmp_path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("Makefile", "setup.py", "constraints.txt", "kernels"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def install(checkout: Path, wheels: str, stamp: str) -> None:
    for package in (*INSTALLED[wheels], "torchmetrics-1.9.0", "numpy-2.4.6"):
        (checkout / f".venv/lib/python3.11/site-packages/{package}.dist-info").mkdir(parents=True)
    (checkout / ".venv" / stamp).touch()


def which(checkout: Path, environment: dict[str, str], *words: str) -> tuple[str, list[str]]:
    """Run `make which`. Returns the line about the driver, and the words after `pip` of each command that it prints."""
    before = sorted(checkout.rglob("*"))
    # The `make` that runs the tests passes its own options and variables on to every other `make`.
    environment = {name: value for name, value in environment.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    command = ["make", f"PYTHON={sys.executable}", "which", *words]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    assert sorted(checkout.rglob("*")) == before
    if done.returncode:
        return done.stderr.splitlines()[0], []
    commands = [line.partition("-m pip --disable-pip-version-check ")[2].strip() for line in done.stdout.splitlines()]
    return done.stderr.strip(), commands


@pytest.mark.parametrize(
    ("version", "installed", "wheels"),
    [
        *((version, "", wheels) for version, wheels in zip(NEWEST_CUDA, ("cu12", "cu12", "cu13"), strict=True)),
        ("", "", "cu13"),
        ("535.161.08", "cu13", "cu12"),
        ("550.54.15", "cpu", "cu12"),
        ("550.54.15", "cu12", "cu12"),
        ("580.65.06", "cpu", "cu13"),
        # Installed wheels are kept if the driver can run them, or if there is no driver.
        ("580.65.06", "cu12", "cu12"),
        ("", "cu12", "cu12"),
        ("", "cpu", "cpu"),
    ],
)
def test_the_driver_decides_which_wheels_are_installed(tmp_path, checkout, version, installed, wheels):
    if installed:
        install(checkout, installed, f".installed-{installed}")
    line, commands = which(checkout, machine_with(tmp_path, version, NEWEST_CUDA.get(version, 0)))
    assert f"(CUDA={wheels}): " in line
    assert (f"NVIDIA driver {version} (CUDA " if version else "there is no NVIDIA driver here") in line
    assert tuple(commands[-2:]) == COMMANDS[wheels]
    if installed in ("", wheels):
        assert len(commands) == 2
    else:
        removed = {package.partition("-")[0] for package in INSTALLED[installed]}
        assert commands[0].startswith("uninstall -q -y ")
        assert {*commands[0].split()[3:]} == removed
    if not version and not installed:
        assert line.endswith("if the compute nodes have a driver older than 580, run make CUDA=cu12")


@pytest.mark.parametrize(
    ("version", "cuda", "wheels"),
    [("535.161.08", 0, "cu12"), ("580.65.06", 0, "cu13"), ("", 12020, "cu12"), ("535.161.08", 13000, "cu13")],
    ids=["only nvidia-smi, old", "only nvidia-smi, new", "only libcuda", "cuda-compat"],
)
def test_a_part_of_a_driver_and_cuda_compat(tmp_path, checkout, version, cuda, wheels):
    line, commands = which(checkout, machine_with(tmp_path, version, cuda))
    assert f"(CUDA={wheels}): " in line
    assert tuple(commands) == COMMANDS[wheels]


@pytest.mark.parametrize(
    ("answer", "wheels"),
    [
        ("echo 'WARNING: infoROM is corrupted at gpu 0000:3B:00.0'; echo 535.161.08", "cu12"),
        ("echo 535.161.08; echo 'WARNING: infoROM is corrupted at gpu 0000:3B:00.0'; exit 14", "cu12"),
        ("printf '\\377 535.1\\n'; read line; echo 535.161.08; echo 535.161.08", "cu12"),
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; echo 'library 535.161'; exit 18", "cu13"),
        ("echo 'No devices were found'", "cu13"),
    ],
    ids=["warning first", "warning last, and an error", "no text, and a question", "mismatch", "no devices"],
)
def test_answers_of_nvidia_smi_on_a_machine_with_a_fault(tmp_path, checkout, answer, wheels):
    environment = machine_with(tmp_path, "535.161.08")
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{answer}\n")
    line, _ = which(checkout, environment)
    assert f"(CUDA={wheels}): " in line
    assert ("NVIDIA driver 535.161.08" in line) == (wheels == "cu12")


def test_an_nvidia_smi_that_hangs_is_given_up(tmp_path):
    environment = machine_with(tmp_path, "535.161.08", 12020)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nsleep 100\n")
    code = "from kernels import driver; driver.SECONDS_FOR_NVIDIA_SMI = 0.1; print(driver.find_driver())"
    assert run("-c", code, environment=environment, timeout=60).stdout == "the NVIDIA driver for CUDA 12.2\n"


@pytest.mark.parametrize("wheels", COMMANDS)
def test_the_user_overrides_the_driver_and_switches(tmp_path, checkout, wheels):
    environment = machine_with(tmp_path, "550.54.15", 12040)
    install(checkout, "cu12", ".installed-cu12")
    line, commands = which(checkout, {**environment, "CUDA": "/opt/cuda"}, f"CUDA={wheels}")
    assert "as asked for; this machine has NVIDIA driver 550.54.15 (CUDA 12.4)" in line
    assert ("the wheels need driver 580 or newer, or NVIDIA's cuda-compat" in line) == (wheels == "cu13")
    assert tuple(commands[-2:]) == COMMANDS[wheels]
    assert len(commands) == (2 if wheels == "cu12" else 3)
    _, commands = which(checkout, environment, f"CUDA={wheels}", "TORCH_INDEX=https://mirror/torch")
    assert ("--extra-index-url https://mirror/torch/" in " ".join(commands)) == (wheels != "cu13")


@pytest.mark.parametrize("wheels", ["cu13", "cpu"])
def test_pip_asks_the_mirrors_of_a_lab(checkout, tmp_path, wheels):
    """The mirrors are a server on this machine that has no packages, so pip fails after it has asked them.

    pip installs for the Python of an empty environment, so that the environment of the tests stays as it is.
    """
    venv.create(tmp_path / "empty", symlinks=True)
    asked: list[str] = []

    class Mirror(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}"
        mirrors = {
            "PIP_INDEX_URL": f"{here}/pypi/simple",
            "TORCH_INDEX": f"{here}/torch",
            "PIP_CONFIG_FILE": os.devnull,
        }
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "MAKE"))}
        pip = f"{sys.executable} -m pip --python {tmp_path}/empty/bin/python"
        command = ["make", "packages", f"WHEELS={wheels}", f"PIP={pip}"]
        done = subprocess.run(command, cwd=checkout, env=ours | mirrors, capture_output=True, text=True)
        server.shutdown()
    assert done.returncode != 0, done.stdout
    assert set(asked) == {"/pypi/simple/torch/", *(["/torch/cpu/torch/"] if wheels == "cpu" else [])}


def test_what_an_earlier_makefile_or_an_interrupted_installation_left_is_replaced(tmp_path, checkout):
    install(checkout, "cu13", ".installed")
    _, commands = which(checkout, machine_with(tmp_path, "580.65.06", 13000))
    assert "nvidia_dali_cuda130" in commands[0]
    assert tuple(commands[-2:]) == COMMANDS["cu13"]


def test_wheels_that_do_not_exist_are_refused(tmp_path, checkout):
    line, commands = which(checkout, machine_with(tmp_path, "470.82.01", 11040))
    assert line == (
        "error: NVIDIA driver 470.82.01 (CUDA 11.4) is too old for CUDA 12: update it to 525 or newer, or run "
        "make CUDA=cpu"
    )
    assert not commands
    line, _ = which(checkout, machine_with(tmp_path), "CUDA=cu11")
    assert line == "error: CUDA=cu11: give one of cu13, cu12, cpu, or leave CUDA out"


@pytest.mark.parametrize(
    ("version", "cuda", "built_for", "sentence"),
    [
        ("535.161.08", 12020, "13.0", "run make CUDA=cu12 in the checkout"),
        ("535.161.08", 12020, None, "run make CUDA=cu12 in the checkout"),
        ("580.65.06", 13000, None, "run make CUDA=cu13 in the checkout"),
        ("580.65.06", 0, "13.0", "start the container with NVIDIA_DRIVER_CAPABILITIES=all"),
        (
            "580.65.06",
            13000,
            "12.6",
            "torch 2.13.0 is built for CUDA 12.6, and this machine has NVIDIA driver 580.65.06",
        ),
        ("470.82.01", 0, "13.0", "NVIDIA driver 470.82.01 is too old for CUDA 12"),
        (
            "",
            12020,
            "13.0",
            "this machine has the NVIDIA driver for CUDA 12.2, but torch 2.13.0 is built for CUDA 13.0",
        ),
    ],
)
def test_what_is_said_if_torch_sees_no_gpu(tmp_path, version, cuda, built_for, sentence):
    said = why_no_gpu(machine_with(tmp_path, version, cuda), built_for)
    assert sentence in said
    assert version in said


def test_cards_that_an_environment_variable_hides(tmp_path):
    environment = machine_with(tmp_path, "580.65.06", 13000)
    for hides in ("", "-1"):
        assert why_no_gpu({**environment, "CUDA_VISIBLE_DEVICES": hides}, "13.0") == "None"
    said = why_no_gpu({**environment, "CUDA_VISIBLE_DEVICES": "NoDevFiles"}, "13.0")
    assert "look at CUDA_VISIBLE_DEVICES=NoDevFiles" in said


@pytest.mark.skipif(any(Path("/dev").glob("nvidia[0-9]*")), reason="this machine has an NVIDIA GPU")
def test_without_driver_and_card_nobody_expects_a_gpu(tmp_path):
    assert why_no_gpu(machine_with(tmp_path), "13.0") == "None"


def why_no_gpu(environment: dict[str, str], built_for: str | None) -> str:
    code = f"from kernels.driver import why_no_gpu; print(why_no_gpu('2.13.0', {built_for!r}))"
    done = run("-c", code, environment=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_card_without_a_driver(tmp_path, monkeypatch):
    (tmp_path / "nvidia0").touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(driver, "find_driver", lambda: None)
    monkeypatch.setattr(driver, "Path", lambda _: tmp_path)  # stands for /dev
    problem, way_out = driver.why_no_gpu("2.13.0", "13.0") or ("", "")
    assert problem.startswith(f"there is a card ({tmp_path}/nvidia0), but no")
    assert way_out.startswith("start the container with its GPUs (docker run --gpus all, apptainer --nv)")


def test_make_installs_names_the_stamp_and_removes_the_old_wheels(tmp_path, checkout):
    """pip is `echo PIP`, so nothing is installed."""
    environment = machine_with(tmp_path, "580.65.06", 13000)
    environment = {name: value for name, value in environment.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    install(checkout, "cu13", ".installed-cu13")
    python = checkout / ".venv/bin/python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)

    def make() -> list[str]:
        command = ["make", f"PYTHON={sys.executable}", "PIP=echo PIP", "CUDA=cu12"]
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert [path.name for path in (checkout / ".venv").glob(".installed*")] == [".installed-cu12"]
        return [line.removeprefix("PIP ") for line in done.stdout.splitlines() if line.startswith("PIP ")]

    uninstalled, *installed = make()
    assert uninstalled.startswith("uninstall -q -y ")
    assert "nvidia_dali_cuda130" in uninstalled
    commands = [command.replace("'", "") for command in COMMANDS["cu12"]]
    assert installed == commands
    assert make() == []
    os.utime(checkout / ".venv/.installed-cu12", (0, 0))  # setup.py is then newer, as after an update of Duet
    assert make() == commands


def test_the_readmes_name_the_oldest_drivers():
    newest, oldest = driver.DRIVER_FOR_CUDA_13, driver.DRIVER_FOR_CUDA_12
    english = " ".join((ROOT / "README.md").read_text().split())
    assert f"NVIDIA's driver {newest} or newer for CUDA 13, or {oldest} or newer for CUDA 12." in english
    chinese = (ROOT / "README.zh-CN.md").read_text()
    assert re.search(f"CUDA 13 需要 NVIDIA 驱动 {newest} 或更新.CUDA 12 需要 {oldest} 或更新", chinese)
