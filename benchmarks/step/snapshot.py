"""Measures how much time a snapshot costs the training loop, and how long a resumed run waits for its first batch.

Needs DALI.
"""

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from benchmarks.data.clips import long_loader, on_made_clips
from benchmarks.harness import Result, Target, spread, time_rounds
from benchmarks.synthetic import TOY
from models.networks import build_model
from trainer.experiments import MA52_RUN, NTU60_X3D
from trainer.optim import build_sgd
from trainer.runtime.ranks import Ranks
from trainer.snapshots.writer import Writer

NTU60_CLIPS = 40_091
# The measured loop computes this many matrix products in place of forward and backward, and then updates the weights.
# The products take 0.1 s, much less than a real step.
STEPS_TO_UPDATE = 60


def measure_snapshot(target: Target) -> Iterator[Result]:
    """Measure the time that a loop loses while a snapshot of 39 million weights and their momenta is written.

    The loop has one thread, like a loop that drives a GPU, so that the writer can use another core.
    """
    torch.set_num_threads(1)
    network = build_model(MA52_RUN.model).to(target.device)
    optimizer = build_sgd(network.parameters(), 0.1, 0.9, 0.0)
    steady = [*network.parameters(), *(state["momentum_buffer"] for state in optimizer.state.values())]
    state = {"model": network.state_dict(), "optimizer": optimizer.state_dict()}
    writer = Writer(target.scratch / "run")
    on_gpu = target.device.type == "cuda"
    side = 8192 if on_gpu else 512  # at this size a matrix product takes one or two milliseconds
    factor = torch.rand(side, side, device=target.device, dtype=torch.bfloat16 if on_gpu else None)

    def product() -> None:
        torch.mm(factor, factor)
        if on_gpu:
            torch.cuda.synchronize()

    step = float(np.median(time_rounds({"product": product}, target, seconds=0.5)["product"]))
    lost, writing = [], []
    for save in range(2 if target.toy else 10):
        start = time.perf_counter()
        writer.save(state, epoch=save + 1, step=0, steady=steady)
        steps = 0
        while writer.busy():
            product()
            steps += 1
            if steps == STEPS_TO_UPDATE:
                with writer.changing_weights():
                    pass
        writing.append(time.perf_counter() - start)
        lost.append(writing[-1] - steps * step)
        writer.wait()
    yield (
        "snapshot",
        {
            "mb": sum(tensor.numel() * 4 for tensor in network.parameters()) * 2 / 1e6,
            "write_s": spread(np.array(writing)),
            "lost_s": spread(np.array(lost)),
            "share_lost": spread(np.array(lost) / np.array(writing)),
        },
    )


def measure_resume(target: Target) -> Iterator[Result]:
    """Measure the seconds until the first batch when an epoch begins, and when it is resumed after 90 % of its batches.

    The epoch has as many clips as an epoch of NTU-60.
    """
    experiment = on_made_clips(TOY if target.toy else NTU60_X3D, target)
    ranks = Ranks(rank=0, local_rank=0, world_size=1, device=target.device)
    loader = long_loader(experiment, ranks, NTU60_CLIPS // experiment.optim.batch_size)
    seconds: dict[int, list[float]] = {0: [], loader.num_batches * 9 // 10: []}
    for _ in range(1 if target.toy else 5):
        for first, samples in seconds.items():
            start = time.perf_counter()
            next(replace(loader).epoch(0, first))
            samples.append(time.perf_counter() - start)
    fresh, late = (np.array(samples) for samples in seconds.values())
    yield "resume", {"fresh_s": spread(fresh), "at_90_percent_s": spread(late), "more_s": spread(late - fresh)}
