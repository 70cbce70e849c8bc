"""`python -m trainer export`: writes a checkpoint's network to a file that other programs can run.

The exported network takes any number of clips. Frames and heatmaps may have the sizes of training or the sizes of
validation. Metadata in the file describe the inputs (export_recipe.py). Before the file gets its final name, its
outputs are compared with those of the original network.
"""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

from kernels.heatmap import render_heatmaps
from kernels.program import UserError
from kernels.whole_files import put
from models.networks import build_model
from models.weights.loading import load_weights
from trainer.commands.export_formats import (
    Format,
    Inputs,
    Score,
    Scorer,
    check_extra,
    read_onnx,
    read_pt2,
    write_onnx,
    write_pt2,
    write_tensors,
)
from trainer.commands.export_recipe import INPUTS, PRECISION, recipe, sizes_of
from trainer.config import Experiment
from trainer.snapshots.choice import Checkpoint, RunChoice, checkpoint_of, tell

# largest accepted difference between a probability from the written file and the same probability from the network
TOLERANCE = 1e-4
NUM_CLIPS = (1, 3)  # numbers of clips in the two comparisons; 2 is left out, because the network is traced with 2 clips


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions(RunChoice):
    """Export a network for other programs: python -m trainer export work_dirs/ntu60 --format onnx"""

    format: Format
    """onnx (extra `export`), pt2 (torch.export), or safetensors (the tensors alone)."""
    averaged: bool = False
    """Use the moving average of the weights (EMA), which a run saves if optim.ema is set."""
    out: Path | None = None
    """File to write. Default: beside the checkpoint, with the format as its suffix."""


def export(options: ExportOptions) -> int:
    """Export the network and print a summary. Raises UserError if the file's outputs differ from the network's."""
    checkpoint = checkpoint_of(options, options.averaged)
    tell(checkpoint)
    experiment = checkpoint.experiment
    out = options.out or checkpoint.path.with_suffix(f".{options.format}")
    check(options.format, checkpoint.path, out)
    scorer = Scorer(build_model(experiment.model).eval())
    load_weights(scorer.network, checkpoint.path, averaged=options.averaged)
    partial = out.with_name(f"{out.stem}.partial{out.suffix}")
    try:
        score = write(options.format, checkpoint, scorer, partial)
        difference = compare(experiment, scorer, score, out)
        put(partial, out)
    except (OSError, SafetensorError) as error:
        raise unwritable(out, error) from None
    finally:
        partial.unlink(missing_ok=True)
    size = out.stat().st_size / 1e6
    print(
        f"{out}: {size:.1f} MB; its probabilities differ from the network's by at most {difference:.0e}, and its "
        "metadata describe the inputs"
    )
    return 0


def check(chosen: Format, checkpoint: Path, out: Path) -> None:
    """Raise UserError for mistakes that can be found before the network is built."""
    check_extra(chosen)
    if out.suffix != f".{chosen}":
        raise UserError(f"--out {out}: with --format {chosen} the name of the file must end in .{chosen}")
    if not out.parent.is_dir():
        raise UserError(f"{out} cannot be written: there is no folder {out.parent}; name another file with --out")
    try:
        tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise unwritable(out, error) from None
    if out.exists() and checkpoint.exists() and out.samefile(checkpoint):
        raise UserError(f"{out} is the checkpoint itself: name another file with --out")


def unwritable(out: Path, error: Exception) -> UserError:
    """A UserError that says why the file `out` cannot be written."""
    reason = (isinstance(error, OSError) and error.strerror) or str(error)
    return UserError(f"{out} cannot be written ({reason}); name another file with --out")


def write(chosen: Format, checkpoint: Checkpoint, scorer: Scorer, path: Path) -> Score:
    """Write the network to `path`, and return a function that computes scores with the written file."""
    experiment = checkpoint.experiment
    metadata = json.dumps(recipe(experiment, checkpoint.path))
    if chosen == "safetensors":
        write_tensors(scorer.network, metadata, path)
        network = build_model(experiment.model).eval()
        load_weights(network, path)
        return Scorer(network)
    write_graph, read = {"onnx": (write_onnx, read_onnx), "pt2": (write_pt2, read_pt2)}[chosen]
    write_graph(scorer, example(experiment, 2, train=True), len(sizes_of(experiment.clip)) > 1, metadata, path)
    return read(path)


@torch.no_grad()
def compare(experiment: Experiment, scorer: Scorer, score: Score, out: Path) -> float:
    """Compare the probabilities of the network (`scorer`) with those of the written file (`score`).

    The first comparison uses the frame and heatmap sizes of training, and the second uses the sizes of validation.
    Returns the largest difference. Raises UserError if a difference is more than TOLERANCE.
    """
    largest = 0.0
    for num_clips, train in zip(NUM_CLIPS, (True, False), strict=True):
        inputs = example(experiment, num_clips, train)
        expected, actual = scorer(**inputs), score(**inputs)
        assert list(actual) == list(expected)
        for name, probability in expected.items():
            difference = (actual[name] - probability).abs().max().item()
            if not difference <= TOLERANCE:
                raise UserError(
                    f"{out} was not written: probabilities of {name} differ from the network's by {difference:.1e}, "
                    f"more than {TOLERANCE:.0e}; try another --format"
                )
            largest = max(largest, difference)
    return largest


def example(experiment: Experiment, num_clips: int, train: bool) -> Inputs:
    """Make random inputs for tracing and for `compare`: frames of noise, and heatmaps of one person's random joints.

    With `train`, frames and heatmaps have the sizes of training, otherwise the sizes of validation.
    """
    clip = experiment.clip
    generator = torch.Generator().manual_seed(num_clips)
    frame_side, side = clip.sizes(train)
    frames = (num_clips, clip.rgb_frames, frame_side, frame_side, 3)
    joints = torch.rand(num_clips, clip.pose_frames, 1, clip.skeleton.num_joints, 3, generator=generator)
    joints *= torch.tensor([side, side, 1.0])
    channels = {"limbs": clip.drawn_limbs(), "joint_channels": clip.joints}
    inputs: Inputs = {
        "rgb": torch.randint(0, 256, frames, dtype=torch.uint8, generator=generator),
        "heatmap": render_heatmaps(joints, (side, side), clip.sigma, **channels, dtype=PRECISION.dtype).contiguous(),
    }
    return {INPUTS[stream]: inputs[INPUTS[stream]] for stream in experiment.streams}
