"""Which kernel a network takes on a device: measured in its place, after parity, won in every experiment."""

import json
from collections import Counter

import pytest
import torch

if torch.cuda.is_available():
    pytest.skip("through Triton's interpreter, and a GPU is here: TRITON_INTERPRET is unset", allow_module_level=True)

from benchmarks.harness import Target
from benchmarks.kernels import report as kernels
from benchmarks.kernels.steps import heaviest
from benchmarks.step.step import TOY
from kernels import choice
from models import norms, x3d_shift
from trainer.experiments import MA52_RUN, NTU60_X3D

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
        ("ma52", "bottlenecks"): 5,  # stages of 7: those of 512 channels and fewer
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
    dense = kernels.direction(torch.zeros(2, 8, 3, 5))
    assert dense.std() > 0.9
    for dtype in (torch.float32, torch.bfloat16):
        last = torch.zeros(2, 8, 3, 5, dtype=dtype).contiguous(memory_format=torch.channels_last)
        found = kernels.direction(last)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(found.float(), dense)


def test_a_winner_wins_everywhere():
    lowest = {
        ("norm_act", "ntu60_x3d"): 1.21234,
        ("norm_act", "ma52"): 1.05,
        ("bottlenecks", "ma52"): 1.0,
        ("x3d_block", "ntu60_x3d"): 1.6,
        ("x3d_block", "ntu60"): 0.0,  # not measured, or not right
    }
    assert kernels.faster(lowest) == {"norm_act": {"ntu60_x3d": 1.212, "ma52": 1.05}}


def test_a_device_has_one_entry_and_others_keep_theirs(tmp_path):
    path = tmp_path / "faster.json"
    kernels.write_choice(path, CPU, {"x3d_block": {"ntu60_x3d": 1.3}})
    kernels.write_choice(path, torch.device("meta"), {"norm_act": {"ma52": 1.1}})
    kernels.write_choice(path, CPU, {})
    assert json.loads(path.read_text()) == {"cpu": {}, "meta": {"norm_act": {"ma52": 1.1}}}


def test_a_wrong_kernel_is_not_timed_not_chosen_and_said(target, monkeypatch):
    right = kernels.FUSED[x3d_shift, "depthwise_conv"]

    def wrong(*given):
        y, *statistics = right(*given)
        return 1.001 * y, *statistics

    monkeypatch.setitem(kernels.FUSED, (x3d_shift, "depthwise_conv"), wrong)
    # No interpreter is as fast as torch: as if each were twice as fast.
    monkeypatch.setattr(kernels, "ratio", lambda *samples: {"median": 2.0, "p25": 2.0, "p75": 2.0, "n": 2})
    before = choice.RECORD.read_text()
    with pytest.raises(RuntimeError, match=r"^(ntu60_x3d_x3d_block_.x8x8x8_widened_squeezed(, |: )){2}further from"):
        list(kernels.measure(target))
    written = json.loads((target.scratch / "faster.json").read_text())["cpu"]
    assert written.keys() == {"norm_act"}
    assert choice.RECORD.read_text() == before
    assert "cpu" not in choice.FASTER


def test_a_kernel_that_raises_is_a_result_and_the_others_are_measured(target, monkeypatch):
    def broken(*given):
        raise RuntimeError("out of resource: shared memory")

    monkeypatch.setitem(kernels.FUSED, (norms, "norm_act"), broken)
    results = {}
    with pytest.raises(RuntimeError, match=r"norm_act_3x18x8x8.*or raised; see results"):
        results.update(kernels.measure(target))
    told = {name for name, values in results.items() if "out of resource" in values.get("error", "")}
    assert told == {name for name in results if "norm_act" in name}
    assert {name for name, values in results.items() if "speedup" in values} == results.keys() - told - {"faster"}


def test_a_compiled_step_follows_the_choice(monkeypatch):
    """What is timed as the compiler's is not the kernel, and the other way round, though both share their code."""
    step = next(step for step in heaviest((TOY,)) if step.part == "x3d_block")
    monkeypatch.setattr(kernels, "FUSED", {(x3d_shift, "materialise"): lambda end: torch.zeros_like(end.y)})
    block, x = step.make(CPU, 1)
    compiled = torch.compile(lambda x: step.run(block, x), fullgraph=True, dynamic=False, backend="eager")
    assert step.run(block, x).any()
    for chosen in ((), ("x3d_block",), (), ("x3d_block",), ("norm_act",)):
        with kernels.through(chosen, CPU):
            assert compiled(x).any() == ("x3d_block" not in chosen), chosen
