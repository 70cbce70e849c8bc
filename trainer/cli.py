"""The entry point of `python -m trainer`: chooses the command, runs it, and returns its exit code.

A mistake of the user is reported in one sentence, without a traceback.
"""

import importlib
import os
import re
import signal
import sys
import threading
import time
import traceback
from difflib import get_close_matches
from itertools import pairwise
from typing import NoReturn

from kernels.program import UserError, exit_code
from trainer.runtime.follow import end_after_mistake, follow_launcher, note_mistake
from trainer.runtime.own_card import see_own_card
from trainer.runtime.srun import describe_task

# For each word after `python -m trainer`: the module of the command, its class of options, and its function.
COMMANDS = {
    "compare": ("trainer.commands.compare", "CompareOptions", "compare"),
    "config": ("trainer.commands.config", "ConfigOptions", "config"),
    "doctor": ("trainer.commands.doctor", "DoctorOptions", "doctor"),
    "eval": ("trainer.commands.eval", "EvalOptions", "evaluate"),
    "export": ("trainer.commands.export", "ExportOptions", "export"),
    "fuse": ("trainer.commands.fuse", "FuseOptions", "fuse"),
    "predict": ("trainer.commands.predict", "PredictOptions", "predict"),
    "prepare": ("trainer.commands.prepare", "PrepareOptions", "prepare"),
    "recipe": ("trainer.commands.recipe", "RecipeOptions", "recipe"),
    "report": ("trainer.commands.report", "ReportOptions", "report"),
    "runs": ("trainer.commands.runs", "RunsOptions", "runs"),
    "submit": ("trainer.commands.submit", "SubmitOptions", "submit"),
    "tune": ("trainer.commands.tune", "TuneOptions", "tune_command"),
    "view": ("trainer.commands.view", "ViewOptions", "view"),
}
TRAIN = ("trainer.commands.train", "Options", "train")  # the command to run if the command line names none
# Commands that users may know from other programs, and what to type in Duet instead.
OTHER_WORDS = {"train": "leave this word out, because `python -m trainer --exp NAME` trains"}
OTHER_WORDS |= dict.fromkeys(("test", "val", "validate"), "`python -m trainer eval` scores a checkpoint")
# Commands that may start ranks (None is training). Their functions also take the command line, to pass it to the ranks.
START_RANKS = ("eval", None)

PATIENCE_FOR_SNAPSHOT = 60  # seconds to wait for a snapshot that is being written
PATIENCE_FOR_END = 3  # seconds that a failed rank waits for the launcher to end it, in case another rank failed first


def main() -> None:
    describe_task()
    # By default OpenMP's threads spin while they wait. On busy cores this costs a run two thirds of its speed (LOG.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    launched = "TORCHELASTIC_RUN_ID" in os.environ
    if launched:
        end_after_mistake()
        follow_launcher()
    try:
        code = run_command(sys.argv[1:])
    except Exception as error:
        if not launched:
            raise
        end_snapshot()
        # Perhaps this rank failed only because another rank failed first. In that case the launcher ends this rank
        # during the sleep, so only the other rank prints a message.
        if isinstance(error, RuntimeError):
            time.sleep(PATIENCE_FOR_END)
        traceback.print_exc()
        code = 1
    if launched and code == 2:
        note_mistake()
    if launched and code in (1, 2):
        leave(code)
    sys.exit(code)


def leave(code: int) -> NoReturn:
    """Exit without Python's usual cleanup, after this rank has failed. The launcher then ends or restarts all ranks.

    A normal exit would hang, because torch would wait for collectives that the other ranks never join.
    """
    end_snapshot()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def end_snapshot() -> None:
    """Wait until the snapshot that is being written is complete, at most PATIENCE_FOR_SNAPSHOT seconds.

    If the launcher sends SIGTERM during the wait, because another rank has failed, SIGTERM takes effect after the wait.
    """
    sigterm_arrived = threading.Event()
    handler = signal.signal(signal.SIGTERM, lambda *_: sigterm_arrived.set())
    for thread in threading.enumerate():
        if thread.name == "snapshot":
            thread.join(PATIENCE_FOR_SNAPSHOT)
    signal.signal(signal.SIGTERM, handler)
    if sigterm_arrived.is_set():
        os.kill(os.getpid(), signal.SIGTERM)


def run_command(arguments: list[str]) -> int:
    """Run a command and return its exit code.

    0: success. 2: a mistake of the user. 143 and 130: stopped by SIGTERM or Ctrl-C, after saving a snapshot.
    """
    return exit_code(lambda: dispatch(arguments))


def check_device(arguments: list[str]) -> None:
    """Raise UserError if --device names a single GPU, such as cuda:1, which torch accepts but Duet does not."""
    for option, value in pairwise(part for word in arguments for part in word.split("=", 1)):
        number = re.fullmatch(r"(?:cuda:)?(\d+)", value) if option == "--device" else None
        if number is not None:
            raise UserError(
                f"--device {value}: choose the GPU with the environment variable CUDA_VISIBLE_DEVICES={number[1]}, and "
                "write --device cuda"
            )


def dispatch(arguments: list[str]) -> int:
    """Run the command that the first argument names, or training if there is no command. Return the exit code."""
    word = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if word is not None and word not in COMMANDS:
        similar = get_close_matches(word, COMMANDS, 1)
        hint = f"did you mean {similar[0]}?" if similar else f"the commands are {', '.join(COMMANDS)}"
        raise UserError(f"there is no command {word!r}; {OTHER_WORDS.get(word, hint)}")
    check_device(arguments)
    import tyro  # not at the top of the file, because exit_code must first check that all packages are installed

    module_name, options_name, function_name = TRAIN if word is None else COMMANDS[word]
    module = importlib.import_module(module_name)
    options = tyro.cli(
        getattr(module, options_name),
        args=arguments if word is None else arguments[1:],
        prog="python -m trainer" if word is None else f"python -m trainer {word}",
        description=getattr(module, "DESCRIPTION", None),
    )
    function = getattr(module, function_name)
    if word in START_RANKS and "TORCHELASTIC_RUN_ID" in os.environ:
        see_own_card()
    return function(options, arguments) if word in START_RANKS else function(options)
