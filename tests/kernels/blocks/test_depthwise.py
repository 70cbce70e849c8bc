"""Compares the kernels of depthwise_conv with a reference in float64, and the reference with nested loops."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.kernels.traffic import Traffic
from kernels.blocks import depthwise as fused
from kernels.blocks import depthwise_reference as reference
from kernels.blocks import dispatch
from tests.kernels.closeness import BFLOAT16, BFLOAT16_GRAD, FLOAT32, distance
from tests.kernels.variants import a_share, broken, dies, in_turn

CASES = {
    # name: (images, height, width, channels, stride, groups)
    "two clips": (2, 3, 5, 13, 1, 2),
    "two clips, strips down, stride 2": (2, 7, 5, 13, 2, 2),
    "one image": (1, 5, 3, 54, 1, 1),
    "even sides, stride 2": (1, 6, 8, 24, 2, 1),
    "even and odd, stride 2": (1, 4, 3, 24, 2, 1),
    "strips across, stride 2": (1, 3, 17, 24, 2, 1),
    "65 channels": (2, 2, 3, 65, 1, 1),
    "strips across and down": (4, 4, 9, 13, 1, 2),
    "clips of three images": (6, 2, 3, 24, 1, 2),
    "channels in 64s": (1, 2, 3, 128, 1, 1),
    "one row": (2, 1, 6, 24, 2, 2),
    "one column": (2, 5, 1, 24, 1, 1),
    "a pixel a clip": (3, 1, 1, 54, 1, 3),
    "a pixel a clip, stride 2": (3, 1, 1, 54, 2, 3),
    "two pixels a side, stride 2": (1, 2, 2, 24, 2, 1),
    "one channel": (2, 4, 4, 1, 1, 2),
}
SMALL_STRIPS = {"TILE": 64, "ROWS": 3, "PROGRAMS": 5}
INPUTS = ("x", "weight", "scale", "shift")
RESULTS = ("result", "mean", "var", "means")


def make_case(case, dtype=torch.float32):
    """Return (x, weight, scale, shift) and (stride, groups) of a case."""
    images, height, width, channels, stride, groups = CASES[case]
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    x = random(images, channels, height, width).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = (random(channels, 1, 3, 3) + 0.3).to(dtype)
    return (x, weight, 1 + random(channels), random(channels)), (stride, groups)


def call(function, inputs, settings):
    (x, weight, scale, shift), (stride, groups) = inputs, settings
    return function(x, weight, stride, scale, shift, groups)


class Rounded(torch.autograd.Function):
    """Rounds the output of an operator to bfloat16. In the backward pass, also rounds the gradient of this output."""

    @staticmethod
    def forward(ctx, x):
        return x.bfloat16().float()

    @staticmethod
    def backward(ctx, grad):
        return grad.bfloat16().float()


def eager(x, weight, stride, scale, shift, groups):
    """Compute depthwise_conv by two operators that round their outputs: a norm with relu, then a convolution."""
    x = Rounded.apply((x * scale[:, None, None] + shift[:, None, None]).relu())
    y = Rounded.apply(F.conv2d(x, weight, None, stride, 1, groups=x.shape[1]))
    return y, *statistics(y, groups)


def statistics(y, groups):
    var, mean = torch.var_mean(y, (0, 2, 3), correction=0)
    return mean, var, y.unflatten(0, (groups, -1)).mean((1, 3, 4))


def run(function, inputs, settings, dtype=None, by=RESULTS):
    """Return results and gradients by name. The loss depends on the results named in `by`, about equally on each."""
    leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for t in inputs]
    results = dict(zip(RESULTS, call(function, leaves, settings), strict=True))
    generator = torch.Generator().manual_seed(1)
    loss = 0
    for name, result in results.items():
        times = results["result"].numel() / result.numel()
        grad = torch.randn(result.shape, generator=generator).to(inputs[0].dtype).to(result) * times
        loss += (result * grad).sum(dtype=torch.float64) if name in by else 0
    found = torch.autograd.grad(loss, leaves)
    return {name: t.detach() for name, t in results.items()} | dict(zip(INPUTS, found, strict=True))


def failures(function, inputs, settings, by=RESULTS) -> list[str]:
    """Return one line for each result or gradient whose error is too large."""
    half = inputs[0].dtype == torch.bfloat16
    exact = run(reference.depthwise_conv, inputs, settings, torch.float64, by)
    plain = run(eager, inputs, settings, torch.float32, by) if half else exact
    found = run(function, inputs, settings, None, by)
    exact.update(zip(RESULTS[1:], statistics(found["result"].double(), settings[1]), strict=True))
    said = []
    for name, best in exact.items():
        assert found[name].shape == best.shape, name
        error, allowed = distance(found[name], best), FLOAT32 * best.norm() + 1e-9
        if half and name not in RESULTS[1:]:
            same = plain[name].to(found[name].dtype)
            allowed = (BFLOAT16 if name == "result" else BFLOAT16_GRAD) * distance(same, best)
        if not error <= allowed:
            said.append(f"{name}: {error:.3g}, allowed {allowed:.3g}, norm {best.norm():.3g}")
    return said


def far_from_zero(function, dtype) -> list[str]:
    """Return the statistics that are inaccurate when the mean is many standard deviations away from 0."""
    (x, weight, *_), _ = make_case("strips across and down")
    weight = weight.abs() + 0.1
    # with these weights, padding does not change the result
    weight[..., 0] = weight[..., 2] = weight[..., 0, :] = weight[..., 2, :] = 0
    x = (x / 10 + 10).to(dtype)
    one, zero = torch.ones(x.shape[1]), torch.zeros(x.shape[1])
    y, *found = function(x, weight.to(dtype), 1, one, zero, 2)
    exact = statistics(y.double(), 2)
    assert (exact[0] / exact[1].sqrt()).min() > 60
    return [
        name for name, one, best in zip(RESULTS[1:], found, exact, strict=True) if (one / best - 1).abs().max() > 1e-5
    ]


@pytest.fixture(autouse=True)
def small_strips(monkeypatch):
    """Make strips one or two lanes wide, so that an image has several strips across and several strips down.

    Each Triton program then processes several images.
    """
    for name, value in SMALL_STRIPS.items():
        monkeypatch.setattr(fused, name, value)


def oracle(x, weight, stride):
    """Compute the convolution with loops over the pixels of the result."""
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
    (x, weight, scale, shift), settings = make_case(case, torch.float64)
    stride, groups = settings
    found = call(reference.depthwise_conv, (x, weight, scale, shift), settings)
    y = oracle((x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)).clamp(min=0), weight, stride)
    clips = torch.stack([clip.mean((0, 2, 3)) for clip in y.chunk(groups)])
    deviations = y - y.mean((0, 2, 3), keepdim=True)
    for one, best in zip(found, (y, y.mean((0, 2, 3)), deviations.square().mean((0, 2, 3)), clips), strict=True):
        torch.testing.assert_close(one, best)


@pytest.mark.parametrize("stride", [1, 2])
def test_reference_has_the_gradients_of_its_results(stride):
    (x, weight, scale, shift), _ = make_case("strips across and down", torch.float64)
    leaves = [t.double().clone().requires_grad_() for t in (x[:2, :2, :3, :4], weight[:2], scale[:2], shift[:2])]
    assert torch.autograd.gradcheck(lambda *leaves: call(reference.depthwise_conv, leaves, (stride, 2)), leaves)


@pytest.mark.parametrize(("case", "dtype"), in_turn(CASES, (torch.float32, torch.bfloat16)))
def test_kernel_and_gradients_follow_the_contract(case, dtype, fenced, rounding):
    assert not failures(fused.depthwise_conv, *make_case(case, dtype))


@pytest.mark.parametrize("by", RESULTS)
@pytest.mark.parametrize(
    "case", ["clips of three images", pytest.param("two clips, strips down, stride 2", marks=pytest.mark.soak)]
)
def test_gradients_by_way_of_each_result_alone(case, by, fenced):
    assert not failures(fused.depthwise_conv, *make_case(case), (by,))


@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_strips_as_they_are_launched(stride, fenced, rounding, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setitem(CASES, "whole", (1, 34, 9, 54, stride, 1))
    assert not failures(fused.depthwise_conv, *make_case("whole"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_of_a_mean_far_from_zero(dtype, rounding):
    assert not far_from_zero(fused.depthwise_conv, dtype)


def test_what_is_convolved_is_rounded(rounding):
    (x, weight, scale, shift), _ = make_case("65 channels", torch.bfloat16)
    # Only the middle weight is not 0. Each sum is therefore a single product, and has no order of summation.
    weight[..., 0] = weight[..., 2] = weight[..., 0, :] = weight[..., 2, :] = 0
    found = fused.depthwise_conv(x, weight, 1, scale, shift, 1)[0]
    z = x * scale[:, None, None] + shift[:, None, None]
    assert torch.equal(found, z.relu().bfloat16() * weight[:, 0, 1, 1, None, None])


def test_any_layout_and_an_expanded_gradient(fenced):
    (x, weight, scale, shift), settings = make_case("two clips")
    backwards = weight.transpose(0, 3).contiguous().transpose(0, 3)
    expanded = scale[:1].expand_as(scale)
    assert not failures(fused.depthwise_conv, (x.contiguous(), backwards, expanded, shift), settings)
    leaf = x.contiguous().requires_grad_()
    y, *_ = call(fused.depthwise_conv, (leaf, weight, scale, shift), settings)
    assert y.is_contiguous(memory_format=torch.channels_last)
    (found,) = torch.autograd.grad(y, leaf, y.new_ones(1).expand_as(y))
    exact, *_ = call(reference.depthwise_conv, (leaf, weight, scale, shift), settings)
    torch.testing.assert_close(found, torch.autograd.grad(exact.sum(), leaf)[0], atol=1e-5, rtol=1e-4)


def test_only_the_wanted_gradients(fenced):
    (x, weight, scale, shift), settings = make_case("two clips")
    y, mean, *_ = call(fused.depthwise_conv, (x, weight, scale.requires_grad_(), shift), settings)
    (y.sum() + mean.sum()).backward()
    assert scale.grad is not None
    assert x.grad is weight.grad is shift.grad is None


@pytest.mark.filterwarnings("ignore:var_mean")
@pytest.mark.parametrize("stride", [1, 2])
def test_no_image(stride, fenced):
    leaves = [t.requires_grad_() for t in (torch.randn(0, 24, 7, 5), torch.randn(24, 1, 3, 3), *torch.randn(2, 24))]
    found = call(fused.depthwise_conv, leaves, (stride, 1))
    for one, other in zip(found, call(reference.depthwise_conv, leaves, (stride, 1)), strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)
    grads = torch.autograd.grad(found[0].sum(), leaves)
    assert [grad.shape for grad in grads] == [leaf.shape for leaf in leaves]
    assert not grads[1].any()


def test_autocast_computes_in_its_type_and_gradients_come_back_in_their_own(fenced):
    inputs, settings = make_case("two clips")
    leaves = [tensor.requires_grad_() for tensor in inputs]
    for module in (fused, reference):
        with torch.autocast("cpu", torch.bfloat16):
            results = call(module.depthwise_conv, leaves, settings)
        assert [t.dtype for t in results] == [torch.bfloat16, *[torch.float32] * 3]
    sum(t.sum() for t in call(fused.depthwise_conv, leaves, settings)).backward()
    assert {leaf.grad.dtype for leaf in leaves} == {torch.float32}


def test_a_nan_stays_with_its_neighbours_and_in_its_statistics():
    (x, weight, scale, shift), settings = make_case("strips across and down")
    x[2, 5, 2, 3] = float("nan")
    y, mean, var, means = call(fused.depthwise_conv, (x, weight, scale, shift), settings)
    assert y.isnan()[2, 5, 1:4, 2:5].all()
    assert y.isnan().sum() == 9
    for found in (mean, var, means[1]):
        assert found.isnan().nonzero().tolist() == [[5]]
    assert not means[0].isnan().any()


def test_dispatch_takes_the_reference_on_a_cpu(monkeypatch):
    inputs, settings = make_case("65 channels")
    monkeypatch.setattr(fused, "depthwise_conv", None)
    expected = call(reference.depthwise_conv, inputs, settings)
    for one, other in zip(call(dispatch.depthwise_conv, inputs, settings), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_launch_each_way_and_nothing_kept_but_what_came_and_what_is_stored():
    inputs, settings = make_case("two clips")
    leaves, kept = [t.requires_grad_() for t in inputs], []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t), Traffic() as traffic:
        y, *rest = call(fused.depthwise_conv, leaves, settings)
        sum(t.sum() for t in (y, *rest)).backward()
    assert {t.data_ptr() for t in kept if t.dim() == 4} == {leaves[0].data_ptr(), y.data_ptr()}
    assert [launch.kernel for launch in traffic.launches] == ["forward", "gradients"]
    for launch, tensors in zip(traffic.launches, (2, 4), strict=True):
        whole = sum(a.read.all() or a.written.all() for a in launch.arguments.values() if a.read.size == x_size(leaves))
        assert whole == tensors


def x_size(leaves):
    return leaves[0].numel()


@pytest.mark.parametrize("case", ["two clips", "one image"])
def test_operators_are_registered_as_torch_wants(case):
    (x, weight, scale, shift), (stride, groups) = make_case(case)
    checks = ("test_schema", "test_autograd_registration")
    taken = x.permute(0, 2, 3, 1), weight.flatten(1), scale, shift
    leaves = [t.clone().requires_grad_() for t in taken]
    torch.library.opcheck(fused._depthwise, (*leaves, stride, groups), test_utils=checks)
    images, *rest = (t.detach() for t in leaves)
    mean, level = torch.ones(x.shape[1]), torch.ones(groups, x.shape[1])
    given = images, images, mean, level, mean, images, *rest, stride, groups
    torch.library.opcheck(fused._grads, given, test_utils=checks)


def test_a_weight_in_float32_is_taken_as_if_rounded(fenced, rounding):
    (x, weight, *affine), settings = make_case("two clips")
    found = []
    for given in (weight, weight.bfloat16()):
        leaf = given.clone().requires_grad_()
        results = call(fused.depthwise_conv, (x.bfloat16(), leaf, *affine), settings)
        (grad,) = torch.autograd.grad(results[0].float().square().sum(), leaf)
        assert grad.dtype == given.dtype
        found.append([*results, grad.bfloat16()])
    expected = call(reference.depthwise_conv, (x.bfloat16(), weight, *affine), settings)
    for one, other, best in zip(*found, [*expected, found[0][-1]], strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, best, atol=2e-2, rtol=2e-2)


def test_means_that_nobody_takes_cost_no_row_for_each_group(fenced):
    inputs, settings = make_case("two clips")
    assert not failures(fused.depthwise_conv, inputs, settings, RESULTS[:3])
    for taken, rows in ((RESULTS, settings[1]), (RESULTS[:3], 1)):
        with Traffic() as traffic:
            run(fused.depthwise_conv, inputs, settings, by=taken)
        assert traffic.launches[-1].sizes["level"] == rows * inputs[0].shape[1] * 4


def test_statistics_of_splits_that_are_unlike():
    counts, means, squares = torch.rand(3, 24, 512) * 100 + 1
    means[:, :7] += 1000
    partial = torch.stack([counts, means, squares])
    wide = partial.double().unflatten(2, (2, -1))
    count, mean = wide[0].sum((1, 2)), (wide[0] * wide[1]).sum((1, 2)) / wide[0].sum((1, 2))
    var = (wide[2] + wide[0] * (wide[1] - mean[:, None, None]).square()).sum((1, 2)) / count
    clips = ((wide[0] * wide[1]).sum(2) / wide[0].sum(2)).T
    for one, best in zip(fused.merge_strips(partial, 2), (mean, var, clips), strict=True):
        torch.testing.assert_close(one, best.float(), rtol=1e-6, atol=0)


MUTANTS = {
    "pads before the activation": ('tl.where(inside, activate(z, "relu"), 0.0)', 'activate(z, "relu")'),
    "no activation": ('activate(z, "relu"), 0.0)', "z, 0.0)"),
    "no shift": ("value.to(tl.float32) * factor + addend", "value.to(tl.float32) * factor"),
    "scale and shift are exchanged": (
        "scale, shift = scale.float().contiguous(), shift.float().contiguous()",
        "scale, shift = shift.float().contiguous(), scale.float().contiguous()",
    ),
    "the weight is rotated by 180 degrees": ("channel * 9 + tap", "channel * 9 + 8 - tap"),
    "the weight is transposed": ("channel * 9 + tap", "channel * 9 + tap % 3 * 3 + tap // 3"),
    "reads above the image": ("(y >= 0) & (y < SOURCE_H)", "(y < SOURCE_H)"),
    "reads below the image": ("(y >= 0) & (y < SOURCE_H)", "(y >= 0)"),
    "reads left of the image": ("(x >= 0) & (x < SOURCE_W)", "(x < SOURCE_W)"),
    "reads right of the image": ("(x >= 0) & (x < SOURCE_W)", "(x >= 0)"),
    "the stride starts at the second row": ("row * STRIDE + 2 - STRIDE + r", "row * STRIDE + 1 + r"),
    "the stride starts at the second column": (
        "x = column * STRIDE + (k - 1)",
        "x = column * STRIDE + (k + 1 - STRIDE)",
    ),
    "stores rows above the strip": ("(row >= first) & (row < H) & (column + k < W)", "(row < H) & (column + k < W)"),
    "stores rows below the image": (
        "(row >= first) & (row < H) & (column + k < W)",
        "(row >= first) & (column + k < W)",
    ),
    "stores columns right of the image": ("(row < H) & (column + k < W)", "(row < H)"),
    "stores a channel that does not exist": ("known = channel < C", "known = channel < C + 1"),
    "reads an image of the next group": ("owned = image < group_images", "owned = image < group_images + 1"),
    "every group reads the images of the first group": (
        "index = group.to(tl.int64) * group_images + image",
        "index = image.to(tl.int64)",
    ),
    "statistics use the values before rounding": ("value = stored.to(tl.float32)", "value = sums[k]"),
    "statistics include pixels outside the image": ("tl.where(inside, value, pivot) - pivot", "value - pivot"),
    "the pivot changes with every image": ("(step == 0) & (row == first)", "row == first"),
    "counts the rows of a whole strip": ("tl.minimum(H - first, ROWS)", "ROWS"),
    "counts the columns of a whole lane": ("tl.minimum(tl.maximum(W - column, 0), SPAN)", "SPAN"),
    "ignores the differences between the means of lanes": ("(delta * delta - above * above)", "(-above * above)"),
    "all lanes have the same weight": ("(count / whole)", "(1 / (BLOCK_I * LANES))"),
    "all strips write to the same partial sum": ("* tl.num_programs(1) + tl.program_id(1)", "* tl.num_programs(1)"),
    "all splits write to the same partial sum": ("programs + (tl.program_id(2) * tl.num_programs(1)", "programs + (0"),
    "all splits write their gradients to the same place": (
        "partial + (tl.program_id(2) * tl.num_programs(1)",
        "partial + (0",
    ),
    "partial sums are not ordered by group": (
        "tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)",
        "tl.program_id(1) * tl.num_programs(2) + tl.program_id(2)",
    ),
    "partial sums have their axes exchanged": ("channel * programs + (tl.program_id", "channel + C * (tl.program_id"),
    "gradient of the shift overwrites that of the scale": ("else k * C + channel", "else 9 * C + channel"),
    "gradient of the weight has its axes exchanged": (
        "channel * 9 + k if k < 9 else k * C + channel",
        "k * C + channel",
    ),
    "gradients of scale and shift are exchanged": (
        "(sums[9] + total * value, sums[10] + total)",
        "(sums[9] + total, sums[10] + total * value)",
    ),
    "backward ignores the stride of rows": ("(i - tap // 3) % STRIDE == 0 and ", ""),
    "backward ignores the stride of columns": (" and (j - tap % 3) % STRIDE == 0", ""),
    "backward does not rotate the weight": ("total += gradient * weights[tap]", "total += gradient * weights[8 - tap]"),
    "backward reads gradients above the strip": (
        "(row >= first) & (row < H) & (y < SOURCE_H)",
        "(row < H) & (y < SOURCE_H)",
    ),
    "backward stores gradients below the image": ("(row < H) & (y < SOURCE_H)", "(row < H)"),
    "backward stores gradients right of the image": ("(y < SOURCE_H) & (x < SOURCE_W)\n", "(y < SOURCE_H)\n"),
    "the window reads below the image": ("(row < H - 1) & (x >= 0)", "(x >= 0)"),
    "the window reads left of the image": ("(row < H - 1) & (x >= 0)", "(row < H - 1)"),
    "no gradient through the means": ("added = base + rise", "added = rise"),
    "no gradient through the variance": ("base + rise * (load(result, at, inside) - centre)", "base"),
    "gradient of the variance uses values instead of deviations": (
        "(load(result, at, inside) - centre)",
        "load(result, at, inside)",
    ),
    "gradient of the statistics reaches pixels outside the image": (
        "tl.where(inside, load(grad, at, inside) + added, 0.0)",
        "load(grad, at, inside) + added",
    ),
    "every group gets the gradient of the first group's mean": ("group * C * APART", "0 * group"),
    "backward ignores the activation": (
        'through(tl.where(inside, total, 0.0), value * factor + addend, "relu")',
        "tl.where(inside, total, 0.0)",
    ),
    "backward evaluates the activation without the shift": (
        'value * factor + addend, "relu")',
        'value * factor, "relu")',
    ),
    "gradient of the shift includes pixels outside the image": (
        "through(tl.where(inside, total, 0.0),",
        "through(total,",
    ),
    "gradient of the images lacks the scale": ("total *= factor", "total *= 1"),
    "gradient of the scale is multiplied by the scale": ("sums[9] + total * value", "sums[9] + total * value * factor"),
    "gradient of the weight comes from the last step only": (
        "added += gradient * operand",
        "added = gradient * operand",
    ),
    "gradient of the weight uses inputs that are not normalised": (
        "operand = _normalised(raw, inside, factor, addend)",
        "operand = raw.to(tl.float32)",
    ),
    "partial sums of the weight's gradient are rounded": (
        "11, strips.partial, dtype=torch.float32",
        "11, strips.partial, dtype=images.dtype",
    ),
    "ignores the differences between the means of splits": ("counts * deviations", "0 * counts"),
    "all splits of a group have the same weight": (
        "weighted.transpose(0, 1).sum(2) / counts.transpose(0, 1).sum(2)",
        "means.transpose(0, 1).mean(2)",
    ),
    "all splits have the same weight": ("weighted.sum((1, 2)) / count", "means.mean((1, 2))"),
    "partial sums are read as if splits contained groups": (
        "partial.unflatten(2, (groups, -1))",
        "partial.unflatten(2, (-1, groups)).transpose(2, 3)",
    ),
    "gradient of the mean does not reach the pixels": ("grad_mean[None] / count", "0 * grad_mean[None]"),
    "gradients of the groups' means do not reach the pixels": ("if grad_means is not None:", "if False:"),
    "gradients of the groups' means are divided by all pixels": ("(len(grad_means) / count)", "(1 / count)"),
    "gradient of the variance is halved": ("grad_var * 2 / count", "grad_var / count"),
    "leaves out the last images": ("splits = triton.cdiv(blocks, steps)", "splits = max(1, blocks // steps)"),
    "leaves out the last row": ('"ROWS": triton.cdiv(height, down)', '"ROWS": height // down'),
    "leaves out the last lanes": ("triton.cdiv(width, lanes * span), triton", "(width // (lanes * span) or 1), triton"),
}


def mutant_of(old, new, folder):
    mutant = broken(fused, old, new, folder)
    for name, value in SMALL_STRIPS.items():
        setattr(mutant, name, value)
    return mutant


# Each of these mutants passes several large cases before a case fails. This is slow, so `make test` leaves them out.
SLOW = (
    "the pivot changes with every image",
    "leaves out the last lanes",
    "all splits have the same weight",
    "partial sums are not ordered by group",
)


@pytest.mark.parametrize("name", a_share(MUTANTS, slow=SLOW))
def test_mutants_die(name, tmp_path, fenced, rounding):
    mutant, types = mutant_of(*MUTANTS[name], tmp_path), (torch.float32, torch.bfloat16)
    assert dies(partial(failures, mutant.depthwise_conv, *make_case(case, dtype)) for case in CASES for dtype in types)


def test_deviations_from_0_lose_the_digits_of_a_mean_far_from_it(tmp_path):
    old = "pivot = tl.where((step == 0) & (row == first), value, pivot)"
    assert far_from_zero(mutant_of(old, "pivot = nothing", tmp_path).depthwise_conv, torch.float32)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", [*CASES, "training"])
def test_kernel_on_a_gpu(case, dtype, monkeypatch):
    monkeypatch.setitem(CASES, "training", (64, 56, 56, 54, 1, 4))
    inputs, settings = make_case(case, dtype)
    assert not failures(fused.depthwise_conv, [t.cuda() for t in inputs], settings)
