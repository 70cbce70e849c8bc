"""`python -m trainer export`: a checkpoint's network as a file for other programs, compared with it before it counts.

The file takes what the network takes (its metadata describe that, see export_recipe.py), any number of clips at a
time, at the sizes of training and of validation.
"""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

from kernels.heatmap import render_heatmaps
from kernels.program import UserError
from models.config import SingleStreamConfig
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
from trainer.commands.export_recipe import recipe, sizes_of
from trainer.config import Experiment
from trainer.settings import Choice, experiment_of

TOLERANCE = 1e-4  # of probabilities
NUM_CLIPS = (1, 3)  # in the comparisons; the network is traced with 2


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions(Choice):
    """Write a network for other programs: python -m trainer export --exp ntu60 --checkpoint FILE --format onnx"""

    checkpoint: Path
    """Snapshot of a run, native safetensors, or a published file."""
    format: Format
    """onnx (extra `export`), pt2 (torch.export), or safetensors (the tensors alone)."""
    averaged: bool = False
    """Take the moving average of the weights, which runs with optim.ema keep."""
    out: Path | None = None
    """File to write. Default: beside the checkpoint, with the format's ending."""


def export(options: ExportOptions) -> int:
    """Write the file and say what is in it. Raises UserError where it would not say what the network says."""
    experiment = experiment_of(options)
    out = options.out or options.checkpoint.with_suffix(f".{options.format}")
    check(options, out)
    scorer = Scorer(build_model(experiment.model).eval())
    load_weights(scorer.network, options.checkpoint, averaged=options.averaged)
    partial = out.with_name(f"{out.stem}.partial{out.suffix}")
    try:
        score = write(options, experiment, scorer, partial)
        apart = compare(experiment, scorer, score, out)
        os.replace(partial, out)
    except (OSError, SafetensorError) as error:
        raise unwritable(out, error) from None
    finally:
        partial.unlink(missing_ok=True)
    size = out.stat().st_size / 1e6
    print(f"{out}: {size:.1f} MB, probabilities within {apart:.0e} of the network's; its metadata says what goes in")
    return 0


def check(options: ExportOptions, out: Path) -> None:
    """Raise UserError for what can be known before the network is built."""
    check_extra(options.format)
    if out.suffix != f".{options.format}":
        raise UserError(f"--out {out}: the name of a file in this format ends in .{options.format}")
    if not out.parent.is_dir():
        raise UserError(f"{out} cannot be written: there is no folder {out.parent}; name another file with --out")
    try:
        tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise unwritable(out, error) from None
    if out.exists() and options.checkpoint.exists() and out.samefile(options.checkpoint):
        raise UserError(f"{out} is the checkpoint that is read: name another file with --out")


def unwritable(out: Path, error: Exception) -> ValueError:
    reason = (isinstance(error, OSError) and error.strerror) or str(error)
    return ValueError(f"{out} cannot be written ({reason}); name another with --out")


def write(options: ExportOptions, experiment: Experiment, scorer: Scorer, path: Path) -> Score:
    """Write `path`, and read it back as a function of clips."""
    told = json.dumps(recipe(experiment, options.checkpoint))
    if options.format == "safetensors":
        write_tensors(scorer.network, told, path)
        again = build_model(experiment.model).eval()
        load_weights(again, path)
        return Scorer(again)
    write_graph, read = {"onnx": (write_onnx, read_onnx), "pt2": (write_pt2, read_pt2)}[options.format]
    write_graph(scorer, example(experiment, 2, train=True), len(sizes_of(experiment.clip)) > 1, told, path)
    return read(path)


@torch.no_grad()
def compare(experiment: Experiment, scorer: Scorer, score: Score, out: Path) -> float:
    """The largest difference of a probability, over both sizes. Raises UserError where it is too large."""
    apart = 0.0
    for num_clips, train in zip(NUM_CLIPS, (True, False), strict=True):
        inputs = example(experiment, num_clips, train)
        expected, found = scorer(**inputs), score(**inputs)
        assert list(found) == list(expected)
        for name, probability in expected.items():
            difference = (found[name] - probability).abs().max().item()
            if not difference <= TOLERANCE:
                raise UserError(
                    f"{out} was not written: probabilities of {name} differ from the network's by {difference:.1e}, "
                    f"more than {TOLERANCE:.0e}; another --format may be nearer"
                )
            apart = max(apart, difference)
    return apart


def example(experiment: Experiment, num_clips: int, train: bool) -> Inputs:
    """Noise, and the heatmaps of one person's random joints, in the sizes of training or validation."""
    clip, model = experiment.clip, experiment.model
    luck = torch.Generator().manual_seed(num_clips)
    frame_side, side = clip.sizes(train)
    frames = (num_clips, clip.rgb_frames, frame_side, frame_side, 3)
    joints = torch.rand(num_clips, clip.pose_frames, 1, clip.skeleton.num_joints, 3, generator=luck)
    joints *= torch.tensor([side, side, 1.0])
    limbs = clip.skeleton.limbs if clip.limbs else ()
    inputs: Inputs = {
        "rgb": torch.randint(0, 256, frames, dtype=torch.uint8, generator=luck),
        "heatmap": render_heatmaps(joints, (side, side), clip.sigma, limbs=limbs).contiguous(),
    }
    if isinstance(model, SingleStreamConfig):
        name = "rgb" if model.stream == "rgb" else "heatmap"
        return {name: inputs[name]}
    return inputs
