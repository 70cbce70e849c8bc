"""`python -m trainer --exp NAME`: reads the command line, starts the ranks, turns users' mistakes into one sentence."""

import dis
import importlib
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from difflib import get_close_matches
from types import TracebackType
from typing import NoReturn

from trainer.origin import PACKAGES, check_origin, check_torch
from trainer.runtime.follow import follow_launcher

# The words after `python -m trainer`: the module of each, its options and the function that takes them.
COMMANDS = {
    "compare": ("trainer.commands.compare", "CompareOptions", "compare"),
    "doctor": ("trainer.commands.doctor", "DoctorOptions", "doctor"),
    "eval": ("trainer.commands.eval", "EvalOptions", "evaluate"),
    "export": ("trainer.commands.export", "ExportOptions", "export"),
    "predict": ("trainer.commands.predict", "PredictOptions", "predict"),
    "prepare": ("trainer.commands.prepare", "PrepareOptions", "prepare"),
    "runs": ("trainer.commands.runs", "RunsOptions", "runs"),
    "submit": ("trainer.commands.submit", "SubmitOptions", "submit"),
    "view": ("trainer.commands.view", "ViewOptions", "view"),
}
TRAIN = ("trainer.commands.train", "Options", "train")  # where there is no word
START_RANKS = ("eval", None)  # these take the arguments as well, which the ranks that they start run again

NARROWEST = 40  # columns; in five tyro lays its help out for ever, and takes all memory
PATIENCE_FOR_SNAPSHOT = 60  # seconds
PATIENCE_FOR_END = 3  # seconds in which the launcher notices that another rank has failed, and ends this one


def main() -> None:
    # OpenMP's threads wait by spinning otherwise, which costs a run on busy cores two thirds of its speed (LOG.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if shutil.get_terminal_size().columns < NARROWEST:
        os.environ["COLUMNS"] = str(NARROWEST)
    launched = "TORCHELASTIC_RUN_ID" in os.environ
    if launched:
        follow_launcher()
    try:
        code = run_command(sys.argv[1:])
    except Exception as error:
        if not launched:
            raise
        end_snapshot()
        if isinstance(error, RuntimeError):  # perhaps nothing but the loss of a rank, whose sentence is to stand alone
            time.sleep(PATIENCE_FOR_END)
        traceback.print_exc()
        code = 1
    if launched and code in (1, 2):
        leave(code)
    sys.exit(code)


def leave(code: int) -> NoReturn:
    """A rank that failed ends at once, and the launcher ends the others or starts all again.

    On the usual way out torch would wait for collectives that the others never answer.
    """
    end_snapshot()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def end_snapshot() -> None:
    """Wait for a snapshot that is being written; the launcher's SIGTERM, when another rank fails, waits as well."""
    told = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())
    for thread in threading.enumerate():
        if thread.name == "snapshot":
            thread.join(PATIENCE_FOR_SNAPSHOT)
    signal.signal(signal.SIGTERM, before)
    if told.is_set():
        os.kill(os.getpid(), signal.SIGTERM)


def run_command(arguments: list[str]) -> int:
    """The exit code: 0 done, 2 a user's mistake, 143 and 130 ended by SIGTERM and Ctrl-C with a snapshot."""
    try:
        check_origin()
        check_torch()
        return dispatch(arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if not is_users_mistake(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2


def is_users_mistake(error: Exception) -> bool:
    """A ValueError from a `raise` of ours is a sentence for the user; the same out of a library is our bug.

    OSError (a disk that cannot be written) and ImportError (trainer/origin.py) likewise.
    """
    return isinstance(error, ValueError | OSError | ImportError) and _raised_by_us(error.__traceback__)


def _raised_by_us(trace: TracebackType | None) -> bool:
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    frame = trace.tb_frame
    ours = frame.f_globals.get("__name__", "").partition(".")[0] in PACKAGES
    return ours and dis.opname[frame.f_code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"


def dispatch(arguments: list[str]) -> int:
    """Run the command that `arguments` name; returns the exit code. Only the module of that command is imported."""
    word = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if word is not None and word not in COMMANDS:
        near = get_close_matches(word, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        raise ValueError(f"there is no command {word!r}; {hint}")
    import tyro  # behind the checks of the installation

    module_name, options_name, function_name = TRAIN if word is None else COMMANDS[word]
    module = importlib.import_module(module_name)
    options = tyro.cli(
        getattr(module, options_name),
        args=arguments if word is None else arguments[1:],
        prog="python -m trainer" if word is None else f"python -m trainer {word}",
        description=getattr(module, "DESCRIPTION", None),
    )
    function = getattr(module, function_name)
    return function(options, arguments) if word in START_RANKS else function(options)
