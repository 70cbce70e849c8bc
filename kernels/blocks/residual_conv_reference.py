"""The end of a residual block and the first convolution of the next one, in plain torch.

This defines the result of the kernel, and runs on CPUs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def residual_conv(
    y: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    shortcut: Tensor,
    num_frames: int,
    shortcut_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Convolve x = relu(y * scale + shift + shortcut * shortcut_scale) over K frames, with zeros beyond a clip's ends.

    `scale` and `shift` express the last BatchNorm of a bottleneck, and the convolution is the first one of the next
    bottleneck (docs/sources.md, "RGBPoseConv3D"). That bottleneck also needs x for its shortcut, so x is returned too.
    If the shortcut comes from a convolution, `shortcut_scale` is the scale of that convolution's BatchNorm, whose shift
    is included in `shift`; without `shortcut_scale`, the shortcut is added unchanged. Gradients flow from all four
    results to all tensor arguments.

    y, shortcut: [N*T, C, H, W] channels_last, like the results; weight: [O, C, K, 1], rounded to the type of y,
    with K odd and K * O <= 512; scale, shift, shortcut_scale: [C]; num_frames: T.
    Returns the result of the convolution [N*T, O, H, W], its mean [O] and biased variance [O], and x. The statistics
    are computed from the stored, rounded values. Statistics and sums of products are in float32 at least.
    """
    if shortcut_scale is not None:
        shortcut = shortcut * shortcut_scale[:, None, None]
    x = (y * scale[:, None, None] + shift[:, None, None] + shortcut).relu().to(y.dtype)
    clips = x.permute(0, 2, 3, 1).unflatten(0, (-1, num_frames)).flatten(2, 3).permute(0, 3, 1, 2)  # [N, C, T, H*W]
    result = F.conv2d(clips, weight.to(x.dtype), padding=(weight.shape[2] // 2, 0)).permute(0, 2, 3, 1)
    result = result.reshape(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)
    var, mean = torch.var_mean(result if result.dtype == torch.float64 else result.float(), (0, 2, 3), correction=0)
    return result, mean, var, x
