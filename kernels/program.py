"""What every program of Duet shares: users' mistakes, told in one sentence, and a look at the installation.

This file lies in kernels because every package may import from there. It needs nothing but Python's own library, so
that a program can say which package is missing.
"""

import ctypes
import errno
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

PACKAGES = ("kernels", "pipelines", "models", "trainer")
OLDEST_TORCH = (2, 11)
# What a program imports -> what pip calls it. setup.py lists the same, and a test compares them.
REQUIREMENTS = {
    "torch": "torch",
    "numpy": "numpy",
    "tyro": "tyro",
    "rich": "rich",
    "av": "av",
    "PIL": "pillow",
    "safetensors": "safetensors",
    "matplotlib": "matplotlib",
    "tensorboard": "tensorboard",
    "nvtx": "nvtx",
    "nvidia.dali": "nvidia-dali-cuda130",
}
# What a disk or its owner refuses; the sentence names the file.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
LIBC, PR_SET_PDEATHSIG = ctypes.CDLL(None), 1  # linux/prctl.h
NARROWEST = 40  # columns; in five tyro lays its help out for ever, and takes all memory


class UserError(ValueError):
    """A mistake of the user: wrong input, or a machine that lacks something. Its text is one sentence with a way out.

    Every program prints it and ends with exit code 2. Any other exception is a bug of ours and ends in a traceback.
    """


def run_program(
    main: Callable[[], int | None], interrupted: str = "interrupted", needs: Iterable[str] = tuple(REQUIREMENTS)
) -> NoReturn:
    """Run a program's `main`, which needs these packages, and end the process with its exit code (None counts as 0).

    `main` imports what the program needs only when it is called, behind the checks of the installation.
    """
    sys.exit(exit_code(main, interrupted, needs))


def exit_code(
    main: Callable[[], int | None], interrupted: str = "interrupted", needs: Iterable[str] = tuple(REQUIREMENTS)
) -> int:
    """Run `main` and return the exit code of the program.

    A UserError is told in one sentence on stderr, with exit code 2, and so is a full or read-only disk. Ctrl-C prints
    `interrupted`, with exit code 130.
    """
    if shutil.get_terminal_size().columns < NARROWEST:
        os.environ["COLUMNS"] = str(NARROWEST)
    try:
        check_origin()
        check_packages(needs)
        check_torch()
        return main() or 0
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        name = error.filename or "a file"
        print(f"error: {name}: {error.strerror}; free some space there, or name another place", file=sys.stderr)
        return 2


def check_origin() -> None:
    """Raise UserError unless all four packages come from one folder: their names are common, others use them too."""
    root = Path(__file__).resolve().parents[1]
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        folder = Path(str(spec.origin)).resolve().parents[1] if spec is not None and spec.origin else None
        if folder != root:
            raise UserError(
                f"the package '{name}' would come from {folder}, not from {root}: run from the root of the checkout, "
                "in an environment of its own"
            )


def check_packages(needs: Iterable[str] = tuple(REQUIREMENTS)) -> None:
    """Raise UserError where this Python lacks one of the packages `needs` (as they are imported)."""
    missing = [REQUIREMENTS[name] for name in needs if not is_installed(name)]
    if not missing:
        return
    environment = Path(__file__).resolve().parents[1] / ".venv"
    if environment.exists() and Path(sys.prefix).resolve() != environment.resolve():
        way_out = f"activate the environment that `make` made: . {environment}/bin/activate"
    else:
        way_out = "run `make install` in the checkout, or: pip install -e '.[cu13]' -c constraints.txt"
    raise UserError(f"this Python ({sys.executable}) has no {', '.join(missing)}: {way_out}")


def is_installed(name: str) -> bool:
    """Whether a module can be imported, as far as a look for its file tells."""
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:  # the package around it is missing
        return False


def check_torch(version: str | None = None) -> None:
    """Raise UserError for a torch older than 2.11, with the reason."""
    version = version or importlib.metadata.version("torch")
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) >= OLDEST_TORCH:
        return
    reason = "its conv3d is broken under bf16 (pytorch issue 166122)" if (major, minor) == (2, 9) else "it is too old"
    raise UserError(f"torch {version} is refused: {reason}; install torch 2.11 or later, 2.13.0 is what we test")


def die_with_parent() -> None:
    """Have the kernel kill this process as soon as the process that started it has ended, be it by SIGKILL.

    Called first thing in a new process, as by `preexec_fn` of subprocess.Popen.
    """
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
