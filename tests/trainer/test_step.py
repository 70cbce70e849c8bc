"""Tests one step: accumulation, the EMA of the weights and loss scaling. NaN or infinite gradients change nothing."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.heatmap import render_heatmaps
from tests.trainer.test_resume import assert_equal
from trainer.config import OptimConfig
from trainer.optim import build_optimizer, build_sgd, step_if
from trainer.resume import state_of, take_up
from trainer.runtime.precision import LossScale
from trainer.scoring import score_split
from trainer.session import introduce
from trainer.step import split, train_step

SGD = OptimConfig(batch_size=8, num_epochs=1, lr=0.1, schedule="constant", weight_decay=1e-3)


def frozen(run):
    """Put a run into eval mode. Without batch statistics and dropout, a batch has the same gradients as its parts."""
    run.network.eval()
    return run


def weights(run):
    return [parameter.detach().clone() for parameter in run.network.parameters()]


def batches(run, count):
    return [batch for _, batch in zip(range(count), run.train_loader.epoch(0), strict=False)]


def test_parts_of_a_batch_are_views_in_order(build):
    (batch,) = batches(build(), 1)
    parts = split(batch, 4)
    assert [part.index.tolist() for part in parts] == [batch.index[i : i + 2].tolist() for i in range(0, 8, 2)]
    assert parts[1].rgb.data_ptr() == batch.rgb[2:].data_ptr()


def test_accumulated_steps_equal_whole_ones(build):
    whole, parts = frozen(build()), frozen(build("optim.accumulate=4"))
    assert_equal(weights(whole), weights(parts))
    for batch in batches(whole, 3):
        one, four = train_step(whole, batch), train_step(parts, batch)
        torch.testing.assert_close(one, four, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights(whole), weights(parts), rtol=1e-5, atol=1e-6)


def test_averages_are_those_of_torch(build):
    run = build("optim.ema=0.9")
    oracle = AveragedModel(run.network, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    oracle.n_averaged += 1  # at its first update, torch's average copies the weights; ours is a copy from the start
    for batch in batches(run, 3):
        train_step(run, batch)
        oracle.update_parameters(run.network)
    torch.testing.assert_close(
        [p.detach() for p in run.ema.network.parameters()], [p.detach() for p in oracle.module.parameters()]
    )
    own = weights(run)
    with run.ema.in_place_of(run.network):
        assert_equal(weights(run), [p.detach() for p in run.ema.network.parameters()])
        scores = score_split(run)
    assert_equal(weights(run), own)
    assert not torch.equal(scores.probability["rgb"], score_split(run).probability["rgb"])


def test_averages_and_loss_scale_go_through_a_snapshot(build):
    settings = ("optim.ema=0.9", "optim.precision=fp16")
    run = build(*settings)
    run.scale.settle(torch.tensor(False))
    run.ema.update(nn.Module.half(build().network).float())
    again = build(*settings)
    take_up(again, state_of(run))
    assert_equal(state_of(again), state_of(run))
    assert float(again.scale.scale(torch.tensor(1.0))) == 32768


def test_adamw_goes_on_from_a_snapshot_bit_for_bit(build):
    settings = ("optim.kind=adamw", "optim.lr=0.001", "optim.betas=(0.8,0.95)", "optim.ema=0.9")
    run, again = build(*settings), build(*settings)
    first, second = batches(run, 2)
    train_step(run, first)
    take_up(again, clone(state_of(run)))
    for each in (run, again):
        train_step(each, second)
    for part in ("model", "optimizer", "averages"):
        assert_equal(state_of(again)[part], state_of(run)[part], part)
    assert {float(state["step"]) for state in run.optimizer.state.values()} == {2.0}


def test_the_introduction_names_the_optimizer(build, tmp_path):
    introduce(build("optim.kind=adamw"))
    introduce(build())
    log = (tmp_path / "journal" / "train.log").read_text()
    assert re.findall(r"(\w+) from torch", log) == ["AdamW", "SGD"]


def test_another_optimizer_starts_anew_from_a_snapshot_and_says_so(build, tmp_path):
    run, again, same = build(), build("optim.kind=adamw"), build()
    train_step(run, *batches(run, 1))
    take_up(same, state_of(run))
    log = tmp_path / "journal" / "train.log"
    assert "at zero" not in log.read_text()
    take_up(again, state_of(run))
    assert_equal(weights(again), weights(run))
    assert all(not state["exp_avg"].any() for state in again.optimizer.state.values())
    take_up(same, state_of(again))
    told = [line for line in log.read_text().splitlines() if "at zero" in line]
    for line, own in zip(told, ("averages of AdamW, so they start", "momentum of SGD, so it starts"), strict=True):
        assert line.endswith(f"the snapshot does not contain the {own} at zero")


def test_loss_scale_follows_the_rule_of_torch():
    ours, theirs = LossScale(torch.device("cpu")), torch.amp.GradScaler("cpu")
    weight = nn.Parameter(torch.ones(3))
    optimizer = build_sgd([weight], 0.1, 0.9, 0.0)
    generator = torch.Generator().manual_seed(0)
    for good in [*(torch.rand(30, generator=generator) < 0.7), *torch.ones(2100, dtype=torch.bool)]:
        loss = (weight * (1.0 if good else float("inf"))).sum()
        theirs.scale(loss).backward()
        theirs.step(optimizer)
        theirs.update()
        ours.settle(good)
        optimizer.zero_grad()
        assert float(ours.scale(torch.tensor(1.0))) == theirs.get_scale()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_steps_in_half_precision_lead_where_float32_does(build, precision):
    half, full = build(f"optim.precision={precision}"), build()
    for batch in batches(full, 4):
        rough, exact = train_step(half, batch), train_step(full, batch)
    assert {parameter.dtype for parameter in half.network.parameters()} == {torch.float32}
    assert torch.isfinite(rough["loss"])
    torch.testing.assert_close(rough["loss"], exact["loss"], rtol=0.05, atol=0)
    assert half.cursor.bad_steps[1] == 0


def test_a_joint_that_is_not_a_number_is_not_drawn(build):
    run = build()
    (batch,) = batches(run, 1)
    joints = torch.full((8, 8, 1, 17, 3), 5.0)
    joints[0, 0, 0, 0, 0], joints[1, 0, 0, 0, 2], joints[2, 0, 0, 0, 1] = float("nan"), float("nan"), float("inf")
    values = train_step(run, replace(batch, heatmap=render_heatmaps(joints, (12, 12), 0.6)))
    assert torch.isfinite(torch.stack(list(values.values()))).all()
    assert run.cursor.bad_steps.tolist() == [0, 0]


def poison_heatmap(run, batch):
    return replace(batch, heatmap=batch.heatmap.index_fill(0, torch.tensor([0]), float("nan")))


def poison_pixel(run, batch):
    frames = batch.rgb.float()
    frames[0, 0, 0, 0, 0] = float("nan")
    return replace(batch, rgb=frames)


def poison_loss(run, batch):
    class Broken(nn.Module):
        def forward(self, *inputs):
            output = network(*inputs)
            return output._replace(losses={name: loss * float("inf") for name, loss in output.losses.items()})

    network, run.parallel = run.parallel, Broken()
    return batch


def poison_gradient(run, batch):
    parameter = next(run.network.parameters())
    parameter.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([0]), float("-inf")))
    return batch


@pytest.mark.parametrize("poison", [poison_heatmap, poison_pixel, poison_loss, poison_gradient])
@pytest.mark.parametrize("settings", ["optim.precision=fp32", "optim.precision=fp16", "optim.kind=adamw"])
def test_a_step_that_is_not_finite_changes_no_bit(build, poison, settings):
    run = build("optim.ema=0.9", settings)
    first, second = batches(run, 2)
    train_step(run, first)
    before = {name: clone(value) for name, value in state_of(run).items()}
    train_step(run, poison(run, second))
    after = state_of(run)
    for part in ("model", "optimizer", "averages"):
        assert_equal(after[part], before[part], part)
    assert run.cursor.bad_steps.tolist() == [1, 1]
    assert all(probability.isfinite().all() for probability in score_split(run).probability.values())


def clone(value):
    if isinstance(value, dict):
        return {key: clone(part) for key, part in value.items()}
    return value.clone() if isinstance(value, torch.Tensor) else value


def test_apex_without_its_extension_is_told():
    with pytest.raises(ValueError, match=r"amp_C, which is not installed"):
        build_optimizer(replace(SGD, impl="apex"), [nn.Parameter(torch.ones(3))])


@pytest.mark.gpu
def test_apex_makes_the_steps_of_torch():
    pytest.importorskip("amp_C", reason="NVIDIA's apex is not installed")
    results = []
    for impl in ("torch", "apex"):
        torch.manual_seed(0)
        net = nn.Conv2d(8, 8, 3).cuda().to(memory_format=torch.channels_last)
        optimizer = build_optimizer(replace(SGD, impl=impl), net.parameters())
        for step in range(4):
            net(torch.rand(2, 8, 9, 9, device="cuda")).square().sum().backward()
            step_if(optimizer, torch.tensor(step != 2, device="cuda"))
            optimizer.zero_grad()
        results.append([parameter.detach() for parameter in net.parameters()])
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


ASKS_THE_DEVICE = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2"}


class Questions(TorchDispatchMode):
    """Records operators that make the host wait for a GPU. It cannot recognise copies to the host."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket.__name__
        if name in ASKS_THE_DEVICE:
            self.asked.append(name)
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "settings", [(), ("optim.ema=0.9", "optim.precision=fp16", "optim.accumulate=2"), ("optim.kind=adamw",)]
)
def test_a_step_asks_nothing_of_the_device(build, settings):
    run = build(*settings)
    first, second = batches(run, 2)
    train_step(run, first)
    with Questions() as questions:
        run.meter.add(train_step(run, second))
    assert questions.asked == []
    with questions:
        float(torch.ones(()))
    assert questions.asked == ["_local_scalar_dense"]


@pytest.mark.gpu
def test_nothing_waits_for_the_gpu_between_two_logs(build):
    run = build("optim.ema=0.9", on="cuda")
    kept = batches(run, 3)
    for batch in kept:  # the first steps compile code and allocate memory
        run.meter.add(train_step(run, batch))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in kept:
            run.meter.add(train_step(run, batch))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert run.meter.read(run.ranks)["loss"] > 0
