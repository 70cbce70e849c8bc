"""Dataclasses with the settings of the networks. They do not need torch."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from kernels.limits import Count, Counts, Range, Share, check_ranges
from kernels.program import UserError

FROM_DATA = -1
"""Placeholder for a number that an experiment fills in from its data and its skeleton (trainer/config.py)."""
FusedPart = Literal["x3d_block", "bottlenecks", "norm_act"]
"""Parts that models/fused.py can run through kernels: X3D blocks, RGBPoseConv3D's bottlenecks, single norms."""
Stream = Literal["rgb", "pose"]
Strides = Annotated[tuple[int, ...], Range(1, 16)]
Weight = Annotated[float, Range(0, 1e38)]
LossWeights = tuple[float, float, float, float]
"""Weights of the cross-entropies of rgb, pose, rgb_coarse and pose_coarse, in this order."""


def check_stages(entries: dict[str, tuple]) -> None:
    """Raise UserError if the tuples in `entries` differ in length, or if they are empty."""
    if len({len(entry) for entry in entries.values()}) > 1 or not all(entries.values()):
        settings = ", ".join(f"{name}={entry}" for name, entry in entries.items())
        raise UserError(f"{settings} must each have one entry per stage of the network: set all of them")


@dataclass(frozen=True, kw_only=True, slots=True)
class X3DStreamConfig:
    """One temporal-shift X3D. It has one stage for each width, and each stage halves the height and width of the image.

    Source: docs/sources.md, "Temporal-shift X3D".
    """

    widths: Counts
    """Channels of each stage."""
    blocks: Counts
    """Number of blocks of each stage."""
    stem_stride: Annotated[int, Range(1, 16)]
    """Stride of the first convolution."""
    shift_divisor: Count
    """A block reads 1 / shift_divisor of its channels from the next frame, and as many from the previous frame."""

    def __post_init__(self) -> None:
        check_ranges(self, "model.STREAM")
        check_stages({"widths": self.widths, "blocks": self.blocks})

    def inner(self, stage: int) -> int:
        """Number of channels of the depthwise convolutions in a stage: 2.25 times the width of the stage."""
        return self.widths[stage] * 9 // 4

    @property
    def out_channels(self) -> int:
        return self.inner(len(self.widths) - 1)


X3D_RGB = X3DStreamConfig(widths=(24, 48, 96, 192), blocks=(3, 5, 11, 7), stem_stride=2, shift_divisor=8)
X3D_POSE = X3DStreamConfig(widths=(24, 48, 96), blocks=(5, 11, 7), stem_stride=1, shift_divisor=4)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResNetPathConfig:
    """One path of RGBPoseConv3D, built like a ResNet-50; the tuples have one entry for each stage.

    Source: docs/sources.md, "RGBPoseConv3D".
    """

    base_channels: Count
    """Channels of the first convolution."""
    blocks: Counts
    """Number of blocks of each stage."""
    inflate: tuple[bool, ...]
    """For each stage, whether the first convolution of every block spans three frames."""
    strides: Strides
    """Stride of each stage in height and width."""
    stem_stride: Annotated[int, Range(1, 16)]
    """Stride of the 7x7 convolution and of the 3x3 pooling after it."""

    def __post_init__(self) -> None:
        check_ranges(self, "model.STREAM")
        check_stages({"blocks": self.blocks, "inflate": self.inflate, "strides": self.strides})

    def width(self, stage: int) -> int:
        return self.base_channels * 4 * 2**stage

    @property
    def out_channels(self) -> int:
        return self.width(len(self.blocks) - 1)


RESNET_RGB = ResNetPathConfig(
    base_channels=64, blocks=(3, 4, 6, 3), inflate=(False, False, True, True), strides=(1, 2, 2, 2), stem_stride=2
)
RESNET_POSE = ResNetPathConfig(
    base_channels=32, blocks=(4, 6, 3), inflate=(False, True, True), strides=(2, 2, 2), stem_stride=1
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PcanConfig:
    """PCAN's head, with the tree loss and prototype contrast (docs/sources.md, "PCAN head")."""

    coarse_map: tuple[int, ...] = ()
    """The coarse class of every fine class. An experiment fills in the map of its data."""
    diversity: Literal["live", "published"] = "live"
    """With "live", the loss term that drives fine prototypes apart has a gradient; with "published", it has none."""
    fine_width: Count = 256
    """Number of features in the prototype of a fine class."""
    coarse_width: Count = 128
    """Number of features in the prototype of a coarse class."""
    contrast_weight: Weight = 0.2
    """Weight of the prototype contrast in the loss."""

    def __post_init__(self) -> None:
        check_ranges(self, "model.pcan")


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadConfig:
    """Settings of the classifiers that all networks have."""

    dropout: Share = 0.5
    """Fraction of the features that training sets to zero before the classifiers."""
    label_smoothing: Share = 0.0
    """Share of the target that a training loss spreads evenly over all classes; 0.1 is usual."""
    f1_weight: Weight = 0.0
    """Weight of the soft F1 loss that training adds to each cross-entropy: 0 for none; the published value is 1."""
    frame_weight: Weight = 0.0
    """Weight of the losses of classifiers for single frames: 0 for none; the published value is 0.5. Only training uses
    these classifiers.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class TwoStreamConfig(HeadConfig):
    """Settings that all two-stream networks have: classes, joints and loss weights."""

    streams: ClassVar[tuple[Stream, ...]] = ("rgb", "pose")
    frame_ratio: ClassVar[int | None] = None
    """Number of pose frames that the network reads for each RGB frame, or None if it can read any number."""
    num_classes: int = FROM_DATA
    """Number of fine classes. An experiment copies this number from data.num_classes."""
    num_coarse: int = FROM_DATA
    """Number of coarse classes; with 0 the network has no coarse heads."""
    pose_channels: int = 17
    """Number of heatmap channels. An experiment sets it from its skeleton."""
    loss_weights: Annotated[LossWeights, Range(0, 1e38)] = (1.0, 1.0, 1.0, 1.0)
    """Weights of the cross-entropies of rgb, pose, rgb_coarse and pose_coarse."""
    pcan: PcanConfig | None = None
    """PCAN's head and losses. None: the plain head, whose only losses are cross-entropies."""

    def __post_init__(self) -> None:
        check_ranges(self, "model")
        if len(self.loss_weights) != 4:
            raise UserError(
                f"model.loss_weights={self.loss_weights}: set four weights, for rgb, pose, rgb_coarse and pose_coarse"
            )

    def head_weights(self) -> dict[str, float]:
        """The weight of each classifier's loss, by the name of the classifier."""
        return dict(zip(("rgb", "pose", "rgb_coarse", "pose_coarse"), self.loss_weights, strict=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class X3DPairConfig(TwoStreamConfig):
    """The two-stream X3D: one temporal-shift X3D for RGB and one for pose. Only their probabilities are combined."""

    rgb: X3DStreamConfig = X3D_RGB
    """The RGB stream."""
    pose: X3DStreamConfig = X3D_POSE
    """The pose stream."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpamConfig(X3DPairConfig):
    """EPAM-Net: the two-stream X3D in which a map, computed from the pose features, scales the RGB features.

    The score is the sum of both streams' logits (docs/sources.md, "EPAM-Net").
    """

    frame_ratio: ClassVar[int | None] = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class RGBPoseConfig(TwoStreamConfig):
    """RGBPoseConv3D: two ResNet paths with lateral connections (laterals) in both directions.

    Source: docs/sources.md, "RGBPoseConv3D".
    """

    frame_ratio: ClassVar[int | None] = 4
    interaction: bool = False
    """Whether the network has PCAN's FeatureInteraction at both fusion points."""
    drop_path: Annotated[tuple[float, float], Range(0, 1)] = (0.0, 0.0)
    """Probabilities that a training batch drops the laterals into the RGB path and into the pose path."""
    rgb: ResNetPathConfig = RESNET_RGB
    """The RGB path."""
    pose: ResNetPathConfig = RESNET_POSE
    """The pose path."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SingleStreamConfig(HeadConfig):
    """A network with one stream, for training in stages: a path of RGBPoseConv3D (SlowOnly) or a temporal-shift X3D.

    Source: docs/sources.md, "Staged recipe" and "EPAM-Net".
    """

    stream: Stream
    """The input of the network: frames (rgb) or heatmaps (pose)."""
    num_classes: int = FROM_DATA
    """Number of classes. An experiment copies this number from data.num_classes."""
    coarse_weight: Weight = 0.0
    """Weight of the loss of a second classifier, for the coarse classes: 0 for none; the published value is 0.5."""
    num_coarse: int = 0
    """Number of coarse classes. An experiment sets it from data.coarse_map if coarse_weight is not 0."""
    in_channels: int = FROM_DATA
    """Number of input channels: 3 for frames, and for heatmaps one for each joint or limb that is drawn."""
    path: ResNetPathConfig | X3DStreamConfig
    """The settings of the stream's layers, which are those of a path of RGBPoseConv3D or of an X3D."""

    def __post_init__(self) -> None:
        check_ranges(self, "model")

    @property
    def streams(self) -> tuple[Stream, ...]:
        return (self.stream,)

    def head_weights(self) -> dict[str, float]:
        """The weight of each classifier's loss, by the name of the classifier."""
        return {self.stream: 1.0, f"{self.stream}_coarse": self.coarse_weight}


ModelConfig = EpamConfig | X3DPairConfig | RGBPoseConfig | SingleStreamConfig


def fusible_parts(model: ModelConfig) -> tuple[FusedPart, ...]:
    """The parts of this network that models/fused.py can run through kernels."""
    path = model.path if isinstance(model, SingleStreamConfig) else model.rgb
    return ("x3d_block" if isinstance(path, X3DStreamConfig) else "bottlenecks"), "norm_act"
