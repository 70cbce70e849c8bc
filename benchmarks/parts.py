"""The parts of the suite in order of worth. What needs DALI comes last and is imported only when its turn has come."""

from collections.abc import Iterator

from benchmarks import limits
from benchmarks.data import heatmap
from benchmarks.kernels import report as kernels
from benchmarks.step import cpu_step, nets, step
from benchmarks.target import Part, Result, Skipped, Target


def decode(target: Target) -> Iterator[Result]:
    _need_dali()
    from benchmarks.data.decode import measure

    yield from measure(target)


def train(target: Target) -> Iterator[Result]:
    _need_dali()
    from benchmarks.step.train import measure

    yield from measure(target)


def host(target: Target) -> Iterator[Result]:
    _need_dali()
    from benchmarks.data.host import measure

    yield from measure(target)


def resume(target: Target) -> Iterator[Result]:
    _need_dali()
    from benchmarks.step.snapshot import resume

    yield from resume(target)


def snapshot(target: Target) -> Iterator[Result]:
    _need_dali()
    from benchmarks.step.snapshot import snapshot

    yield from snapshot(target)


def scaling(target: Target) -> Iterator[Result]:
    _need_dali()
    from benchmarks.step.scaling import measure

    yield from measure(target)


def _need_dali() -> None:
    try:
        import pipelines.dali  # noqa: F401
    except ImportError as error:
        raise Skipped(f"DALI cannot be imported here ({error})") from None


# Seconds: 530 of the nine minutes; the rest goes to starting processes. Most of the time of `kernels` and `nets` is
# torch.compile's where its caches are cold: what was cut off has another go in a second run.
GPU_PARTS = (
    Part("limits", 25, limits.measure),
    Part("kernels", 110, kernels.measure),
    Part("heatmap", 20, heatmap.measure),
    Part("nets", 185, nets.measure),
    Part("decode", 45, decode),
    Part("train", 95, train),
    Part("step", 50, step.measure),
)
HOST_PARTS = (
    Part("snapshot", 120, snapshot),
    Part("resume", 120, resume),
    Part("scaling", 600, scaling),
    Part("cpu_step", 1800, cpu_step.measure),
)
INPUT_PARTS = (Part("input", 300, host),)
