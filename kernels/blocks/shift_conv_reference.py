"""The shifted 1x1 convolution before a BatchNorm in plain torch. Defines the result of the kernel, and runs on CPUs."""

import torch
import torch.nn.functional as F
from torch import Tensor


def shift_conv(x: Tensor, weight: Tensor, num_frames: int, fold: int) -> tuple[Tensor, Tensor, Tensor]:
    """Shift channels in time, apply a 1x1 convolution, and compute statistics for the BatchNorm that follows.

    Channels [0, fold) come from the next frame of the clip, [fold, 2 * fold) from the previous frame, and the others
    from the frame itself. Where there is no such frame, zeros are used. Gradients flow from the result, the mean and
    the variance to x and weight.

    x: [N*T, C, H, W] channels_last, like the result; num_frames: T; weight: [O, C, 1, 1], rounded to the type of
    x, with O <= 512.
    Returns the result [N*T, O, H, W], its mean [O] and its biased variance [O]. The statistics are computed from the
    stored, rounded values. Statistics and sums of products are in float32 at least.
    Source: the first step of a block of temporal-shift X3D (docs/sources.md, "Temporal-shift X3D").
    """
    clips = x.permute(0, 2, 3, 1).unflatten(0, (-1, num_frames))  # [N, T, H, W, C]
    later, earlier, same = clips.split([fold, fold, x.shape[1] - 2 * fold], dim=-1)
    later = F.pad(later, (0, 0, 0, 0, 0, 0, -1, 1))
    earlier = F.pad(earlier, (0, 0, 0, 0, 0, 0, 1, -1))
    y = F.conv2d(torch.cat([later, earlier, same], dim=-1).flatten(0, 1).permute(0, 3, 1, 2), weight.to(x.dtype))
    var, mean = torch.var_mean(y if y.dtype == torch.float64 else y.float(), (0, 2, 3), correction=0)
    return y, mean, var
