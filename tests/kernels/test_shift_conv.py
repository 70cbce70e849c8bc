"""Shift and 1x1 convolution in one kernel: nested loops guard the reference, float64 the kernel and its gradients."""

import numpy as np
import pytest
import torch
from triton.runtime.errors import InterpreterError

from kernels import shift_conv
from kernels.shift_conv import fused, reference
from tests.kernels.closeness import failures
from tests.kernels.variants import broken

CASES = {
    # name: (clips, frames, height, width, channels, outputs, fold)
    "stage one": (2, 3, 5, 7, 24, 54, 3),
    "more rows than a block": (2, 4, 9, 5, 24, 54, 6),
    "back to 24": (1, 3, 7, 3, 54, 24, 6),
    "a column block too few": (1, 3, 3, 5, 48, 216, 6),
    "one frame": (3, 1, 3, 5, 24, 54, 3),
    "two frames": (2, 2, 3, 3, 24, 54, 3),
    "nothing moves": (2, 3, 3, 5, 24, 54, 0),
    "one channel moves": (2, 3, 3, 5, 24, 16, 1),
    "fold no multiple of 8": (2, 4, 3, 5, 108, 54, 13),
    "fold of 8": (2, 3, 3, 5, 96, 24, 8),
    "everything moves": (2, 3, 3, 5, 108, 24, 54),
    "everything moves, one frame": (2, 1, 3, 5, 24, 24, 12),
    "odd channels": (2, 3, 3, 5, 7, 5, 2),
    "one channel": (2, 3, 3, 5, 1, 1, 0),
    "one pixel": (1, 2, 1, 1, 54, 24, 6),
    "one pixel in all": (1, 1, 1, 1, 24, 54, 3),
    "no clip": (0, 3, 5, 7, 24, 54, 3),
}


def make_case(case, dtype=torch.float32):
    """x, weight and bias of a case, and the function's other arguments."""
    clips, frames, height, width, channels, outputs, fold = CASES[case]
    generator = torch.Generator().manual_seed(0)
    shapes = (clips * frames, channels, height, width), (outputs, channels, 1, 1), (outputs,)
    x, weight, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return (x.contiguous(memory_format=torch.channels_last), weight, bias), (frames, fold)


def bind(module, frames, fold):
    return lambda x, weight, bias=None: module.shift_conv(x, weight, frames, fold, bias)


@pytest.fixture
def small_splits(monkeypatch):
    """A weight gradient of few programs: each of them adds up several blocks of rows."""
    monkeypatch.setattr(fused, "GRAD_PROGRAMS", 2)


def oracle(x, weight, num_frames, fold, bias):
    """The contract as loops over images and channels."""
    x, weight = x.double().numpy(), weight.double().numpy()[:, :, 0, 0]
    shifted = np.zeros_like(x)
    for image, channel in np.ndindex(x.shape[:2]):
        frame = image % num_frames
        offset = 1 if channel < fold else -1 if channel < 2 * fold else 0
        if 0 <= frame + offset < num_frames:
            shifted[image, channel] = x[image + offset, channel]
    return torch.from_numpy(np.einsum("fchw,oc->fohw", shifted, weight)) + bias.double()[:, None, None]


@pytest.mark.parametrize("case", CASES)
def test_reference_follows_the_contract(case):
    (x, weight, bias), options = make_case(case, torch.float64)
    torch.testing.assert_close(reference.shift_conv(x, weight, *options, bias), oracle(x, weight, *options, bias))


def test_reference_has_the_gradients_of_its_result():
    (x, weight, bias), options = make_case("odd channels", torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (x[:3], weight, bias)]
    assert torch.autograd.gradcheck(bind(reference, *options), leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_kernel_and_gradients_follow_the_contract(case, dtype, fenced, rounding, small_splits):
    inputs, options = make_case(case, dtype)
    assert not failures(bind(fused, *options), bind(reference, *options), inputs)


def test_no_bias_and_any_layout(fenced):
    (x, weight, _), options = make_case("stage one")
    planes = x.contiguous()
    backwards = weight.transpose(0, 1).contiguous().transpose(0, 1)
    assert not failures(bind(fused, *options), bind(reference, *options), (planes, backwards))
    result = fused.shift_conv(planes, backwards, *options)
    assert result.is_contiguous(memory_format=torch.channels_last)
    expanded = result.new_ones(1).expand_as(result)  # a gradient without memory of its own
    leaf = x.clone().requires_grad_()
    fused.shift_conv(leaf, weight, *options).backward(expanded)
    (exact,) = torch.autograd.grad(reference.shift_conv(leaf, weight, *options).sum(), leaf)
    torch.testing.assert_close(leaf.grad, exact, atol=1e-5, rtol=1e-5)


def test_only_the_wanted_gradients(fenced):
    (x, weight, bias), options = make_case("stage one")
    fused.shift_conv(x, weight.requires_grad_(), *options, bias).sum().backward()
    assert weight.grad is not None
    assert bias.grad is None


def test_autocast_computes_in_its_type_and_gradients_come_back_in_their_own(fenced):
    inputs, options = make_case("stage one")
    leaves = [tensor.requires_grad_() for tensor in inputs]
    with torch.autocast("cpu", torch.bfloat16):
        result = bind(fused, *options)(*leaves)
    assert result.dtype == torch.bfloat16
    result.sum().backward()
    assert {leaf.grad.dtype for leaf in leaves} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        assert bind(reference, *options)(*leaves).dtype == torch.bfloat16


def test_a_nan_stays_in_its_pixel(fenced):
    (x, weight, bias), (frames, _) = make_case("stage one")
    x[0, 0, 2, 3] = float("nan")
    lost = fused.shift_conv(x, weight, frames, 0, bias).isnan()
    assert lost[0, :, 2, 3].all()
    assert lost.sum() == weight.shape[0]


def test_dispatch_takes_the_reference_on_a_cpu(monkeypatch):
    (x, weight, bias), options = make_case("stage one")
    monkeypatch.setattr(fused, "shift_conv", None)
    expected = reference.shift_conv(x, weight, *options, bias)
    torch.testing.assert_close(shift_conv.shift_conv(x, weight, *options, bias), expected)


def test_operator_is_registered_as_torch_wants(fenced):
    (x, weight, bias), (frames, fold) = make_case("stage one")
    rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).requires_grad_()
    arguments = (rows, weight.flatten(1).requires_grad_(), bias.requires_grad_(), frames, 35, fold)
    torch.library.opcheck(fused._shift_conv, arguments, test_utils=("test_schema", "test_autograd_registration"))


MUTANTS = {
    "both ways exchanged": ("source + step, inside & in_later", "source - step, inside & in_later"),
    "next frame beyond the clip": (" & (frame < num_frames - 1)", ""),
    "last but one frame zeroed": ("(frame < num_frames - 1)", "(frame < num_frames - 2)"),
    "earlier frame beyond the clip": ("in_earlier & (frame > 0)", "in_earlier"),
    "frames not of a clip": ("// frame_rows % num_frames", "// frame_rows"),
    "fold rounded up": ("(channel < FOLD)[None, :], later", "(channel < to_later)[None, :], later"),
    "second fold rounded down": ("channel < 2 * FOLD)[None, :], earlier", "channel < from_same)[None, :], earlier"),
    "a block without its shift": ("FOLD if start < 2 * FOLD else 0", "FOLD if start < FOLD else 0"),
    "rows beyond the matrix": ("(first + local < num_rows)[:, None] & (channel < C)", "(channel < C)"),
    "channels beyond the row": ("inside = (channel < C)[:, None] & (column < O)", "inside = (column < O)"),
    "no bias": ("total += tl.load(bias", "total += 0 * tl.load(bias"),
    "bias of the first block": ("tl.load(bias + column, column < O", "tl.load(bias + column % BLOCK_N, column < O"),
    "last row unwritten": (
        "inside = (first + local < num_rows)[:, None] & (column < O)[None, :]\n    tl.store",
        "inside = (first + local < num_rows - 1)[:, None] & (column < O)[None, :]\n    tl.store",
    ),
    "given the wrong way": (
        "tl.where(later, step, tl.where(earlier, -step",
        "tl.where(later, -step, tl.where(earlier, step",
    ),
    "ends of the clip unwritten": ("leaves, -whole, frame_rows", "leaves, 0, frame_rows"),
    "ends of the clip kept": ("given = tl.where(leaves, 0.0, total)", "given = total"),
    "unmoved channels given": ("tl.where(earlier, -step, 0)", "tl.where(earlier, -step, step)"),
    "gradient of moved channels only": ("& (channel >= moved)[None, :]", "& (channel >= 2 * moved)[None, :]"),
    "weight's gradient unshifted": (
        "num_frames, frame_rows, C, FOLD, VECTOR, BLOCK_R)",
        "num_frames, frame_rows, C, 0, VECTOR, BLOCK_R)",
    ),
    "weight's gradient of the first step": ("(split * steps + step) * BLOCK_R", "(split * steps) * BLOCK_R"),
    "weight's gradient rounded early": ("dtype=torch.float32)\n    if num_rows", "dtype=rows.dtype)\n    if num_rows"),
    "mean in place of a sum": ("grad.sum(0, dtype=torch.float32)", "grad.float().mean(0)"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_die(name, tmp_path, fenced, rounding):
    mutant = broken(fused, *MUTANTS[name], tmp_path)
    mutant.GRAD_PROGRAMS = 2
    for case in CASES:
        inputs, options = make_case(case, torch.bfloat16)
        try:
            if failures(bind(mutant, *options), bind(reference, *options), inputs):
                return
        except InterpreterError:  # outside the fence
            return
    pytest.fail("this mutant passes every case")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", [*CASES, "training"])
def test_kernel_on_a_gpu(case, dtype, monkeypatch):
    monkeypatch.setitem(CASES, "training", (4, 16, 56, 56, 24, 54, 3))
    inputs, options = make_case(case, dtype)
    assert not failures(bind(fused, *options), bind(reference, *options), [tensor.cuda() for tensor in inputs])
