"""Statistics of batches and clips: float64 guards the kernel; with conv_bn they make an X3D block's squeezed end."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from triton.runtime.errors import InterpreterError

from kernels import moments
from kernels.conv_bn import fused as fused_conv
from kernels.conv_bn import reference as reference_conv
from kernels.moments import fused, reference
from models.layers import SqueezeExcite
from tests.kernels.closeness import BFLOAT16_GRAD, FLOAT32, distance
from tests.kernels.variants import broken

CASES = {
    # name: (images, height, width, channels, groups)
    "one group": (4, 9, 7, 24, 1),
    "clips": (6, 9, 7, 54, 3),
    "13 channels": (4, 5, 7, 13, 2),
    "two column blocks": (2, 5, 9, 216, 2),
    "a row a clip": (3, 1, 1, 24, 3),
    "one row": (1, 1, 1, 24, 1),
    "one channel": (4, 9, 9, 1, 2),
}
NAMES = ("mean", "var", "means", "x")


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """Sums of few programs: each of them adds up several blocks of rows."""
    monkeypatch.setattr(fused, "SUM_PROGRAMS", 2)
    monkeypatch.setattr(fused, "SUM_TILE", 512)


def make_case(case, dtype=torch.float32):
    images, height, width, channels, groups = CASES[case]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, channels, height, width, generator=generator) + torch.arange(images)[:, None, None, None]
    return x.to(dtype).contiguous(memory_format=torch.channels_last), groups


def run(module, x, groups, dtype):
    """Statistics and the gradient of x from all of them, each as large a part of it as the others."""
    leaf = x.detach().to(dtype).requires_grad_()
    results = module.moments(leaf, groups)
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(t.shape, generator=generator).to(t.dtype) * (x.numel() / t.numel()) for t in results]
    return [t.detach() for t in (*results, *torch.autograd.grad(results, leaf, grads))]


def failures(module, x, groups) -> list[str]:
    exact, found = run(reference, x, groups, torch.float64), run(module, x, groups, x.dtype)
    plain = run(reference, x, groups, torch.float32)
    said = []
    for name, best, one, other in zip(NAMES, exact, found, plain, strict=True):
        assert one.shape == best.shape
        error, allowed = distance(one, best), FLOAT32 * best.norm() + 1e-9
        if one.dtype == torch.bfloat16:
            allowed = BFLOAT16_GRAD * distance(other.bfloat16(), best)
        if not error <= allowed:
            said.append(f"{name}: {error:.3g}, allowed {allowed:.3g}, norm {best.norm():.3g}")
    return said


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_kernel_and_gradient_follow_the_contract(case, dtype, fenced, rounding):
    assert not failures(fused, *make_case(case, dtype))


def test_reference_is_what_it_says_and_has_the_gradients_of_its_results():
    x, groups = make_case("13 channels", torch.float64)
    mean, var, means = moments.moments(x, groups)
    torch.testing.assert_close(mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(var, (x - mean[:, None, None]).square().mean((0, 2, 3)))
    torch.testing.assert_close(means, torch.stack([x[:2].mean((0, 2, 3)), x[2:].mean((0, 2, 3))]))
    leaf = x[:, :2, :2, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: reference.moments(x, groups), leaf)


def test_operator_is_registered_as_torch_wants():
    rows = torch.randn(12, 5, requires_grad=True)
    torch.library.opcheck(fused._moments, (rows, 3), test_utils=("test_schema", "test_autograd_registration"))


def end_of_block(moments, conv_bn, x, excite, before, conv, after):
    """BatchNorm, squeeze-excite, SiLU, 1x1 convolution, BatchNorm as kernels make it of clips of two frames."""
    clips = len(x) // 2
    mean, var, means = moments(x, clips)
    slope = before.weight * (var + before.eps).rsqrt()
    gate = excite.fc2(excite.fc1((means - mean) * slope + before.bias).relu()).sigmoid()
    y, mean, var = conv_bn(x, conv.weight, slope * gate, (before.bias - mean * slope) * gate, "silu")
    slope = after.weight * (var + after.eps).rsqrt()
    return y * slope[:, None, None] + (after.bias - mean * slope)[:, None, None]


@pytest.mark.parametrize("kernels", [(reference, reference_conv), (fused, fused_conv)])
def test_with_conv_bn_it_is_the_squeezed_end_of_an_x3d_block(kernels):
    torch.manual_seed(0)
    parts = SqueezeExcite(54), nn.BatchNorm2d(54), nn.Conv2d(54, 24, 1, bias=False), nn.BatchNorm2d(24)
    excite, before, conv, after = parts
    for norm in (before, after):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.normal_(norm.bias)
    x = torch.randn(6, 54, 5, 7).mul_(3).add_(1).requires_grad_()
    leaves = [x, *(parameter for part in parts for parameter in part.parameters())]
    expected = after(conv(F.silu(excite(before(x), 2))))
    grad = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, leaves, grad)
    statistics, convolution = kernels
    found = end_of_block(statistics.moments, convolution.conv_bn, x, *parts)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    for one, other in zip(torch.autograd.grad(found, leaves, grad), wanted, strict=True):
        assert distance(one, other.double()) <= 2e-5 * other.norm() + 1e-5


MUTANTS = {
    "biased the other way": ("/ (groups * group_rows)", "/ (groups * group_rows - 1)"),
    "gradient of the mean": ("+ grad_mean / len(rows)", "+ 0 * grad_mean"),
    "gradient of the means": ("grad_means / groups.shape[1]", "grad_means / len(rows)"),
    "gradient of the variance": ("grad_var * (2 / len(rows))", "grad_var / len(rows)"),
    "variance around 0": ("(groups.float() - mean)", "groups.float()"),
    "splits of a group mixed up": ("(group * splits + split) * (2 * C)", "(split * splits + group) * (2 * C)"),
    "means of whole splits": ("(means * (counts / group_rows)).sum(1)", "means.mean(1)"),
    "between groups nothing": ("(means - mean).square()", "(means - of_groups[:, None]).square()"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_die(name, tmp_path, fenced):
    mutant = broken(fused, *MUTANTS[name], tmp_path)
    mutant.SUM_PROGRAMS, mutant.SUM_TILE = 2, 512
    for case in CASES:
        try:
            if failures(mutant, *make_case(case)):
                return
        except InterpreterError as error:  # outside of the tensors
            if "IndexError" in str(error):
                return
            raise
    pytest.fail("this mutant passes every case")
