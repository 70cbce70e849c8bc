"""Measures the clips per second of `python -m trainer` with 1, 2, 4, ... ranks and the same global batch."""

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from benchmarks.harness import Result, Skipped, Target, spread
from benchmarks.records import ROOT
from kernels.program import die_with_parent
from trainer.journal.lines import read_metrics

STEPS, LOG_EVERY = 60, 5
TOY = ("data.demo.num_train=24", "data.demo.num_val=12", "data.demo.size=(160,120)", "data.max_bad=1.0")


def measure(target: Target) -> Iterator[Result]:
    """Train the experiment `demo` with 1, 2, 4, ... ranks, at most one per GPU. On a CPU, each rank uses one core."""
    on_gpu = target.device.type == "cuda"
    max_ranks = torch.cuda.device_count() if on_gpu else len(os.sched_getaffinity(0))
    if on_gpu and max_ranks == 1:
        raise Skipped("this part compares several GPUs with one GPU, and this machine has only one")
    one_rank = None
    for ranks in (2**power for power in range(max_ranks.bit_length())):
        rates = clips_per_s(ranks, target)
        median = float(np.median(rates))
        one_rank = one_rank or median
        yield f"{ranks}_ranks", {"clips_per_s": spread(rates), "efficiency": median / one_rank / ranks}


def clips_per_s(ranks: int, target: Target) -> np.ndarray:
    """Train with this many ranks, and return the clips per second that each line of the log reports, [n].

    The first two lines are left out: they include compilation, and batches that were made in advance.
    """
    work_dir = target.scratch / f"ranks_{ranks}"
    arguments = ["--work-dir", str(work_dir), "--ranks", str(ranks), "--max-steps", str(2 if target.toy else STEPS)]
    for setting in settings(target):
        arguments += ["--set", setting]
    process = subprocess.run(
        [sys.executable, "-m", "trainer", "--exp", "demo", "--device", target.device.type, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        preexec_fn=partial(
            die_with_parent, os.getpid()
        ),  # so that the training also ends if the suite kills this process
    )
    if process.returncode:
        raise RuntimeError(f"{ranks} ranks: exit code {process.returncode}\n{process.stdout}{process.stderr}")
    logs = [record for record in read_metrics(work_dir / "metrics.jsonl") if record["kind"] == "train"]
    return np.array([record["clips_per_second"] for record in logs][0 if target.toy else 2 :])


def settings(target: Target) -> list[str]:
    """Return settings that put the data of the demo into the scratch folder. In a toy run, the data are small."""
    root = target.scratch
    return [
        f"data.annotations={root}/demo/annotations.pkl",
        f"data.videos={root}/demo/videos",
        f"data.packs={root}/packs",
        f"data.cache={root}/cache",
        f"log_every={1 if target.toy else LOG_EVERY}",
        *(TOY if target.toy else ()),
    ]
