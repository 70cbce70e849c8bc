"""Heads that turn the features of the streams into logits and losses."""

from typing import NamedTuple

from torch import Tensor, nn

from models.config import SingleStreamConfig, TwoStreamConfig
from models.layers import clip_mean
from models.losses import ClassifierLosses

STREAMS = ("rgb", "pose")


class Output(NamedTuple):
    """What a network returns: logits [N, K] by name of the classifier, and weighted losses (empty without labels)."""

    logits: dict[str, Tensor]
    losses: dict[str, Tensor]


class ClassifierHead(nn.Module):
    """Global average pooling, dropout, and one linear layer for each stream and label level.

    The classifiers are named rgb, pose, rgb_coarse and pose_coarse; the last two exist only if num_coarse > 0, and a
    network with one stream has only the classifiers of this stream. With frame_weight, single frames are
    classified too, by as many additional classifiers, whose losses are added in training.
    """

    def __init__(self, config: TwoStreamConfig | SingleStreamConfig, channels: tuple[int, ...]) -> None:
        """channels: number of feature channels of each stream, in the order of config.streams."""
        super().__init__()
        self.streams = config.streams
        self.weights, self.frame_weight = config.head_weights(), config.frame_weight
        self.dropout, self.losses_of = nn.Dropout(config.dropout), ClassifierLosses(config)
        self.suffixes = ("", "_coarse") if config.num_coarse else ("",)
        sizes = {
            stream + suffix: (width, config.num_coarse if suffix else config.num_classes)
            for suffix in self.suffixes
            for stream, width in zip(self.streams, channels, strict=True)
        }
        for name, size in sizes.items():
            self.add_module(self.layer(name), linear(*size))
        for name, size in sizes.items() if self.frame_weight else ():
            self.add_module(f"frames_{name}", FrameClassifier(*size))

    def layer(self, name: str) -> str:
        """The name of the linear layer of a classifier. Published files call the layer of a single stream fc_cls."""
        return "fc_cls" if self.streams == (name,) else f"fc_{name}"

    def forward(
        self,
        features: dict[str, Tensor],
        num_frames: dict[str, int],
        label: Tensor | None,
        coarse_label: Tensor | None,
    ) -> Output:
        """Classify the clips, and compute losses if there are labels.

        features: [N*T, C, H, W] by stream; num_frames: T by stream; label, coarse_label: [N] int64.
        """
        pooled = {stream: self.dropout(clip_mean(features[stream], num_frames[stream])) for stream in self.streams}
        logits = {
            stream + suffix: self.get_submodule(self.layer(stream + suffix))(pooled[stream])
            for suffix in self.suffixes
            for stream in self.streams
        }
        if label is None:
            return Output(logits, {})
        losses: dict[str, Tensor] = {}
        for name, scores in logits.items():
            target = coarse_label if name.endswith("_coarse") else label
            assert target is not None, "a model with coarse classifiers needs coarse labels"
            losses |= self.losses_of(name, scores, target, self.weights[name])
            if self.training and self.frame_weight:
                stream = name.removesuffix("_coarse")
                losses |= self.frame_losses(name, features[stream], num_frames[stream], target)
        return Output(logits, losses)

    def frame_losses(self, name: str, feature: Tensor, num_frames: int, label: Tensor) -> dict[str, Tensor]:
        """The losses of the classifier for single frames. Each of the T frames of a clip has the label of the clip."""
        logits = self.get_submodule(f"frames_{name}")(feature)
        weight = self.frame_weight * self.weights[name]
        return self.losses_of(f"frames_{name}", logits, label.repeat_interleave(num_frames), weight)


class FrameClassifier(nn.Module):
    """Classifies single frames: the mean over pixels, a bottleneck with a sigmoid, and a linear layer.

    As in the published code, the linear layer reads the output of the sigmoid alone; a squeeze-and-excitation block
    would multiply the features by it. Source: docs/sources.md, "Losses for MA-52".
    """

    def __init__(self, in_channels: int, num_classes: int, reduction: int = 16) -> None:
        super().__init__()
        self.squeeze = nn.Linear(in_channels, max(1, in_channels // reduction), bias=False)
        self.excite = nn.Linear(self.squeeze.out_features, in_channels, bias=False)
        self.fc = linear(in_channels, num_classes)

    def forward(self, feature: Tensor) -> Tensor:
        """Classify frames: features [N*T, C, H, W] become logits [N*T, K]."""
        return self.fc(self.excite(self.squeeze(clip_mean(feature, 1)).relu()).sigmoid())


def linear(in_channels: int, out_channels: int) -> nn.Linear:
    """A linear layer for a classifier: weights from a normal distribution with standard deviation 0.01, biases 0."""
    layer = nn.Linear(in_channels, out_channels)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer
