"""Runs `python -m trainer tune` for an experiment, and records the changes that were tried and the fastest step.

The result is also saved in the user's cache, so `headspace` and later runs use it.
"""

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import asdict

from benchmarks.harness import Result, Target
from benchmarks.synthetic import tiny
from trainer.config import Experiment
from trainer.runtime.tuning import Row, tune
from trainer.runtime.tuning.choice import in_words

MINUTES = 5.0  # time for measuring; starting and compiling take extra time
# After this many seconds, the search ends as if by Ctrl-C. A little later, benchmarks/suite.py would stop the process.
LAST_MOMENT = 420.0


def measure(target: Target, experiment: Experiment, fixed: frozenset[str]) -> Iterator[Result]:
    """Tune the step of an experiment, without changing the settings named in `fixed`. A toy run tries one change."""
    arguments = {"device": target.device.type, "minutes": MINUTES, "fixed": fixed}
    if target.toy:
        os.environ["XDG_CACHE_HOME"] = str(target.scratch / "cache")
        experiment, arguments = tiny(experiment), arguments | {"minutes": 0.01, "changes": [lambda _: "threads=1"]}
    timer = threading.Timer(LAST_MOMENT, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        result = tune(experiment, **arguments)
    finally:
        timer.cancel()
    default, *changes = result.rows
    yield (
        "tune",
        {
            "gain": result.gain,
            "chosen": in_words(result.default, result.experiment) or "the default",
            "finished": result.finished,
            "default_clips_per_s": default.clips_per_s,
            "default_gb": default.gb,
        },
    )
    for row in changes:
        yield _name(row), {key: value for key, value in asdict(row).items() if key != "change" and value is not None}


def _name(row: Row) -> str:
    return f"{row.change or 'the fastest so far'}{', with the loader' if row.with_loader else ''}"
