"""What an experiment is: the parts that decide its result, composed of the types that their packages own."""

from dataclasses import dataclass, replace

from kernels.program import UserError
from models.classes import check_coarse_map
from models.config import ModelConfig, SingleStreamConfig
from pipelines.config import ClipConfig, DataConfig
from trainer.optim import Impl, Precision, Schedule


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """SGD with momentum. `batch_size` is global: ranks share it, and the learning rate is never changed for them."""

    batch_size: int
    num_epochs: int
    lr: float
    schedule: Schedule
    eta_min: float = 0.0
    warmup_epochs: int = 0
    milestones: tuple[int, ...] = ()
    momentum: float = 0.9
    weight_decay: float = 1e-4
    clip_norm: float | None = 40.0
    max_bad_steps: int = 20  # this many steps in a row without finite gradients end the run
    rollbacks: int = 0  # times that a run may go back to its last snapshot when its loss spikes; 0: it only says so
    precision: Precision = "auto"
    impl: Impl = "auto"
    accumulate: int = 1  # parts of a rank's batch, which go through the networks one after another
    logit_adjustment: float | None = None  # strength of the classes' log prior in training; 1 is usual
    ema: float | None = None  # decay of the weights' moving average; 0.999 is usual


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationConfig:
    """Validate after epoch `begin` (from 1) and every `every` epochs from there, and after the last one.

    `metric` picks the best snapshot; training stops after `patience` validations in a row that did not reach the best
    one plus `min_delta` (None: never). `batch_size` is global.
    """

    batch_size: int
    begin: int = 1
    every: int = 1
    metric: str = "acc/RGBPose_1:1_top1"
    patience: int | None = None
    min_delta: float = 0.0

    def due(self, epoch: int, num_epochs: int) -> bool:
        """Whether epoch `epoch` (from 1) ends with a validation."""
        return epoch == num_epochs or (epoch >= self.begin and (epoch - self.begin) % self.every == 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """One named run. `compile` None: on a GPU only (Inductor needs minutes for one stream on a CPU)."""

    name: str
    data: DataConfig
    clip: ClipConfig
    model: ModelConfig
    optim: OptimConfig
    val: ValidationConfig
    seed: int = 0
    log_every: int = 20  # steps
    snapshot_every: int = 500  # steps; every epoch ends with one too
    compile: bool | None = None
    cuda_graph: bool = False  # one launch a step (trainer/runtime/cuda_graph.py)
    align_channels: bool = False  # X3D's inner channels in multiples of eight (models/alignment.py)
    prefetch: int = 2  # batches by which the data pipeline runs ahead
    stalled_after: float = 600.0  # seconds without a step, or a batch of a validation, that end the run
    wandb: bool = False  # Weights & Biases beside TensorBoard (trainer/journal/wandb.py)


def consistent(experiment: Experiment, coarse_map: tuple[int, ...]) -> Experiment:
    """The experiment with its model fitted to its data: classes, coarse map and heatmap channels are stated once.

    An empty map means no coarse classes, and is for models without coarse heads. Raises UserError for a map that
    does not fit the classes.
    """
    data, model, num_coarse = experiment.data, experiment.model, max(coarse_map, default=-1) + 1
    if not 0 <= data.balance <= 1:
        raise UserError(f"data.balance is {data.balance:g}, not between 0 (as they come) and 1 (classes equally)")
    if experiment.optim.rollbacks and experiment.snapshot_every % experiment.log_every:
        raise UserError(
            f"snapshot_every={experiment.snapshot_every} is no multiple of log_every={experiment.log_every}: "
            "optim.rollbacks goes back to snapshots whose loss was looked at"
        )
    if coarse_map or (not isinstance(model, SingleStreamConfig) and model.num_coarse):
        data = replace(data, coarse_map=check_coarse_map(coarse_map, data.num_classes, num_coarse))
    channels = experiment.clip.num_channels()
    if isinstance(model, SingleStreamConfig):
        channels = 3 if model.stream == "rgb" else channels
        return replace(experiment, data=data, model=replace(model, num_classes=data.num_classes, in_channels=channels))
    num_coarse = num_coarse if model.num_coarse else 0
    pcan = model.pcan and replace(model.pcan, coarse_map=data.coarse_map)
    model = replace(model, num_classes=data.num_classes, num_coarse=num_coarse, pose_channels=channels, pcan=pcan)
    return replace(experiment, data=data, model=model)
