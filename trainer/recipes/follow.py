"""Runs the stages of a recipe one after the other, each as a separate program that can be killed and resumed."""

import functools
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from kernels.program import die_with_parent
from trainer.recipes.place import MERGED, Place
from trainer.recipes.stages import Evaluate, Fuse, Merge, Stage, Train
from trainer.report.past_run import read_run
from trainer.runtime.signals import EXIT_CODES, handled
from trainer.settings import SETTINGS
from trainer.snapshots.choice import settings_in


def follow(place: Place, more: Sequence[str], say: Callable[[str], None]) -> int | None:
    """Run all stages that are not done yet, with the options `more` for the runs.

    Returns None if all stages are done, and otherwise the exit code of the stage that failed or was stopped. A run that
    SIGUSR1 has stopped has the exit code 0.
    """
    stages = place.recipe.stages
    for number, stage in enumerate(stages, start=1):
        head = f"stage {number} of {len(stages)}, {stage.name}"
        if stage.name in place.stand_ins:
            say(f"{head}: {place.stand_ins[stage.name]} is used")
            continue
        if place.is_done(stage):
            say(f"{head}: done")
            continue
        place.note(stage, done=False)
        words = command_of(place, stage, more)
        say(f"{head}: {shlex.join(['python', *words])}")
        code, stopped = run_program(words)
        if stopped or code or (isinstance(stage, Train) and read_run(place.of(stage.name)).state() == "stopped"):
            say(f"{head}: ended before it was done; run the same command again to continue")
            return code
        place.note(stage, done=True)
    return None


def command_of(place: Place, stage: Stage, more: Sequence[str]) -> list[str]:
    """The command that runs a stage, or continues it: the words after `python`."""
    folder = place.of(stage.name)
    match stage:
        case Train():
            # The folder of a run that has begun contains its settings, including those of --config and of `tune`.
            named = () if (folder / SETTINGS).is_file() else ("--config", str(place.settings_of(stage.name)))
            start = ("--init", str(place.weights_of(stage.start))) if stage.start else ()
            words = ("trainer", *named, "--work-dir", str(folder), "--resume", *start, *more)
        case Merge():
            streams = (str(place.weights_of(names)) for names in (stage.rgb, stage.pose))
            words = ("models.weights", "merge", *streams, str(folder / MERGED))
        case Evaluate():
            path = place.stand_ins.get(stage.of, place.of(stage.of))
            named = () if path.is_dir() or settings_in(path) else ("--config", str(place.settings_of(stage.of)))
            words = ("trainer", "eval", str(path), *named, "--clips", str(stage.clips), "--out", str(folder), *more)
        case Fuse():
            members = (str(place.of(name)) for name in stage.inputs)
            fit = ("--fit", stage.fit) if stage.fit else ()
            words = ("trainer", "fuse", *members, *fit, "--out", str(folder))
    return ["-m", *words]


def run_program(words: Sequence[str]) -> tuple[int, bool]:
    """Run `python WORDS` until it ends. Returns its exit code, and whether a signal has asked this process to stop.

    SIGTERM, SIGHUP and SIGUSR1 are passed on to the program, which stops as if it had received them directly. On Ctrl-C
    the terminal sends SIGINT to both processes. If this process is killed, the program is killed too.
    """
    process = start(words)
    with passing_on(process) as received:
        code = process.wait()
    if received:
        return EXIT_CODES[received[0]], True
    return (code if code >= 0 else 128 - code), False


def start(words: Sequence[str]) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, *words], preexec_fn=functools.partial(die_with_parent, os.getpid()))


@contextmanager
def passing_on(process: subprocess.Popen) -> Iterator[list[signal.Signals]]:
    """A context in which signals that ask a run to stop are passed on to the process.

    Yields the list of signals received so far.
    """
    received: list[signal.Signals] = []

    def pass_on(number: int, _: object) -> None:
        received.append(signal.Signals(number))
        if number != signal.SIGINT:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in handled()}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
