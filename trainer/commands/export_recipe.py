"""What a program must know that runs an exported network: the metadata of the file, in words and numbers."""

import importlib.metadata
from pathlib import Path
from typing import Any

from kernels.heatmap.reference import MIN_SCORE
from models.config import SingleStreamConfig
from models.networks import MEAN, STD
from pipelines.config import ClipConfig
from pipelines.geometry import COMPACT
from trainer.config import Experiment

BOX = (
    f"The square around all joints of the heatmap's frames: its half side is {1 + COMPACT.padding} times the larger "
    "half extent, its edges are truncated toward zero, and it may leave the image, which is black there. The whole "
    f"image where there is no person of {COMPACT.threshold} px or more. (MMCompact of MMAction2)"
)
FRAMES = "One frame out of each of T equal spans of the clip (UniformSampleFrames of MMAction2). "
ALIGNED, APART = "The frames of rgb are some of the heatmap's, in equal steps.", "Each stream on its own."
JOINTS = (
    "x and y are in pixels of the heatmap: (image - corner of the box) * S / side of the box. Channel v is 0 but where "
    "joint v of a person is drawn, and the largest value of all people there. A joint is drawn unless its score is "
    "under min_score or its place in the image is (0, 0): score * exp(-((i - x)^2 + (j - y)^2) / (2 sigma^2)) at the "
    "columns i from int(x - 3 sigma) to int(x + 3 sigma) and the rows j likewise; int truncates toward zero. "
    "(GeneratePoseTarget of MMAction2)"
)
LIMBS = (
    " Behind the joints' channels one for each of `limbs` (a, b): the same with the distance to the line between both "
    "joints, at the columns from int(min(xa, xb) - 3 sigma) to int(max(xa, xb) + 3 sigma), rows likewise, times the "
    "lower score; a line shorter than a pixel is joint a."
)


def recipe(experiment: Experiment, checkpoint: Path) -> dict[str, Any]:
    """Facts for JSON: inputs, outputs, classes, versions."""
    clip, data, model = experiment.clip, experiment.data, experiment.model
    inputs = {"rgb": rgb_of(clip), "heatmap": heatmap_of(clip)}
    if isinstance(model, SingleStreamConfig):
        name = "rgb" if model.stream == "rgb" else "heatmap"
        inputs = {name: inputs[name]}
    return {
        "experiment": experiment.name,
        "checkpoint": checkpoint.name,
        "inputs": inputs,
        "box": BOX,
        "frames": FRAMES + (ALIGNED if clip.aligned else APART),
        "outputs": "Probabilities [N, classes]: score_rgb and score_pose, score_fused their mean; coarse classes too.",
        "num_classes": data.num_classes,
        "class_names": data.class_names,
        "coarse_map": data.coarse_map,
        "versions": {name: version(name) for name in ("duet-har", "torch", "onnx", "onnxscript")},
    }


def rgb_of(clip: ClipConfig) -> dict[str, Any]:
    return {
        "shape": ["N", clip.rgb_frames, "S", "S", 3],
        "dtype": "uint8",
        "sizes": [side for side, _ in sizes_of(clip)],
        "pixels": "The box of each frame, resized to S x S; red, green, blue.",
        "normalisation": {"formula": "(pixel - mean) / std, inside the network", "mean": MEAN, "std": STD},
    }


def heatmap_of(clip: ClipConfig) -> dict[str, Any]:
    return {
        "shape": ["N", clip.pose_frames, clip.num_channels(), "S", "S"],
        "dtype": "float32",
        "sizes": [side for _, side in sizes_of(clip)],
        "sigma": clip.sigma,
        "min_score": MIN_SCORE,
        "num_joints": clip.skeleton.num_joints,
        "limbs": clip.skeleton.limbs if clip.limbs else (),
        "pixels": JOINTS + (LIMBS if clip.limbs else ""),
        "normalisation": None,
    }


def sizes_of(clip: ClipConfig) -> list[tuple[int, int]]:
    """(frame side, heatmap side) in pixels, of training and of validation where they differ."""
    return sorted({clip.sizes(train) for train in (True, False)})


def version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
