"""The metadata of an exported network, which describe its inputs and outputs for the author of another program."""

import importlib.metadata
from pathlib import Path
from typing import Any

import torch

from kernels.heatmap.reference import MIN_SCORE
from models.networks import MEAN, STD
from pipelines.config import ClipConfig
from pipelines.geometry import COMPACT
from trainer.config import Experiment
from trainer.runtime.precision import Precision
from trainer.stored import to_settings

# Every exported file computes in this precision, so that its outputs can be compared closely with the network's.
PRECISION = Precision("fp32", torch.device("cpu"))
INPUTS = {"rgb": "rgb", "pose": "heatmap"}  # for each stream, the name of its input
BOX = (
    "A square around the joints of all people in the frames of the heatmap. Half its side is "
    f"{1 + COMPACT.padding} times half the larger of the joints' extents in x and y. Its edges are truncated toward "
    "zero. It may reach beyond the image; pixels outside of the image are black. If no person is at least "
    f"{COMPACT.threshold} px large, the box is the whole image. (MMCompact of MMAction2)"
)
FRAMES = "The clip is divided into T equal spans, and one frame is taken from each (UniformSampleFrames of MMAction2). "
ALIGNED = "The frames of rgb are taken from those of the heatmap, in equal steps."
INDEPENDENT = "The frames of rgb and of the heatmap are chosen independently."
JOINTS = (
    "x and y are in pixels of the heatmap: (image - corner of the box) * S / side of the box. Channel v shows joint v "
    "of all people. Each person's joint is drawn as score * exp(-((i - x)^2 + (j - y)^2) / (2 sigma^2)) in the columns "
    "i from int(x - 3 sigma) to int(x + 3 sigma) and in the rows j from int(y - 3 sigma) to int(y + 3 sigma), where "
    "int truncates toward zero. All other values are 0, and where several people overlap, the largest value counts. A "
    "joint is not drawn if its score is less than min_score or if its position in the image is (0, 0). "
    "(GeneratePoseTarget of MMAction2)"
)
LIMBS = (
    " The channels of the joints are followed by one channel for each limb (a, b) in `limbs`. A limb is drawn like a "
    "joint, but by the distance to the line between joints a and b and with the lower of their scores, in the columns "
    "from int(min(xa, xb) - 3 sigma) to int(max(xa, xb) + 3 sigma) and in the rows likewise. If the line is shorter "
    "than a pixel, joint a is drawn instead."
)

ONLY_LIMBS = " The heatmap has channels for the limbs only, in the order of `limbs`, and none for the joints."


def recipe(experiment: Experiment, checkpoint: Path) -> dict[str, Any]:
    """The metadata as a dict that can be written as JSON: inputs, outputs, classes and versions."""
    clip, data = experiment.clip, experiment.data
    inputs = {"rgb": describe_rgb(clip), "heatmap": describe_heatmap(clip)}
    return {
        "experiment": experiment.name,
        "checkpoint": checkpoint.name,
        "inputs": {INPUTS[stream]: inputs[INPUTS[stream]] for stream in experiment.streams},
        "box": BOX,
        "frames": FRAMES + (ALIGNED if clip.aligned else INDEPENDENT),
        "outputs": (
            "Probabilities [N, classes]: score_rgb, score_pose and their mean score_fused. Networks with coarse heads "
            "also have score_rgb_coarse and score_pose_coarse [N, coarse classes]."
        ),
        "precision": f"The file computes in {PRECISION.name}, whatever optim.precision was in training.",
        "settings": to_settings(experiment),
        "num_classes": data.num_classes,
        "class_names": data.class_names,
        "coarse_map": data.coarse_map,
        "versions": {name: version(name) for name in ("duet-har", "torch", "onnx", "onnxscript")},
    }


def describe_rgb(clip: ClipConfig) -> dict[str, Any]:
    return {
        "shape": ["N", clip.rgb_frames, "S", "S", 3],
        "dtype": "uint8",
        "sizes": [side for side, _ in sizes_of(clip)],
        "pixels": "Each frame is cropped to the box and resized to S x S. The channels are red, green, blue.",
        "normalisation": {"formula": "(pixel - mean) / std, inside the network", "mean": MEAN, "std": STD},
    }


def describe_heatmap(clip: ClipConfig) -> dict[str, Any]:
    return {
        "shape": ["N", clip.pose_frames, clip.num_channels(), "S", "S"],
        "dtype": str(PRECISION.dtype).removeprefix("torch."),
        "sizes": [side for _, side in sizes_of(clip)],
        "sigma": clip.sigma,
        "min_score": MIN_SCORE,
        "num_joints": clip.skeleton.num_joints,
        "limbs": clip.drawn_limbs(),
        "pixels": JOINTS + LIMBS * clip.limbs + ONLY_LIMBS * (not clip.joints),
        "normalisation": None,
    }


def sizes_of(clip: ClipConfig) -> list[tuple[int, int]]:
    """Pairs (frame side, heatmap side) in pixels: two if training and validation use different sizes, else one."""
    return sorted({clip.sizes(train) for train in (True, False)})


def version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
