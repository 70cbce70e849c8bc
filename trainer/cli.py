"""`python -m trainer --exp NAME`: reads the command line, starts the ranks, turns users' mistakes into one sentence."""

import importlib
import os
import signal
import sys
import threading
import time
import traceback
from difflib import get_close_matches
from typing import NoReturn

from kernels.program import UserError, exit_code
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

PATIENCE_FOR_SNAPSHOT = 60  # seconds
PATIENCE_FOR_END = 3  # seconds in which the launcher notices that another rank has failed, and ends this one


def main() -> None:
    # OpenMP's threads wait by spinning otherwise, which costs a run on busy cores two thirds of its speed (LOG.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
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
    return exit_code(lambda: dispatch(arguments))


def dispatch(arguments: list[str]) -> int:
    """Run the command that `arguments` name; returns the exit code. Only the module of that command is imported."""
    word = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if word is not None and word not in COMMANDS:
        near = get_close_matches(word, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        raise UserError(f"there is no command {word!r}; {hint}")
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
