"""What settings an experiment can have, looked at before anything is made: a wrong --set is one sentence."""

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any

import torch

from kernels.program import UserError
from models.config import EpamConfig, ModelConfig, ResNetPathConfig, SingleStreamConfig, X3DStreamConfig
from trainer.config import Experiment
from trainer.metrics import Scores, summarize

MANY = 1_000_000
COUNT = (1, MANY)
# Smallest and largest value of the fields of these names; of a tuple, those of each entry.
LIMITS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("batch_size", "num_epochs", "max_bad_steps", "begin", "every", "patience", "prefetch"), COUNT),
    **dict.fromkeys(("log_every", "snapshot_every", "num_train", "num_val", "num_classes", "pose_frames"), COUNT),
    **dict.fromkeys(("widths", "blocks", "shift_divisor", "base_channels", "fine_width", "coarse_width"), COUNT),
    **dict.fromkeys(("rgb_size", "rgb_size_val", "heatmap_size", "heatmap_size_val", "box_pixels"), (1, 8192)),
    **dict.fromkeys(("stem_stride", "strides"), (1, 16)),
    **dict.fromkeys(("warmup_epochs", "rollbacks", "milestones"), (0, MANY)),
    **dict.fromkeys(("flip", "dropout", "drop_path", "momentum", "max_bad", "min_delta"), (0, 1)),
    **dict.fromkeys(
        ("lr", "eta_min", "weight_decay", "logit_adjustment", "loss_weights", "contrast_weight"), (0, 1e38)
    ),
    **dict.fromkeys(("sigma", "clip_norm", "stalled_after"), (1e-3, 1e9)),
    "ema": (0, 0.9999999),
    "num_frames": (1, MANY),
    "rgb_frames": COUNT,
    "quality": (2, 31),
    "seed": (0, 2**62),
    "size": (16, 8192),
    "crf": (0, 51),
}


def check_limits(experiment: Experiment) -> None:
    """Raise UserError for a number out of its range, parts that do not fit each other, and an unknown metric."""
    for path, value in _numbers(experiment):
        low, high = LIMITS.get(path.rpartition(".")[2], (-math.inf, math.inf))
        if not low <= value <= high:
            raise UserError(f"{path}={value:g} is not between {low:g} and {high:g}; see --set {path}")
    _check_networks(experiment.model)
    data, optim = experiment.data, experiment.optim
    if len(data.class_names) not in (0, data.num_classes):
        raise UserError(
            f"data.class_names has {len(data.class_names)} names for data.num_classes={data.num_classes}: name each "
            "class, or none with --set data.class_names=()"
        )
    if optim.schedule == "multistep" and not optim.milestones:
        raise UserError("optim.schedule=multistep lowers the rate at epochs: --set 'optim.milestones=(12,16)'")
    check_metric(experiment)


def check_metric(experiment: Experiment) -> None:
    """Raise UserError where the best snapshot is to be picked by what no validation says."""
    known, wanted = metric_names(experiment.model, experiment.optim.ema is not None), experiment.val.metric
    if wanted not in known:
        near = get_close_matches(wanted, known, 1, 0)[0]
        raise UserError(f"val.metric={wanted} is no metric of {experiment.name}; did you mean {near}?")


def metric_names(model: ModelConfig, averaged: bool) -> list[str]:
    """What a validation of this network says, by its published keys."""
    single = isinstance(model, SingleStreamConfig)
    streams = [model.stream] if single else ["rgb", "pose", *(["sum"] if isinstance(model, EpamConfig) else [])]
    if not single and model.num_coarse:
        streams += ["rgb_coarse", "pose_coarse"]
    one = torch.zeros(1, dtype=torch.int64)
    names = list(summarize(Scores(one, one, one, dict.fromkeys(streams, torch.ones(1, 1)))))
    return names + [f"ema/{name}" for name in names if averaged]


def _numbers(config: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    for field in fields(config):
        value, path = getattr(config, field.name), prefix + field.name
        if is_dataclass(value):
            yield from _numbers(value, f"{path}.")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float):
                yield path, number


def _check_networks(part: Any) -> None:
    """Raise UserError where the stages of a network are not told alike."""
    for field in fields(part):
        value = getattr(part, field.name)
        if is_dataclass(value):
            _check_networks(value)
        elif field.name == "loss_weights" and len(value) != 4:
            raise UserError(f"model.loss_weights={value}: it takes four, of rgb, pose, rgb_coarse and pose_coarse")
    names = {X3DStreamConfig: ("widths", "blocks"), ResNetPathConfig: ("blocks", "inflate", "strides")}
    stages = {name: getattr(part, name) for name in names.get(type(part), ())}
    if len({len(stage) for stage in stages.values()}) > 1 or not all(stages.values()):
        told = ", ".join(f"{name}={stage}" for name, stage in stages.items())
        raise UserError(f"{told}: a network has an entry of each for every stage; see --set model")
