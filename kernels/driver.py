"""The NVIDIA driver of this machine: which wheels of torch and DALI run with it, and why torch may see no GPU.

`make` runs this file before any package is installed, so this file imports only the standard library. The option
--device and the command `doctor` use the file as well.
"""

import ctypes
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from kernels.program import UserError

# The wheels to choose from, and the name that `make` prints for each.
WHEELS = {"cu13": "CUDA 13", "cu12": "CUDA 12", "cpu": "the CPU"}
# The oldest drivers that can run CUDA 13 and CUDA 12, from NVIDIA's release notes.
DRIVER_FOR_CUDA_13, DRIVER_FOR_CUDA_12 = 580, 525
SECONDS_FOR_NVIDIA_SMI = 60  # seconds; nvidia-smi needs half a minute on some machines with many cards
HIDDEN = ("", "-1")  # values of CUDA_VISIBLE_DEVICES with which a user asks for the CPU


@dataclass(frozen=True, slots=True)
class Driver:
    """An NVIDIA driver, as its two parts nvidia-smi and libcuda describe it.

    `version` is what nvidia-smi prints, such as "535.161.08", or "" if nvidia-smi does not answer. `cuda` is the newest
    CUDA that the library libcuda can run, such as (12, 2), or None if the library cannot be loaded.
    """

    version: str
    cuda: tuple[int, int] | None

    @property
    def cuda_major(self) -> int:
        """The newest major version of CUDA that the driver can run. Below 12, the driver is too old.

        The answer of libcuda takes precedence over the answer of nvidia-smi, because torch loads libcuda, too.
        NVIDIA's package cuda-compat replaces libcuda, so that an older driver can run a newer CUDA.
        """
        if self.cuda is not None:
            return self.cuda[0]
        number = int(self.version.partition(".")[0])
        return 13 if number >= DRIVER_FOR_CUDA_13 else 12 if number >= DRIVER_FOR_CUDA_12 else 11

    def __str__(self) -> str:
        cuda = "" if self.cuda is None else "CUDA {}.{}".format(*self.cuda)
        if not self.version:
            return f"the NVIDIA driver for {cuda}"
        return f"NVIDIA driver {self.version}" + (f" ({cuda})" if cuda else "")


def find_driver() -> Driver | None:
    """The driver of this machine, or None if neither nvidia-smi nor libcuda answers."""
    version, cuda = version_of_driver(), cuda_of_driver()
    return Driver(version, cuda) if version or cuda else None


def version_of_driver() -> str:
    """The version that nvidia-smi prints for the first card, or "" if nvidia-smi does not answer.

    A faulty card makes nvidia-smi print warnings around the version and exit with an error. So the exit code is
    ignored, and the line that is a version is returned.
    """
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    nothing = subprocess.DEVNULL
    try:
        process = subprocess.Popen(
            command, stdin=nothing, stdout=subprocess.PIPE, stderr=nothing, text=True, errors="replace"
        )
    except OSError:
        return ""
    try:
        output, _ = process.communicate(timeout=SECONDS_FOR_NVIDIA_SMI)
    except subprocess.TimeoutExpired:
        process.kill()  # do not wait for the process to end, which a broken driver may prevent
        return ""
    version = re.search(r"^\s*(\d+(\.\d+)+)\s*$", output, re.MULTILINE)
    return version[1] if version else ""


def cuda_of_driver() -> tuple[int, int] | None:
    """The newest CUDA that the driver's library can run, such as (12, 2), or None if the library cannot be loaded."""
    version = ctypes.c_int()
    try:
        code = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return (version.value // 1000, version.value % 1000 // 10) if code == 0 and version.value else None


def why_no_gpu(torch: str, cuda: str | None) -> tuple[str, str] | None:
    """Why torch sees no GPU on a machine that has an NVIDIA driver or card, and what the user can do about it.

    `torch` is torch's version, and `cuda` the version of CUDA that torch is built for, or None. Returns None if the CPU
    is the right device: there is neither a driver nor a card, or CUDA_VISIBLE_DEVICES hides the cards.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in HIDDEN:
        return None
    driver = find_driver()
    if driver is None:
        cards = sorted(Path("/dev").glob("nvidia[0-9]*"))
        way_out = "start the container with its GPUs (docker run --gpus all, apptainer --nv), or install the driver"
        return (f"there is a card ({cards[0]}), but no working nvidia-smi or libcuda.so.1", way_out) if cards else None
    built = f"torch {torch} is built for {'the CPU' if cuda is None else f'CUDA {cuda}'}"
    wheels = newest_wheels(driver)
    if wheels is None:
        return f"{driver} is too old for CUDA 12", f"update it to {DRIVER_FOR_CUDA_12} or newer"
    if cuda is None or int(cuda.partition(".")[0]) > driver.cuda_major:
        return f"this machine has {driver}, but {built}", f"run make CUDA={wheels} in the checkout"
    if driver.cuda is None:
        way_out = "start the container with NVIDIA_DRIVER_CAPABILITIES=all, or install all of the driver"
        return f"this machine has {driver}, but libcuda.so.1 cannot be loaded", way_out
    way_out = "see what nvidia-smi reports" if visible is None else f"look at CUDA_VISIBLE_DEVICES={visible}"
    return f"{built}, and this machine has {driver}, but torch sees no GPU", way_out


def newest_wheels(driver: Driver) -> str | None:
    """The wheels for the newest CUDA that the driver can run, or None if the driver is too old for all wheels."""
    return "cu13" if driver.cuda_major >= 13 else "cu12" if driver.cuda_major == 12 else None


def choose_wheels(asked: str, installed: str, driver: Driver | None) -> tuple[str, str]:
    """Return the wheels that `make` installs into .venv (cu13, cu12 or cpu), and the reason as a phrase.

    Installed wheels are kept if they run with the driver. So machines with old and new drivers can share a .venv with
    the wheels for CUDA 12: `make` on one machine does not replace wheels that programs on another machine are using.

    Args:
        asked: the value of CUDA=... on the command line, or "".
        installed: the wheels that are in .venv, or "".

    Raises:
        UserError: if `asked` is none of cu13, cu12, cpu and "", or is "" while the driver is too old for all wheels.
    """
    if asked and asked not in WHEELS:
        raise UserError(f"CUDA={asked}: give one of {', '.join(WHEELS)}, or leave CUDA out")
    newest = None if driver is None else newest_wheels(driver)
    here = "there is no NVIDIA driver here" if driver is None else f"this machine has {driver}"
    if asked:
        too_new = asked == "cu13" and driver is not None and newest != "cu13"
        need = f", but the wheels need driver {DRIVER_FOR_CUDA_13} or newer, or NVIDIA's cuda-compat" if too_new else ""
        return asked, f"as asked for; {here}{need}"
    if driver is None:
        if installed:
            return installed, f"already in .venv; {here}"
        return "cu13", f"{here}; if the compute nodes have a driver older than {DRIVER_FOR_CUDA_13}, run make CUDA=cu12"
    if newest is None:
        way_out = f"update it to {DRIVER_FOR_CUDA_12} or newer, or run make CUDA=cpu"
        raise UserError(f"{driver} is too old for CUDA 12: {way_out}")
    if (installed, newest) == ("cu12", "cu13"):
        return installed, f"already in .venv, and they run with {driver} as well; make CUDA=cu13 replaces them"
    return newest, f"the newest that run with {driver}"


def main(asked: str, installed: str) -> None:
    """Print the wheels to install on stdout, and the reason on stderr."""
    try:
        wheels, reason = choose_wheels(asked, installed, find_driver())
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"wheels for {WHEELS[wheels]} (CUDA={wheels}): {reason}", file=sys.stderr)
    print(wheels)


if __name__ == "__main__":
    main(*sys.argv[1:])
