"""A training run like `python -m trainer`, which also logs its batches and kills itself with SIGKILL at a given point.

The arguments are the log file, the point, and the arguments of the trainer. The point is one of these: `none`;
`step:N`, which is in the Nth step of this process, before the weights change; `validation:begin`, `validation:inside`
or `validation:end`; `snapshot:N`, which is in the Nth write, when the temporary file is complete but not yet renamed.
"""

import json
import os
import signal
import sys

import trainer.loop
import trainer.scoring
import trainer.snapshots.writer
import trainer.step
from trainer.cli import main

log, point = sys.argv[1:3]
del sys.argv[1:3]
counts = {"step": 0, "snapshot": 0, "scored": 0}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(module, name, action):
    """Call `action` before each call of `module.name`, with the arguments of that call."""
    original = getattr(module, name)

    def wrapped(*args, **kwargs):
        action(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(module, name, wrapped)


def count(kind: str) -> None:
    counts[kind] += 1
    if point == f"{kind}:{counts[kind]}":
        die()


def log_step(run, batch):
    record = {
        "rank": run.ranks.rank,
        "epoch": run.cursor.epoch,
        "step": run.cursor.step,
        "lr": trainer.step.rate(run),
        "clips": batch.index.tolist(),
        "pixels": int(batch.rgb.long().sum()),
        "heat": float(batch.heatmap.double().sum()),
    }
    with open(log, "a") as file:
        file.write(json.dumps(record) + "\n")
    count("step")


before(trainer.loop, "train_step", log_step)
before(trainer.loop, "validate", lambda run: die() if point == "validation:begin" else None)
before(trainer.scoring, "score_batch", lambda *_: die() if point == "validation:inside" else None)
before(trainer.loop, "summarize", lambda *_: die() if point == "validation:end" else None)
before(os, "replace", lambda source, target: count("snapshot") if str(target).endswith(".pth") else None)
main()
