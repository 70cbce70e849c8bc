"""BatchNorm over rows [R, C], with residual and activation, in two forward and two backward passes.

Between two passes, only statistics and sums are stored. If there is a residual, the gradient of the activation's input
is stored, too. rows.py explains how the work is divided among programs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from kernels.blocks.moments import moments_of_rows
from kernels.blocks.rows import activate, load, part, split_rows, through


def norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    activation: str = "none",
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """The arguments and results are those of `norm_act_reference.norm_act`."""
    num_images, channels, height, width = x.shape
    assert activation in ("none", "relu")
    residual_rows = None if residual is None else _rows(residual)
    affine = weight.contiguous(), bias.contiguous()
    result, mean, var = _norm_act(_rows(x), *affine, residual_rows, activation, eps)
    return result.view(num_images, height, width, channels).permute(0, 3, 1, 2), mean, var


def _rows(images: Tensor) -> Tensor:
    return images.permute(0, 2, 3, 1).reshape(-1, images.shape[1]).contiguous()


@triton_op("duet::norm_act", mutates_args=())
def _norm_act(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    activation: str,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the result [R, C], the mean [C] and the variance [C] for rows and residual [R, C], weight and bias [C]."""
    mean, var = moments_of_rows(rows)
    result = rows.new_empty(rows.shape)
    programs, shape, options = split_rows(rows, 1, summed=False)
    wrap_triton(_forward)[(programs,)](
        result, rows, residual, mean, var, weight, bias, eps, *shape, ACTIVATION=activation, **options
    )
    return result, mean, var


@triton_op("duet::norm_act_grad_sums", mutates_args=())
def _grad_sums(
    grad: Tensor,
    rows: Tensor,
    residual: Tensor | None,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    activation: str,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return two sums over all rows [2, C], and g [R, C], the gradient of the activation's input.

    The first sum is that of g, the second that of g times the normalised rows. Without a residual, an empty tensor is
    returned instead of g.
    """
    programs, shape, options = split_rows(rows, 1, summed=True)
    partial = rows.new_empty(2, rows.shape[1], shape[1], dtype=torch.float32)
    inner = grad.new_empty(grad.shape if residual is not None else (0,))
    wrap_triton(_backward_sums)[(programs,)](
        *(partial, inner, grad, rows, residual, mean, var, weight, bias, eps, partial[0].numel(), *shape),
        ACTIVATION=activation,
        **options,
    )
    return partial.sum(-1), inner  # partial sums lie along the last axis, so that the compiler adds them in one launch


@triton_op("duet::norm_act_grad_rows", mutates_args=())
def _grad_rows(
    grad: Tensor,
    rows: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    shares: Tensor,
    activation: str,
    eps: float,
) -> Tensor:
    """Return the gradient of the rows.

    shares: [2, C], the gradients of bias and weight, divided by the number of rows.
    """
    result = rows.new_empty(rows.shape)
    programs, shape, options = split_rows(rows, 1, summed=False)
    wrap_triton(_backward_rows)[(programs,)](
        *(result, grad, rows, mean, var, weight, bias, shares, eps, *shape), ACTIVATION=activation, **options
    )
    return result


def _keep(ctx, inputs, output) -> None:
    rows, weight, bias, residual, ctx.activation, ctx.eps = inputs
    _, mean, var = output
    ctx.mark_non_differentiable(mean, var)
    ctx.has_residual = residual is not None
    linear = ctx.activation == "none"  # without an activation, no gradient depends on the residual
    ctx.save_for_backward(rows, weight, bias, None if linear else residual, mean, var)


def _backward(ctx, grad: Tensor, *_):
    rows, weight, bias, residual, mean, var = ctx.saved_tensors
    grad, activation = grad.contiguous(), ctx.activation
    of_channels = mean, var, weight, bias
    sums, inner = _grad_sums(grad, rows, residual, *of_channels, activation, ctx.eps)
    if residual is not None:
        # The second pass starts from the stored gradient of relu's input instead of `grad`. The stored values are
        # exact, because relu's backward only sets some gradients to 0.
        grad, activation = inner, "none"
    grad_rows = None
    if ctx.needs_input_grad[0]:
        grad_rows = _grad_rows(grad, rows, *of_channels, sums / len(rows), activation, ctx.eps)
    grad_bias, grad_weight = sums[0].to(bias.dtype), sums[1].to(weight.dtype)
    return grad_rows, grad_weight, grad_bias, grad if ctx.has_residual else None, None, None


_norm_act.register_autograd(_backward, setup_context=_keep)


@triton.jit
def _row(source, channel, C: tl.constexpr):
    """Load one number for each channel, as float32 [1, channels]."""
    return load(source, channel, channel < C)[None, :]


@triton.jit
def _over_deviation(var, eps, channel, C: tl.constexpr):
    # torch.compile passes eps in float64. Without the cast, everything computed from the result would be in float64.
    return tl.rsqrt((_row(var, channel, C) + eps).to(tl.float32))


@triton.jit
def _forward(
    result,  # [R, C]
    rows,  # [R, C]
    residual,  # [R, C] or None
    mean,  # [C]
    var,  # [C]
    weight,  # [C]
    bias,  # [C]
    eps,
    num_rows,
    splits,
    steps,
    ACTIVATION: tl.constexpr,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    _, _, first, rows_left, channel = part(num_rows, splits, steps, C, BLOCK_R, BLOCK_C)
    scale = _over_deviation(var, eps, channel, C) * _row(weight, channel, C)
    local = tl.arange(0, BLOCK_R)
    place = first * C + local[:, None] * C + channel[None, :]
    inside = (local < rows_left)[:, None] & (channel < C)[None, :]
    value = load(rows, place, inside) - _row(mean, channel, C)
    z = value * scale + _row(bias, channel, C)
    if residual is not None:
        z += load(residual, place, inside)
    tl.store(result + place, activate(z, ACTIVATION).to(result.dtype.element_ty), inside)


@triton.jit
def _backward_sums(
    partial,  # [2, C, S]
    inner,  # [R, C], or empty if residual is None
    grad,  # [R, C]
    rows,  # [R, C]
    residual,  # [R, C] or None
    mean,  # [C]
    var,  # [C]
    weight,  # [C]
    bias,  # [C]
    eps,
    size,  # C*S
    num_rows,
    splits,
    steps,
    ACTIVATION: tl.constexpr,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    _, split, first, rows_left, channel = part(num_rows, splits, steps, C, BLOCK_R, BLOCK_C)
    centre, rstd = _row(mean, channel, C), _over_deviation(var, eps, channel, C)
    scale, shift = _row(weight, channel, C), _row(bias, channel, C)
    local = tl.arange(0, BLOCK_R)
    plain = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    normed = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for step in range(steps):
        place = first * C + local[:, None] * C + channel[None, :]
        inside = (step * BLOCK_R + local < rows_left)[:, None] & (channel < C)[None, :]
        gradient = load(grad, place, inside)
        value = (load(rows, place, inside) - centre) * rstd
        z = value * scale + shift
        if residual is not None:
            z += load(residual, place, inside)
        gradient = through(gradient, z, ACTIVATION)
        if residual is not None:
            tl.store(inner + place, gradient.to(inner.dtype.element_ty), inside)
        plain += gradient
        normed += gradient * value
        first += BLOCK_R
    target = partial + channel * splits + split
    tl.store(target, tl.sum(plain, 0), channel < C)
    tl.store(target + size, tl.sum(normed, 0), channel < C)


@triton.jit
def _backward_rows(
    result,  # [R, C]
    grad,  # [R, C]
    rows,  # [R, C]
    mean,  # [C]
    var,  # [C]
    weight,  # [C]
    bias,  # [C]
    shares,  # [2, C]: gradients of bias and weight, divided by the number of rows
    eps,
    num_rows,
    splits,
    steps,
    ACTIVATION: tl.constexpr,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    _, _, first, rows_left, channel = part(num_rows, splits, steps, C, BLOCK_R, BLOCK_C)
    rstd, scale = _over_deviation(var, eps, channel, C), _row(weight, channel, C)
    local = tl.arange(0, BLOCK_R)
    place = first * C + local[:, None] * C + channel[None, :]
    inside = (local < rows_left)[:, None] & (channel < C)[None, :]
    gradient = load(grad, place, inside)
    value = (load(rows, place, inside) - _row(mean, channel, C)) * rstd
    gradient = through(gradient, value * scale + _row(bias, channel, C), ACTIVATION)
    gradient = (gradient - _row(shares, channel, C) - value * _row(shares + C, channel, C)) * (rstd * scale)
    tl.store(result + place, gradient.to(result.dtype.element_ty), inside)
