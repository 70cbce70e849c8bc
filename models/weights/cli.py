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
    """Show what a checkpoint contains and what it lacks: python -m models.weights inspect rgbpose.pth

    Known layouts: mmaction2 1.x (RGBPoseConv3D, SlowOnly, X3D-M), PCAN, EPAM-Net and its single streams, the
    guide's two-stream X3D, X3D-M of SlowFast and of pytorchvideo, torchvision's ResNet-50, and Duet's own snapshots and
    safetensors.

    Args:
        file: Checkpoint to read.
    """
    weights = read_weights(file)
    print(f"{file}: {describe(weights)}")
    comparison = weights.compare()
    report(comparison)
    print("\n".join(comparison.complaints()) or "every tensor is known, and none is missing")
    return 2 if comparison.complaints() else 0


def convert(file: File, out: Out, to: To = None) -> int:
    """Convert a checkpoint to another layout: python -m models.weights convert theirs.pth ours.safetensors

    If OUT ends in .safetensors, the native layout is written; if it ends in .pth, a published one.

    Args:
        file: Checkpoint to read.
        out: File to write.
        to: Layout to write: native, mmaction2, guide, epam, slowfast, pytorchvideo or torchvision. The default is
            native for .safetensors, otherwise the layout that the published code of the network reads. X3D-M becomes
            the RGB stream of the two-stream X3D when it is written as native.
    """
    refuse_same(out, file)
    weights = read_weights(file)
    print(f"{file}: {describe(weights)}")
    comparison = weights.compare()
    report(comparison)
    comparison.insist(file)
    save(out, weights, to)
    return 0


def merge_streams(rgb: File, pose: File, out: Out, to: To = None) -> int:
    """Merge two streams into one network: python -m models.weights merge rgb.pth pose.pth init.safetensors

    In the merged network, each stream computes the same as before the merge.

    Two SlowOnly streams become RGBPoseConv3D. Two temporal-shift X3D streams become the two-stream X3D, which
    can also initialise EPAM-Net. The RGB stream of the two-stream X3D can also be X3D-M trained on Kinetics.

    Args:
        rgb: Checkpoint of the RGB stream.
        pose: Checkpoint of the pose stream.
        out: File to write.
        to: Layout to write: native or mmaction2; for X3D: native, epam or guide. By default, the ending of OUT decides,
            as in convert.
    """
    refuse_same(out, rgb, pose)
    save(out, merge(read_weights(rgb), read_weights(pose)), to)
    return 0


def save(out: Path, weights: Weights, to: Target | None) -> None:
    """Write the tensors in the layout `to`. If `to` is None, the ending of `out` decides."""
    if out.suffix not in SUFFIXES:
        raise WeightsError(f"{out} has an unknown ending: give a name that ends in {', '.join(SUFFIXES)}")
    native = to == "native" if to else out.suffix == ".safetensors"
    state, omitted = (weights.native(), []) if native else weights.published(to)
    if omitted:
        print(f"left out, because the layout has no name for these tensors: {listed(omitted)}")
    write_file(out, state)
    print(f"{out}: {count(state)} in {'native' if native else to or weights.home()} layout")


def describe(weights: Weights) -> str:
    """Return one line with the layout, the network, and the numbers of classes, joints, tensors and parameters."""
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
    parameters = sum(t.numel() for name, t in state.items() if not name.endswith(BUFFERS))
    return f"{len(state)} tensors, {parameters:,} parameters"


BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "prototypes")


def report(comparison: Comparison) -> None:
    for part, reason in comparison.absent.items():
        print(f"absent, which is allowed: {part} ({reason})")


def refuse_same(out: Path, *sources: Path) -> None:
    if out.exists() and any(source.exists() and out.samefile(source) for source in sources):
        raise WeightsError(f"{out} is an input of this command: write to another file")


def main(arguments: list[str]) -> int:
    """Run the command that the arguments name, and return the exit code."""
    commands = {"inspect": inspect, "convert": convert, "merge": merge_streams}
    return tyro.extras.subcommand_cli_from_dict(commands, args=arguments, prog="python -m models.weights")
