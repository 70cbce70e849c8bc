"""Compares the kernels of shift_conv with a reference in float64, and the reference with loops."""

from functools import partial

import numpy as np
import pytest
import torch

from kernels.blocks import conv_bn, dispatch
from kernels.blocks import shift_conv as fused
from kernels.blocks import shift_conv_reference as reference
from tests.kernels.blocks.test_conv_bn import WAYS, Rounded, failures
from tests.kernels.variants import a_share, broken, dies, in_turn

CASES = {
    # name: (clips, frames, height, width, channels, outputs, fold)
    "stage one": (2, 3, 5, 7, 24, 54, 3),
    "several splits of several blocks": (2, 4, 9, 5, 24, 54, 6),
    "whole blocks": (1, 2, 8, 16, 24, 16, 3),
    "back to 24": (1, 3, 7, 3, 54, 24, 6),
    "four column blocks": (1, 3, 3, 5, 48, 216, 6),
    "one frame": (3, 1, 3, 5, 24, 54, 3),
    "two frames": (2, 2, 3, 3, 24, 54, 3),
    "nothing moves": (2, 3, 3, 5, 24, 54, 0),
    "one channel moves": (2, 3, 3, 5, 24, 16, 1),
    "fold no multiple of 8": (2, 4, 3, 5, 108, 54, 13),
    "fold of 8": (2, 3, 3, 5, 96, 24, 8),
    "everything moves": (2, 3, 3, 5, 108, 24, 54),
    "everything moves, one frame": (2, 1, 3, 5, 24, 24, 12),
    "the widest": (2, 2, 3, 5, 40, 512, 5),
    "odd channels": (2, 3, 3, 5, 7, 5, 2),
    "one channel": (2, 3, 3, 5, 1, 1, 0),
    "one pixel": (1, 2, 1, 1, 54, 24, 6),
    "one pixel in all": (1, 1, 1, 1, 24, 54, 3),
}


def make_case(case, dtype=torch.float32):
    """Return (x, weight) of a case, and the other arguments of shift_conv."""
    clips, frames, height, width, channels, outputs, fold = CASES[case]
    generator = torch.Generator().manual_seed(0)
    shapes = (clips * frames, channels, height, width), (outputs, channels, 1, 1)
    x, weight = (torch.randn(shape, generator=generator) for shape in shapes)
    weight = (weight / channels**0.5 + 0.1).to(dtype)
    return (x.to(dtype).contiguous(memory_format=torch.channels_last), weight), (frames, fold)


def bind(function, options):
    return lambda x, weight: function(x, weight, *options)


def eager(x, weight, num_frames, fold):
    """Run the reference and round its result. In the backward pass, also round the result's gradient."""
    y, *_ = reference.shift_conv(x, weight, num_frames, fold)
    y = Rounded.apply(y)
    return y, y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)


def failures_of(module, inputs, options, ways=WAYS) -> list[str]:
    functions = module.shift_conv, reference.shift_conv, eager
    return failures(*(bind(function, options) for function in functions), inputs, ways)


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """Limit the backward kernel to few programs, so that each program processes several blocks of rows."""
    monkeypatch.setattr(conv_bn, "GRAD_PARTIAL", 4096)


def oracle(x, weight, num_frames, fold):
    """Compute the result with loops over images and channels."""
    x, weight = x.double().numpy(), weight.double().numpy()[:, :, 0, 0]
    shifted = np.zeros_like(x)
    for image, channel in np.ndindex(x.shape[:2]):
        frame = image % num_frames
        offset = 1 if channel < fold else -1 if channel < 2 * fold else 0
        if 0 <= frame + offset < num_frames:
            shifted[image, channel] = x[image + offset, channel]
    return torch.from_numpy(np.einsum("fchw,oc->fohw", shifted, weight))


@pytest.mark.parametrize("case", CASES)
def test_reference_follows_the_contract(case):
    inputs, options = make_case(case, torch.float64)
    y, mean, var = reference.shift_conv(*inputs, *options)
    torch.testing.assert_close(y, oracle(*inputs, *options))
    torch.testing.assert_close(mean, y.mean((0, 2, 3)))
    torch.testing.assert_close(var, (y - mean[:, None, None]).square().mean((0, 2, 3)))


def test_reference_has_the_gradients_of_its_results():
    (x, weight), options = make_case("odd channels", torch.float64)
    leaves = x[:3, ..., :2].clone().requires_grad_(), weight[:2].clone().requires_grad_()
    assert torch.autograd.gradcheck(bind(reference.shift_conv, options), leaves)


@pytest.mark.parametrize(("case", "dtype"), in_turn(CASES, (torch.float32, torch.bfloat16)))
def test_kernel_and_gradients_follow_the_contract(case, dtype, fenced, rounding):
    assert not failures_of(fused, *make_case(case, dtype))


@pytest.mark.parametrize(("way", "dtype"), in_turn(WAYS, (torch.float32, torch.bfloat16)))
def test_gradients_by_way_of_one_result_alone(way, dtype, fenced, rounding):
    assert not failures_of(fused, *make_case("fold no multiple of 8", dtype), [way])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_of_a_mean_far_from_zero(dtype, rounding):
    (x, weight), options = make_case("nothing moves")
    x = (x / 10 + 100 * weight.abs().mean()).to(dtype)
    y, mean, var = fused.shift_conv(x, (weight.abs() + 0.1).to(dtype), *options)
    exact_var, exact_mean = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    assert (exact_mean / exact_var.sqrt()).min() > 90
    torch.testing.assert_close(mean.double(), exact_mean, rtol=1e-5, atol=0)
    torch.testing.assert_close(var.double(), exact_var, rtol=1e-5, atol=0)


def test_any_layout_and_an_expanded_gradient(fenced):
    (x, weight), options = make_case("stage one")
    backwards = weight.transpose(0, 1).contiguous().transpose(0, 1)
    assert not failures_of(fused, (x.contiguous(), backwards), options)
    leaf = x.contiguous().requires_grad_()
    y, *_ = fused.shift_conv(leaf, weight, *options)
    assert y.is_contiguous(memory_format=torch.channels_last)
    (found,) = torch.autograd.grad(y, leaf, y.new_ones(1).expand_as(y))
    exact, *_ = reference.shift_conv(leaf, weight, *options)
    torch.testing.assert_close(found, torch.autograd.grad(exact.sum(), leaf)[0], atol=1e-5, rtol=1e-5)


def test_only_the_wanted_gradients(fenced):
    (x, weight), options = make_case("stage one")
    y, mean, _ = fused.shift_conv(x, weight.requires_grad_(), *options)
    (y.sum() + mean.sum()).backward()
    assert weight.grad is not None
    assert x.grad is None


def test_autocast_computes_in_its_type_and_gradients_come_back_in_their_own(fenced):
    inputs, options = make_case("stage one")
    leaves = [tensor.requires_grad_() for tensor in inputs]
    for module in (reference, fused):
        with torch.autocast("cpu", torch.bfloat16):
            y, mean, var = module.shift_conv(*leaves, *options)
        assert (y.dtype, mean.dtype, var.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    (y.sum() + mean.sum() + var.sum()).backward()
    assert {leaf.grad.dtype for leaf in leaves} == {torch.float32}


def test_a_nan_stays_in_its_pixel_and_its_statistics(fenced):
    (x, weight), (frames, _) = make_case("stage one")
    x[0, 0, 2, 3] = float("nan")
    y, mean, var = fused.shift_conv(x, weight, frames, 0)
    assert y.isnan()[0, :, 2, 3].all()
    assert y.isnan().sum() == len(weight)
    assert mean.isnan().all()
    assert var.isnan().all()


def test_dispatch_takes_the_reference_on_a_cpu(monkeypatch):
    inputs, options = make_case("stage one")
    monkeypatch.setattr(fused, "shift_conv", None)
    expected = reference.shift_conv(*inputs, *options)
    for one, other in zip(dispatch.shift_conv(*inputs, *options), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_operators_are_registered_as_torch_wants(fenced):
    (x, weight), (frames, fold) = make_case("stage one")
    rows, matrix = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]), weight.flatten(1)
    checks = ("test_schema", "test_autograd_registration")
    leaves = rows.clone().requires_grad_(), matrix.clone().requires_grad_()
    torch.library.opcheck(fused._shift_conv, (*leaves, frames, 35, fold), test_utils=checks)
    result, ones = rows @ matrix.T, torch.ones(len(matrix))
    given = result, result, ones, ones, ones, rows, matrix, frames, 35, fold
    torch.library.opcheck(fused._shift_conv_grad, given, test_utils=checks)


def test_a_weight_in_float32_is_taken_as_if_rounded(fenced, rounding):
    (x, weight), options = make_case("stage one")
    found = []
    for given in (weight, weight.bfloat16()):
        leaf = given.clone().requires_grad_()
        results = fused.shift_conv(x.bfloat16(), leaf, *options)
        (grad,) = torch.autograd.grad(results[0].float().square().sum(), leaf)
        assert grad.dtype == given.dtype
        found.append([*results, grad.bfloat16()])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


MUTANTS = {
    "the next and the previous frame are exchanged": (
        "source + step, inside & in_later",
        "source - step, inside & in_later",
    ),
    "reads a frame after the clip": (" & (frame < num_frames - 1)", ""),
    "the frame before the last reads zeros": ("(frame < num_frames - 1)", "(frame < num_frames - 2)"),
    "reads a frame before the clip": ("in_earlier & (frame > 0)", "in_earlier"),
    "counts frames over all clips": ("// frame_rows % num_frames", "// frame_rows"),
    "every split uses the frame numbers of the first split": ("(row % (num_frames * frame_rows))", "(row - row)"),
    "shifts too many channels from the next frame": (
        "(channel < FOLD)[None, :], later",
        "(channel < to_later)[None, :], later",
    ),
    "shifts too few channels from the previous frame": (
        "channel < 2 * FOLD)[None, :], earlier",
        "channel < from_same)[None, :], earlier",
    ),
    "does not shift the second block of channels": ("FOLD if start < 2 * FOLD else 0", "FOLD if start < FOLD else 0"),
    "reads a row after the last one": (
        "    owned = (local < rows_left)[:, None]",
        "    owned = (local < rows_left + 1)[:, None]",
    ),
    "does not read the last row": (
        "    owned = (local < rows_left)[:, None]",
        "    owned = (local < rows_left - 1)[:, None]",
    ),
    "reads a channel that does not exist": ("real = (channel < C)[:, None] & ", "real = "),
    "the statistics divide by the wrong number of rows": (
        "merge(partial, len(rows), BLOCK_M)",
        "merge(partial, len(rows), BLOCK_M - 1)",
    ),
    "no gradient through the mean": ("spread(grad_mean,", "spread(0 * grad_mean,"),
    "no gradient through the variance": ("grad_var, len(rows))", "0 * grad_var, len(rows))"),
    "uses the gradient of the mean instead of the mean": (
        "statistics = mean, *spread",
        "statistics = grad_mean, *spread",
    ),
    "gradients move in the wrong direction": (
        "tl.where(later, offset, tl.where(earlier, -offset",
        "tl.where(later, -offset, tl.where(earlier, offset",
    ),
    "gradients do not move": ("tl.store(target + offset,", "tl.store(target,"),
    "does not write zeros at the ends of a clip": ("(1 - num_frames) * step, step", "0, step"),
    "gradients at the ends of a clip are not 0": ("tl.where(leaves, 0.0, gradient)", "gradient"),
    "moves the gradients of channels that are not shifted": (
        "tl.where(earlier, -offset, 0)",
        "tl.where(earlier, -offset, offset)",
    ),
    "some channels get no gradient": ("& (channel >= moved)[None, :]", "& (channel >= 2 * moved)[None, :]"),
    "does not write the gradient of the last row": (
        "        owned = (local < rows_left)",
        "        owned = (local < rows_left - 1)",
    ),
    "does not write the last block of gradients": ("if rows_left > 0", "if rows_left > BLOCK_M"),
    "every step reads the rows of the first step": ("        first += BLOCK_M\n", ""),
    "reads rows after the last one": ("        rows_left -= BLOCK_M\n", ""),
    "gradient of the weight uses inputs that are not shifted": (
        "frame_rows * C, C, FOLD, VECTOR)\n        inside",
        "0, C, FOLD, VECTOR)\n        inside",
    ),
    "gradient of the weight comes from the last step only": (
        "tl.trans(whole), inputs, total,",
        "tl.trans(whole), inputs, 0 * total,",
    ),
    "all splits write their weight gradients to the same place": (
        "split.to(tl.int64) * (O * C)",
        "0 * split.to(tl.int64) * (O * C)",
    ),
    "the second block of channels overwrites the first": (
        "(O * C) + cell, total",
        "(O * C) + cell - channel[None, :] // BLOCK_C * BLOCK_C, total",
    ),
}


@pytest.mark.parametrize("name", a_share(MUTANTS))
def test_mutants_die(name, tmp_path, fenced, rounding):
    mutant = broken(fused, *MUTANTS[name], tmp_path)
    assert dies(partial(failures_of, mutant, *make_case(case, torch.bfloat16)) for case in CASES)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", [*CASES, "training"])
def test_kernel_on_a_gpu(case, dtype, monkeypatch):
    monkeypatch.setitem(CASES, "training", (4, 16, 56, 56, 24, 54, 3))
    inputs, options = make_case(case, dtype)
    assert not failures_of(fused, [tensor.cuda() for tensor in inputs], options)
