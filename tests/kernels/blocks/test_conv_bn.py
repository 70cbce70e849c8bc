"""Compares the kernels of conv_bn, also the gradients that come from the statistics, with a reference in float64."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kernels.blocks import conv_bn as fused
from kernels.blocks import conv_bn_reference as reference
from kernels.blocks import dispatch, rows
from tests.kernels.closeness import BFLOAT16, BFLOAT16_GRAD, FLOAT32, distance
from tests.kernels.variants import a_share, broken, broken_below, dies, in_turn

CASES = {
    # name: (images, height, width, channels, outputs, rows of scale and shift (0 if there are none), activation)
    "as it is": (4, 5, 7, 24, 54, 0, "none"),
    "relu": (3, 9, 7, 54, 24, 1, "relu"),
    "silu, three clips": (6, 5, 7, 54, 24, 3, "silu"),
    "scaled alone": (4, 9, 9, 13, 5, 2, "none"),
    "two column blocks": (2, 5, 7, 24, 108, 1, "relu"),
    "two column blocks back": (4, 5, 7, 108, 24, 2, "relu"),
    "the widest": (2, 3, 7, 40, 512, 1, "relu"),
    "a row a clip": (3, 1, 1, 24, 54, 3, "silu"),
    "a block and one row": (1, 1, 65, 24, 54, 1, "relu"),
    "whole blocks": (1, 8, 16, 16, 16, 1, "relu"),
    "few channels": (8, 5, 5, 2, 3, 8, "silu"),
    "one row": (1, 1, 1, 24, 13, 1, "relu"),
}
NAMES = ("x", "weight", "scale", "shift", "shortcut", "shortcut_scale")
WAYS = ("result", "mean", "var")


def make_case(case, dtype=torch.float32):
    """Return (x, weight, scale, shift) and the activation of a case. scale and shift may be None."""
    images, height, width, channels, outputs, groups, activation = CASES[case]
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    x = random(images, channels, height, width).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = (random(outputs, channels, 1, 1) / channels**0.5 + 0.1).to(dtype)
    scale, shift = 1 + random(max(groups, 1), channels), random(max(groups, 1), channels)
    return (x, weight, scale if groups else None, shift if groups else None), activation


class Rounded(torch.autograd.Function):
    """Rounds a tensor between two operators to bfloat16. In the backward pass, also rounds its gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.bfloat16().float()

    @staticmethod
    def backward(ctx, grad):
        return grad.bfloat16().float()


def eager(x, weight, scale=None, shift=None, activation="none"):
    """Compute conv_bn by two operators that round their outputs: a norm with activation, then a convolution."""
    if scale is not None:
        factor, addend = (t.repeat_interleave(len(x) // len(t), 0)[..., None, None] for t in (scale, shift))
        z = x * factor + addend
        x = Rounded.apply({"none": nn.Identity(), "relu": nn.ReLU(), "silu": nn.SiLU()}[activation](z))
    y = Rounded.apply(F.conv2d(x, weight))
    return y, y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)


def run(function, inputs, ways, dtype=None):
    """Return results and gradients by name. The loss depends on the results named in `ways`, about equally on each."""
    leaves = [None if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in inputs]
    found = dict(zip((*WAYS, "sum"), function(*leaves), strict=False))
    generator = torch.Generator().manual_seed(1)
    rows = found["result"].numel() // len(found["mean"])
    grads = {name: torch.randn(t.shape, generator=generator).to(inputs[0].dtype) for name, t in found.items()}
    grads = [grads[way].to(found[way]) * (rows if way in ("mean", "var") else 1) for way in ways]
    wanted = {name: leaf for name, leaf in zip(NAMES, leaves, strict=False) if leaf is not None}
    given = torch.autograd.grad([found[way] for way in ways], list(wanted.values()), grads)
    return {name: t.detach() for name, t in found.items()} | dict(zip(wanted, given, strict=True))


def failures(function, reference, eager, inputs, ways=WAYS) -> list[str]:
    """Return one line for each result, statistic or gradient whose error is too large."""
    half = inputs[0].dtype == torch.bfloat16
    exact = run(reference, inputs, ways, torch.float64)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        plain = run(eager, inputs, ways, torch.float32) if half else exact
    found = run(function, inputs, ways)
    stored = found["result"].double()
    exact["var"], exact["mean"] = torch.var_mean(stored, (0, 2, 3), correction=0)
    said = []
    for name, best in exact.items():
        assert found[name].shape == best.shape, name
        error, allowed = distance(found[name], best), FLOAT32 * best.norm() + 1e-9
        if half and name not in ("mean", "var"):
            same = plain[name].to(found[name].dtype)
            allowed = (BFLOAT16 if name in ("result", "sum") else BFLOAT16_GRAD) * distance(same, best)
        if not error <= allowed:
            said.append(f"{name}: {error:.3g}, allowed {allowed:.3g}, norm {best.norm():.3g}")
    return said


def failures_of(module, inputs, activation, ways=WAYS) -> list[str]:
    functions = module.conv_bn, reference.conv_bn, eager
    return failures(*(partial(function, activation=activation) for function in functions), inputs, ways)


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """Limit the backward kernel to few programs, so that each program processes several blocks of rows."""
    monkeypatch.setattr(fused, "GRAD_PARTIAL", 4096)


def test_reference_is_what_two_batch_norms_and_a_convolution_make():
    torch.manual_seed(0)
    before, conv, after = nn.BatchNorm2d(13), nn.Conv2d(13, 5, 1, bias=False), nn.BatchNorm2d(5)
    before.weight.data.uniform_(0.5, 2)
    x, gate = torch.randn(4, 13, 5, 7), torch.rand(2, 13)
    expected = after(conv(F.silu(before(x) * gate.repeat_interleave(2, 0)[..., None, None])))
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    scale = before.weight * (var + before.eps).rsqrt()
    y, mean, var = reference.conv_bn(x, conv.weight, scale * gate, (before.bias - mean * scale) * gate, "silu")
    found = (y - mean[:, None, None]) * (var[:, None, None] + after.eps).rsqrt()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", ["silu, three clips", "relu", "as it is"])
def test_reference_has_the_gradients_of_its_results(case):
    inputs, activation = make_case(case, torch.float64)
    x, weight, scale, shift = (None if t is None else t[:, :3].double() for t in inputs)
    leaves = [None if t is None else t.clone().requires_grad_() for t in (x[..., :2, :1], weight[:2], scale, shift)]
    assert torch.autograd.gradcheck(lambda *leaves: reference.conv_bn(*leaves, activation), leaves)


@pytest.mark.parametrize(("case", "dtype"), in_turn(CASES, (torch.float32, torch.bfloat16)))
def test_kernel_and_gradients_follow_the_contract(case, dtype, fenced, rounding):
    assert not failures_of(fused, *make_case(case, dtype))


@pytest.mark.parametrize("way", WAYS)
def test_gradients_by_way_of_one_result_alone(way, fenced, rounding):
    for case in ("silu, three clips", "as it is"):
        assert not failures_of(fused, *make_case(case, torch.bfloat16), [way])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_of_a_mean_far_from_zero(dtype, rounding):
    (x, weight, *_), _ = make_case("as it is")
    x = (x / 10 + 100 * weight.abs().mean()).to(dtype)
    y, mean, var = fused.conv_bn(x, (weight.abs() + 0.1).to(dtype))
    exact_var, exact_mean = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    assert (exact_mean / exact_var.sqrt()).min() > 90
    torch.testing.assert_close(mean.double(), exact_mean, rtol=1e-5, atol=0)
    torch.testing.assert_close(var.double(), exact_var, rtol=1e-5, atol=0)


def test_any_layout_and_an_expanded_gradient(fenced):
    (x, weight, scale, shift), activation = make_case("silu, three clips")
    backwards = weight.transpose(0, 1).contiguous().transpose(0, 1)
    expanded = scale[:1].expand_as(scale)
    assert not failures_of(fused, (x.contiguous(), backwards, expanded, shift), activation)
    leaf = x.contiguous().requires_grad_()
    y, *_ = fused.conv_bn(leaf, weight, scale, shift, activation)
    assert y.is_contiguous(memory_format=torch.channels_last)
    (found,) = torch.autograd.grad(y, leaf, y.new_ones(1).expand_as(y))
    exact, *_ = reference.conv_bn(leaf, weight, scale, shift, activation)
    torch.testing.assert_close(found, torch.autograd.grad(exact.sum(), leaf)[0], atol=1e-5, rtol=1e-4)


def test_only_the_wanted_gradients(fenced):
    (x, weight, scale, shift), activation = make_case("relu")
    y, mean, _ = fused.conv_bn(x, weight, scale.requires_grad_(), shift, activation)
    (y.sum() + mean.sum()).backward()
    assert scale.grad is not None
    assert x.grad is weight.grad is shift.grad is None


def test_autocast_computes_in_its_type_and_gradients_come_back_in_their_own(fenced):
    inputs, activation = make_case("relu")
    leaves = [tensor.requires_grad_() for tensor in inputs]
    for module in (fused, reference):
        with torch.autocast("cpu", torch.bfloat16):
            y, mean, var = module.conv_bn(*leaves, activation)
        assert (y.dtype, mean.dtype, var.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    (y.sum() + mean.sum() + var.sum()).backward()
    assert {leaf.grad.dtype for leaf in leaves} == {torch.float32}


def test_a_nan_stays_in_its_pixel_and_its_statistics():
    (x, weight, scale, shift), activation = make_case("relu")
    x[0, 0, 2, 3] = float("nan")
    y, mean, var = fused.conv_bn(x, weight, scale, shift, activation)
    assert y.isnan()[0, :, 2, 3].all()
    assert y.isnan().sum() == len(weight)
    assert mean.isnan().all()
    assert var.isnan().all()


def test_dispatch_takes_the_reference_on_a_cpu(monkeypatch):
    inputs, activation = make_case("silu, three clips")
    monkeypatch.setattr(fused, "conv_bn", None)
    for one, other in zip(dispatch.conv_bn(*inputs, activation), reference.conv_bn(*inputs, activation), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("case", ["silu, three clips", "as it is"])
def test_operators_are_registered_as_torch_wants(case):
    (x, weight, scale, shift), activation = make_case(case)
    rows, matrix = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]), weight.flatten(1)
    checks = ("test_schema", "test_autograd_registration")
    leaves = [None if t is None else t.clone().requires_grad_() for t in (rows, matrix, scale, shift)]
    torch.library.opcheck(fused._conv_bn, (*leaves, activation), test_utils=checks)
    result, ones = rows @ matrix.T, torch.ones(len(matrix))
    given = result, result, ones, ones, ones, rows, matrix, scale, shift, activation
    torch.library.opcheck(fused._conv_bn_grad, given, test_utils=checks)


def test_a_weight_in_float32_is_taken_as_if_rounded(fenced, rounding):
    (x, weight, *affine), activation = make_case("silu, three clips")
    found = []
    for given in (weight, weight.bfloat16()):
        leaf = given.clone().requires_grad_()
        results = fused.conv_bn(x.bfloat16(), leaf, *affine, activation)
        (grad,) = torch.autograd.grad(results[0].float().square().sum(), leaf)
        assert grad.dtype == given.dtype
        found.append([*results, grad.bfloat16()])
    for one, other, expected in zip(*found, reference.conv_bn(x.bfloat16(), weight, *affine, activation), strict=False):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, expected, atol=2e-2, rtol=2e-2)


MUTANTS = {
    "loads a row of the next group": (
        "inside = (local < rows_left)[:, None]",
        "inside = (local < rows_left + 1)[:, None]",
    ),
    "does not write the last row": (
        "owned, known = (local < rows_left)[:, None]",
        "owned, known = (local < rows_left - 1)[:, None]",
    ),
    "statistics include rows outside the group": (
        "tl.where(inside, activate(z, ACTIVATION), 0.0)",
        "activate(z, ACTIVATION)",
    ),
    "deviations include rows outside the group": (
        "tl.where(owned, value - mean[None, :], 0.0)",
        "value - mean[None, :]",
    ),
    "statistics use the values before rounding": ("value = stored.to(tl.float32)", "value = total"),
    "the mean divides by the size of a whole block": ("tl.minimum(rows_left, BLOCK_M)", "BLOCK_M"),
    "no activation": ("tl.where(inside, activate(z, ACTIVATION), 0.0)", "tl.where(inside, z, 0.0)"),
    "no shift": ("load(shift, place, known)[None, :]", "0 * load(shift, place, known)[None, :]"),
    "every group uses the scale of the first group": ("place, known = group * C + channel", "place, known = channel"),
    "reads the scale of a channel that does not exist": (
        "group * C + channel, channel < C",
        "group * C + channel, channel < C + 1",
    ),
    "no gradient through the mean": ("load(level, column, known) + load", "load"),
    "no gradient through the variance": (" + load(slope, column, known) * value", ""),
    "gradient of the variance uses values instead of deviations": (
        "value = load(result, place, inside) - load(mean, column, known)",
        "value = load(result, place, inside)",
    ),
    "gradient of rows outside the group is not 0": (
        "tl.where(inside, load(grad, place, inside) + added, 0.0)",
        "load(grad, place, inside) + added",
    ),
    "gradient of the variance is halved": ("grad_var * (2 / num_rows)", "grad_var / num_rows"),
    "backward ignores the activation": (
        "gradient = through(gradient, value * factor + addend, ACTIVATION)",
        "gradient = gradient",
    ),
    "backward evaluates the activation without the shift": (
        "through(gradient, value * factor + addend, ACTIVATION)",
        "through(gradient, value * factor, ACTIVATION)",
    ),
    "gradient of the rows lacks the scale": ("                gradient *= factor\n", ""),
    "gradient of the scale is multiplied by the scale": (
        "tl.sum(gradient * value, 0)",
        "tl.sum(gradient * value * factor, 0)",
    ),
    "gradient of the scale comes from the last block only": ("of_scale += tl.sum", "of_scale = tl.sum"),
    "scale and shift are exchanged": (
        "scale, shift = scale.float().contiguous(), shift.float().contiguous()",
        "scale, shift = shift.float().contiguous(), scale.float().contiguous()",
    ),
    "does not write the gradient of the last row": (
        "        owned = (local < rows_left)",
        "        owned = (local < rows_left - 1)",
    ),
    "does not write the last block of gradients": ("if rows_left > 0", "if rows_left > BLOCK_M"),
    "every step reads the rows of the first step": ("        first += BLOCK_M\n", ""),
    "reads rows after the end of the group": ("        rows_left -= BLOCK_M\n", ""),
    "gradient of the weight comes from the last step only": ("inputs, total, input", "inputs, 0 * total, input"),
    "gradient of the weight uses inputs without activation": (
        "inside, ACTIVATION)\n        inner",
        "inside, 'none')\n        inner",
    ),
    "all splits write their weight gradients to the same place": (
        "of_weight + number * (O * C)",
        "of_weight + 0 * number * (O * C)",
    ),
    "all splits write their scale gradients to the same place": (
        "of_affine + channel * count + number",
        "of_affine + channel * count",
    ),
    "all splits write their statistics to the same place": (
        "partial + column * count + number",
        "partial + column * count",
    ),
    "gradient of the shift overwrites that of the scale": ("target + C * count, of_shift", "target, of_shift"),
    "every group gets the gradients of the first group": (
        "(sums.sum(-1).T for sums",
        "(sums.sum(-1)[:, :1].T.expand(groups, -1) for sums",
    ),
    "the second block of channels overwrites the first": (
        "(O * C) + cell, total",
        "(O * C) + cell - channel[None, :] // BLOCK_C * BLOCK_C, total",
    ),
}


@pytest.mark.parametrize("name", a_share(MUTANTS))
def test_mutants_die(name, tmp_path, fenced, rounding):
    mutant = broken(fused, *MUTANTS[name], tmp_path)
    mutant.GRAD_PARTIAL = 4096
    types = torch.float32, torch.bfloat16
    assert dies(partial(failures_of, mutant, *make_case(case, dtype)) for case in CASES for dtype in types)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("grad * share * (1 + z * (1 - share))", "grad * share"),
        ("group.to(tl.int64) * group_rows + skipped", "skipped.to(tl.int64)"),
    ],
    ids=["gradient of silu is only the sigmoid", "every group reads the rows of the first group"],
)
def test_mutants_of_shared_code_die(old, new, tmp_path, monkeypatch, fenced, rounding):
    _, mutant = broken_below(monkeypatch, (rows, fused), rows, old, new, tmp_path)
    assert dies([partial(failures_of, mutant, *make_case("silu, three clips"))])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", [*CASES, "training"])
def test_kernel_on_a_gpu(case, dtype, monkeypatch):
    monkeypatch.setitem(CASES, "training", (64, 56, 56, 54, 24, 4, "silu"))
    inputs, activation = make_case(case, dtype)
    assert not failures_of(fused, [None if t is None else t.cuda() for t in inputs], activation)
