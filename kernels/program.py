"""What all command-line programs of Duet share: UserError, the exit codes, and checks of the installation.

The file is in kernels because every package may import from there. It imports the standard library only, so that a
program can still start and report which package is missing.
"""

import atexit
import ctypes
import errno
import gc
import importlib.util
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

from kernels.console import lost_output, open_console
from kernels.names import printable

PACKAGES = ("kernels", "pipelines", "models", "trainer")
OLDEST_TORCH = (2, 11)
# Maps the name of each module for `import` to its package for pip. A test checks that setup.py lists the same packages.
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
    "jinja2": "jinja2",
    "nvidia.dali": "nvidia-dali-cuda130",
}
# Errors that the user can fix: disk full or over quota, read-only disk, no permission, failing hardware.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
LIBC, PR_SET_PDEATHSIG = ctypes.CDLL(None), 1  # PR_SET_PDEATHSIG is 1 in linux/prctl.h
# Narrower terminals are treated as if they had this many columns. With five columns, tyro would never finish laying out
# the help, and would use up all memory.
NARROWEST = 40
LONGEST_SENTENCE = 2000


class UserError(ValueError):
    """Wrong input, or something missing on this machine. The message is one sentence that also says what to do.

    Every program prints the sentence and ends with exit code 2. Any other exception is a bug in Duet and ends in a
    traceback. The message may contain text from a stranger's file. So control characters are escaped, and the middle of
    a message of more than LONGEST_SENTENCE characters is left out.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message, LONGEST_SENTENCE))


def run_program(
    main: Callable[[], int | None], interrupt_message: str = "interrupted", needs: Iterable[str] = tuple(REQUIREMENTS)
) -> NoReturn:
    """Run the program `main` and end the process with the exit code that it returns (None counts as 0).

    `needs` lists the modules that the program imports. `main` must import them inside its body, because the
    installation is checked just before `main` is called.
    """
    # Without gc.freeze, Python would search all objects of torch for garbage on exit, which takes over a second.
    atexit.register(gc.freeze)
    sys.exit(exit_code(main, interrupt_message, needs))


def exit_code(
    main: Callable[[], int | None], interrupt_message: str = "interrupted", needs: Iterable[str] = tuple(REQUIREMENTS)
) -> int:
    """Check the installation, run `main`, and return the program's exit code.

    If `main` raises UserError, ImportError for a third-party package, or OSError because a disk is full or read-only,
    one sentence is printed to stderr and the exit code is 2. After Ctrl-C, `interrupt_message` is printed and the exit
    code is 130. Output that cannot be written does not change the exit code (kernels/console.py), but a sentence on
    stderr reports it.
    """
    if shutil.get_terminal_size().columns < NARROWEST:
        os.environ["COLUMNS"] = str(NARROWEST)
    open_console()
    try:
        check_origin()
        check_packages(needs)
        check_torch()
        return main() or 0
    except KeyboardInterrupt:
        print(interrupt_message, file=sys.stderr)
        return 130
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        if error.name is not None and error.name.partition(".")[0] in PACKAGES:
            raise
        print(f"error: {_not_importable(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        name = printable(str(error.filename or "a file"))
        print(
            f"error: {name}: {error.strerror}; check free space and permissions there, or choose another folder",
            file=sys.stderr,
        )
        return 2
    finally:
        if lost := lost_output():
            what = "standard output cannot be written"
            print(f"{what} ({lost.strerror}), so what was printed is incomplete", file=sys.stderr)


def _not_importable(error: ImportError) -> str:
    """The message for a package that cannot be imported, although `check_packages` has not reported it."""
    name = error.name or "a package"
    return f"{name} cannot be imported ({printable(str(error))}): run `make install` in the checkout, which installs it"


def check_origin() -> None:
    """Raise UserError unless Python would import all four PACKAGES from this checkout.

    Names like `models` are so common that another installed project may have a package of the same name.
    """
    root = Path(__file__).resolve().parents[1]
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        folder = Path(str(spec.origin)).resolve().parents[1] if spec is not None and spec.origin else None
        if folder != root:
            raise UserError(
                f"the package '{name}' would come from {folder}, not from {root}: run from the root of the checkout, "
                "in an environment that was made for Duet only"
            )


def check_packages(needs: Iterable[str] = tuple(REQUIREMENTS)) -> None:
    """Raise UserError if one of the modules listed in `needs` is not installed for this Python."""
    missing = [REQUIREMENTS[name] for name in needs if not is_installed(name)]
    if not missing:
        return
    environment = Path(__file__).resolve().parents[1] / ".venv"
    if environment.exists() and Path(sys.prefix).resolve() != environment.resolve():
        advice = f"activate the environment that `make` created: . {environment}/bin/activate"
    else:
        advice = "run `make install` in the checkout"
    raise UserError(f"this Python ({sys.executable}) has no {', '.join(missing)}: {advice}")


def is_installed(name: str) -> bool:
    """Whether a file for the module exists. The module itself is not imported, so it may still fail to load."""
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:  # the parent package is missing
        return False


def check_torch(version: str | None = None) -> None:
    """Raise UserError if `version`, by default that of the installed torch, is older than 2.11."""
    if version is None:
        from importlib import metadata  # here, because the import takes a fifth of a short program's start

        version = metadata.version("torch")
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) < OLDEST_TORCH:
        raise UserError(f"torch {version} is too old: install 2.11 or later (Duet is tested with 2.13.0)")


def die_with_parent(parent: int) -> None:
    """Ask Linux to kill this process as soon as its parent process ends for any reason, even by SIGKILL.

    Call this at the start of a child process, for example as `preexec_fn` of subprocess.Popen. Pass the process number
    of the parent. The parent may have ended before this call, and only the parent's number reveals that.
    """
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
