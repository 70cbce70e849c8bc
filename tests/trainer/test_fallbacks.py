"""If a compiler or cuDNN fails, one line reports it, a file gets the whole error, and the weights stay the same."""

import functools
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._inductor import compile_fx

from kernels.program import UserError
from tests.programs import run_ranks
from tests.trainer.test_resume import assert_equal
from trainer.loop import step_or_advice, validate
from trainer.resume import state_of
from trainer.runtime.faults import exceeds_memory, is_from_cudnn, is_out_of_memory
from trainer.runtime.first_look import FirstLook
from trainer.runtime.forward import Way
from trainer.session import set_up_steps

ENGINE = "GET was unable to find an engine to execute this computation"


@pytest.fixture
def build(build_pose):
    """Overrides the fixture of conftest.py, because the network of one stream is traced in less time."""
    return functools.partial(build_pose, "optim.ema=0.9")


@pytest.fixture(autouse=True)
def cudnn_as_before():
    with torch.backends.cudnn.flags(enabled=True):
        yield
    torch._dynamo.reset()


def trained(build, *settings, last_clips=8):
    """Return a run after three steps and a validation, and random numbers that were drawn after the steps.

    The batch of the third step has only `last_clips` clips.
    """
    run = build(*settings)
    set_up_steps(run, None, Path())
    for number, batch in zip(range(3), run.train_loader.epoch(0), strict=False):
        run.meter.add(step_or_advice(run, batch if number < 2 else first_clips(batch, last_clips)))
        run.cursor.finish_step()
    drawn = torch.rand(3)
    run.journal.start_epoch(run.cursor, 2)
    validate(run)
    return run, drawn


def first_clips(batch, number):
    return replace(batch, **{name: tensor[:number] for name, tensor in batch.tensors().items()})


@pytest.fixture
def undisturbed(build):
    return trained(build, "compile=False")


def assert_same(one, other):
    for part in ("model", "optimizer", "averages"):
        assert_equal(state_of(one[0])[part], state_of(other[0])[part], part)
    assert torch.equal(one[1], other[1])
    assert one[0].cursor.validations == other[0].cursor.validations


def lines(tmp_path, words):
    return [line for line in (tmp_path / "journal" / "train.log").read_text().splitlines() if words in line]


def fail(*_, **__):
    raise RuntimeError("fatal error: Python.h: No such file or directory\nand more of it")


def compile_by(monkeypatch, **compilers):
    """Make torch.compile run operators as they are, because generating code would take minutes."""
    real, backend = torch.compile, aot_autograd(**{"fw_compiler": as_it_is} | compilers)
    monkeypatch.setattr(torch, "compile", lambda network, **_: real(network, fullgraph=True, backend=backend))


def as_it_is(graph, inputs):
    return make_boxed_func(graph.forward)


def failing_when_called(graph, inputs):
    return make_boxed_func(fail)


def later(compiler, instead):
    """Return a compiler that compiles the first graph with `compiler`, and all other graphs with `instead`."""
    graphs = count()
    return lambda graph, inputs: (instead if next(graphs) else compiler)(graph, inputs)


def calls_failing_from(first):
    """Return a compiler whose compiled code fails from call number `first` on. Calls are counted from 0."""
    calls = count()

    def compiler(graph, inputs):
        return make_boxed_func(lambda *values: graph.forward(*values) if next(calls) < first else fail())

    return compiler


def assert_told(tmp_path, what):
    report = tmp_path / "journal" / "fallbacks_rank0.txt"
    (line,) = lines(tmp_path, "failed")
    reason = "fatal error: Python.h: No such file or directory"
    assert f"{reason}), so {what} runs uncompiled and slower; the full text is in {report}" in line
    assert "Traceback" in report.read_text()
    assert "and more of it" in report.read_text()


def test_inductor_fails(build, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(compile_fx, "fx_codegen_and_compile", fail)
    run = trained(build, "compile=True")
    assert_told(tmp_path, "the network")
    assert_same(run, undisturbed)
    assert not state_of(run[0])["exact_under"]["compiled"]


def test_a_compiled_backward_pass_fails(build, tmp_path, monkeypatch):
    """When the backward pass fails, the forward pass has already changed the buffers and drawn dropout."""
    compile_by(monkeypatch, bw_compiler=failing_when_called)
    run = trained(build, "compile=True", "optim.accumulate=2")
    assert_told(tmp_path, "the network")
    assert_same(run, trained(build, "compile=False", "optim.accumulate=2"))


def test_a_smaller_batch_fails_to_compile(build, tmp_path, monkeypatch):
    """In the first run, the backward pass for the smaller batch fails to compile.

    In the second run, torch refuses to compile the network for another shape.
    """
    undisturbed = trained(build, "compile=False", last_clips=4)
    compile_by(monkeypatch, bw_compiler=later(as_it_is, fail))
    run = trained(build, "compile=True", last_clips=4)
    assert_told(tmp_path, "the network")
    assert_same(run, undisturbed)
    compile_by(monkeypatch)
    with torch._dynamo.config.patch(recompile_limit=1):
        assert_same(trained(build, "compile=True", last_clips=4), undisturbed)
    line = lines(tmp_path, "failed")[1]
    assert "torch.compile failed (FailOnRecompileLimitHit: " in line
    assert "so the network runs uncompiled and slower; the full text is in" in line


def test_compiled_code_fails_in_a_later_step(build, tmp_path, monkeypatch):
    """The backward pass fails in the second part of the second step.

    This is its call 5, counted from 0: the first look calls it twice, and each step calls it once for each of its two
    parts.
    """
    undisturbed = trained(build, "compile=False", "optim.accumulate=2")
    compile_by(monkeypatch, bw_compiler=calls_failing_from(5))
    run = trained(build, "compile=True", "optim.accumulate=2")
    assert_told(tmp_path, "the network")
    assert_same(run, undisturbed)


TWO_RANKS = """
import sys
from pathlib import Path

import torch
import tyro
from torch._dynamo.backends.common import aot_autograd

from tests.trainer.test_fallbacks import as_it_is, fail, first_clips, later
from trainer.commands.train import Options
from trainer.data import build_loaders
from trainer.journal.journal import Journal
from trainer.loop import step_or_advice, validate
from trainer.run import build_run
from trainer.runtime.forward import Way
from trainer.runtime.ranks import join
from trainer.runtime.signals import Interrupt
from trainer.session import set_up_steps
from trainer.settings import experiment_of
from trainer.snapshots.writer import NoWriter

experiment = experiment_of(tyro.cli(Options, args=[*sys.argv[2:], "--set", "compile=True"]))
with join("cpu") as ranks, Interrupt() as interrupt:
    real, compilers = torch.compile, dict.fromkeys(("fw_compiler", "bw_compiler", "inference_compiler"), as_it_is)
    if ranks.rank:
        compilers |= {"inference_compiler": fail, "bw_compiler": later(as_it_is, fail)}
    torch.compile = lambda network, **_: real(network, fullgraph=True, backend=aot_autograd(**compilers))
    journal = Journal(Path(sys.argv[1]), ranks.rank)
    run = build_run(experiment, ranks, build_loaders(experiment, ranks, print), journal, NoWriter(), interrupt)
    set_up_steps(run, None, Path())
    batches = run.train_loader.epoch(0)
    run.meter.add(step_or_advice(run, next(batches)))
    run.journal.start_epoch(run.cursor, 2)
    for _ in range(2):
        validate(run)
    assert run.forward.way is Way.COMPILED
    run.meter.add(step_or_advice(run, first_clips(next(batches), 3)))
    for _ in range(8):
        run.should_stop()
    weights = torch.cat([weight.detach().flatten() for weight in run.network.parameters()])
    torch.distributed.broadcast(others := weights.clone(), 0)
    print(run.forward.way.name, torch.equal(weights, others), bool(weights.isfinite().all()))
"""


@pytest.mark.timeout(900)  # each rank traces the network several times, which takes minutes on a busy machine
def test_one_of_two_ranks_fails_later(tiny_pose, environment, tmp_path):
    """First validation, then a smaller batch, fails to compile on one rank. The other rank does not wait forever."""
    program = ("-c", TWO_RANKS, tmp_path / "run", *tiny_pose)
    for done in run_ranks(program, program, environment=environment, timeout=840):
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.splitlines()[-1] == "DIRECT True True"
    assert (tmp_path / "run" / "fallbacks_rank1.txt").read_text().count("and more of it") >= 2
    for what in ("validation", "the network"):
        assert f"so {what} runs uncompiled" in (tmp_path / "run" / "train.log").read_text()


def test_validation_fails_to_compile(build, undisturbed, tmp_path, monkeypatch):
    compile_by(monkeypatch, inference_compiler=fail)
    run = trained(build, "compile=True")
    assert_told(tmp_path, "validation")
    run[0].network.train()
    assert run[0].forward.way is Way.COMPILED
    assert_same(run, undisturbed)


@pytest.mark.parametrize("training", [True, False])
def test_cudnn_has_no_plan(build, undisturbed, tmp_path, monkeypatch, training):
    """The third convolution fails. In training, the layers before it have already changed the buffers."""
    real, calls, modes = nn.functional.conv2d, [], []

    def conv2d(*arguments, **more):
        calls.append(1)
        if len(calls) > 2 and torch.backends.cudnn.enabled and modes[0].training is training:
            raise RuntimeError(ENGINE)
        return real(*arguments, **more)

    def build_rehearsed(*settings):
        run = build(*settings)
        modes.append(run.network)
        run.execute = FirstLook(run)
        return run

    monkeypatch.setattr(nn.functional, "conv2d", conv2d)
    run = trained(build_rehearsed, "compile=False")
    (line,) = lines(tmp_path, "cuDNN cannot compute a convolution")
    assert f"(RuntimeError: {ENGINE}), so {'the network' if training else 'validation'} runs uncompiled" in line
    assert torch.backends.cudnn.enabled is not training
    assert_same(run, undisturbed)


def test_cudnn_has_no_plan_in_benchmark_mode(build, tmp_path):
    run = build("compile=False")
    with torch.backends.cudnn.flags(benchmark=True):
        run.forward.fall_back(RuntimeError(ENGINE.replace("GET", "FIND")))
        assert not torch.backends.cudnn.benchmark
        assert run.forward.way is Way.DIRECT
        run.forward.fall_back(RuntimeError(ENGINE))
        assert run.forward.way is Way.WITHOUT_CUDNN
        with pytest.raises(RuntimeError, match="unable to find an engine"):
            run.forward.fall_back(RuntimeError(ENGINE))
    assert len(lines(tmp_path, "cuDNN")) == 2


def test_the_plainest_way_raises_its_own_error(build, monkeypatch):
    """Errors that a slower way to compute cannot avoid are raised unchanged.

    Examples are bugs, mistakes of the user, and too little memory.
    """
    run = build("compile=False")
    for error in (KeyError("a bug"), UserError("a mistake"), torch.OutOfMemoryError("CUDA out of memory")):
        with pytest.raises(type(error)):
            run.forward.fall_back(error)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "NCCL error: unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'",
        "Triton Error [CUDA]: out of memory",
        "CUDA allocation failed",
    ],
)
def test_too_little_memory(text):
    assert is_out_of_memory(RuntimeError(text))
    assert exceeds_memory(RuntimeError(text))
    assert not is_from_cudnn(RuntimeError(text))


@pytest.mark.parametrize(
    "text",
    [
        ENGINE,
        "FIND was unable to find an engine to execute this computation",
        "Unable to find a valid cuDNN algorithm to run convolution",
        "cuDNN Frontend error: [cudnn_frontend] Error: No execution plans support the graph.",
        "[cudnn_frontend] Error: No execution plans built successfully.",
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input.",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    ],
)
def test_no_plan_of_cudnn(text):
    assert is_from_cudnn(RuntimeError(text))
    assert not is_out_of_memory(RuntimeError(text))


def test_other_failures():
    for text in (
        "out of resource: shared memory, Required: 131072, Hardware limit: 101376. Reducing block sizes may help",
        "CUDA error: an illegal memory access was encountered",
        "Failed to find C compiler. Please specify via CC environment variable",
    ):
        assert not exceeds_memory(RuntimeError(text))
        assert not is_from_cudnn(RuntimeError(text))
