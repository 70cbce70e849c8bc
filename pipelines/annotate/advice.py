"""Says which of the two experiments for your own videos suits an annotation file, and how long training takes."""

import os
import shlex
from pathlib import Path

from kernels.driver import find_driver
from pipelines.skeleton import COCO_17, fitting

# Where the experiments custom and custom_small look for data by default.
DEFAULT = ("data/custom/annotations.pkl", "data/custom/videos")
MANY = 500  # from this number of training clips on, the large networks of `custom` learn more than the small ones
EPOCHS = 150  # epochs of custom_small; a test compares this number with the experiment
# Training needs at least FEWEST_EPOCHS epochs, and ENOUGH clips in all epochs together.
FEWEST_EPOCHS, ENOUGH = 60, 20_000
RATE = 20  # training clips per second of custom_small on one core, from the CPU time of a run on a busy machine


def training_advice(annotations: Path, videos: Path, num_clips: int, num_joints: int, layout: str = "") -> str:
    """A line with the command that trains on an annotation file, and the reason for the choice of the experiment.

    num_clips: the number of training clips. layout: the joint layout that the file names, or ''.
    """
    has_gpu, cores = find_driver() is not None, len(os.sched_getaffinity(0))
    epochs = min(EPOCHS, max(FEWEST_EPOCHS, 10 * round(ENOUGH / max(1, num_clips) / 10)))
    minutes = max(1, round(num_clips * epochs / RATE / cores / 60))
    name = "custom" if has_gpu and num_clips >= MANY else "custom_small"
    if name == "custom":
        why = f"{num_clips} training clips and a GPU are enough for large networks; custom_small is done in minutes"
    elif has_gpu:
        why = f"small networks suit {num_clips} training clips; custom is for more, or to start from weights (--init)"
    else:
        why = f"about {minutes} min on {cores} CPU cores for {num_clips} training clips; custom is for GPUs"
    settings = [] if (str(annotations), str(videos)) == DEFAULT else _settings(annotations, videos)
    if name == "custom_small" and epochs < EPOCHS:
        settings.append(f"--set optim.num_epochs={epochs}")
    if num_joints != COCO_17.num_joints and not layout:
        settings += ["--set clip.skeleton=NAME"]
        why = f"NAME is {fitting(num_joints)}; {why}"
    return f"train with: {' '.join([f'python -m trainer --exp {name}', *settings])} ({why})"


def viewing_advice(annotations: Path, videos: Path) -> str:
    """A line with the command that draws the clips with the worst skeletons."""
    settings = [] if (str(annotations), str(videos)) == DEFAULT else _settings(annotations, videos)
    words = ["python -m pipelines.view --exp custom_small", *settings, "--worst 12 --out worst.png"]
    return f"look at the worst skeletons with: {' '.join(words)}"


def _settings(annotations: Path, videos: Path) -> list[str]:
    return [f"--set {shlex.quote(setting)}" for setting in (f"data.annotations={annotations}", f"data.videos={videos}")]
