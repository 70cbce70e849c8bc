"""The models' entry: batches as the loader makes them, folded to [N*T, C, H, W] channels_last."""

import torch
from torch import Tensor, nn

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


class FoldRGB(nn.Module):
    """Fold RGB frames, and normalise them if they are bytes: one pass when compiled, cast included.

    rgb: [N, T, H, W, 3], uint8 in RGB order, or floats already normalised. Returns [N*T, 3, H, W].
    """

    mean: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN), persistent=False)
        self.register_buffer("scale", 1 / torch.tensor(STD), persistent=False)

    def forward(self, rgb: Tensor) -> Tensor:
        frames = rgb.flatten(0, 1)
        if not frames.is_floating_point():
            frames = (frames.to(self.mean.dtype) - self.mean) * self.scale
        return frames.permute(0, 3, 1, 2).to(compute_dtype(self.mean))


def fold_heatmap(heatmap: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, T, V, H, W] over channels-last memory as [N*T, V, H, W] channels_last."""
    return heatmap.flatten(0, 1).to(dtype)


def compute_dtype(weight: Tensor) -> torch.dtype:
    """What convolutions compute in: autocast's dtype where it is on (never on "meta"), else the weights'."""
    device = weight.device.type
    on = device != "meta" and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on else weight.dtype
