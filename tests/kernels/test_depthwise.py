"""Depthwise 3x3 in one kernel: nested loops guard the reference, float64 the kernel and its gradients."""

import numpy as np
import pytest
import torch
from triton.runtime.errors import InterpreterError

from kernels import depthwise
from kernels.depthwise import fused, reference
from tests.kernels.closeness import failures
from tests.kernels.variants import broken

CASES = {
    # name: (images, height, width, channels, stride)
    "many images of few pixels": (9, 2, 3, 24, 1),
    "odd sizes": (2, 5, 3, 54, 1),
    "odd sizes, stride 2": (2, 7, 5, 54, 2),
    "even sizes, stride 2": (2, 6, 8, 54, 2),
    "even and odd, stride 2": (1, 5, 8, 24, 2),
    "tiles across and down": (1, 5, 9, 40, 1),
    "tiles across and down, stride 2": (1, 7, 17, 24, 2),
    "channels in 64s": (1, 3, 5, 128, 1),
    "odd channels": (2, 3, 5, 7, 1),
    "one row": (2, 1, 6, 24, 2),
    "one column": (2, 6, 1, 24, 1),
    "one pixel": (3, 1, 1, 54, 1),
    "one pixel, stride 2": (3, 1, 1, 54, 2),
    "two pixels a side, stride 2": (1, 2, 2, 24, 2),
    "one channel": (1, 4, 4, 1, 1),
    "no image": (0, 7, 5, 24, 1),
}


def make_case(case, dtype=torch.float32):
    """x and weight of a case, and its stride."""
    images, height, width, channels, stride = CASES[case]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, channels, height, width, generator=generator).to(dtype)
    weight = torch.randn(channels, 1, 3, 3, generator=generator).to(dtype)
    return (x.contiguous(memory_format=torch.channels_last), weight), stride


def bind(module, stride):
    return lambda x, weight: module.depthwise_conv(x, weight, stride)


@pytest.fixture
def small_tiles(monkeypatch):
    """Several tiles an image, several of them a program of the weight's gradient."""
    shrink(monkeypatch, fused)


def shrink(monkeypatch, module):
    monkeypatch.setattr(module, "TILE", 512)
    monkeypatch.setattr(module, "BLOCK_W", 4)
    monkeypatch.setattr(module, "GRAD_TILE", 256)
    monkeypatch.setattr(module, "GRAD_PROGRAMS", 5)


def oracle(x, weight, stride):
    """The contract as loops over the pixels of the result."""
    x, weight = x.double().numpy(), weight.double().numpy()[:, 0]
    images, channels, height, width = x.shape
    result = np.zeros((images, channels, -(-height // stride), -(-width // stride)))
    for row, column, i, j in np.ndindex(*result.shape[2:], 3, 3):
        y, left = row * stride + i - 1, column * stride + j - 1
        if 0 <= y < height and 0 <= left < width:
            result[:, :, row, column] += x[:, :, y, left] * weight[:, i, j]
    return torch.from_numpy(result)


@pytest.mark.parametrize("case", CASES)
def test_reference_follows_the_contract(case):
    (x, weight), stride = make_case(case, torch.float64)
    torch.testing.assert_close(reference.depthwise_conv(x, weight, stride), oracle(x, weight, stride))


@pytest.mark.parametrize("stride", [1, 2])
def test_reference_has_the_gradients_of_its_result(stride):
    (x, weight), _ = make_case("odd channels", torch.float64)
    assert torch.autograd.gradcheck(bind(reference, stride), [tensor.requires_grad_() for tensor in (x, weight)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_kernel_and_gradients_follow_the_contract(case, dtype, fenced, rounding, small_tiles):
    inputs, stride = make_case(case, dtype)
    assert not failures(bind(fused, stride), bind(reference, stride), inputs)


@pytest.mark.parametrize("stride", [1, 2])
def test_tiles_as_they_are_launched(stride, fenced, rounding):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 54, 20, 18, generator=generator), torch.randn(54, 1, 3, 3, generator=generator)
    assert not failures(bind(fused, stride), bind(reference, stride), inputs)


def test_any_layout(fenced):
    (x, weight), stride = make_case("odd sizes, stride 2")
    result = fused.depthwise_conv(x.contiguous(), weight, stride)
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result, reference.depthwise_conv(x, weight, stride), atol=1e-5, rtol=1e-5)
    leaf = x.clone().requires_grad_()
    expanded = result.new_ones(1).expand_as(result)  # a gradient without memory of its own
    fused.depthwise_conv(leaf, weight, stride).backward(expanded)
    (exact,) = torch.autograd.grad(reference.depthwise_conv(leaf, weight, stride).sum(), leaf)
    torch.testing.assert_close(leaf.grad, exact, atol=1e-5, rtol=1e-5)


def test_autocast_computes_in_its_type_and_gradients_come_back_in_their_own(fenced):
    (x, weight), stride = make_case("odd sizes")
    leaves = x.requires_grad_(), weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        result = fused.depthwise_conv(*leaves, stride)
        assert reference.depthwise_conv(*leaves, stride).dtype == result.dtype == torch.bfloat16
    result.sum().backward()
    assert {leaf.grad.dtype for leaf in leaves} == {torch.float32}


def test_dispatch_takes_the_reference_on_a_cpu(monkeypatch):
    (x, weight), stride = make_case("odd sizes")
    monkeypatch.setattr(fused, "depthwise_conv", None)
    expected = reference.depthwise_conv(x, weight, stride)
    torch.testing.assert_close(depthwise.depthwise_conv(x, weight, stride), expected)


def test_operator_is_registered_as_torch_wants(fenced):
    (x, weight), stride = make_case("odd sizes, stride 2")
    arguments = x.permute(0, 2, 3, 1).requires_grad_(), weight.flatten(1).requires_grad_(), stride
    torch.library.opcheck(fused._depthwise, arguments, test_utils=("test_schema", "test_autograd_registration"))


MUTANTS = {
    "correlation turned round": (
        "factor = tl.load(weight + channel * 9 + i * 3 + j",
        "factor = tl.load(weight + channel * 9 + 8 - i * 3 - j",
    ),
    "rows and columns of the weight": ("channel * 9 + i * 3 + j", "channel * 9 + j * 3 + i"),
    "stride from the second pixel": (
        "row * STRIDE + i - 1, column * STRIDE + j - 1\n                inside",
        "row * STRIDE + i, column * STRIDE + j\n                inside",
    ),
    "no upper edge": ("inside = owned & (y >= 0) & (x >= 0)", "inside = owned & (x >= 0)"),
    "no left edge": ("inside = owned & (y >= 0) & (x >= 0)", "inside = owned & (y >= 0)"),
    "no lower edge": (
        "inside & (y < SOURCE_H) & (x < SOURCE_W))[:, None] & (channel",
        "inside & (x < SOURCE_W))[:, None] & (channel",
    ),
    "no right edge": (
        "inside & (y < SOURCE_H) & (x < SOURCE_W))[:, None] & (channel",
        "inside & (y < SOURCE_H))[:, None] & (channel",
    ),
    "pixels beyond the image": (
        "owned[:, None] & (channel < C)[None, :])",
        "(row < H)[:, None] & (channel < C)[None, :])",
    ),
    "channels beyond the last": ("owned[:, None] & (channel < C)[None, :])", "owned[:, None])"),
    "transpose reads every row": (" & (y % STRIDE == 0)", ""),
    "transpose reads every column": (" & (x % STRIDE == 0)", ""),
    "transpose above the image": (" & (x % STRIDE == 0) & (y >= 0)", " & (x % STRIDE == 0)"),
    "transpose not turned": ("row + 1 - i, column + 1 - j", "row + i - 1, column + j - 1"),
    "first image for all": ("return (tile // tiles).to(tl.int64)", "return (tile // tiles * 0).to(tl.int64)"),
    "tiles across only": ("tile % tiles // across * BLOCK_H", "tile % tiles % across * 0"),
    "sums of the last step": ("sums[4] + come", "come"),
    "a tap for another": ("inside, 2, 1, C, SOURCE_H", "inside, 1, 2, C, SOURCE_H"),
    "tap without its edge": ("(y >= 0) & (x >= 0) & (y < SOURCE_H)", "(x >= 0) & (y < SOURCE_H)"),
    "tiles beyond the last": (" & (tile < tiles)", ""),
    "partial sums of one split": ("partial + split * (C * 9)", "partial"),
    "bfloat16 sums": (
        "total += value.to(tl.float32)",
        "total = total.to(source.dtype.element_ty).to(tl.float32) + value.to(tl.float32)",
    ),
    "weight's gradient rounded early": ("channels, 9, dtype=torch.float32", "channels, 9, dtype=images.dtype"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_die(name, tmp_path, monkeypatch, fenced, rounding):
    mutant = broken(fused, *MUTANTS[name], tmp_path)
    shrink(monkeypatch, mutant)
    for case in CASES:
        inputs, stride = make_case(case, torch.bfloat16)
        try:
            if failures(bind(mutant, stride), bind(reference, stride), inputs):
                return
        except InterpreterError:  # outside the fence
            return
    pytest.fail("this mutant passes every case")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", [*CASES, "training"])
def test_kernel_on_a_gpu(case, dtype, monkeypatch):
    monkeypatch.setitem(CASES, "training", (64, 56, 56, 54, 1))
    inputs, stride = make_case(case, dtype)
    assert not failures(bind(fused, stride), bind(reference, stride), [tensor.cuda() for tensor in inputs])
