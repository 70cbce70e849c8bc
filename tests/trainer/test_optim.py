"""Compares optimizer steps, clipping and learning rates with torch's. Also tests skipped steps and early stopping."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR, SequentialLR

from trainer.optim import (
    BufferGuard,
    EarlyStopping,
    build_adamw,
    build_sgd,
    clip_and_check,
    learning_rate,
    set_lr,
    step_if,
)

YES, NO = torch.tensor(True), torch.tensor(False)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))


def backward(net: nn.Module, seed: int) -> None:
    net.zero_grad()
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    nn.functional.cross_entropy(net(images), torch.arange(4)).backward()


def contents(net: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    momentum = [value for state in optimizer.state.values() for value in state.values()]
    return [tensor.detach().clone() for tensor in (*net.parameters(), *net.buffers(), *momentum)]


def assert_bits_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8)) if one.ndim else torch.equal(one, other)


def step(
    net: nn.Module, optimizer: torch.optim.Optimizer, guard: BufferGuard, seed: int, poison: float | None = None
) -> None:
    guard.hold()
    backward(net, seed)
    if poison is not None:
        net[0].weight.grad[0, 0, 0, 0] = poison  # type: ignore[index]
    _, ok = clip_and_check(net.parameters(), 1.0)
    step_if(optimizer, ok)
    guard.settle(ok)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_steps_are_those_of_plain_torch(kind: str) -> None:
    """Our steps equal those of torch's single-tensor optimizer and clipping.

    Our steps are fused, can be masked, and start with zero state.
    """
    ours, theirs = network(), network()
    if kind == "adamw":
        optimizer = build_adamw(ours.parameters(), 0.1, (0.8, 0.95), 1e-2)
        plain = torch.optim.AdamW(theirs.parameters(), 0.1, (0.8, 0.95), weight_decay=1e-2, foreach=False)
    else:
        optimizer = build_sgd(ours.parameters(), 0.1, 0.9, 1e-2)
        plain = torch.optim.SGD(theirs.parameters(), 0.1, 0.9, weight_decay=1e-2, foreach=False)
    guard = BufferGuard(ours.buffers())
    for seed in range(6):
        set_lr(optimizer, 0.1 / (seed + 1))
        plain.param_groups[0]["lr"] = 0.1 / (seed + 1)
        step(ours, optimizer, guard, seed)
        backward(theirs, seed)
        nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        plain.step()
    # The gradient of a bias before BatchNorm consists only of rounding errors, which AdamW scales up.
    rounding = ("0.bias", "1.running_mean") if kind == "adamw" else ()
    expected = theirs.state_dict()
    for name, mine in ours.state_dict().items():
        if name not in rounding:
            torch.testing.assert_close(mine, expected[name], rtol=1e-5, atol=1e-6 if rounding else 1e-7)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("bad", [0, 2])
@pytest.mark.parametrize(
    "build", [lambda p: build_sgd(p, 0.1, 0.9, 1e-2), lambda p: build_adamw(p, 0.1, (0.9, 0.9), 1e-2)]
)
def test_a_bad_step_changes_no_bit_and_the_next_ones_go_on(poison: float, bad: int, build) -> None:
    """A gradient of 3e38 is finite, but its norm is not. `bad` is the number of the bad step, from 0."""
    net = network()
    optimizer, guard = build(net.parameters()), BufferGuard(net.buffers())
    unbroken = copy.deepcopy(net)
    reference, other_guard = build(unbroken.parameters()), BufferGuard(unbroken.buffers())
    for seed in range(4):
        if seed == bad:
            before = contents(net, optimizer)
            step(net, optimizer, guard, 99, poison)
            assert_bits_equal(contents(net, optimizer), before)
        step(net, optimizer, guard, seed)
        step(unbroken, reference, other_guard, seed)
    assert_bits_equal(contents(net, optimizer), contents(unbroken, reference))


def test_momentum_survives_a_state_dict() -> None:
    net = network()
    optimizer, guard = build_sgd(net.parameters(), 0.1, 0.9, 0.0), BufferGuard(net.buffers())
    step(net, optimizer, guard, 0)
    other = network()
    other.load_state_dict(net.state_dict())
    again = build_sgd(other.parameters(), 0.1, 0.9, 0.0)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other_guard = BufferGuard(other.buffers())
    for seed in (1, 2):
        step(net, optimizer, guard, seed)
        step(other, again, other_guard, seed)
    assert_bits_equal(contents(other, again), contents(net, optimizer))


def test_without_momentum_there_is_no_buffer() -> None:
    assert not build_sgd(network().parameters(), 0.1, 0.0, 0.0).state


@pytest.mark.parametrize("max_norm", [None, 1e-3, 1.0, 1e6])
def test_clipping_is_torchs(max_norm: float | None) -> None:
    ours, theirs = network(), network()
    backward(ours, 0)
    backward(theirs, 0)
    norm, ok = clip_and_check(ours.parameters(), max_norm)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(theirs.parameters(), max_norm or math.inf))
    assert bool(ok)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=0)


def test_parameters_without_a_gradient_do_not_disturb() -> None:
    net = network()
    backward(net, 0)
    net[4].bias.grad = None  # type: ignore[union-attr]
    before = net[4].bias.detach().clone()  # type: ignore[union-attr]
    optimizer = build_sgd(net.parameters(), 0.1, 0.9, 1e-2)
    norm, ok = clip_and_check(net.parameters(), 40.0)
    step_if(optimizer, ok)
    assert norm > 0
    assert torch.equal(net[4].bias, before)  # type: ignore[arg-type]


def buffers() -> list[Tensor]:
    wide = torch.arange(12.0).reshape(3, 4)
    patterns = torch.tensor([math.nan, math.inf, -0.0, 1e-45])
    return [
        *(patterns.clone(), patterns.double(), patterns.bfloat16(), patterns.half()),
        *(torch.tensor(7), torch.tensor(2.5), torch.tensor([True, False]), torch.tensor([-128, 127], dtype=torch.int8)),
        *(wide[:, 1], wide.T[2:], torch.zeros(0)),
    ]


def as_bits(tensor: Tensor) -> list[int]:
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


def poisoned(live: list[Tensor]) -> None:
    for buffer in live:
        if buffer.dtype == torch.bool:
            buffer.logical_not_()
        else:
            buffer.fill_(math.nan if buffer.is_floating_point() else -1)


def test_guarded_buffers_keep_every_bit_of_the_chosen_side() -> None:
    live = buffers()
    guard = BufferGuard(live)
    for _ in range(2):
        before = [as_bits(buffer) for buffer in live]
        guard.hold()
        poisoned(live)
        guard.settle(NO)
        assert [as_bits(buffer) for buffer in live] == before
    guard.hold()
    poisoned(live)
    after = [as_bits(buffer) for buffer in live]
    guard.settle(YES)
    assert [as_bits(buffer) for buffer in live] == after


def test_a_buffer_under_two_names_is_guarded_once() -> None:
    buffer = torch.tensor([1.5, 2.5])
    guard = BufferGuard([buffer, buffer.view(2)])
    guard.hold()
    buffer.fill_(math.nan)
    guard.settle(NO)
    assert buffer.tolist() == [1.5, 2.5]


def test_the_guard_sees_what_a_compiled_module_does_to_its_buffers() -> None:
    """A module that is compiled with aot_eager, which needs no C++ compiler, copies new contents into its buffers."""
    net = network()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    optimizer, guard = build_sgd(net.parameters(), 0.1, 0.9, 0.0), BufferGuard(net.buffers())
    before = contents(net, optimizer)
    guard.hold()
    compiled(torch.full((4, 3, 8, 8), math.nan))
    assert net[1].running_mean.isnan().all()  # type: ignore[union-attr]
    assert net[1].num_batches_tracked == 1
    guard.settle(NO)
    assert_bits_equal(contents(net, optimizer), before)
    guard.hold()
    compiled(torch.randn(4, 3, 8, 8))
    guard.settle(YES)
    assert net[1].num_batches_tracked == 1
    assert net[1].running_mean.abs().sum() > 0  # type: ignore[union-attr]


def rates(schedule, num_epochs: int, steps_per_epoch: int = 1, **settings) -> list[float]:
    return [
        learning_rate(schedule, epoch, step, steps_per_epoch, num_epochs=num_epochs, **settings)
        for epoch in range(num_epochs)
        for step in range(steps_per_epoch)
    ]


def torch_rates(base_lr: float, count: int, build) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], base_lr)
    scheduler, found = build(optimizer), []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_warm_up_factors_are_the_published_ones() -> None:
    found = rates("cosine", 80, base_lr=1.0, eta_min=1e-6, warmup_epochs=5)
    assert found[:6] == pytest.approx([0.1, 0.325, 0.55, 0.775, 1.0, 1.0])
    assert rates("constant", 3, base_lr=2.0, warmup_epochs=1) == pytest.approx([0.2, 2.0, 2.0])


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # some versions of torch give this warning in SequentialLR
def test_warm_up_and_cosine_are_torchs_in_sequence() -> None:
    """The schedule of ntu60_x3d is LinearLR over epochs 0-4, then a cosine of 75 epochs to 1e-6.

    The source is docs/sources.md, "Schedules".
    """

    def build(optimizer: torch.optim.Optimizer) -> SequentialLR:
        parts = [LinearLR(optimizer, 0.1, total_iters=4), CosineAnnealingLR(optimizer, 75, 1e-6)]
        return SequentialLR(optimizer, parts, milestones=[5])

    expected = torch_rates(0.012, 80, build)
    found = rates("cosine", 80, 7, base_lr=0.012, eta_min=1e-6, warmup_epochs=5)
    assert found[::7] == pytest.approx(expected, rel=1e-9)
    assert found[6::7] == found[::7]  # the learning rate is constant within an epoch


def test_cosine_per_step_is_torchs_stepped_every_step() -> None:
    expected = torch_rates(0.0015, 10 * 13, lambda optimizer: CosineAnnealingLR(optimizer, 130, 0.0))
    assert rates("cosine_per_step", 10, 13, base_lr=0.0015) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_multistep_is_torchs() -> None:
    expected = torch_rates(0.0075, 30, lambda optimizer: MultiStepLR(optimizer, [10, 20], 0.1))
    assert rates("multistep", 30, base_lr=0.0075, milestones=(10, 20)) == pytest.approx(expected)


def test_constant_is_constant() -> None:
    assert rates("constant", 50, 3, base_lr=1e-3) == [1e-3] * 150


def test_early_stopping_counts_validations_that_did_not_reach_min_delta() -> None:
    stopping = EarlyStopping(patience=3, min_delta=5e-4)
    course = [(0.5, 0), (0.5004, 1), (0.5004, 2), (0.5006, 0), (0.4, 1), (math.nan, 2), (0.51, 0), (0.3, 1), (0.3, 2)]
    for score, waited in course:
        stopping.update(score)
        assert stopping.waited == waited
        assert not stopping.due
    assert stopping.best == 0.51
    stopping.update(0.3)
    assert stopping.due


def test_early_stopping_takes_a_score_that_reaches_min_delta_exactly() -> None:
    stopping = EarlyStopping(patience=1, min_delta=0.25)
    for score, due in ((0.5, False), (0.75, False), (0.75, True)):
        stopping.update(score)
        assert stopping.due == due


def test_early_stopping_goes_on_after_a_resume_with_this_runs_patience() -> None:
    stopping = EarlyStopping(patience=2)
    stopping.update(0.5)
    stopping.update(0.4)
    resumed = EarlyStopping(patience=3, min_delta=0.1)
    resumed.load_state_dict(stopping.state_dict())
    assert (resumed.patience, resumed.min_delta, resumed.best, resumed.waited) == (3, 0.1, 0.5, 1)
    for due in (False, True):
        resumed.update(0.4)
        assert resumed.due == due
