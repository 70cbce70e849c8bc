"""Small networks and batches for tests, with every kind of block and odd sizes."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from models.config import EpamConfig, PcanConfig, ResNetPathConfig, RGBPoseConfig, X3DPairConfig, X3DStreamConfig

SMALL_RGB = X3DStreamConfig(widths=(8, 16), blocks=(2, 1), stem_stride=2, shift_divisor=8)
SMALL_POSE = X3DStreamConfig(widths=(16,), blocks=(3,), stem_stride=1, shift_divisor=4)
SMALL_PAIR = X3DPairConfig(
    num_classes=11,
    num_coarse=3,
    pose_channels=5,
    loss_weights=(1.0, 1.5, 0.6, 1.2),
    dropout=0.0,
    rgb=SMALL_RGB,
    pose=SMALL_POSE,
)

SMALL_EPAM = EpamConfig(
    num_classes=11,
    num_coarse=3,
    pose_channels=5,
    dropout=0.0,
    rgb=SMALL_RGB,
    pose=replace(SMALL_POSE, widths=(16, 16), blocks=(1, 2), stem_stride=2),
)
"""Both streams divide the image by eight."""

# With fewer than 8 channels, the AVX2 code of oneDNN writes beyond the gradients of strided 1x1 convolutions.
SMALL_PATHS = {
    "rgb": ResNetPathConfig(
        base_channels=8, blocks=(1, 2, 1, 1), inflate=(False, False, True, True), strides=(1, 2, 2, 2), stem_stride=2
    ),
    "pose": ResNetPathConfig(
        base_channels=8, blocks=(2, 1, 1), inflate=(False, True, True), strides=(2, 2, 2), stem_stride=1
    ),
}
SMALL_RGBPOSE = RGBPoseConfig(
    num_classes=11,
    num_coarse=3,
    pose_channels=5,
    loss_weights=(1.0, 1.2, 0.5, 0.8),
    dropout=0.0,
    interaction=True,
    rgb=SMALL_PATHS["rgb"],
    pose=SMALL_PATHS["pose"],
)

SMALL_PCAN = replace(
    SMALL_RGBPOSE,
    pcan=PcanConfig(coarse_map=(0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2), fine_width=12, coarse_width=6),
)


def batch(seed: int = 0, clips: int = 3, joints: int = 5, frames: tuple[int, int] = (3, 5)) -> dict[str, Tensor]:
    """Return a batch of images 37x29 and heatmaps 10x7, for 11 classes and 3 coarse classes.

    frames: the number of RGB frames and of pose frames.
    """
    draw = torch.Generator().manual_seed(seed)
    return {
        "rgb": torch.randint(0, 256, (clips, frames[0], 37, 29, 3), generator=draw, dtype=torch.uint8),
        "heatmap": torch.rand(clips, frames[1], 10, 7, joints, generator=draw).permute(0, 1, 4, 2, 3),
        "label": torch.randint(0, 11, (clips,), generator=draw),
        "coarse_label": torch.randint(0, 3, (clips,), generator=draw),
    }


def epam_batch(seed: int = 0, frames: tuple[int, int] = (3, 9)) -> dict[str, Tensor]:
    """Return a batch whose heatmaps are as large as the images, as SMALL_EPAM requires."""
    inputs = batch(seed=seed, frames=frames)
    shape = (3, frames[1], 37, 29, 5)
    heatmap = torch.rand(shape, generator=torch.Generator().manual_seed(seed)).permute(0, 1, 4, 2, 3)
    return inputs | {"heatmap": heatmap}


def stir(net: nn.Module) -> nn.Module:
    """Give every batch norm random scales, offsets and statistics, so that no block outputs only zeros."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
            layer.running_mean.uniform_(-0.5, 0.5)
            layer.running_var.uniform_(0.5, 1.5)
    return net


def assert_same_training(folded: nn.Module, plain: nn.Module) -> None:
    """Assert that all gradients and running statistics are equal, after a backward pass of both networks in float64."""
    gradients = {name: p.grad for name, p in folded.named_parameters()}
    for name, parameter in plain.named_parameters():
        reference = parameter.grad.reshape(gradients[name].shape)
        torch.testing.assert_close(gradients[name], reference, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    after = dict(folded.named_buffers())
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(after[name], buffer, rtol=1e-12, atol=1e-14)
