"""The command line of `python -m models.weights inspect|convert|merge`."""

from pathlib import Path
from typing import Annotated

import tyro

from models.config import SingleStreamConfig, TwoStreamConfig
from models.weights.comparing import Comparison
from models.weights.files import WeightsError, write_file
from models.weights.layouts import Target, Weights, read_weights
from models.weights.merging import merge
from models.weights.nets import config_of
from models.weights.renaming import State, listed

SUFFIXES = (".safetensors", ".pth", ".pt", ".pyth")
File = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
Out = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
To = Annotated[Target | None, tyro.conf.arg(metavar="LAYOUT")]


def inspect(file: File) -> int:
    """Say what a checkpoint holds and what it lacks: python -m models.weights inspect rgbpose.pth

    Known: mmaction2 1.x (RGBPoseConv3D, SlowOnly, X3D-M), PCAN, EPAM-Net and its single streams, the guide's X3D pair,
    SlowFast's and pytorchvideo's X3D-M, torchvision's ResNet-50, and Duet's own snapshots and safetensors.

    Args:
        file: Checkpoint to read.
    """
    weights = read_weights(file)
    print(f"{file}: {describe(weights)}")
    compared = weights.compare()
    report(compared)
    print("\n".join(compared.complaints()) or "every tensor is known, none is missing")
    return 2 if compared.complaints() else 0


def convert(file: File, out: Out, to: To = None) -> int:
    """Turn one layout into another: python -m models.weights convert theirs.pth ours.safetensors

    OUT is native where it ends in .safetensors, a published layout where in .pth.

    Args:
        file: Checkpoint to read.
        out: File to write.
        to: native, mmaction2, guide, epam, slowfast, pytorchvideo or torchvision; by default native for .safetensors,
            else the layout that the network's own code reads. X3D-M made native is the X3D pair's RGB stream.
    """
    refuse_same(out, file)
    weights = read_weights(file)
    print(f"{file}: {describe(weights)}")
    compared = weights.compare()
    report(compared)
    compared.insist(file)
    save(out, weights, to)
    return 0


def merge_streams(rgb: File, pose: File, out: Out, to: To = None) -> int:
    """Make one network of two: python -m models.weights merge rgb.pth pose.pth init.safetensors

    Each stream computes what it did alone.

    SlowOnly RGB and pose become RGBPoseConv3D; temporal-shift X3D streams the X3D pair, from which EPAM-Net starts too.
    For the RGB stream of the latter, X3D-M of Kinetics will do.

    Args:
        rgb: Checkpoint of the RGB stream.
        pose: Checkpoint of the pose stream.
        out: File to write.
        to: native, or mmaction2 (X3D: epam or guide); by default OUT's ending decides, as in convert.
    """
    refuse_same(out, rgb, pose)
    save(out, merge(read_weights(rgb), read_weights(pose)), to)
    return 0


def save(out: Path, weights: Weights, to: Target | None) -> None:
    """Write native or published tensors, by `to` or by the name's ending."""
    if out.suffix not in SUFFIXES:
        raise WeightsError(f"{out} ends in none of {', '.join(SUFFIXES)}: the ending says how to write it")
    native = to == "native" if to else out.suffix == ".safetensors"
    state, left = (weights.native(), []) if native else weights.published(to)
    if left:
        print(f"left behind, as that layout has no place for it: {listed(left)}")
    write_file(out, state)
    print(f"{out}: {count(state)} in {'native' if native else to or weights.home()} layout")


def describe(weights: Weights) -> str:
    """Layout, network and size of a file in a line."""
    config = config_of(weights.native())
    source = f"{weights.layout.name}'s" if weights.layout else "native"
    fine = next((f"{len(weights.state[name])} classes" for name in HEADS if name in weights.state), "no heads")
    stem = next((weights.state[name] for name in POSE_STEMS if name in weights.state), None)
    stream = f" {config.stream}" if isinstance(config, SingleStreamConfig) else ""
    pcan = " with PCAN's head" if isinstance(config, TwoStreamConfig) and config.pcan else ""
    joints = "" if stem is None or stream == " rgb" else f", {stem.shape[1]} joints"
    return f"{source} {weights.nets}{stream}{pcan}, {fine}{joints}, {count(weights.state)}"


POSE_STEMS = (
    "backbone.pose_path.conv1.conv.weight",
    "backbone.conv1.conv.weight",
    "backbone.conv1_s.conv.weight",
    "pose_backbone.conv1_s.conv.weight",
)
HEADS = ("cls_head.fc_rgb.weight", "cls_head.fc_pose.weight", "cls_head.fc_cls.weight", "cls_head.fc2.weight")


def count(state: State) -> str:
    learnt = sum(t.numel() for name, t in state.items() if not name.endswith(NOT_LEARNT))
    return f"{len(state)} tensors, {learnt:,} parameters"


NOT_LEARNT = ("running_mean", "running_var", "num_batches_tracked", "prototypes")


def report(compared: Comparison) -> None:
    for part, reason in compared.absent.items():
        print(f"absent, and may be: {part} ({reason})")


def refuse_same(out: Path, *sources: Path) -> None:
    if out.exists() and any(source.exists() and out.samefile(source) for source in sources):
        raise WeightsError(f"{out} is the file that is read: write to another one")


def main(arguments: list[str]) -> int:
    """Run the command that `arguments` name; returns the exit code."""
    commands = {"inspect": inspect, "convert": convert, "merge": merge_streams}
    return tyro.extras.subcommand_cli_from_dict(commands, args=arguments, prog="python -m models.weights")
