"""The dataclass Experiment and its parts: all settings of a run. Each part checks its values when it is created."""

from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Annotated, Literal

from kernels.limits import MANY, Count, Range, Share, check_ranges
from kernels.meanings import as_text, default_of
from kernels.program import UserError
from models.classes import check_coarse_map
from models.config import (
    EpamConfig,
    FusedPart,
    ModelConfig,
    SingleStreamConfig,
    Stream,
    TwoStreamConfig,
    fusible_parts,
)
from pipelines.config import ClipConfig, DataConfig

Schedule = Literal["constant", "cosine", "cosine_per_step", "multistep"]
Impl = Literal["auto", "torch", "apex"]
PrecisionSetting = Literal["auto", "bf16", "fp16", "fp32"]
Rate = Annotated[float, Range(0, 1e38)]
Epochs = Annotated[int, Range(0, MANY)]
Threads = Annotated[int, Range(1, 1024)]
EXECUTION = (
    *("compile", "combine_launches", "fused", "cuda_graph", "align_channels", "cudnn_benchmark", "optim.precision"),
    *("optim.impl", "threads", "interop_threads", "prefetch", "decode_threads", "jpeg_load"),
)
"""Settings that say how a step is executed, and not what it computes. `python -m trainer tune` chooses them."""
FUSIONS = ((1, 1), (2, 1), (1, 2))
"""Pairs of weights (rgb, pose). A validation reports, for each pair, the accuracy of the weighted sum of the
probabilities of both streams."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """How the weights are optimized. Nothing here depends on the number of ranks."""

    batch_size: Count
    """Clips of a training step on all ranks together."""
    num_epochs: Count
    """Passes over the training clips."""
    lr: Rate
    """Learning rate at the start of the schedule, after the warm-up."""
    schedule: Schedule
    """How the learning rate falls: never, along a cosine at each epoch or each step, or at each of the milestones."""
    eta_min: Rate = 0.0
    """Learning rate at the end of a cosine."""
    warmup_epochs: Epochs = 0
    """Epochs in which the learning rate rises from a tenth of lr to lr."""
    milestones: Annotated[tuple[int, ...], Range(0, MANY)] = ()
    """Epochs at whose start the schedule multistep divides the learning rate by ten."""
    kind: Literal["sgd", "adamw"] = "sgd"
    """The optimizer: SGD with momentum, or AdamW, which usually needs a much lower lr and a higher weight_decay."""
    momentum: Share = 0.9
    """Share of the last update that SGD adds to the next one."""
    betas: Annotated[tuple[float, float], Range(0, 0.9999999)] = (0.9, 0.999)
    """Decay of AdamW's moving averages of the gradients and of their squares."""
    weight_decay: Rate = 1e-4
    """SGD adds weight_decay * weight to the gradient; AdamW subtracts lr * weight_decay * weight from the weight. This
    also holds for norms and biases.
    """
    clip_norm: Annotated[float, Range(1e-3, 1e9)] | None = 40.0
    """Largest 2-norm of all gradients together; longer gradients are scaled down. None: no limit."""
    max_bad_steps: Count = 20
    """The run ends after this many steps in a row without finite gradients."""
    rollbacks: Epochs = 0
    """How many times a run may return to its last snapshot after a loss spike. 0: spikes are only logged."""
    precision: PrecisionSetting = "auto"
    """Number format of networks and heatmaps. auto: bf16 on GPUs that have it, fp16 on other GPUs, fp32 on a CPU."""
    impl: Impl = "auto"
    """The package whose optimizer is used: torch, or NVIDIA's apex. auto: torch."""
    accumulate: Count = 1
    """Number of equal parts into which the clips of a rank are divided; the parts go through the network one by one."""
    logit_adjustment: Rate | None = None
    """Training adds this many times the log frequency of a class to its logit; usually 1. None: nothing is added."""
    ema: Annotated[float, Range(0, 0.9999999)] | None = None
    """Decay of an exponential moving average of the weights; usually 0.999. None: no average is kept."""

    def __post_init__(self) -> None:
        check_ranges(self, "optim")
        if self.warmup_epochs > self.num_epochs:
            raise UserError(
                f"optim.warmup_epochs={self.warmup_epochs} is more than optim.num_epochs={self.num_epochs}: lower it, "
                "for example --set optim.warmup_epochs=0"
            )
        if self.schedule == "multistep" and not self.milestones:
            raise UserError(
                "optim.schedule=multistep needs the epochs at which the learning rate drops: --set "
                "'optim.milestones=(12,16)'"
            )
        for name, kind, other in (("momentum", "sgd", "betas"), ("betas", "adamw", "momentum")):
            default = default_of(OptimConfig, name)
            if self.kind != kind and getattr(self, name) != default:
                raise UserError(
                    f"optim.{name}={as_text(getattr(self, name))} has no effect with optim.kind={self.kind}: set "
                    f"optim.{other} instead, and optim.{name}={as_text(default)}"
                )
        if self.kind == "adamw" and self.impl == "apex":
            raise UserError("optim.impl=apex supports SGD only: set optim.impl=torch, or optim.kind=sgd")
        if self.batch_size % self.accumulate:
            raise UserError(
                f"optim.batch_size={self.batch_size} cannot be divided into optim.accumulate={self.accumulate} equal "
                "parts: change one of them"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationConfig:
    """When and how a run validates."""

    batch_size: Count
    """Clips of a validation step on all ranks together."""
    begin: Count = 1
    """Epoch, from 1, after which the run validates for the first time."""
    every: Count = 1
    """Epochs from one validation to the next. The last epoch is always validated."""
    metric: str = "acc/RGBPose_1:1_top1"
    """Score that decides which snapshot is the best."""
    patience: Count | None = None
    """Training ends after this many validations in a row without a better score. None: it never ends early."""
    min_delta: Share = 0.0
    """How far a score must exceed the best score to count as better for `patience`."""

    def __post_init__(self) -> None:
        check_ranges(self, "val")

    def due(self, epoch: int, num_epochs: int) -> bool:
        """Whether a validation follows epoch `epoch`, counted from 1."""
        return epoch == num_epochs or (epoch >= self.begin and (epoch - self.begin) % self.every == 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """All settings of a run, under a name.

    Classes, coarse map and joints are set once, in `data` and `clip`, and copied from there into `model`.
    """

    name: str
    """Name of the experiment, and of the folder of its runs in work_dirs."""
    data: DataConfig
    """Where the data are, and which classes they have."""
    clip: ClipConfig
    """What a network sees of a clip."""
    model: ModelConfig
    """The network and its losses."""
    optim: OptimConfig
    """How the weights are optimized."""
    val: ValidationConfig
    """When and how a run validates."""
    seed: Annotated[int, Range(0, 2**62)] = 0
    """Seed of the first weights and of everything that is drawn at random."""
    log_every: Count = 20
    """Steps from one line of the log to the next."""
    snapshot_every: Count = 500
    """Steps from one snapshot to the next. A snapshot is also saved at the end of every epoch."""
    compile: bool | None = None
    """Whether torch.compile compiles the network. None: on a GPU only, because on a CPU this takes minutes."""
    combine_launches: bool = False
    """Whether small independent kernels that torch.compile generates share one launch. Only on a GPU."""
    fused: tuple[FusedPart, ...] = ()
    """Parts of the network that our kernels compute (kernels/blocks/README.md)."""
    cuda_graph: bool = False
    """Whether each step is recorded and replayed as one CUDA graph."""
    align_channels: bool = False
    """Whether X3D's inner channels are padded to multiples of eight. This changes no result."""
    cudnn_benchmark: bool | None = None
    """Whether cuDNN times its algorithms for each convolution. None: a run on a GPU times both choices at its start."""
    threads: Threads | None = None
    """Threads of each rank that compute on the CPU. None: torch's default number."""
    interop_threads: Threads | None = None
    """Threads of each rank for independent operators on the CPU. None: torch's default number."""
    prefetch: Count = 2
    """Batches that are prepared in advance."""
    decode_threads: Threads | None = None
    """Threads of each rank that decode frames. None: one fewer than the cores of the process, at most eight."""
    jpeg_load: Share | None = None
    """Share of the frames that a GPU's JPEG engine decodes. None: a run measures the fastest share at its start."""
    stalled_after: Annotated[float, Range(1e-3, 1e9)] = 600.0
    """Seconds without a batch after which the run ends."""
    wandb: bool = False
    """Whether the run also logs to Weights & Biases."""

    def __post_init__(self) -> None:
        check_ranges(self, "")
        object.__setattr__(self, "model", fit_to_data(self.model, self.data, self.clip))
        check_frames(self.model, self.clip)
        check_augmentation(self.clip, self.streams)
        if self.optim.rollbacks and self.snapshot_every % self.log_every:
            raise UserError(
                f"snapshot_every={self.snapshot_every} is not a multiple of log_every={self.log_every}, but "
                "optim.rollbacks needs a multiple, because the loss is checked at each log: change one of the two"
            )
        parts = fusible_parts(self.model)
        for part in self.fused:
            if part not in parts:
                raise UserError(f"fused={','.join(self.fused)}: this network has no {part}, only {' and '.join(parts)}")
        names = metric_names(self.model, averaged=self.optim.ema is not None)
        if self.val.metric not in names:
            similar = get_close_matches(self.val.metric, names, 1, 0)[0]
            raise UserError(f"val.metric={self.val.metric} is not a metric of {self.name}; did you mean {similar}?")
        if self.cuda_graph and self.optim.impl == "apex":
            raise UserError(
                "cuda_graph=True needs an optimizer that reads its learning rate on the GPU, and apex's optimizer does "
                "not: set optim.impl=torch"
            )

    @property
    def streams(self) -> tuple[Stream, ...]:
        """The streams that the network reads. Frames are decoded only for "rgb", and heatmaps drawn only for "pose"."""
        return self.model.streams


def fit_to_data(model: ModelConfig, data: DataConfig, clip: ClipConfig) -> ModelConfig:
    """Copy the number of classes, the coarse map and the number of heatmap channels from `data` and `clip` to `model`.

    Raises UserError if the coarse map does not fit the classes, or if the model has coarse heads but there is no map.
    """
    num_channels = clip.num_channels()
    if not data.coarse_map and (settings := no_coarse_heads(model)):
        raise UserError(
            f"data.coarse_map=() gives no coarse classes, but this network has coarse heads: set "
            f"{' and '.join(settings)}, or give --coarse-map a text file with {data.num_classes} numbers"
        )
    if isinstance(model, SingleStreamConfig):
        num_coarse, in_channels = check_map(data), 3 if model.stream == "rgb" else num_channels
        num_coarse = num_coarse if model.coarse_weight else 0
        return replace(model, num_classes=data.num_classes, num_coarse=num_coarse, in_channels=in_channels)
    if model.pcan and not model.num_coarse:
        raise UserError("model.num_coarse=0 leaves no coarse heads, but model.pcan needs them: set model.pcan=none")
    num_coarse = check_map(data) if model.num_coarse else 0
    pcan = model.pcan and replace(model.pcan, coarse_map=data.coarse_map)
    return replace(model, num_classes=data.num_classes, num_coarse=num_coarse, pose_channels=num_channels, pcan=pcan)


def no_coarse_heads(model: ModelConfig) -> list[str]:
    """The --set options that remove the coarse heads of a network, and also PCAN, which needs coarse heads."""
    if isinstance(model, SingleStreamConfig):
        return ["model.coarse_weight=0"] if model.coarse_weight else []
    return [*(["model.num_coarse=0"] if model.num_coarse else []), *(["model.pcan=none"] if model.pcan else [])]


def check_map(data: DataConfig) -> int:
    """The number of coarse classes in data.coarse_map. Raises UserError if the map does not fit the classes."""
    num_coarse = max(data.coarse_map, default=-1) + 1
    if data.coarse_map:
        check_coarse_map(data.coarse_map, data.num_classes, num_coarse)
    return num_coarse


def check_frames(model: ModelConfig, clip: ClipConfig) -> None:
    """Raise UserError unless the clip has as many pose frames for each RGB frame as the network requires."""
    ratio = model.frame_ratio if isinstance(model, TwoStreamConfig) else None
    if ratio is not None and clip.pose_frames != ratio * clip.rgb_frames:
        network = type(model).__name__.removesuffix("Config")
        raise UserError(
            f"{network} needs {ratio} pose frames for each RGB frame, but "
            f"clip.pose_frames={clip.pose_frames} and clip.rgb_frames={clip.rgb_frames}: --set "
            f"clip.pose_frames={ratio * clip.rgb_frames}"
        )


def check_augmentation(clip: ClipConfig, streams: tuple[Stream, ...]) -> None:
    """Raise UserError if an augmentation is set for a stream that the network does not read."""
    settings = {"color_jitter": "rgb", "erasing": "rgb", "fade_background": "rgb"}
    settings |= {"joint_noise": "pose", "joint_drop": "pose"}
    for name, stream in settings.items():
        if getattr(clip, name) and stream not in streams:
            inputs = "frames" if stream == "rgb" else "skeletons"
            raise UserError(
                f"clip.{name}={getattr(clip, name)} has no effect, because this network reads no {inputs}: turn "
                f"it off with --set clip.{name}=0"
            )


def metric_names(model: ModelConfig, averaged: bool) -> list[str]:
    """The names of all metrics that a validation of this network reports, in order. Published logs use the same names.

    With `averaged`, each metric is also reported for the EMA of the weights, as ema/NAME.
    """
    if isinstance(model, SingleStreamConfig):
        names = _accuracies([model.stream], "top1", "top5", "mean1")
        if model.num_coarse:
            names += _accuracies([f"{model.stream}_coarse"], "top1", "mean1")
            names += [f"f1/{name}" for name in F1]
    else:
        sums = [f"RGBPose_{rgb}:{pose}" for rgb, pose in FUSIONS]
        single = ["rgb", "pose", *(["sum"] if isinstance(model, EpamConfig) else [])]
        names = _accuracies([*sums, *single], "top1", "top5", "mean1")
        if model.num_coarse:
            coarse = [*(f"RGBPose_coarse_{rgb}:{pose}" for rgb, pose in FUSIONS), "rgb_coarse", "pose_coarse"]
            names += _accuracies(coarse, "top1", "mean1")
            names += [f"f1/{name}" for name in F1]
    return names + [f"ema/{name}" for name in names if averaged]


F1 = ("action_macro", "action_micro", "body_macro", "body_micro", "mean")


def _accuracies(scores: list[str], *kinds: str) -> list[str]:
    return [f"acc/{score}_{kind}" for score in scores for kind in kinds]
