"""The report on kernels: each part of a network is checked, then timed, and recommended where it is faster."""

from collections import Counter

import pytest
import torch

if torch.cuda.is_available():
    pytest.skip("through Triton's interpreter, and a GPU is here: TRITON_INTERPRET is unset", allow_module_level=True)

from benchmarks.harness import Target
from benchmarks.kernels import report
from benchmarks.kernels.steps import heaviest
from benchmarks.step.step import TOY
from models import fused
from trainer.experiments import MA52_RUN, NTU60_X3D
from trainer.settings import Choice, experiment_of

CPU = torch.device("cpu")


@pytest.fixture
def target(tmp_path):
    return Target(CPU, True, tmp_path)


@pytest.fixture(scope="module")
def steps():
    return heaviest((NTU60_X3D, MA52_RUN))


def test_every_block_of_the_networks_is_there(steps):
    times = Counter()
    for step in steps:
        times[step.experiment, step.part] += step.times
    assert times == {
        ("ntu60_x3d", "x3d_block"): 49,
        ("ntu60_x3d", "norm_act"): 49,
        ("ma52", "bottlenecks"): 5,  # 5 of 7 stages: those with at most 512 channels
        ("ma52", "norm_act"): 29,
    }
    assert len({step.name for step in steps}) == len(steps)
    assert {step.batch for step in steps} == {NTU60_X3D.optim.batch_size, MA52_RUN.optim.batch_size}


def test_the_heaviest_of_each_come_first(steps):
    assert len({(step.experiment, step.part) for step in steps[:4]}) == 4
    first = {(step.experiment, step.part): step.weight for step in steps[:4]}
    assert all(step.weight <= first[step.experiment, step.part] for step in steps)
    assert [(step.name, step.times) for step in steps if step.part == "x3d_block" and "112x112" in step.name] == [
        ("ntu60_x3d_x3d_block_16x24x112x112_widened_squeezed", 1)
    ]


def test_gradients_are_the_same_numbers_in_every_layout():
    dense = report.direction(torch.zeros(2, 8, 3, 5))
    assert dense.std() > 0.9
    for dtype in (torch.float32, torch.bfloat16):
        last = torch.zeros(2, 8, 3, 5, dtype=dtype).contiguous(memory_format=torch.channels_last)
        found = report.direction(last)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(found.float(), dense)


def test_a_part_is_recommended_where_it_is_faster_at_every_shape():
    lowest = {
        ("ntu60_x3d", "x3d_block"): 1.6,
        ("ntu60_x3d", "norm_act"): 1.21234,
        ("ma52", "bottlenecks"): 1.0,
        ("ma52", "norm_act"): 0.0,  # not measured, or wrong
        ("ntu60", "norm_act"): 1.01,
    }
    assert report.recommended(lowest) == {
        "ntu60_x3d": "--set fused=x3d_block,norm_act",
        "ma52": "none of the parts is faster",
        "ntu60": "--set fused=norm_act",
    }


def test_what_is_recommended_can_be_typed():
    advice = report.recommended({("ntu60_x3d", "x3d_block"): 1.6, ("ntu60_x3d", "norm_act"): 1.2})["ntu60_x3d"]
    option, assignment = advice.split()
    assert option == "--set"
    assert experiment_of(Choice(exp="ntu60_x3d", set=(assignment,))).fused == ("x3d_block", "norm_act")


def test_a_wrong_kernel_is_not_timed_not_recommended_and_said(target, monkeypatch):
    right = report.KERNELS["depthwise_conv"]

    def wrong(*given):
        y, *statistics = right(*given)
        return 1.001 * y, *statistics

    monkeypatch.setitem(report.KERNELS, "depthwise_conv", wrong)
    # The interpreter is slower than torch, so the test pretends that each kernel is twice as fast.
    monkeypatch.setattr(report, "ratio", lambda *samples: {"median": 2.0, "p25": 2.0, "p75": 2.0, "n": 2})
    results = {}
    with pytest.raises(
        RuntimeError, match=r"^(ntu60_x3d_x3d_block_.x8x8x8_widened_squeezed(, |: )){2}the errors are larger"
    ):
        results.update(report.measure(target))
    assert results["recommended"] == {"ntu60_x3d": "--set fused=norm_act"}
    assert not list(target.scratch.iterdir())


@pytest.mark.soak
def test_a_kernel_that_raises_is_a_result_and_the_others_are_measured(target, monkeypatch):
    def broken(*given):
        raise RuntimeError("out of resource: shared memory")

    monkeypatch.setitem(report.KERNELS, "norm_act", broken)
    results = {}
    with pytest.raises(RuntimeError, match=r"norm_act_3x18x8x8.*an exception was raised; see the record"):
        results.update(report.measure(target))
    told = {name for name, values in results.items() if "out of resource" in values.get("error", "")}
    assert told == {name for name in results if "norm_act" in name}
    assert {name for name, values in results.items() if "speedup" in values} == results.keys() - told - {"recommended"}


def test_each_side_of_a_comparison_runs_its_own_code(monkeypatch):
    """The compiler's side does not run our kernel, and the kernel's side does not run the compiler's code."""
    step = next(step for step in heaviest((TOY,)) if step.part == "x3d_block")
    monkeypatch.setattr(report, "KERNELS", {"materialise": lambda end: torch.zeros_like(end.y)})
    for through_kernels in (False, True, False):
        block, x = step.make(CPU, 1, fused=through_kernels)
        with report.interpreted(CPU):
            compiled = torch.compile(block, fullgraph=True, dynamic=False, backend="eager")
            assert compiled(x, step.num_frames).any() == (not through_kernels)
    assert fused.materialise(torch.ones(1)).any()


def test_the_tests_know_when_operators_take_the_interpreter(pytestconfig):
    (conftest,) = (plugin for plugin in pytestconfig.pluginmanager.get_plugins() if hasattr(plugin, "INTERPRETED"))
    assert report.interprets() == conftest.INTERPRETED
