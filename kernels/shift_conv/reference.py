"""The contract of the shifted 1x1 convolution in plain torch, and what a CPU runs."""

import torch
import torch.nn.functional as F
from torch import Tensor


def shift_conv(x: Tensor, weight: Tensor, num_frames: int, fold: int, bias: Tensor | None = None) -> Tensor:
    """Shift channels in time, then convolve 1x1.

    Channels [0, fold) are taken from the next frame of the clip, [fold, 2 fold) from the one before, the rest stay;
    beyond the ends of a clip there are zeros. Gradients reach x, weight and bias.

    x: [N*T, C, H, W] channels_last, as the result; T = num_frames; weight: [O, C, 1, 1]; bias: [O].
    Returns [N*T, O, H, W]. Products are summed in float32 at least.
    Source: the block of X3D temporal shift, reference/models.md C1.
    """
    clips = x.permute(0, 2, 3, 1).unflatten(0, (-1, num_frames))  # [N, T, H, W, C]
    later, earlier, same = clips.split([fold, fold, x.shape[1] - 2 * fold], dim=-1)
    later = F.pad(later, (0, 0, 0, 0, 0, 0, -1, 1))
    earlier = F.pad(earlier, (0, 0, 0, 0, 0, 0, 1, -1))
    shifted = torch.cat([later, earlier, same], dim=-1).flatten(0, 1).permute(0, 3, 1, 2)
    return F.conv2d(shifted, weight, bias)
