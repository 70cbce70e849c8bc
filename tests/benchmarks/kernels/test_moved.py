"""Checks the bytes that kernels move: a small kernel moves the expected number, and the committed record is current."""

import json
from collections import Counter

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError

if torch.cuda.is_available():
    pytest.skip(
        "Triton's interpreter counts the bytes, and it is not used on a machine with a GPU", allow_module_level=True
    )

from benchmarks.kernels.launches import CALLS, calls_of, describe
from benchmarks.kernels.moved import moved, totals, toy_launches, training_launches
from benchmarks.kernels.traffic import Traffic
from benchmarks.records import RECORDS
from kernels.blocks import conv_bn, shift_conv
from tests.kernels.variants import a_share
from trainer.experiments import MA52_RUN, NTU60_X3D

RECORD = json.loads((RECORDS / "bytes.json").read_text())
RECOUNT = "python -m benchmarks kernels --count bytes"
EXPERIMENTS = {"ntu60_x3d": NTU60_X3D, "ma52": MA52_RUN}


@triton.jit
def _add(result, left, right, count, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(left + index, index < count) + tl.load(right)
    tl.store(result + index, total, index < count)


def add(count):
    left, right = torch.ones(10), torch.ones(3)
    result = torch.empty_like(left)
    with Traffic() as traffic:
        _add[(3,)](result, left, right, count, BLOCK=4)
    return traffic.launches


def test_a_kernel_counted_by_hand():
    (launch,) = add(10)
    touched = {name: argument.touched() for name, argument in launch.arguments.items()}
    assert touched == {"result": 40, "left": 40, "right": 4}  # three programs load the same element of `right`
    assert launch.touched() == 84
    assert launch.request_bytes == 40 + 40 + 3 * 4
    assert launch.sizes == {"result": 40, "left": 40, "right": 12}


def test_fences_around_arguments():
    with pytest.raises(InterpreterError, match="add: an address that is read lies after the end of its argument"):
        add(11)


def test_a_dry_run_runs_nothing():
    result = torch.zeros(4)
    with Traffic(dry=True) as traffic:
        _add[(1,)](result, torch.ones(4), torch.ones(1), 4, BLOCK=4)
    assert traffic.launches[0].sizes == {"result": 16, "left": 16, "right": 4}
    assert not result.any()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_record_has_every_call_and_launch(name):
    calls, launches = Counter(), Counter()
    for call, times in calls_of(EXPERIMENTS[name], train=True).items():
        with Traffic(dry=True) as traffic:
            call.run()
        calls[call.kernel] += times
        launches[call.kernel] += times * len(traffic.launches)
    kernels = {kernel: RECORD["per_clip"][name][kernel] for kernel in calls}
    assert {kernel: values["calls"] for kernel, values in kernels.items()} == calls, RECOUNT
    assert {kernel: values["launches"] for kernel, values in kernels.items()} == launches
    assert kernels.keys() == RECORD["per_clip"][name].keys() - {"blocks", "networks"}


@pytest.mark.parametrize("name", a_share(EXPERIMENTS, slow=("ntu60_x3d",), every=1))
def test_the_record_is_current(name):
    """For each kernel, only the call that moves the most bytes is counted here. `make soak` counts all calls."""
    kernels = {kernel: values for kernel, values in RECORD["per_clip"][name].items() if "heaviest" in values}
    calls = {(call.kernel, describe(call)): call for call in calls_of(EXPERIMENTS[name], train=True)}
    for kernel, values in kernels.items():
        assert moved(calls[kernel, values["heaviest"]])["mb"] == values["heaviest_mb"], RECOUNT


@pytest.mark.soak
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_whole_record_is_current(name):
    assert totals(list(training_launches(EXPERIMENTS[name]))) == RECORD["per_clip"][name], RECOUNT


def test_more_bytes_are_seen(monkeypatch):
    call = next(call for call in calls_of(NTU60_X3D, train=True) if call.kernel == "shift_conv")
    before = moved(call)
    # makes the kernel write more partial sums of the weight's gradient
    monkeypatch.setattr(conv_bn, "GRAD_PARTIAL", 1 << 26)
    after = moved(call)
    assert after["mb"] > 1.04 * before["mb"]
    backward = shift_conv._shift_conv_grad

    def twice(*arguments):
        backward(*arguments)
        return backward(*arguments)

    monkeypatch.setattr(shift_conv, "_shift_conv_grad", twice)
    assert moved(call)["mb"] > 1.2 * after["mb"]
    assert [launch.kernel for launch in toy_launches(call)].count("backward") == 2


def test_every_kernel_is_in_the_record():
    assert {kind.kernel for kind in CALLS} == {
        kernel for kernels in RECORD["per_clip"].values() for kernel in kernels
    } - {"blocks", "networks"}


DEPTHWISE = 0.75  # GB per clip that the compiled convolution moves (docs/sources.md, "Bytes of a training step")


def test_depthwise_moves_as_much_as_the_compiled_convolution_alone():
    """Our kernel also applies the norm that precedes the convolution, but moves at most 3 % more bytes."""
    assert RECORD["per_clip"]["ntu60_x3d"]["depthwise"]["gb"] == pytest.approx(DEPTHWISE, rel=0.03)


@pytest.mark.parametrize(("name", "share"), [("ntu60_x3d", 0.53), ("ma52", 0.78)])
def test_blocks_through_kernels_are_near_the_ideal(name, share):
    """Blocks move at most 1.25 times the ideal bytes, and a whole step moves fewer bytes than without our kernels.

    The gain is small for ma52, because our kernels do not compute its 3x3 convolutions.
    """
    blocks, plans = RECORD["per_clip"][name]["blocks"], RECORD["compiled"][name]
    assert blocks["gb"] <= 1.25 * blocks["ideal_gb"]
    ours, plain = (sum(group["gb"] for group in plans[how].values()) for how in ("through_kernels", "plain"))
    assert ours <= share * plain


@pytest.mark.parametrize(("name", "share"), [("ntu60_x3d", 0.12), ("ma52", 0.24)])
def test_less_than_a_quarter_of_the_launches_of_an_eager_step(name, share):
    """The eager step is a training step of the published 3-D network (docs/sources.md, "Bytes of a training step")."""
    step = RECORD["step"][name]
    assert step["launches"] <= share * step["published_eager_launches"]
