"""Settings of the networks: plain values, no torch."""

from dataclasses import dataclass

LossWeights = tuple[float, float, float, float]
"""Weights of the cross-entropies of rgb, pose, rgb_coarse, pose_coarse, in this order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class X3DStreamConfig:
    """One temporal-shift X3D: a stage per width, each of which halves the image (models.md C2)."""

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    stem_stride: int
    shift_divisor: int
    """One part in so many of a block's input channels comes from the next frame, as many from the one before."""

    def inner(self, stage: int) -> int:
        """Width of the depthwise convolution: 2.25 times the stage's."""
        return self.widths[stage] * 9 // 4

    @property
    def out_channels(self) -> int:
        return self.inner(len(self.widths) - 1)


X3D_RGB = X3DStreamConfig(widths=(24, 48, 96, 192), blocks=(3, 5, 11, 7), stem_stride=2, shift_divisor=8)
X3D_POSE = X3DStreamConfig(widths=(24, 48, 96), blocks=(5, 11, 7), stem_stride=1, shift_divisor=4)


@dataclass(frozen=True, kw_only=True, slots=True)
class X3DPairConfig:
    """Two temporal-shift X3D nets, RGB and pose, that meet only in the fusion of their probabilities."""

    num_classes: int
    num_coarse: int
    """Number of coarse classes; 0: no coarse heads."""
    pose_channels: int = 17
    loss_weights: LossWeights = (1.0, 1.0, 1.0, 1.0)
    dropout: float = 0.5
    rgb: X3DStreamConfig = X3D_RGB
    pose: X3DStreamConfig = X3D_POSE
