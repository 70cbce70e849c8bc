"""Compares the kernels of norm_act with a reference in float64, and the reference with torch's BatchNorm2d."""

import sys
from functools import partial

import pytest
import torch
from torch import nn

from kernels.blocks import dispatch, moments, rows
from kernels.blocks import norm_act as fused
from kernels.blocks import norm_act_reference as reference
from tests.kernels.closeness import BFLOAT16, BFLOAT16_GRAD, FLOAT32, distance
from tests.kernels.variants import a_share, broken_below, dies, in_turn

CASES = {
    # name: (images, height, width, channels, residual, activation)
    "plain": (4, 9, 7, 24, False, "none"),
    "relu": (3, 9, 7, 54, False, "relu"),
    "residual": (2, 9, 7, 13, True, "none"),
    "residual, relu": (3, 9, 7, 48, True, "relu"),
    "two column blocks": (1, 3, 5, 216, False, "relu"),
    "one channel": (3, 9, 7, 1, True, "relu"),
    "a block of rows and one more": (1, 1, 129, 24, False, "relu"),
    "one row": (1, 1, 1, 24, True, "relu"),
}
STATISTICS = 1e-5


def make_case(case, dtype=torch.float32):
    """Return (x, weight, bias, residual) and the activation of a case. residual may be None."""
    images, height, width, channels, has_residual, activation = CASES[case]
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    x, residual = (random(images, channels, height, width).to(dtype) for _ in range(2))
    x = x * 3 + random(channels, 1, 1) * 5
    x[:, 0] /= 100  # a variance so small that eps changes the result
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    return (x, 1 + random(channels) / 2, random(channels), residual if has_residual else None), activation


def run(module, inputs, activation, dtype=None, rounded=None):
    """Return the result, statistics and gradients by name, computed in `dtype`.

    If `rounded` is passed, the result and the gradients of x and residual are then converted to this type.
    """
    leaves = [None if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in inputs]
    result, mean, var = module.norm_act(*leaves, activation)
    assert not mean.requires_grad
    assert not var.requires_grad
    grad = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).to(inputs[0].dtype).to(result)
    grads = torch.autograd.grad(result, [leaf for leaf in leaves if leaf is not None], grad)
    names = ["x", "weight", "bias", *(["residual"] if inputs[3] is not None else [])]
    found = {"result": result.detach(), "mean": mean, "var": var} | dict(zip(names, grads, strict=True))
    return {name: t.to(rounded) if rounded and name in ("result", "x", "residual") else t for name, t in found.items()}


def failures(module, inputs, activation) -> list[str]:
    """Return one line for each result, statistic or gradient whose error against float64 is too large."""
    dtype = inputs[0].dtype
    exact = run(reference, inputs, activation, torch.float64)
    found = run(module, inputs, activation)
    plain = run(reference, inputs, activation, torch.float32, dtype)
    said = []
    for name, best in exact.items():
        assert found[name].shape == best.shape, name
        error, allowed = distance(found[name], best), FLOAT32 * best.norm() + 1e-9
        if found[name].dtype != torch.float32:
            bar = BFLOAT16 if name == "result" else BFLOAT16_GRAD
            allowed = bar * distance(plain[name], best)
        if not error <= allowed:
            said.append(f"{name}: {error:.3g}, allowed {allowed:.3g}, norm {best.norm():.3g}")
    return said


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """Limit each summing kernel to few programs, so that each program adds up several blocks of rows."""
    monkeypatch.setattr(rows, "SUM_PROGRAMS", 2)
    monkeypatch.setattr(rows, "SUM_TILE", 1024)


@pytest.mark.parametrize("case", [name for name in CASES if name not in ("one row", "two column blocks")])
def test_reference_is_batch_norm_and_what_follows(case):
    (x, weight, bias, residual), activation = make_case(case, torch.float64)
    norm = nn.BatchNorm2d(x.shape[1], momentum=1.0, dtype=torch.float64).train()
    norm.load_state_dict({"weight": weight, "bias": bias}, strict=False)
    expected = norm(x).detach()
    expected = expected if residual is None else expected + residual
    expected = expected.relu() if activation == "relu" else expected
    result, mean, var = reference.norm_act(x, weight.double(), bias.double(), residual, activation)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(mean, norm.running_mean)
    count = x.numel() // x.shape[1]
    torch.testing.assert_close(var * count / (count - 1), norm.running_var)


@pytest.mark.parametrize("case", ["plain", "residual, relu"])
def test_reference_has_the_gradients_of_its_result(case):
    inputs, activation = make_case(case, torch.float64)
    parts = (None if t is None else t[:, :2, :3, :2] if t.dim() == 4 else t[..., :2] for t in inputs)
    leaves = [None if t is None else t.double().requires_grad_() for t in parts]
    assert torch.autograd.gradcheck(lambda *leaves: reference.norm_act(*leaves, activation)[0], leaves)


@pytest.mark.parametrize(("case", "dtype"), in_turn(CASES, (torch.float32, torch.bfloat16)))
def test_kernel_and_gradients_follow_the_contract(case, dtype, fenced, rounding):
    assert not failures(fused, *make_case(case, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_of_a_mean_far_from_zero(dtype, rounding):
    (x, weight, bias, *_), _ = make_case("relu")
    var, mean = torch.var_mean(x, (0, 2, 3), keepdim=True)
    x = ((x - mean) / var.sqrt() + 100).to(dtype)
    found, exact = fused.norm_act(x, weight, bias), reference.norm_act(x.double(), weight.double(), bias.double())
    for name, one, best in zip(("mean", "var"), found[1:], exact[1:], strict=True):
        torch.testing.assert_close(one.double(), best, rtol=STATISTICS, atol=0, msg=name)
    best = exact[0].to(dtype).double()
    torch.testing.assert_close(found[0].double(), best, rtol=0.01 if dtype == torch.bfloat16 else 1e-4, atol=1e-4)
    constant = fused.norm_act(torch.full_like(x, 5.1), weight, bias)
    assert constant[2].max() < 1e-10
    torch.testing.assert_close(
        constant[0].float(), bias.to(dtype).float()[:, None, None].expand(x.shape), atol=1e-3, rtol=0
    )


def test_zero_is_where_relu_has_no_gradient():
    x = torch.tensor([-1.0, 0.0, 1.0, 0.0]).view(4, 1, 1, 1).requires_grad_()
    added = torch.zeros(4, 1, 1, 1, requires_grad=True)
    for module in (fused, reference):
        result, *_ = module.norm_act(x, torch.ones(1), torch.zeros(1), added, activation="relu")
        assert torch.autograd.grad(result.sum(), added)[0].flatten().tolist() == [0, 0, 1, 0]


def test_any_layout_and_an_expanded_gradient(fenced):
    (x, weight, bias, residual), activation = make_case("residual, relu")
    assert not failures(fused, (x.contiguous(), weight, bias, residual.contiguous()), activation)
    spread, strided = weight[:1].expand_as(weight), torch.stack([bias, bias], 1)[:, 0]
    assert not failures(fused, (x, spread, strided, residual), activation)
    leaf = x.contiguous().requires_grad_()
    result, *_ = fused.norm_act(leaf, weight, bias, residual, activation)
    assert result.is_contiguous(memory_format=torch.channels_last)
    (found,) = torch.autograd.grad(result, leaf, result.new_ones(1).expand_as(result))
    exact, *_ = reference.norm_act(leaf, weight, bias, residual, activation)
    torch.testing.assert_close(found, torch.autograd.grad(exact.sum(), leaf)[0], atol=1e-5, rtol=1e-4)


def test_only_the_wanted_gradients(fenced):
    (x, weight, bias, residual), activation = make_case("residual, relu")
    result, *_ = fused.norm_act(x, weight.requires_grad_(), bias, residual, activation)
    result.sum().backward()
    assert weight.grad is not None
    assert x.grad is bias.grad is residual.grad is None


def test_a_nan_reaches_all_of_its_channel():
    (x, weight, bias, *_), _ = make_case("relu")
    x[0, 3, 2, 1] = float("nan")
    result, *_ = fused.norm_act(x, weight, bias, activation="relu")
    assert result[:, 3].isnan().all()
    assert result.isnan().sum() == x[:, 3].numel()


def test_dispatch_takes_the_reference_on_a_cpu(monkeypatch):
    inputs, activation = make_case("residual, relu")
    monkeypatch.setattr(fused, "norm_act", None)
    for one, other in zip(dispatch.norm_act(*inputs, activation), reference.norm_act(*inputs, activation), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("case", ["relu", "residual, relu"])
def test_operators_are_registered_as_torch_wants(case):
    (x, weight, bias, residual), activation = make_case(case)
    pixels, added = (None if t is None else t.permute(0, 2, 3, 1).reshape(-1, x.shape[1]) for t in (x, residual))
    leaves = [None if t is None else t.requires_grad_() for t in (pixels, weight, bias, added)]
    checks = ("test_schema", "test_autograd_registration")
    torch.library.opcheck(fused._norm_act, (*leaves, activation, 1e-5), test_utils=checks)
    plain = [None if t is None else t.detach() for t in leaves]
    first, rest = (pixels.detach(), plain[0]), [plain[1].abs()] * 4
    torch.library.opcheck(fused._grad_sums, (*first, plain[3], *rest, activation, 1e-5), test_utils=checks)
    shares = torch.stack([plain[1]] * 2)
    torch.library.opcheck(fused._grad_rows, (*first, *rest, shares, activation, 1e-5), test_utils=checks)


MUTANTS = {
    "the variance is unbiased": (
        rows,
        "/ (groups * group_rows)",
        "/ (groups * group_rows - 1)",
    ),
    "ignores the differences between the means of splits": (rows, "counts * deviations", "0 * counts"),
    "the last split counts as if it were complete": (rows, ".clamp(max=span)", ".clamp(min=span, max=span)"),
    "statistics include rows outside the split": (moments, "tl.where(inside, value - mean, 0.0)", "value - mean"),
    "every position counts the same number of rows": (
        moments,
        "(rows_left - local + BLOCK_R - 1) // BLOCK_R",
        "(rows_left + BLOCK_R - 1) // BLOCK_R + 0 * local",
    ),
    "ignores the differences between rows": (moments, "squares + count * delta * delta", "squares"),
    "multiplies two deviations from the old mean": (moments, "delta * (value - mean)", "delta * delta"),
    "every step reads the first block": (moments, "        first += BLOCK_R\n", ""),
    "adds eps after the square root": (
        fused,
        "tl.rsqrt((_row(var, channel, C) + eps).to(tl.float32))",
        "1 / (tl.sqrt(_row(var, channel, C)) + eps)",
    ),
    "activates before adding the residual": (
        fused,
        "        z += load(residual, place, inside)\n    tl.store",
        "        z = tl.where(z <= 0, 0.0, z) + load(residual, place, inside)\n    tl.store",
    ),
    "reads a row of the next block": (
        fused,
        "inside = (local < rows_left)[:, None] & (channel < C)[None, :]",
        "inside = (local < rows_left + 1)[:, None] & (channel < C)[None, :]",
    ),
    "does not write the last row": (
        fused,
        "inside = (local < rows_left)[:, None]",
        "inside = (local < rows_left - 1)[:, None]",
    ),
    "stores a channel that does not exist": (
        fused,
        "inside = (local < rows_left)[:, None] & (channel < C)[None, :]",
        "inside = (local < rows_left)[:, None] & (channel < C + 1)[None, :]",
    ),
    "relu has the gradient 1 at 0": (rows, "tl.where(z <= 0, 0.0, grad)", "tl.where(z < 0, 0.0, grad)"),
    "backward evaluates the activation without the bias": (
        fused,
        "value * scale + _row(bias, channel, C), ACTIVATION",
        "value * scale, ACTIVATION",
    ),
    "no gradient through the mean": (fused, "gradient - _row(shares, channel, C) - value", "gradient - value"),
    "no gradient through the variance": (fused, " - value * _row(shares + C, channel, C))", ")"),
    "gradient of the residual ignores the activation": (
        fused,
        "tl.store(inner + place, gradient.to",
        "tl.store(inner + place, load(grad, place, inside).to",
    ),
    "the second pass ignores the stored gradient": (
        fused,
        "grad, activation = inner",
        "activation =",
    ),
    "partial sums have their axes exchanged": (
        fused,
        "partial + channel * splits + split",
        "partial + split * C + channel",
    ),
    "uses the gradient of the bias for the weight": (fused, "_row(shares + C, channel, C)", "_row(shares, channel, C)"),
    "sums contain the last step only": (fused, "        plain += gradient\n", "        plain = gradient\n"),
    "gradients of weight and bias are exchanged": (
        fused,
        "sums[0].to(bias.dtype), sums[1].to(weight.dtype)",
        "sums[1].to(bias.dtype), sums[0].to(weight.dtype)",
    ),
}


@pytest.mark.parametrize("name", a_share(MUTANTS))
def test_mutants_die(name, tmp_path, monkeypatch, fenced, rounding):
    module, old, new = MUTANTS[name]
    changed, mutant = broken_below(monkeypatch, (rows, moments, fused), module, old, new, tmp_path)
    changed.SUM_PROGRAMS, changed.SUM_TILE = 2, 1024
    if name == "relu has the gradient 1 at 0":
        monkeypatch.setattr(sys.modules[__name__], "fused", mutant)
        with pytest.raises(AssertionError):
            test_zero_is_where_relu_has_no_gradient()
        return
    types = torch.float32, torch.bfloat16
    assert dies(partial(failures, mutant, *make_case(case, dtype)) for case in CASES for dtype in types)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", [*CASES, "training"])
def test_kernel_on_a_gpu(case, dtype, monkeypatch):
    monkeypatch.undo()  # the kernels use as many programs as in training
    monkeypatch.setitem(CASES, "training", (96, 56, 56, 54, True, "relu"))
    inputs, activation = make_case(case, dtype)
    assert not failures(fused, [None if t is None else t.cuda() for t in inputs], activation)
