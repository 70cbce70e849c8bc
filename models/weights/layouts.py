"""All supported layouts of weights, and how to recognise, read and write each of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from models.config import RGBPoseConfig, SingleStreamConfig, X3DStreamConfig
from models.weights import published, resnet50, x3d_m
from models.weights.comparing import Comparison, compare
from models.weights.files import WeightsError, not_finite, read_file
from models.weights.nets import config_of, shapes_of
from models.weights.renaming import Rules, State, listed

Target = Literal["native", "mmaction2", "guide", "epam", "slowfast", "pytorchvideo", "torchvision"]
Step = Callable[[State], tuple[State, list[str]]]
"""Converts tensors to another layout. Also returns the names of tensors that the other layout lacks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """A published layout: its author, the networks it is for, and how to read and write it.

    A file has this layout if it contains all tensors named in `markers`, and the tensor of the first marker has `axes`
    axes.
    """

    name: Target
    nets: str
    markers: tuple[str, ...]
    axes: int
    read: Step
    write: Step


def of_ours(name: Target, nets: str, rules: Rules, *markers: str) -> Layout:
    read, write = partial(published.read, rules=rules), partial(published.write, rules=rules)
    return Layout(name=name, nets=nets, markers=markers, axes=5, read=read, write=write)


def of_x3d_m(name: Target, rules: Rules, *markers: str) -> Layout:
    read, write = partial(x3d_m.read, rules=rules), partial(x3d_m.write, rules=rules)
    return Layout(name=name, nets="X3D-M", markers=markers, axes=5, read=read, write=write)


# The first layout that matches a file is used. EPAM-Net comes before the guide's net, because files of EPAM-Net contain
# the markers of both. Two-stream X3D nets are listed once per stream, because a file may contain only one stream.
LAYOUTS = (
    of_ours("mmaction2", "RGBPoseConv3D", published.MMACTION2, "backbone.rgb_path.conv1.conv.weight"),
    of_ours("mmaction2", "SlowOnly", published.MMACTION2, "backbone.conv1.conv.weight"),
    of_ours("epam", "X3D stream", published.MMACTION2, "backbone.conv1_s.conv.weight", "backbone.conv1_s.bn.weight"),
    of_ours("epam", "two-stream X3D", published.EPAM, "rgb_backbone.conv1_s.conv.weight", "rgb_cls_head.fc_cls.weight"),
    of_ours(
        "epam", "two-stream X3D", published.EPAM, "pose_backbone.conv1_s.conv.weight", "pose_cls_head.fc_cls.weight"
    ),
    of_ours("guide", "two-stream X3D", published.GUIDE, "rgb_backbone.conv1_s.conv.weight"),
    of_ours("guide", "two-stream X3D", published.GUIDE, "pose_backbone.conv1_s.conv.weight"),
    of_x3d_m("mmaction2", x3d_m.MMACTION2, "backbone.conv1_t.conv.weight"),
    of_x3d_m("slowfast", x3d_m.SLOWFAST, "s1.pathway0_stem.conv_xy.weight"),
    of_x3d_m("pytorchvideo", x3d_m.PYTORCHVIDEO, "blocks.0.conv.conv_t.weight"),
    Layout(
        name="torchvision",
        nets="SlowOnly",
        markers=("layer1.0.conv1.weight",),
        axes=4,
        read=resnet50.read,
        write=resnet50.write,
    ),
)

NATIVE_MARKERS = (
    "backbone.rgb_path.conv1.conv.weight",
    "backbone.conv1.conv.weight",
    "backbone.conv1_s.conv.weight",
    "rgb_backbone.conv1_s.conv.weight",
    "pose_backbone.conv1_s.conv.weight",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """The content of a file.

    `state` has our names and shapes, except that X3D-M, which is not a network of ours, keeps mmaction2's names and
    shapes. `layout` is None for a native file. `unknown` lists the tensors in the file that do not belong to its
    layout.
    """

    layout: Layout | None
    nets: str
    state: State
    unknown: list[str]

    def native(self) -> State:
        """Return tensors that a network of ours can load. X3D-M becomes the RGB stream of a two-stream X3D."""
        return x3d_m.to_temporal_shift(self.state) if self.nets == "X3D-M" else self.state

    def compare(self) -> Comparison:
        """Compare the file with the network that its own tensors describe."""
        state = self.native()
        return compare(state, shapes_of(config_of(state)), self.unknown)

    def published(self, target: Target | None) -> tuple[State, list[str]]:
        """Convert the tensors to the layout `target`. Also return the names of tensors that this layout lacks.

        If `target` is None, use the layout of the published code of this network. Raises WeightsError if this network
        cannot be written in the layout `target`.
        """
        name = target or self.home()
        for layout in LAYOUTS:
            if layout.name == name and layout.nets == self.nets:
                return layout.write(self.state)
        choices = [layout.name for layout in LAYOUTS if layout.nets == self.nets]
        raise WeightsError(f"{self.nets} cannot be written in the layout of {name}: choose --to {' or '.join(choices)}")

    def home(self) -> Target:
        """Return the layout of the published code of this network."""
        if self.nets not in ("X3D stream", "two-stream X3D"):
            return "mmaction2"
        guides = any(name.startswith(("cls_head.contrast_", "cls_head.fc_rgb_coarse")) for name in self.state)
        return "guide" if guides else "epam"


def read_weights(path: Path, averaged: bool = False) -> Weights:
    """Read a file of any known layout, ours or published. Only tensors are read, and no code in the file runs.

    With `averaged`, read the EMA of a snapshot instead of its weights. Raises WeightsError for a file that cannot be
    read, whose numbers are not finite, or whose layout is unknown.
    """
    state = read_file(path, averaged)
    if problem := not_finite(state):
        raise WeightsError(
            f"in {path}, {problem}: its training had diverged, so use a checkpoint that was saved earlier"
        )
    for layout in LAYOUTS:
        if state.keys() >= set(layout.markers) and state[layout.markers[0]].ndim == layout.axes:
            ours, unknown = layout.read(state)
            return Weights(layout=layout, nets=layout.nets, state=with_counters(ours), unknown=unknown)
    if any(marker in state and state[marker].ndim == 4 for marker in NATIVE_MARKERS):
        return Weights(layout=None, nets=nets_of(state), state=state, unknown=[])
    raise WeightsError(
        f"{path} has an unknown layout (it begins with {listed(list(state), 3)}): see"
        " `python -m models.weights inspect --help` for the list of layouts"
    )


def with_counters(state: State) -> State:
    """Add num_batches_tracked = 0 where an old file lacks it. Results do not depend on this tensor."""
    stems = [name.removesuffix("running_var") for name in state if name.endswith("running_var")]
    return {f"{stem}num_batches_tracked": torch.tensor(0) for stem in stems} | state


def nets_of(state: State) -> str:
    match config_of(state):
        case RGBPoseConfig():
            return "RGBPoseConv3D"
        case SingleStreamConfig(path=X3DStreamConfig()):
            return "X3D stream"
        case SingleStreamConfig():
            return "SlowOnly"
    return "two-stream X3D"
