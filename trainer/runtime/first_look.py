"""The first look: before its first step, a run checks the results of its device, and times settings to choose the best.

If the results of a fast way to compute are wrong, the run uses a slower way and logs the reason. Nothing here
changes weights, buffers, momenta, random numbers or the order of the clips. Rank 0 decides for all ranks.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from operator import truediv
from typing import TypeVar

import torch
from torch import Tensor

from kernels.whole_files import write_whole
from models.pcan import without_other_ranks
from pipelines.batch import Batch
from pipelines.trial import LOADS, decoding_alone, why_not_kernel, why_not_mixed
from trainer.memory import gradients
from trainer.run import Run
from trainer.runtime.cuda_graph import Update
from trainer.runtime.decisions import Decisions
from trainer.runtime.faults import is_from_cudnn, is_out_of_memory
from trainer.runtime.forward import Way
from trainer.runtime.ranks import Ranks
from trainer.runtime.rehearsal import rehearse
from trainer.step import recover, split

FILE = "first_look.json"
# The reason that a resumed run gives for a slower way.
AS_BEFORE = f"as before this run was resumed; remove {FILE} from its folder to try again"
# Largest accepted distance between the gradients of a compiled and an uncompiled step, divided by the norm of the
# uncompiled step's gradients. For the experiments' networks, gradients in float32 and in half precision are up to 0.1
# apart; a wrong kernel puts gradients about 1 apart.
TOLERANCE = {"fp32": 0.01, "bf16": 0.3, "fp16": 0.3}
GAIN = 1.02  # a choice must be at least this many times as fast as the default; a smaller gain may be chance
ROUNDS = 5  # number of timed steps of each choice


class FirstLook:
    """Stands in for `run.execute` at the first step: takes the first look, then puts the original back and calls it.

    `clock()` returns the seconds since a fixed moment.
    """

    def __init__(self, run: Run, clock: Callable[[], float] = time.perf_counter) -> None:
        self._run, self._execute, self._clock = run, run.execute, clock

    def __call__(self, update: Update, batch: Batch) -> dict[str, Tensor]:
        look(self._run, split(batch, self._run.experiment.optim.accumulate)[0], self._clock)
        self._run.execute = self._execute
        return self._execute(update, batch)


def look(run: Run, part: Batch, clock: Callable[[], float]) -> None:
    """Decide how the gradients of a part of a batch are computed, and log and store the decisions.

    A resumed run keeps the choices that were timed before. All ranks call this together. Raises torch's error if the
    memory does not suffice for the part.
    """
    rehearse(run, part)
    on_gpu = [run.ranks.device] if run.ranks.device.type == "cuda" else []
    # PCAN's sums leave out the other ranks here, so a rank whose memory does not suffice cannot make other ranks wait.
    with torch.random.fork_rng(on_gpu), without_other_ranks():
        sentences = [data(run), compare(run, part), choose_benchmark(run, part, clock), memory(run)]
    run.decisions = replace(
        present_ways(run),
        cudnn_benchmark=torch.backends.cudnn.benchmark,
        hw_decoder_load=run.train_loader.backends.hw_decoder_load,
    )
    run.journal.say(f"first look: {'; '.join(sentence for sentence in sentences if sentence)}")
    if run.ranks.leads:
        with suppress(OSError):  # training does not need this file, and the next snapshot reports a full disk
            write_whole(run.journal.work_dir / FILE, run.decisions.to_json() + "\n")


def present_ways(run: Run) -> Decisions:
    """The run's decisions, with the ways to compute that it uses now. After a failure, a run uses slower ways."""
    backends = run.train_loader.backends
    return replace(
        run.decisions,
        network=run.forward.way_of_training.name.lower(),
        renderer=backends.renderer,
        decoder=backends.decoder,
        kernels_failed=run.forward.kernels_failed,
    )


def compute_as_before(run: Run) -> None:
    """Use the slower ways that `run.decisions`, which come from a snapshot, name, without trying the faster ways."""
    earlier, backends = run.decisions, run.train_loader.backends
    run.forward.use(Way.__members__.get((earlier.network or "").upper(), Way.COMPILED), AS_BEFORE)
    if earlier.kernels_failed:
        run.forward.leave_kernels(AS_BEFORE)
    if earlier.renderer == "reference" and backends.renderer == "kernel":
        backends.draw_by_reference(AS_BEFORE)
    if earlier.decoder == "cpu" and backends.decoder == "mixed":
        on_cpu = backends.decode_videos_on_cpu if run.experiment.data.source == "video" else backends.decode_on_cpu
        on_cpu(AS_BEFORE)


def look_at_data(run: Run, clock: Callable[[], float] = time.perf_counter) -> None:
    """Check the heatmap kernel and the GPU's JPEG decoder on the first batch, and time the JPEG engine.

    Nothing else runs during the timing. Must be called before the run makes batches. All ranks call this together.
    """
    loader, backends = run.train_loader, run.train_loader.backends
    streams = run.experiment.streams
    uses_kernel = "pose" in streams and backends.renderer == "kernel"
    if uses_kernel and (reason := of_any_rank(run.ranks, why_not_kernel(loader))):
        backends.draw_by_reference(reason)
    if "rgb" not in streams or run.experiment.data.source == "video":  # no JPEG packets are decoded in these cases
        return
    if backends.decoder == "mixed" and (reason := of_any_rank(run.ranks, why_not_mixed(loader))):
        backends.decode_on_cpu(reason)
    if backends.decoder == "mixed":
        own = run.experiment.jpeg_load
        backends.hw_decoder_load = (run.decisions.hw_decoder_load or fastest_load(run, clock)) if own is None else own


def of_any_rank(ranks: Ranks, reason: str | None) -> str | None:
    """`reason` if it is not None; "on another rank" if only other ranks have a reason; None if no rank has one."""
    return (reason or "on another rank") if ranks.any(reason is not None) else None


def fastest_load(run: Run, clock: Callable[[], float]) -> float:
    """The share of the frames that the JPEG engine should decode. Rank 0 measures it while nothing else runs."""
    load = None
    if run.ranks.leads:
        with decoding_alone(run.train_loader) as decode:
            load = str(fastest(LOADS, decode, clock)[0])
    return float(run.ranks.from_leader(load) or LOADS[0])


def data(run: Run) -> str:
    """Part of a sentence that says what draws the heatmaps and what decodes the frames."""
    backends, experiment, parts = run.train_loader.backends, run.experiment, []
    if "pose" in experiment.streams:
        renderer = "the Triton kernel" if backends.renderer == "kernel" else "plain torch"
        parts.append(f"{renderer} draws the heatmaps")
    if "rgb" in experiment.streams and experiment.data.source == "packs":
        mixed = f"the GPU ({backends.hw_decoder_load:.0%} by its JPEG engine)"
        parts.append(f"{mixed if backends.decoder == 'mixed' else 'the CPU'} decodes the frames")
    if "rgb" in experiment.streams and experiment.data.source == "video":
        parts.append(f"the {'GPU' if backends.decoder == 'mixed' else 'CPU'} decodes the videos")
    return "; ".join(parts)


def compare(run: Run, part: Batch) -> str:
    """Compare the compiled step with an uncompiled step, and return the result as part of a sentence.

    Both steps draw the same dropout, because torch.compile is called with `fallback_random` (trainer/runtime/wrap.py).
    """
    if run.forward.way is not Way.COMPILED:
        return "the network runs uncompiled"
    uncompiled = gradients_of(run, run.network, part)
    if run.ranks.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()  # `memory` then reports how much memory a compiled step needs
    compiled = gradients_of(run, run.forward, part)
    # All ranks return together; otherwise a rank with enough memory would wait for the others in `largest` below.
    if run.ranks.any(uncompiled is None or compiled is None) or uncompiled is None or compiled is None:
        return "the memory does not suffice to compare the compiled step with an uncompiled one"
    distance = relative_distance(compiled, uncompiled)
    percent = run.ranks.largest(round(min(distance, 9.99) * 10_000)) / 100
    if percent <= 100 * TOLERANCE[run.precision.name]:
        return f"gradients of the compiled step are within {percent:g} % of an uncompiled step's"
    run.forward.use(Way.DIRECT, f"its gradients differ by {percent:g} % from those of an uncompiled step")
    return "the network runs uncompiled"


def gradients_of(run: Run, network: torch.nn.Module, part: Batch) -> list[Tensor] | None:
    """The gradients of a part of a batch. None if the memory does not suffice, or cuDNN fails (in benchmark mode).

    All calls use the same random numbers, and restore the buffers.
    """
    torch.manual_seed(run.experiment.seed)
    run.guard.hold()
    try:
        return gradients(run, network, part)
    except RuntimeError as error:
        if not (is_out_of_memory(error) or is_from_cudnn(error)):
            raise
        return None
    finally:
        recover(run)


def relative_distance(values: list[Tensor], expected: list[Tensor]) -> float:
    """The norm of `values` - `expected`, divided by the norm of `expected`, over all tensors together.

    Returns 9 instead of NaN.
    """
    squares = [
        torch.stack([(one - other).square().sum(), other.square().sum()])
        for one, other in zip(values, expected, strict=True)
    ]
    error, size = torch.stack(squares).double().sum(0).sqrt().tolist()
    distance = error / size if size else error
    return distance if distance == distance else 9.0


def choose_benchmark(run: Run, part: Batch, clock: Callable[[], float]) -> str:
    """Turn cuDNN's benchmark mode on or off, in which cuDNN times its algorithms for each convolution.

    If neither the experiment nor the snapshot decides, steps are timed with and without the mode. Returns a sentence
    about the choice, or "" if there is none, as on a CPU.
    """
    own, earlier = run.experiment.cudnn_benchmark, run.decisions.cudnn_benchmark
    if own is not None or earlier is not None:
        choice = bool(earlier if own is None else own)
        torch.backends.cudnn.benchmark = choice
        source = "as in the snapshot" if own is None else "as set by cudnn_benchmark"
        return f"cuDNN's benchmark mode is {'on' if choice else 'off'}, {source}"
    if run.ranks.device.type != "cuda" or run.forward.way is Way.WITHOUT_CUDNN:
        return ""

    def step(benchmark: bool) -> None:
        torch.backends.cudnn.benchmark = benchmark
        if gradients_of(run, run.forward, part) is None:
            raise MemoryError
        torch.cuda.synchronize()
        run.beat()

    try:
        choice, gain = fastest((False, True), step, clock)
    except MemoryError:
        choice, gain = False, 0.0
    choice = run.ranks.from_leader(str(choice)) == "True" and not run.ranks.any(not gain)
    torch.backends.cudnn.benchmark = choice
    return f"cuDNN's benchmark mode is {'on' if choice else 'off'} ({gain:.2f} times as fast)"


Choice = TypeVar("Choice")


def fastest(
    choices: Sequence[Choice], run: Callable[[Choice], None], clock: Callable[[], float]
) -> tuple[Choice, float]:
    """The choice with which `run` is fastest, and its gain over the default, which is the first choice.

    The choices alternate: `run` is called with each choice once to warm up, and then ROUNDS times to be timed. In each
    round the gain is the default's time divided by the choice's time. A choice's gain is the lower quartile over the
    rounds. If no gain reaches GAIN, returns the default and the largest gain of the other choices.
    """
    seconds: list[list[float]] = [[] for _ in choices]
    for _ in range(1 + ROUNDS):
        for choice, samples in zip(choices, seconds, strict=True):
            start = clock()
            run(choice)
            samples.append(clock() - start)
    timed = [samples[1:] for samples in seconds]
    gains = [statistics.quantiles(map(truediv, timed[0], samples), n=4)[0] for samples in timed]
    best = max(range(len(choices)), key=gains.__getitem__)
    return (choices[best], gains[best]) if gains[best] >= GAIN else (choices[0], max(gains[1:], default=1.0))


def memory(run: Run) -> str:
    """Part of a sentence that says how much of the GPU's memory the first look needed; empty on a CPU."""
    if run.ranks.device.type != "cuda":
        return ""
    total = torch.cuda.get_device_properties(run.ranks.device).total_memory
    return f"a step takes {torch.cuda.max_memory_allocated() / 1e9:.1f} of {total / 1e9:.1f} GB of memory"
