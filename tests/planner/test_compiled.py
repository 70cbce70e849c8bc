"""Checks the planner's counts of launches and bytes in compiled training steps.

The counts of small networks must match a second count from the networks' layers. In the record bytes.json, our kernels
must have as many launches in the compiled step (`compiled`) as in the count for each clip (`per_clip`).
"""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

if torch.cuda.is_available():
    pytest.skip("the stand-in for a GPU is tested only on a machine without one", allow_module_level=True)

from benchmarks.kernels.launches import calls_of
from benchmarks.kernels.traffic import Traffic
from benchmarks.records import RECORDS
from benchmarks.synthetic import TOY, random_batch
from models.fused import PARTS, fuse
from models.layers import SqueezeExcite
from models.networks import build_model
from tests import programs
from tests.kernels.interpreted import interpreted, interprets
from tests.planner import engine
from tests.planner.cards import CARDS, T4
from tests.planner.compiled import counted


@pytest.mark.parametrize("parts", [(), pytest.param(PARTS, marks=pytest.mark.soak)])
def test_gradients_are_those_of_torch(parts):
    """The network is not compiled. It has PCAN's heads, unused outputs, and backward functions written in Python."""
    if parts and not interprets():
        pytest.skip("torch 2.11 cannot run kernels in Triton's interpreter")
    batch, found = random_batch(TOY, torch.device("cpu")), []
    for grad in (torch.autograd.grad, engine.grad):
        torch.manual_seed(0)
        net = build_model(TOY.model)
        fuse(net, parts)
        with interpreted():
            torch.manual_seed(1)
            losses = [loss.sum() for loss in net(*batch).losses.values()]
            weights = [weight for weight in net.parameters() if weight.requires_grad]
            ones = [torch.ones_like(loss) for loss in losses]
            found.append(grad(losses, weights, grad_outputs=ones, allow_unused=True))
    assert sum(value is not None for value in found[0]) > 50
    for theirs, ours in zip(*found, strict=True):
        assert (theirs is None) == (ours is None)
        assert theirs is None or torch.equal(theirs, ours)


class Two(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2, x + 1

    @staticmethod
    def backward(ctx, first, second):
        return first * 2 + second


def test_gradients_that_the_engine_changes():
    """Tests gradients that are cast to another type, gradients of a broadcast, and gradients of an unused output."""
    x, half = torch.randn(3, 4, requires_grad=True), torch.randn(4, requires_grad=True, dtype=torch.bfloat16)
    y = Two.apply(x)[0] * half + Two.apply(x[0])[1]
    given = torch.randn(3, 4)
    theirs = torch.autograd.grad([y], [x, half], grad_outputs=[given], retain_graph=True)
    ours = engine.grad([y], [x, half], grad_outputs=[given])
    for value, expected, dtype in zip(ours, theirs, (torch.float32, torch.bfloat16), strict=True):
        assert value is not None
        assert value.dtype is dtype
        assert torch.equal(value, expected)


def layers(*kinds):
    return sum(isinstance(module, kinds) for module in build_model(replace(TOY.model, pcan=None)).modules())


def products():
    """Count the layers that libraries such as cuDNN compute. Inductor's code computes those of squeeze-excite."""
    return layers(nn.Conv2d, nn.Linear) - 2 * layers(SqueezeExcite)


@pytest.mark.soak
def test_a_small_step_through_kernels():
    """Compares the planned launches and bytes of our kernels with sums over the kernel calls that the network makes."""
    counts, launches, gigabytes = counted("toy", PARTS), 0, 0.0
    for call, times in calls_of(TOY, train=True).items():
        if call.kernel != "heatmap":
            with Traffic(dry=True) as made:
                call.run()
            launches += times * len(made.launches)
            gigabytes += times * sum(sum(launch.sizes.values()) for launch in made.launches) / call.clips / 1e9
    assert counts["ours"]["launches"] == launches > 0
    assert counts["ours"]["gb"] == pytest.approx(gigabytes, rel=0.01)
    in_blocks = 6  # these convolutions are computed by our kernels, forward and backward
    assert counts["extern"]["launches"] == 3 * (products() - in_blocks) - 2 + 1
    assert counts["generated"]["launches"] > launches


HEATMAPS = """
from types import SimpleNamespace

import torch
from tests.planner.cards import CARDS
from tests.planner.compiled import on_card, planning, precision
from tests.planner.stand_in_torch import stand_in_for_torch
from torch._inductor.graph import GraphLowering

stand_in_for_torch(CARDS["sm_75"])
GraphLowering.compile_to_module = lambda graph: print(graph.codegen()[0].value) or SimpleNamespace(call=print)
with planning({"pattern_matcher": False}) as backend:  # torch takes seconds to collect its patterns
    for dtype in (precision().dtype, torch.bfloat16):
        heatmap = on_card(torch.empty(2, 17, 8, 8, dtype=dtype))
        torch.compile(lambda x: x.relu() * 2, fullgraph=True, backend=backend)(heatmap)
"""


def test_heatmaps_for_a_card_without_bf16():
    """On this card (sm_75), a run uses fp16, which Inductor compiles. Inductor refuses bf16, as on a real card."""
    done = programs.run_forked("-c", HEATMAPS, timeout=900)
    assert "fp16" in done.stdout
    assert "BF16 is not supported" in done.stderr


@pytest.mark.soak
@pytest.mark.timeout(2 * 3600)
@pytest.mark.parametrize("name", ["demo", "ntu60_x3d", "ma52"])
def test_whole_networks_for_a_card_without_bf16(name):
    """The planner asserts that the code does not contain bf16. The three networks take six minutes of CPU time."""
    assert counted(name, (), T4)["generated"]["launches"] > 300


@pytest.mark.soak
@pytest.mark.parametrize("arch", CARDS)
def test_a_small_step_compiled_for_every_card(arch):
    counts = counted("toy", (), CARDS[arch])
    assert counts["ours"] == {"launches": 0, "gb": 0}
    # Each layer has one launch forward and two launches for its gradients, but the two stems compute no gradient of
    # their input. Dropout has one launch.
    assert counts["extern"]["launches"] == 3 * products() - 2 + 1
    # one launch for the statistics and one for the norm, forward and backward
    assert counts["generated"]["launches"] > 4 * layers(nn.BatchNorm2d)


@pytest.mark.parametrize("name", ["ntu60_x3d", "ma52"])
def test_the_record_has_the_compilers_launches(name):
    record = json.loads((RECORDS / "bytes.json").read_text())
    assert "compiled" in record, "run python -m benchmarks kernels --count bytes"
    plain, through_kernels = (record["compiled"][name][which] for which in ("plain", "through_kernels"))
    assert plain["ours"]["launches"] == 0
    assert through_kernels["ours"]["launches"] == record["per_clip"][name]["networks"]["launches"]
    for counts in (plain, through_kernels):
        assert counts["extern"]["launches"] > 0
        assert counts["generated"]["launches"] > 0
    gigabytes = [sum(count["gb"] for count in counts.values()) for counts in (through_kernels, plain)]
    assert gigabytes[0] < gigabytes[1]


def test_the_tests_know_when_operators_take_the_interpreter(pytestconfig):
    (conftest,) = (plugin for plugin in pytestconfig.pluginmanager.get_plugins() if hasattr(plugin, "INTERPRETED"))
    assert interprets() == conftest.INTERPRETED
