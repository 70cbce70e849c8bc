"""Makes parts of a network run through the kernels of kernels/blocks. No other module of models uses these kernels.

`fuse` changes the Python classes of modules in a built network. The parameters, buffers and names of these modules stay
the same, and so do the results, up to rounding. Only training uses the kernels: in evaluation a norm is just a scale
and a shift, which the compiler fuses anyway. Tensors are [N*T, C, H, W] channels_last. See kernels/blocks/README.md.
"""

from collections.abc import Iterable
from typing import NamedTuple, cast, get_args

import torch
from torch import Tensor, nn

from kernels.blocks.conv_bn_reference import WIDEST
from kernels.blocks.dispatch import conv_bn, depthwise_conv, moments, norm_act, residual_conv, shift_conv
from kernels.program import UserError
from models.config import FusedPart
from models.layers import ConvBn, Norm
from models.resnet_path import Bottleneck, ResNetPath, Stage
from models.x3d_shift import X3DBlock

PARTS: tuple[FusedPart, ...] = get_args(FusedPart)


def fuse(network: nn.Module, parts: Iterable[FusedPart]) -> None:
    """Make `parts` of the network run through kernels in training. Parts that the network lacks are ignored."""
    for part in parts:
        for module in network.modules():
            fused_class = FUSED_CLASSES[part].get(type(module))
            if fused_class is not None:
                module.__class__ = fused_class


def unfuse(network: nn.Module) -> bool:
    """Undo `fuse`. Returns whether any part of the network ran through kernels."""
    plain = {fused: plain for classes in FUSED_CLASSES.values() for plain, fused in classes.items()}
    modules = [module for module in network.modules() if type(module) in plain]
    for module in modules:
        module.__class__ = plain[type(module)]
    return bool(modules)


class FusedX3DBlock(X3DBlock):
    """An X3D block that runs through the kernels shift_conv, depthwise and conv_bn.

    Each convolution applies the previous norm while it loads its input, and computes the statistics for the next norm
    while it stores its output.
    """

    def forward(self, x: Tensor, num_frames: int) -> Tensor:
        if not (has_kernels_for(x) and in_training(self)):
            return super().forward(x, num_frames)
        conv1, conv2, conv3 = self.conv1, self.conv2, self.conv3
        shortcut = x if self.downsample is None else self.downsample(x)
        y, mean, var = shift_conv(x, conv1.conv.weight, num_frames, self.fold)
        scale, shift = scale_and_shift(conv1.bn, mean, var, y)
        num_clips, stride = len(x) // num_frames, conv2.conv.stride[0]
        y, mean, var, means = depthwise_conv(y, conv2.conv.weight, stride, scale, shift, num_clips)
        scale, shift = (t[None] for t in scale_and_shift(conv2.bn, mean, var, y))
        if self.se_module is not None:
            gate = self.se_module.gate(means * scale + shift)
            scale, shift = scale * gate, shift * gate
        y, mean, var = conv_bn(y, conv3.conv.weight, scale, shift, "silu")
        return materialise(BlockEnd(y, *scale_and_shift(conv3.bn, mean, var, y), shortcut))


class BlockEnd(NamedTuple):
    """Tensors that define the output of a residual block: relu(y * scale + shift + shortcut * shortcut_scale)."""

    y: Tensor  # [N*T, C, H, W]
    scale: Tensor  # [C]
    shift: Tensor  # [C]
    shortcut: Tensor  # [N*T, C, H, W]
    shortcut_scale: Tensor | None = None  # [C], or None to add the shortcut unchanged


def materialise(x: Tensor | BlockEnd) -> Tensor:
    """Compute the output of a block from a BlockEnd. If `x` is a tensor, return it unchanged."""
    if isinstance(x, Tensor):
        return x
    shortcut = x.shortcut if x.shortcut_scale is None else x.shortcut * x.shortcut_scale[:, None, None]
    return (x.y * x.scale[:, None, None] + x.shift[:, None, None] + shortcut).relu().to(x.y.dtype)


class FusedPath(ResNetPath):
    """The ResNet of one stream. A stage may return a BlockEnd, from which the next stage computes the output."""

    def stages(self, numbers: Iterable[int], x: Tensor, num_frames: int) -> Tensor:
        end: Tensor | BlockEnd = x
        for number in numbers:
            end = self.get_submodule(f"layer{number}")(end, num_frames)
        return materialise(end)


class FusedStage(Stage):
    """A stage whose bottlenecks run through residual_conv, moments and conv_bn. cuDNN computes their 3x3 convolutions.

    The kernel of a block's first convolution also computes the output of the previous block. The last block returns a
    BlockEnd.
    """

    def forward(self, x: Tensor | BlockEnd, num_frames: int) -> Tensor | BlockEnd:
        y = x if isinstance(x, Tensor) else x.y
        if not (self.width <= WIDEST and has_kernels_for(y) and in_training(self)):
            return super().forward(materialise(x), num_frames)
        for block in cast(Iterable[Bottleneck], self):
            x = fused_bottleneck(block, x, num_frames)
        return x


def fused_bottleneck(block: Bottleneck, x: Tensor | BlockEnd, num_frames: int) -> BlockEnd:
    """Run a block without its final sum and activation. If x is a BlockEnd, the output it defines is computed first."""
    if isinstance(x, BlockEnd):
        assert block.conv1.bn is not None
        y, mean, var, x = residual_conv(
            x.y, block.conv1.conv.weight, x.scale, x.shift, x.shortcut, num_frames, x.shortcut_scale
        )
        y = scaled_relu(y, *scale_and_shift(block.conv1.bn, mean, var, y))
    elif isinstance(block.conv1, ConvBn):
        y = scaled_relu(*conv_with_norm(block.conv1, x))
    else:
        y = block.conv1(x, num_frames, "relu")
    y, scale, shift = conv_with_norm(block.conv2, y)
    y, mean, var = conv_bn(y, block.conv3.conv.weight, scale[None], shift[None], "relu")
    scale, shift = scale_and_shift(block.conv3.bn, mean, var, y)
    if block.downsample is None:
        return BlockEnd(y, scale, shift, x)
    shortcut, shortcut_scale, shortcut_shift = conv_with_norm(block.downsample, x)
    return BlockEnd(y, scale, shift + shortcut_shift, shortcut, shortcut_scale)


def conv_with_norm(layer: ConvBn, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the result of the convolution [N*T, O, h, w], and its batch norm as a scale and a shift [O]."""
    if layer.conv.kernel_size == (1, 1):
        down, across = layer.conv.stride
        # Slicing the permuted tensor keeps the gradient channels_last.
        strided = x.permute(0, 2, 3, 1)[:, ::down, ::across].permute(0, 3, 1, 2)
        y, mean, var = conv_bn(strided, layer.conv.weight)
    else:
        y = layer.conv(x)
        mean, var = moments(y)
    return y, *scale_and_shift(layer.bn, mean, var, y)


class FusedNorm(Norm):
    """A norm that runs through norm_act, together with the shortcut and the activation that follow it."""

    def forward(self, y: Tensor, activation: str = "none", shortcut: Tensor | None = None) -> Tensor:
        if not (has_kernels_for(y) and self.training):
            return super().forward(y, activation, shortcut)
        count = values_per_channel(y)
        y, mean, var = norm_act(y, self.weight, self.bias, shortcut, activation, self.eps)
        update_running(self, mean, var, count)
        return y


FUSED_CLASSES: dict[FusedPart, dict[type[nn.Module], type[nn.Module]]] = {
    "x3d_block": {X3DBlock: FusedX3DBlock},
    "bottlenecks": {ResNetPath: FusedPath, Stage: FusedStage},
    "norm_act": {Norm: FusedNorm},
}


def has_kernels_for(x: Tensor) -> bool:
    """Whether the kernels support x. On a GPU, x must be bfloat16: in float32, some kernels need too many registers."""
    return x.dtype == torch.bfloat16 or not x.is_cuda


def in_training(block: nn.Module) -> bool:
    """Whether every norm of the block uses the statistics of the batch, as the kernels require."""
    return all(module.training for module in block.modules() if isinstance(module, nn.BatchNorm2d))


def scale_and_shift(bn: nn.BatchNorm2d, mean: Tensor, var: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Express the batch norm of y as a scale and a shift [C], given the mean and the variance [C] of y.

    Also updates the running statistics of the norm.
    """
    update_running(bn, mean, var, values_per_channel(y))
    scale = bn.weight * torch.rsqrt(var + bn.eps)
    return scale, bn.bias - mean * scale


def scaled_relu(y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return relu(y * scale + shift) for scale and shift [C]."""
    return (y * scale[:, None, None] + shift[:, None, None]).relu().to(y.dtype)


def values_per_channel(x: Tensor) -> int:
    """Return the number of values in each channel of [F, C, H, W].

    Raises UserError if a channel has only one value. torch's BatchNorm would raise an error as well.
    """
    count = x.numel() // x.shape[1]
    if count == 1:
        raise UserError(
            "BatchNorm in training needs at least two values per channel: use a larger batch or larger images"
        )
    return count


@torch.no_grad()
def update_running(bn: nn.BatchNorm2d, mean: Tensor, var: Tensor, count: int) -> None:
    """Move the running statistics towards the statistics of `count` values per channel.

    mean, var: [C]. `var` is biased; as in torch, the running variance moves towards the unbiased variance. Like `Norm`,
    this function does not update num_batches_tracked.
    """
    assert bn.running_mean is not None
    assert bn.running_var is not None
    assert bn.momentum is not None
    bn.running_mean.lerp_(mean, bn.momentum)
    bn.running_var.lerp_(var * (count / (count - 1)), bn.momentum)
