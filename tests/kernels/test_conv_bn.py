"""1x1 convolution between two BatchNorms: float64 guards the kernel, its gradients and those by way of statistics."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from triton.runtime.errors import InterpreterError

from kernels import conv_bn
from kernels.conv_bn import fused, reference
from tests.kernels.closeness import BFLOAT16, BFLOAT16_GRAD, FLOAT32, distance
from tests.kernels.variants import broken

CASES = {
    # name: (images, height, width, channels, outputs, rows of scale and shift or 0, activation)
    "as it is": (4, 5, 7, 24, 54, 0, "none"),
    "relu": (3, 9, 7, 54, 24, 1, "relu"),
    "silu, three clips": (6, 5, 7, 54, 24, 3, "silu"),
    "scaled alone": (4, 9, 9, 13, 5, 2, "none"),
    "two column blocks": (2, 5, 7, 24, 108, 1, "relu"),
    "two column blocks back": (2, 5, 7, 108, 24, 2, "relu"),
    "a row a clip": (3, 1, 1, 24, 54, 3, "silu"),
    "a block and one row": (1, 1, 65, 24, 54, 1, "relu"),
    "whole blocks": (1, 8, 16, 16, 16, 1, "relu"),
    "few channels": (8, 5, 5, 2, 3, 8, "silu"),
    "one row": (1, 1, 1, 24, 13, 1, "relu"),
}
NAMES = ("x", "weight", "scale", "shift")


def make_case(case, dtype=torch.float32):
    """x, weight, scale and shift of a case, the last two or None, and the activation."""
    images, height, width, channels, outputs, groups, activation = CASES[case]
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    x = random(images, channels, height, width).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = (random(outputs, channels, 1, 1) / channels**0.5 + 0.1).to(dtype)
    scale, shift = 1 + random(max(groups, 1), channels), random(max(groups, 1), channels)
    return (x, weight, scale if groups else None, shift if groups else None), activation


class Rounded(torch.autograd.Function):
    """What a tensor between two operators loses in bfloat16, and its gradient on the way back."""

    @staticmethod
    def forward(ctx, x):
        return x.bfloat16().float()

    @staticmethod
    def backward(ctx, grad):
        return grad.bfloat16().float()


def eager(x, weight, scale, shift, activation):
    """The contract with two operators' worth of rounding: the normalised activation, then the convolution."""
    if scale is not None:
        factor, addend = (t.repeat_interleave(len(x) // len(t), 0)[..., None, None] for t in (scale, shift))
        z = x * factor + addend
        x = Rounded.apply({"none": nn.Identity(), "relu": nn.ReLU(), "silu": nn.SiLU()}[activation](z))
    y = Rounded.apply(F.conv2d(x, weight))
    return y, y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)


def run(function, inputs, activation, dtype=None):
    """Result, statistics and all gradients, by name; statistics matter to the loss as much as the result does."""
    leaves = [None if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in inputs]
    results = function(*leaves, activation)
    generator = torch.Generator().manual_seed(1)
    rows = results[0].numel() // results[0].shape[1]
    grads = [
        torch.randn(t.shape, generator=generator).to(inputs[0].dtype) * (rows if t.dim() == 1 else 1) for t in results
    ]
    wanted = {name: leaf for name, leaf in zip(NAMES, leaves, strict=True) if leaf is not None}
    given = [grad.to(result.dtype) for grad, result in zip(grads, results, strict=True)]
    found = torch.autograd.grad(results, list(wanted.values()), given)
    return dict(zip(("result", "mean", "var", *wanted), (*(t.detach() for t in results), *found), strict=True))


def failures(function, inputs, activation) -> list[str]:
    """Which of result, statistics and gradients are further from what they should be than the bars allow."""
    half = inputs[0].dtype == torch.bfloat16
    exact = run(reference.conv_bn, inputs, activation, torch.float64)
    plain = run(eager, inputs, activation, torch.float32) if half else exact
    found = run(function, inputs, activation)
    stored = found["result"].double()
    exact["var"], exact["mean"] = torch.var_mean(stored, (0, 2, 3), correction=0)
    said = []
    for name, best in exact.items():
        assert found[name].shape == best.shape, name
        error, allowed = distance(found[name], best), FLOAT32 * best.norm() + 1e-9
        if half and name not in ("mean", "var"):
            same = plain[name].to(found[name].dtype)
            allowed = (BFLOAT16 if name == "result" else BFLOAT16_GRAD) * distance(same, best)
        if not error <= allowed:
            said.append(f"{name}: {error:.3g}, allowed {allowed:.3g}, norm {best.norm():.3g}")
    return said


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """A weight gradient of few programs: each of them adds up several blocks of rows."""
    monkeypatch.setattr(fused, "GRAD_PROGRAMS", 2)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_kernel_and_gradients_follow_the_contract(case, dtype, fenced, rounding):
    assert not failures(fused.conv_bn, *make_case(case, dtype))


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
    assert not failures(fused.conv_bn, (x.contiguous(), backwards, expanded, shift), activation)
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
    for one, other in zip(conv_bn.conv_bn(*inputs, activation), reference.conv_bn(*inputs, activation), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("case", ["silu, three clips", "as it is"])
def test_operators_are_registered_as_torch_wants(case):
    (x, weight, scale, shift), activation = make_case(case)
    rows, matrix = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]), weight.flatten(1)
    affine = None if scale is None else torch.stack([scale, shift], 1)
    checks = ("test_schema", "test_autograd_registration")
    leaves = [None if t is None else t.clone().requires_grad_() for t in (rows, matrix, affine)]
    torch.library.opcheck(fused._conv_bn, (*leaves, activation), test_utils=checks)
    result, table = rows @ matrix.T, torch.ones(3, len(matrix))
    given = (result, result, table, rows)
    torch.library.opcheck(fused._grad_rows, (*given, matrix, affine, activation), test_utils=checks)
    torch.library.opcheck(fused._grad_weight, (*given, affine, activation), test_utils=checks)


GRAPHS = """
import json, torch
from benchmarks.stand_in import stand_in
from kernels.conv_bn.fused import conv_bn
from tests.kernels.traced import image, trace
stand_in(80)
inputs = image(4, 8, 5, 7), image(16, 8, 1, 1), torch.randn(2, 8), torch.randn(2, 8)
def loss(x, weight, scale, shift):
    y, mean, var = conv_bn(x, weight, scale, shift, "silu")
    return y * (mean + var)[:, None, None]
alone = lambda x, weight: conv_bn(x, weight)[0]
print(json.dumps([trace(loss, inputs), trace(alone, inputs[:2])]))
"""


def test_one_graph_forward_one_backward(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", GRAPHS],
        cwd=Path(__file__).resolve().parents[2],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Encountered an exception" not in done.stderr
    for forward, backward in json.loads(done.stdout):
        for graph, launches in ((forward, 1), (backward, 2)):
            assert sum("triton_kernel_wrapper" in node for node in graph) == launches
            assert not [node for node in graph if any(copy in node for copy in ("clone", "contiguous", "permute_copy"))]


MUTANTS = {
    "rows beyond the group loaded": ("owned = (local < left)[:, None]", "owned = (local < left + 1)[:, None]"),
    "last row unwritten": ("owned = (local < left)[:, None]", "owned = (local < left - 1)[:, None]"),
    "statistics with rows beyond": ("tl.where(owned, stored.to(tl.float32), 0.0)", "stored.to(tl.float32)"),
    "deviations with rows beyond": ("tl.where(owned, value - mean[None, :], 0.0)", "value - mean[None, :]"),
    "statistics of what is not stored": ("tl.where(owned, stored.to(tl.float32), 0.0)", "tl.where(owned, total, 0.0)"),
    "mean of whole blocks": ("tl.minimum(left, BLOCK_M)", "BLOCK_M"),
    "unactivated": ("value = activate(z, ACTIVATION).to(value.dtype)", "value = z.to(value.dtype)"),
    "shift forgotten": (" + load(affine, C + channel, known)[None, :]", ""),
    "first group's scale": ("affine += group * 2 * C", "affine += 0"),
    "channels beyond the row": ("known = channel < C", "known = channel < C + 1"),
    "gradient of the mean forgotten": ("load(table, O + column, known) + load", "load"),
    "gradient of the variance forgotten": (" + load(table, 2 * O + column, known) * value", ""),
    "variance around 0": (
        "value = load(result, place, inside) - load(table, column, known)",
        "value = load(result, place, inside)",
    ),
    "gradient of rows beyond": (
        "tl.where(inside, load(grad, place, inside) + added, 0.0)",
        "load(grad, place, inside) + added",
    ),
    "half the variance": ("grad_var * (2 / len(rows))", "grad_var / len(rows)"),
    "activation not derived": ("total = through(total, value * factor + addend, ACTIVATION)", "total = total"),
    "derived without shift": (
        "through(total, value * factor + addend, ACTIVATION)",
        "through(total, value * factor, ACTIVATION)",
    ),
    "gradient without scale": ("        total *= factor\n", ""),
    "scale's gradient of scaled": ("tl.sum(total * value, 0)", "tl.sum(total * value * factor, 0)"),
    "scale and shift exchanged": (
        "affine = torch.stack([scale.float(), shift.float()], 1)",
        "affine = torch.stack([shift.float(), scale.float()], 1)",
    ),
    "weight's gradient of the first step": ("        first += BLOCK_R\n", ""),
    "weight's gradient unnormalised": (
        "taken = _normalised(taken, affine, channel, known, ACTIVATION, C)\n        total = tl.dot(come",
        "total = tl.dot(come",
    ),
    "weight's gradient rounded early": (
        "channels, dtype=torch.float32)\n    options",
        "channels, dtype=rows.dtype)\n    options",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_die(name, tmp_path, fenced, rounding):
    mutant = broken(fused, *MUTANTS[name], tmp_path)
    mutant.GRAD_PROGRAMS = 2
    for case in CASES:
        for dtype in (torch.float32, torch.bfloat16):
            try:
                if failures(mutant.conv_bn, *make_case(case, dtype)):
                    return
            except InterpreterError as error:  # outside of the tensors
                if "IndexError" in str(error):
                    return
                raise
    pytest.fail("this mutant passes every case")
