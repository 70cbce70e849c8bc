"""An X3D block through the kernels: bit for bit the model's own with the references, within rounding with Triton."""

import pytest
import torch
import torch.nn.functional as F

from kernels import depthwise, shift_conv
from kernels.depthwise import fused as fused_depthwise
from kernels.shift_conv import fused as fused_shift_conv
from models.config import X3DStreamConfig
from models.x3d_shift import X3DBlock

CONFIG = X3DStreamConfig(widths=(8, 16), blocks=(2, 2), stem_stride=1, shift_divisor=4)


def through_kernels(block, x, num_frames, shifted, depthwise_side):
    """X3DBlock.forward with two of its convolutions made by kernels."""
    y = block.conv1.bn(shifted.shift_conv(x, block.conv1.conv.weight, num_frames, block.fold)).relu_()
    conv = block.conv2.conv
    y = block.conv2.bn(depthwise_side.depthwise_conv(y, conv.weight, conv.stride[0]))
    if block.se_module is not None:
        y = block.se_module(y, num_frames)
    y = block.conv3(F.silu(y))
    shortcut = x if block.downsample is None else block.downsample(x)
    return (y + shortcut).relu_()


def results(block, forward):
    """Result, gradients of input and parameters, and buffers of a step in training."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 8 if block.downsample is not None else 16, 7, 5, generator=generator)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    result = forward(x)
    grad = torch.randn(result.shape, generator=generator)
    found = torch.autograd.grad(result, [x, *block.parameters()], grad)
    return [result, *found, *block.buffers()]


@pytest.mark.parametrize("index", [0, 1])  # the first of a stage halves the image and has squeeze-excite
@pytest.mark.parametrize("sides", [(shift_conv, depthwise), (fused_shift_conv, fused_depthwise)])
def test_block_through_kernels(index, sides, fenced):
    blocks = []
    for _ in range(2):
        torch.manual_seed(0)
        blocks.append(X3DBlock(CONFIG, 1, index, 8 if index == 0 else 16).to(memory_format=torch.channels_last))
    ours, plain = blocks
    expected = results(plain, lambda x: plain(x, 3))
    found = results(ours, lambda x: through_kernels(ours, x, 3, *sides))
    for one, other in zip(found, expected, strict=True):
        if sides[0] is shift_conv:
            assert torch.equal(one, other)
        else:
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
