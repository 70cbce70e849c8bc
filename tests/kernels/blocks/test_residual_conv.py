"""Compares the kernels of residual_conv with a reference in float64, and the reference with loops."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from kernels.blocks import conv_bn, dispatch
from kernels.blocks import residual_conv as fused
from kernels.blocks import residual_conv_reference as reference
from tests.kernels.blocks.test_conv_bn import Rounded, failures
from tests.kernels.closeness import distance
from tests.kernels.variants import a_share, broken, dies, in_turn

CASES = {
    # name: (clips, frames, height, width, channels, outputs, taps), followed by True if the shortcut has a scale
    "bottleneck": (2, 2, 5, 7, 64, 16, 1),
    "inflated": (2, 3, 3, 5, 64, 16, 3),
    "frames as large as a block": (1, 3, 8, 8, 16, 16, 3),
    "several frames a block": (3, 5, 2, 3, 40, 24, 3),
    "blocks of several clips": (5, 3, 1, 2, 24, 16, 3),
    "five frames": (1, 6, 2, 3, 16, 8, 5),
    "fewer frames than taps": (3, 1, 3, 5, 24, 13, 3),
    "two column blocks": (2, 2, 3, 5, 32, 128, 1),
    "two column blocks of three frames": (1, 3, 3, 5, 40, 108, 3),
    "two column blocks back": (2, 3, 3, 5, 108, 24, 1),
    "the widest": (1, 2, 3, 5, 40, 512, 1),
    "odd channels": (2, 3, 3, 5, 7, 5, 3),
    "one channel": (2, 3, 3, 5, 1, 1, 1),
    "one pixel in all": (1, 1, 1, 1, 24, 13, 1),
    "scaled shortcut": (2, 2, 5, 7, 64, 16, 1, True),
    "scaled shortcut, inflated": (2, 3, 3, 5, 40, 24, 3, True),
    "scaled shortcut, two column blocks back": (2, 3, 3, 5, 108, 24, 1, True),
}
WAYS = ("result", "mean", "var", "sum")


def make_case(case, dtype=torch.float32):
    """Return the tensors of a case and its number of frames. If the shortcut has a scale, shortcut_scale comes last."""
    clips, frames, height, width, channels, outputs, taps, *scaled = CASES[case]
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    size = clips * frames, channels, height, width
    y, shortcut = (random(*size).to(dtype).contiguous(memory_format=torch.channels_last) for _ in range(2))
    weight = (random(outputs, channels, taps, 1) / (channels * taps) ** 0.5 + 0.1).to(dtype)
    other = [1 + random(channels)] if scaled else []
    return (y, weight, 1 + random(channels), random(channels), shortcut, *other), frames


def eager(y, weight, scale, shift, shortcut, num_frames, shortcut_scale=None):
    """Compute residual_conv by two operators that round their outputs and, in the backward pass, their gradients."""
    if shortcut_scale is not None:
        shortcut = shortcut * shortcut_scale[:, None, None]
    x = Rounded.apply((y * scale[:, None, None] + shift[:, None, None] + shortcut).relu())
    one, zero = torch.ones_like(scale), torch.zeros_like(shift)
    result, *_ = reference.residual_conv(x, weight, one, zero, torch.zeros_like(x), num_frames)
    result = Rounded.apply(result)
    return result, result.mean((0, 2, 3)), result.var((0, 2, 3), correction=0), x


def failures_of(module, inputs, num_frames, ways=WAYS) -> list[str]:
    def called(function):
        return lambda *tensors: function(*tensors[:5], num_frames, *tensors[5:])

    functions = module.residual_conv, reference.residual_conv, eager
    return failures(*map(called, functions), inputs, ways)


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """Limit the backward kernel to few programs, so that each program processes several blocks of rows."""
    monkeypatch.setattr(conv_bn, "GRAD_PARTIAL", 4096)


def oracle(x, weight, num_frames):
    """Compute the convolution with loops over images and taps."""
    x, weight = x.double().numpy(), weight.double().numpy()[..., 0]
    result = np.zeros((len(x), len(weight), *x.shape[2:]))
    taps = weight.shape[2]
    for image, tap in np.ndindex(len(x), taps):
        frame = image % num_frames + tap - taps // 2
        if 0 <= frame < num_frames:
            result[image] += np.einsum("chw,oc->ohw", x[image + tap - taps // 2], weight[..., tap])
    return torch.from_numpy(result)


@pytest.mark.parametrize("case", CASES)
def test_reference_follows_the_contract(case):
    (y, weight, scale, shift, shortcut, *other), frames = make_case(case, torch.float64)
    result, mean, var, x = reference.residual_conv(y, weight, scale, shift, shortcut, frames, *other)
    added = shortcut * other[0].view(-1, 1, 1) if other else shortcut
    torch.testing.assert_close(x, (y * scale.view(-1, 1, 1) + shift.view(-1, 1, 1) + added).clamp(min=0))
    torch.testing.assert_close(result, oracle(x, weight, frames))
    torch.testing.assert_close(mean, result.mean((0, 2, 3)))
    torch.testing.assert_close(var, (result - mean[:, None, None]).square().mean((0, 2, 3)))


def test_reference_is_what_a_batch_norm_and_a_convolution_make():
    torch.manual_seed(0)
    norm, conv = nn.BatchNorm2d(7), nn.Conv3d(7, 5, (3, 1, 1), padding=(1, 0, 0), bias=False)
    nn.init.uniform_(norm.weight, 0.5, 2)
    y, shortcut = torch.randn(2, 6, 7, 3, 5).unbind()
    x = (norm(y) + shortcut).relu()
    expected = conv(x.unflatten(0, (2, 3)).transpose(1, 2)).transpose(1, 2).flatten(0, 1)
    var, mean = torch.var_mean(y, (0, 2, 3), correction=0)
    scale = norm.weight * (var + norm.eps).rsqrt()
    shift = norm.bias - mean * scale
    result, *_, found = reference.residual_conv(y, conv.weight.squeeze(-1), scale, shift, shortcut, 3)
    torch.testing.assert_close(found, x, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def test_reference_has_the_gradients_of_its_results():
    (y, weight, scale, shift, shortcut), frames = make_case("odd channels", torch.float64)
    given = y[:3, ..., :2], weight[:2], scale.double(), shift.double(), shortcut[:3, ..., :2]
    leaves = [tensor.clone().requires_grad_() for tensor in given]
    other = (1 - scale.double()).requires_grad_()
    assert torch.autograd.gradcheck(reference.residual_conv, (*leaves, frames))
    assert torch.autograd.gradcheck(reference.residual_conv, (*leaves, frames, other))


@pytest.mark.parametrize(("case", "dtype"), in_turn(CASES, (torch.float32, torch.bfloat16)))
def test_kernel_and_gradients_follow_the_contract(case, dtype, fenced, rounding):
    assert not failures_of(fused, *make_case(case, dtype))


@pytest.mark.parametrize("way", WAYS[:3])
def test_gradients_by_way_of_one_result_alone(way, fenced, rounding):
    for case in ("bottleneck", "several frames a block"):
        assert not failures_of(fused, *make_case(case, torch.bfloat16), [way])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_of_a_mean_far_from_zero(dtype, rounding):
    (y, weight, _, shift, shortcut), frames = make_case("bottleneck")
    y = (y / 10 + 100 * weight.abs().mean()).to(dtype)
    ones = torch.ones_like(shift)
    result, mean, var, _ = fused.residual_conv(
        y, (weight.abs() + 0.1).to(dtype), ones, 0 * shift, 0 * shortcut.to(dtype), frames
    )
    exact_var, exact_mean = torch.var_mean(result.double(), (0, 2, 3), correction=0)
    assert (exact_mean / exact_var.sqrt()).min() > 90
    torch.testing.assert_close(mean.double(), exact_mean, rtol=1e-5, atol=0)
    torch.testing.assert_close(var.double(), exact_var, rtol=1e-5, atol=0)


def test_any_layout_and_expanded_gradients(fenced):
    (y, weight, scale, shift, shortcut), frames = make_case("inflated")
    backwards = weight.transpose(0, 1).contiguous().transpose(0, 1)
    expanded = shortcut[:1].expand_as(shortcut)
    assert not failures_of(fused, (y.contiguous(), backwards, scale, shift, expanded), frames)
    spread, strided = scale[:1].expand_as(scale), torch.stack([shift, shift], 1)[:, 0]
    assert not failures_of(fused, (y, weight, spread, strided, shortcut, 1 - strided), frames)
    assert not failures_of(fused, (y, weight, strided, spread, shortcut, spread), frames)
    leaf = y.contiguous().requires_grad_()
    outcomes = []
    for module in (reference, fused):
        result, _, _, x = module.residual_conv(leaf, weight, scale, shift, shortcut, frames)
        ones = [t.new_ones(1).expand_as(t) for t in (result, x)]
        outcomes += torch.autograd.grad((result, x), leaf, ones)
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in (result, x))
    torch.testing.assert_close(*outcomes, atol=1e-5, rtol=1e-4)


def test_a_sum_that_nobody_else_reads(fenced):
    inputs, frames = make_case("inflated")
    found = []
    for module in (fused, reference):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        result, mean, *_ = module.residual_conv(*leaves, frames)
        found.append(torch.autograd.grad(result.square().sum() + mean.sum(), leaves))
    for one, other in zip(*found, strict=True):
        assert distance(one, other) <= 1e-5 * other.norm()


def test_autocast_computes_in_its_type_and_gradients_come_back_in_their_own(fenced):
    inputs, frames = make_case("inflated")
    leaves = [tensor.requires_grad_() for tensor in inputs]
    with torch.autocast("cpu", torch.bfloat16):
        y, mean, var, x = fused.residual_conv(*leaves, frames)
    assert [t.dtype for t in (y, mean, var, x)] == [torch.bfloat16, torch.float32, torch.float32, torch.bfloat16]
    (y.sum() + mean.sum() + var.sum() + x.sum()).backward()
    assert {leaf.grad.dtype for leaf in leaves} == {torch.float32}


def test_a_nan_stays_in_its_pixel_and_its_statistics(fenced):
    (y, weight, scale, shift, shortcut), frames = make_case("inflated")
    y[0, 0, 2, 3] = float("nan")
    result, mean, var, x = fused.residual_conv(y, weight, scale, shift, shortcut, frames)
    assert result.isnan()[:2, :, 2, 3].all()  # the NaN is in frame 0, and the convolution spreads it to frame 1
    assert result.isnan().sum() == 2 * len(weight)
    assert x.isnan().sum() == 1
    assert mean.isnan().all()
    assert var.isnan().all()


def test_dispatch_takes_the_reference_on_a_cpu(monkeypatch):
    inputs, frames = make_case("inflated")
    monkeypatch.setattr(fused, "residual_conv", None)
    expected = reference.residual_conv(*inputs, frames)
    for one, other in zip(dispatch.residual_conv(*inputs, frames), expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("case", ["inflated", "scaled shortcut, inflated"])
def test_operators_are_registered_as_torch_wants(case, fenced):
    (y, weight, scale, shift, shortcut, *other), frames = make_case(case)
    rows, beside = (t.permute(0, 2, 3, 1).reshape(-1, y.shape[1]) for t in (y, shortcut))
    matrix = weight.squeeze(3).permute(0, 2, 1).contiguous()
    checks = ("test_schema", "test_autograd_registration")
    leaves = [tensor.clone().requires_grad_() for tensor in (rows, matrix, scale, shift, beside, *other)]
    leaves += [] if other else [None]
    torch.library.opcheck(fused._residual_conv, (*leaves, frames, 15), test_utils=checks)
    result, ones = rows @ matrix[:, 0].T, torch.ones(len(weight))
    end = (beside, *other) if other else (None, None)
    given = result, result, ones, ones, ones, rows, rows, rows, matrix, scale, *end, frames, 15
    torch.library.opcheck(fused._residual_conv_grad, given, test_utils=checks)


def test_a_weight_in_float32_is_taken_as_if_rounded(fenced, rounding):
    (y, weight, scale, shift, shortcut), frames = make_case("inflated")
    found = []
    for given in (weight, weight.bfloat16()):
        leaf = given.clone().requires_grad_()
        results = fused.residual_conv(y.bfloat16(), leaf, scale, shift, shortcut.bfloat16(), frames)
        (grad,) = torch.autograd.grad(results[0].float().square().sum(), leaf)
        assert grad.dtype == given.dtype
        found.append([*results, grad.bfloat16()])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


MUTANTS = {
    "the next and the previous frame are exchanged": (
        "        later = tap - TAPS // 2",
        "        later = TAPS // 2 - tap",
    ),
    "reads a frame before the clip": ("frame + later >= 0", "frame + later >= -1"),
    "reads a frame after the clip": ("& (frame + later < num_frames)", ""),
    "does not read the last frame": ("(frame + later < num_frames)", "(frame + later < num_frames - 1)"),
    "counts frames over all clips": ("// frame_rows % num_frames", "// frame_rows"),
    "every split uses the frame numbers of the first split": ("(first % (num_frames * frame_rows))", "(first - first)"),
    "no program stores the activated sums": (
        " & (tl.program_id(0) % ((O + BLOCK_N - 1) // BLOCK_N) == 0)",
        " & (split < 0)",
    ),
    "stores the sums of another frame": ("if later == 0", "if tap == 0"),
    "does not store the last row of the sums": ("storing = owned", "storing = (local < rows_left - 1)[:, None]"),
    "reads a row after the last one": (
        "    owned = (local < rows_left)[:, None]",
        "    owned = (local < rows_left + 1)[:, None]",
    ),
    "no shortcut": ("known)[None, :] + other", "known)[None, :]"),
    "no shift": ("value += load(shift, channel, known)[None, :] + other", "value += other"),
    "the shortcut is not scaled": ("other *= load(shortcut_scale", "other += 0 * load(shortcut_scale"),
    "no activation": ('activate(value, "relu")', "value"),
    "frames outside the clip contain the shift instead of 0": (
        'tl.where(inside, activate(value, "relu"), 0.0)',
        'activate(value, "relu")',
    ),
    "reads a channel that does not exist": ("real = known[:, None] & ", "real = "),
    "every frame uses the weights of the first": ("(column * TAPS + tap)[None, :]", "(column * TAPS)[None, :]"),
    "the statistics divide by the wrong number of rows": (
        "merge(partial, len(rows), BLOCK_M)",
        "merge(partial, len(rows), BLOCK_M - 1)",
    ),
    "no gradient through the mean": ("spread(grad_mean,", "spread(0 * grad_mean,"),
    "no gradient through the variance": ("grad_var, len(result))", "0 * grad_var, len(result))"),
    "no gradient from other layers that use the sum": (" + load(grad_total, first * C + place, inside)\n", "\n"),
    "backward ignores the activation": (
        'gradient = through(gradient, inputs.to(tl.float32), "relu")',
        "gradient = gradient",
    ),
    "gradients go to the wrong frames": ("(later * frame_rows)[None, :]", "(-later * frame_rows)[None, :]"),
    "gradients come from after the clip": (" & (to < num_frames)", ""),
    "gradients come from before the clip": ("(to >= 0) & ", ""),
    "gradients go to frames of another clip": ("- later[None, :]\n", "- 0 * later[None, :]\n"),
    "all gradients go to one frame": (
        "    later = tap - TAPS // 2\n    # Offsets",
        "    later = tap * 0\n    # Offsets",
    ),
    "gradient of the rows lacks the scale": ("            gradient *= load(scale, channel, known)[None, :]\n", ""),
    "gradient of the shortcut is multiplied by the rows' scale": (
        "            shortcut_gradient = gradient\n",
        "            shortcut_gradient = gradient * load(scale, channel, known)[None, :]\n",
    ),
    "gradient of the shortcut lacks its scale": (
        "shortcut_gradient *= load(shortcut_scale",
        "shortcut_gradient += 0 * load(shortcut_scale",
    ),
    "gradient of the shortcut's scale comes from the last step only": ("of_other += tl.sum", "of_other = tl.sum"),
    "gradient of the shortcut's scale uses the rows": (
        "gradient * load(shortcut, first",
        "gradient * load(rows, first",
    ),
    "gradient of the shortcut's scale overwrites that of the shift": ("target + 2 * C * splits", "target + C * splits"),
    "gradient of the scale uses the sum instead of the rows": (
        "gradient * load(rows, first",
        "gradient * load(total, first",
    ),
    "gradient of the scale comes from the last step only": ("of_scale += tl.sum", "of_scale = tl.sum"),
    "gradient of the shift comes from the last step only": ("of_shift += tl.sum", "of_shift = tl.sum"),
    "does not write the gradient of the last row": (
        "        owned = (local < rows_left)",
        "        owned = (local < rows_left - 1)",
    ),
    "does not write the last block of gradients": ("if rows_left > 0", "if rows_left > BLOCK_M"),
    "every step reads the rows of the first step": ("        first += BLOCK_M\n", ""),
    "reads rows after the last one": ("        rows_left -= BLOCK_M\n", ""),
    "gradient of the weight comes from the last step only": ("inputs, products, input", "inputs, 0 * products, input"),
    "all splits write their weight gradients to the same place": (
        "split.to(tl.int64) * (TAPS * O * C)",
        "0 * split.to(tl.int64) * (TAPS * O * C)",
    ),
    "all splits write their scale gradients to the same place": (
        "of_affine + channel * splits + split",
        "of_affine + channel * splits",
    ),
}


@pytest.mark.parametrize("name", a_share(MUTANTS))
def test_mutants_die(name, tmp_path, fenced, rounding):
    mutant = broken(fused, *MUTANTS[name], tmp_path)
    assert dies(partial(failures_of, mutant, *make_case(case, torch.bfloat16)) for case in CASES)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", [*CASES, "training", "training, inflated"])
def test_kernel_on_a_gpu(case, dtype, monkeypatch):
    monkeypatch.setitem(CASES, "training", (4, 8, 28, 28, 512, 128, 1))
    monkeypatch.setitem(CASES, "training, inflated", (4, 32, 14, 14, 256, 64, 3))
    inputs, frames = make_case(case, dtype)
    assert not failures_of(fused, [tensor.cuda() for tensor in inputs], frames)
