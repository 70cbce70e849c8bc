"""What an experiment is: the parts that decide its result. Each part checks itself when it is made."""

from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Annotated, Literal

from kernels.limits import MANY, Count, Range, Share, check_ranges
from kernels.program import UserError
from models.classes import check_coarse_map
from models.config import EpamConfig, FusedPart, ModelConfig, SingleStreamConfig, TwoStreamConfig, fusible_parts
from pipelines.config import ClipConfig, DataConfig

Schedule = Literal["constant", "cosine", "cosine_per_step", "multistep"]
Impl = Literal["auto", "torch", "apex"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]
Rate = Annotated[float, Range(0, 1e38)]
Epochs = Annotated[int, Range(0, MANY)]
FUSIONS = ((1, 1), (2, 1), (1, 2))
"""Weights of rgb : pose in the sums of both streams' probabilities that a validation reports."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """SGD with momentum. `batch_size` is global: ranks share it, and the learning rate is never changed for them."""

    batch_size: Count
    num_epochs: Count
    lr: Rate
    schedule: Schedule
    eta_min: Rate = 0.0
    warmup_epochs: Epochs = 0
    milestones: Annotated[tuple[int, ...], Range(0, MANY)] = ()
    momentum: Share = 0.9
    weight_decay: Rate = 1e-4
    clip_norm: Annotated[float, Range(1e-3, 1e9)] | None = 40.0
    max_bad_steps: Count = 20  # this many steps in a row without finite gradients end the run
    rollbacks: Epochs = 0  # times that a run may go back to its last snapshot when its loss spikes; 0: it only says so
    precision: Precision = "auto"
    impl: Impl = "auto"
    accumulate: Count = 1  # parts of a rank's batch, which go through the networks one after another
    logit_adjustment: Rate | None = None  # strength of the classes' log prior in training; 1 is usual
    ema: Annotated[float, Range(0, 0.9999999)] | None = None  # decay of the weights' moving average; 0.999 is usual

    def __post_init__(self) -> None:
        check_ranges(self, "optim")
        if self.warmup_epochs > self.num_epochs:
            raise UserError(
                f"optim.warmup_epochs={self.warmup_epochs} is more than optim.num_epochs={self.num_epochs}: lower it, "
                "for example --set optim.warmup_epochs=0"
            )
        if self.schedule == "multistep" and not self.milestones:
            raise UserError("optim.schedule=multistep lowers the rate at epochs: --set 'optim.milestones=(12,16)'")
        if self.batch_size % self.accumulate:
            raise UserError(
                f"optim.batch_size={self.batch_size} does not divide into optim.accumulate={self.accumulate} equal "
                "parts: change one of them"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationConfig:
    """Validate after epoch `begin` (from 1) and every `every` epochs from there, and after the last one.

    `metric` picks the best snapshot; training stops after `patience` validations in a row that did not reach the best
    one plus `min_delta` (None: never). `batch_size` is global.
    """

    batch_size: Count
    begin: Count = 1
    every: Count = 1
    metric: str = "acc/RGBPose_1:1_top1"
    patience: Count | None = None
    min_delta: Share = 0.0

    def __post_init__(self) -> None:
        check_ranges(self, "val")

    def due(self, epoch: int, num_epochs: int) -> bool:
        """Whether epoch `epoch` (from 1) ends with a validation."""
        return epoch == num_epochs or (epoch >= self.begin and (epoch - self.begin) % self.every == 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """One named run. `compile` None: on a GPU only (Inductor needs minutes for one stream on a CPU).

    Classes, coarse map and joints are stated once, in `data` and `clip`; the model is fitted to them here.
    """

    name: str
    data: DataConfig
    clip: ClipConfig
    model: ModelConfig
    optim: OptimConfig
    val: ValidationConfig
    seed: Annotated[int, Range(0, 2**62)] = 0
    log_every: Count = 20  # steps
    snapshot_every: Count = 500  # steps; every epoch ends with one too
    compile: bool | None = None
    fused: tuple[FusedPart, ...] = ()  # parts of the network that run through kernels (kernels/blocks/README.md)
    cuda_graph: bool = False  # one launch a step (trainer/runtime/cuda_graph.py)
    align_channels: bool = False  # X3D's inner channels in multiples of eight (models/alignment.py)
    prefetch: Count = 2  # batches by which the data pipeline runs ahead
    stalled_after: Annotated[float, Range(1e-3, 1e9)] = 600.0  # seconds without a step, or a batch of a validation
    wandb: bool = False  # Weights & Biases beside TensorBoard (trainer/journal/wandb.py)

    def __post_init__(self) -> None:
        check_ranges(self, "")
        object.__setattr__(self, "model", fitted(self.model, self.data, self.clip))
        check_frames(self.model, self.clip)
        if self.optim.rollbacks and self.snapshot_every % self.log_every:
            raise UserError(
                f"snapshot_every={self.snapshot_every} is no multiple of log_every={self.log_every}: "
                "optim.rollbacks goes back to snapshots whose loss was looked at"
            )
        known = fusible_parts(self.model)
        for part in self.fused:
            if part not in known:
                raise UserError(f"fused={','.join(self.fused)}: this network has no {part}, only {' and '.join(known)}")
        names = metric_names(self.model, averaged=self.optim.ema is not None)
        if self.val.metric not in names:
            near = get_close_matches(self.val.metric, names, 1, 0)[0]
            raise UserError(f"val.metric={self.val.metric} is no metric of {self.name}; did you mean {near}?")
        if self.cuda_graph and self.optim.impl == "apex":
            raise UserError(
                "cuda_graph=True needs a learning rate on the device, which apex does not have: set optim.impl=torch"
            )


def fitted(model: ModelConfig, data: DataConfig, clip: ClipConfig) -> ModelConfig:
    """The model with the classes, the coarse map and the heatmap channels of its data.

    Raises UserError for a coarse map that does not fit the classes, and where coarse heads have no map.
    """
    num_channels = clip.num_channels()
    if isinstance(model, SingleStreamConfig):
        check_map(data)
        return replace(model, num_classes=data.num_classes, in_channels=3 if model.stream == "rgb" else num_channels)
    if model.num_coarse and not data.coarse_map:
        check_coarse_map((), data.num_classes, 0)  # raises: the heads need a map
    num_coarse = check_map(data) if model.num_coarse else 0
    pcan = model.pcan and replace(model.pcan, coarse_map=data.coarse_map)
    return replace(model, num_classes=data.num_classes, num_coarse=num_coarse, pose_channels=num_channels, pcan=pcan)


def check_map(data: DataConfig) -> int:
    """The number of coarse classes; raises UserError for a map that does not fit the classes."""
    num_coarse = max(data.coarse_map, default=-1) + 1
    if data.coarse_map:
        check_coarse_map(data.coarse_map, data.num_classes, num_coarse)
    return num_coarse


def check_frames(model: ModelConfig, clip: ClipConfig) -> None:
    """Raise UserError where a network reads another number of pose frames for each RGB frame than the clip has."""
    ratio = model.frame_ratio if isinstance(model, TwoStreamConfig) else None
    if ratio is not None and clip.pose_frames != ratio * clip.rgb_frames:
        network = type(model).__name__.removesuffix("Config")
        raise UserError(
            f"{network} reads {ratio} pose frames for each RGB frame, not clip.pose_frames={clip.pose_frames} with "
            f"clip.rgb_frames={clip.rgb_frames}: --set clip.pose_frames={ratio * clip.rgb_frames}"
        )


def metric_names(model: ModelConfig, averaged: bool) -> list[str]:
    """What a validation of this network reports, by published keys, in order; `averaged`: also for the EMA."""
    if isinstance(model, SingleStreamConfig):
        names = _accuracies([model.stream], "top1", "top5", "mean1")
    else:
        sums = [f"RGBPose_{rgb}:{pose}" for rgb, pose in FUSIONS]
        own = ["rgb", "pose", *(["sum"] if isinstance(model, EpamConfig) else [])]
        names = _accuracies([*sums, *own], "top1", "top5", "mean1")
        if model.num_coarse:
            coarse = [*(f"RGBPose_coarse_{rgb}:{pose}" for rgb, pose in FUSIONS), "rgb_coarse", "pose_coarse"]
            names += _accuracies(coarse, "top1", "mean1")
            names += [f"f1/{name}" for name in F1]
    return names + [f"ema/{name}" for name in names if averaged]


F1 = ("action_macro", "action_micro", "body_macro", "body_micro", "mean")


def _accuracies(scores: list[str], *kinds: str) -> list[str]:
    return [f"acc/{score}_{kind}" for score in scores for kind in kinds]
