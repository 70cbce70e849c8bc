"""Compares the kernel `moments` and its gradient with a reference in float64."""

from functools import partial

import pytest
import torch

from kernels.blocks import dispatch, rows
from kernels.blocks import moments as fused
from kernels.blocks import moments_reference as reference
from tests.kernels.closeness import BFLOAT16_GRAD, FLOAT32, distance
from tests.kernels.variants import a_share, broken_below, dies, in_turn

CASES = {
    # name: (images, height, width, channels)
    "two splits": (4, 9, 7, 24),
    "54 channels": (6, 9, 7, 54),
    "13 channels": (4, 5, 7, 13),
    "two column blocks": (2, 5, 9, 216),
    "a row an image": (3, 1, 1, 24),
    "one row": (1, 1, 1, 24),
    "one channel": (4, 9, 9, 1),
}
NAMES = ("mean", "var", "x")


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """Limit each summing kernel to few programs, so that each program adds up several blocks of rows."""
    monkeypatch.setattr(rows, "SUM_PROGRAMS", 2)
    monkeypatch.setattr(rows, "SUM_TILE", 512)


def make_case(case, dtype=torch.float32):
    images, height, width, channels = CASES[case]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, channels, height, width, generator=generator) + torch.arange(images)[:, None, None, None]
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def run(module, x, dtype):
    """Return mean, variance and the gradient of x. Mean and variance contribute about equally to the gradient."""
    leaf = x.detach().to(dtype).requires_grad_()
    results = module.moments(leaf)
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(t.shape, generator=generator).to(t) * (x.numel() / t.numel()) for t in results]
    return [t.detach() for t in (*results, *torch.autograd.grad(results, leaf, grads))]


def failures(module, x) -> list[str]:
    exact, found = run(reference, x, torch.float64), run(module, x, x.dtype)
    plain = run(reference, x, torch.float32)
    said = []
    for name, best, one, other in zip(NAMES, exact, found, plain, strict=True):
        assert one.shape == best.shape
        error, allowed = distance(one, best), FLOAT32 * best.norm() + 1e-9
        if one.dtype == torch.bfloat16:
            allowed = BFLOAT16_GRAD * distance(other.bfloat16(), best)
        if not error <= allowed:
            said.append(f"{name}: {error:.3g}, allowed {allowed:.3g}, norm {best.norm():.3g}")
    return said


@pytest.mark.parametrize(("case", "dtype"), in_turn(CASES, (torch.float32, torch.bfloat16)))
def test_kernel_and_gradient_follow_the_contract(case, dtype, fenced, rounding):
    assert not failures(fused, make_case(case, dtype))


def test_reference_is_what_it_says_and_has_the_gradients_of_its_results():
    x = make_case("13 channels", torch.float64)
    mean, var = dispatch.moments(x)
    torch.testing.assert_close(mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(var, (x - mean[:, None, None]).square().mean((0, 2, 3)))
    leaf = x[:, :2, :2, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(reference.moments, leaf)


def test_operator_is_registered_as_torch_wants():
    x = torch.randn(12, 5, requires_grad=True)
    torch.library.opcheck(fused._moments, (x,), test_utils=("test_schema", "test_autograd_registration"))


MUTANTS = {
    "the variance is unbiased": (
        rows,
        "deviations).sum((1, 2)) / (groups * group_rows)",
        "deviations).sum((1, 2)) / (groups * group_rows - 1)",
    ),
    "no gradient through the mean": (fused, "+ grad_mean / len(rows)", "+ 0 * grad_mean"),
    "gradient of the variance is halved": (fused, "grad_var * (2 / len(rows))", "grad_var / len(rows)"),
    "gradient of the variance uses values instead of deviations": (fused, "(rows.float() - mean)", "rows.float()"),
    "all splits write to the same place": (fused, "channel * splits + split", "channel * splits"),
    "all splits have the same weight": (
        rows,
        "(counts * means).sum((1, 2)) / (groups * group_rows)",
        "means.mean((1, 2))",
    ),
    "ignores the differences between the means of splits": (rows, "counts * deviations", "0 * deviations"),
    "deviations are taken from the first split's mean": (
        rows,
        "means - mean[:, None, None]",
        "means - means[:, :1, :1]",
    ),
}


@pytest.mark.parametrize("name", a_share(MUTANTS))
def test_mutants_die(name, tmp_path, monkeypatch, fenced):
    module, old, new = MUTANTS[name]
    mutant, mutant_of_moments = broken_below(monkeypatch, (rows, fused), module, old, new, tmp_path)
    mutant.SUM_PROGRAMS, mutant.SUM_TILE = 2, 512
    assert dies(partial(failures, mutant_of_moments, make_case(case)) for case in CASES)


@pytest.mark.parametrize("far", [0.1, 1, 10])
def test_a_first_split_that_is_unlike_the_rest(far):
    """The variance stays accurate if the first split of the rows is unlike the others, as in a dark corner."""
    generator = torch.Generator().manual_seed(0)
    splits = torch.randn(1000, 64, 8, generator=generator, dtype=torch.float64) + 3
    splits[0] += far
    var, mean = torch.var_mean(splits, 1, correction=0)
    found = rows.merge(torch.stack([mean.T, var.T * 64])[:, :, None].float(), 64000, 64)
    exact = splits.flatten(0, 1).mean(0), splits.flatten(0, 1).var(0, correction=0)
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", [*CASES, "training"])
def test_kernel_on_a_gpu(case, dtype, monkeypatch):
    monkeypatch.undo()  # the kernels use as many programs as in training
    monkeypatch.setitem(CASES, "training", (96, 56, 56, 54))
    assert not failures(fused, make_case(case, dtype).cuda())
