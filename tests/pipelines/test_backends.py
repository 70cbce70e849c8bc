"""If a GPU's decoder, kernel or compiler fails, at once or later, one line reports it, and batches stay the same."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from triton.runtime.errors import OutOfResources

import pipelines.loader
from kernels.heatmap import fused
from pipelines import dali
from pipelines.backends import Backends
from pipelines.packs.source import PackFrames
from pipelines.trial import why_not_kernel, why_not_mixed
from tests.kernels.variants import broken
from tests.pipelines.test_loader import AUGMENTED, CONFIG, loader, same, tensors

CRASH = """Critical error in pipeline:
Error in MIXED operator `nvidia.dali.fn.decoders.image`,
which was used in the pipeline definition with the following traceback:

encountered:

nvImageCodec failure: '#5'
Current pipeline object is no longer valid."""
NO_ENGINE = "the GPU cannot decode JPEG frames ({}), so the CPU decodes them, which is slower"
NO_KERNEL = "the heatmap kernel cannot be used ({}), so plain torch draws the heatmaps, which is slower"

if torch.cuda.is_available():
    pytest.skip("these tests simulate faults, for which the machine must have no GPU", allow_module_level=True)


@pytest.fixture(scope="module")
def shared(tmp_path_factory, scene_class):
    work = scene_class(tmp_path_factory.mktemp("backends"), [8, 9, 10, 11, 12, 20, 5])
    return work.table(), work.prepare(workers=2)[0]


class StandIn:
    """Replaces DALI's pipeline: the CPU decodes the frames, and `fault(frames, step)` returns the pipeline's result."""

    def __init__(self, fault, source, size, *, batch_size, num_threads, prefetch_queue_depth):
        self.decoder = dali.FrameDecoder(
            lambda step: source(SimpleNamespace(iteration=step)),
            *(batch_size, size, torch.device("cpu"), Backends("cpu", "reference", pytest.fail)),
            threads=num_threads,
            prefetch=prefetch_queue_depth,
        )
        self.fault, self.steps = fault, iter(range(100))

    def build(self):
        pass

    def run(self):
        frames = self.fault(self.decoder.next(), next(self.steps)).numpy()
        return (SimpleNamespace(as_tensor=lambda: frames),)


@pytest.fixture
def engine(monkeypatch):
    """Replace the JPEG engine by the CPU's decoder, and pass its frames through `fault(frames, step)`."""
    graph = dali._graph

    def install(fault):
        def stand_in(source, size, decoder, load, *, device_id, **options):
            if decoder == "mixed":
                return StandIn(fault, source, size, **options)
            return graph(source, size, decoder, load, device_id=device_id, **options)

        monkeypatch.setattr(dali, "_graph", stand_in)

    return install


def crash_at(step):
    def fault(frames, number):
        if number == step:
            raise RuntimeError(CRASH)
        return frames

    return fault


def darker(frames, _):
    """Return frames whose full-range colours were converted to the limited range, as a wrong decoder does."""
    return frames.float().mul(219 / 255).add(16).round().to(torch.uint8)


def test_a_jpeg_engine_that_does_not_start(shared):
    """DALI raises an error because this machine has no JPEG engine. The second loader does not try the engine again."""
    said = []
    backends = Backends("mixed", "reference", said.append)
    for train in (True, False):
        work = loader(*shared, train=train, batch_size=2, backends=backends)
        assert same(list(work.epoch(1)), list(loader(*shared, train=train, batch_size=2).epoch(1)))
    assert len(said) == 1
    assert said[0].startswith("the GPU cannot decode JPEG frames (Assert on ")
    assert said[0].endswith("so the CPU decodes them, which is slower")


@pytest.mark.parametrize("step", [0, 1, 3])
def test_a_jpeg_engine_that_fails_later(shared, engine, monkeypatch, step):
    """The CPU decodes the step that failed and all later ones, and nothing is read twice."""
    expected = list(loader(*shared, batch_size=2).epoch(0))
    engine(crash_at(step))
    read, said, rows = PackFrames.read, [], []
    monkeypatch.setattr(PackFrames, "read", lambda self, plan, clip: rows.append(clip) or read(self, plan, clip))
    work = loader(*shared, batch_size=2, backends=Backends("mixed", "reference", said.append))
    assert same(list(work.epoch(0)), expected)
    assert said == [NO_ENGINE.format("nvImageCodec failure: '#5'")]
    assert len(rows) == 2 * len(expected)
    assert same(list(work.epoch(0)), expected)
    assert len(said) == 1


def test_an_epoch_follows_a_switch_at_once(shared, engine):
    """After `decode_on_cpu` is called within an epoch, the CPU decodes the remaining batches of this epoch."""
    expected = list(loader(*shared, batch_size=2).epoch(0))
    engine(crash_at(2))
    said = []
    work = loader(*shared, batch_size=2, backends=Backends("mixed", "reference", said.append))
    batches = work.epoch(0)
    first = [next(batches)]
    work.backends.decode_on_cpu("told so")
    assert same(first + list(batches), expected)
    assert said == [NO_ENGINE.format("told so")]


def test_what_a_cpu_cannot_decode_either_is_an_error(shared, monkeypatch):
    table, pack = shared
    monkeypatch.setattr(type(pack), "read_frames", lambda self, row, frames: ([b"no JPEG" for _ in frames], []))
    work = loader(table, pack, batch_size=2, backends=Backends("mixed", "reference", lambda _: None))
    with pytest.raises(RuntimeError, match="nvImageCodec"):
        next(work.epoch(0))


def small(shared, **changes):
    """Return a loader with heatmaps so small that the interpreter is fast."""
    config = replace(CONFIG, flip=1.0, pose_frames=3, heatmap_size=8, heatmap_size_val=9)
    return loader(*shared, config=config, batch_size=2, rows=np.arange(2), **changes)


class Draw:
    """The heatmap kernel in Triton's interpreter. It raises `error` if it is launched for heatmaps of `side` pixels."""

    def __init__(self, side, error):
        self.kernel, self.side, self.error = fused._draw, side, error

    def __getitem__(self, grid):
        def launch(*arguments, **options):
            if options["H"] == self.side:
                raise self.error
            return self.kernel[grid](*arguments, **options)

        return launch


@pytest.mark.parametrize("side", [8, 9])
def test_a_heatmap_kernel_that_fails_at_first_or_at_another_size(shared, monkeypatch, side):
    monkeypatch.setattr(fused, "_draw", Draw(side, OutOfResources(120_000, 101_376, "shared memory")))
    said = []
    backends = Backends("cpu", "kernel", said.append)
    for train in (True, False, True):
        work, plain = (small(shared, train=train, **more) for more in ({"backends": backends}, {}))
        for one, other in zip(work.epoch(0), plain.epoch(0), strict=True):
            for ours, theirs in zip(tensors(one), tensors(other), strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    (line,) = said
    assert line.startswith("the heatmap kernel cannot be used (OutOfResources: out of resource: shared memory")


def test_changes_of_frames_that_cannot_be_compiled(shared, monkeypatch):
    def failing():
        raise RuntimeError("backend='inductor' raised:\nmore")

    monkeypatch.setattr(pipelines.loader, "compiled_change", failing)
    said = []
    backends = Backends("cpu", "reference", said.append, compiles=True)
    work, plain = (loader(*shared, config=AUGMENTED, **more) for more in ({"backends": backends}, {}))
    for epoch in range(2):
        assert same(list(work.epoch(epoch)), list(plain.epoch(epoch)))
    (line,) = said
    assert line.startswith("the augmentation of frames cannot be compiled (RuntimeError: backend='inductor' raised:)")


def test_too_little_memory_is_no_fault_of_the_kernel(shared, monkeypatch):
    monkeypatch.setattr(fused, "_draw", Draw(8, torch.OutOfMemoryError("CUDA out of memory")))
    work = small(shared, backends=Backends("cpu", "kernel", print))
    with pytest.raises(torch.OutOfMemoryError):
        next(work.epoch(0))


def test_trial_of_the_kernel(shared, monkeypatch, tmp_path):
    work = small(shared, backends=Backends("cpu", "kernel", pytest.fail))
    assert why_not_kernel(work) is None
    mutant = broken(fused, "W - x", "W - 1 - x", tmp_path)
    monkeypatch.setattr(fused, "_draw", mutant._draw)
    assert why_not_kernel(work).startswith("its values differ from those of plain torch by up to 0.")
    monkeypatch.setattr(fused, "_draw", Draw(8, RuntimeError("Triton Error [CUDA]: no kernel image\nmore")))
    assert why_not_kernel(work) == "RuntimeError: Triton Error [CUDA]: no kernel image"
    assert work.backends.renderer == "kernel"


def test_trial_of_the_jpeg_engine(shared, engine):
    expected = list(loader(*shared).epoch(0))
    work = loader(*shared, backends=Backends("mixed", "reference", pytest.fail))
    assert why_not_mixed(work).startswith("Assert on ")
    engine(crash_at(0))
    assert why_not_mixed(work) == "nvImageCodec failure: '#5'"
    engine(darker)
    assert why_not_mixed(work).startswith("its pixels differ from the CPU's by ")
    engine(crash_at(-1))
    assert why_not_mixed(work) is None
    assert work.backends.decoder == "mixed"
    assert same(list(work.epoch(0)), expected)
