"""Optimizer, learning rate, gradient clipping, and moving average of the weights (EMA)."""

import copy
import importlib.util
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from kernels.program import UserError
from trainer.config import OptimConfig, Schedule

GAMMA = 0.1  # factor of the learning rate at each milestone of the multistep schedule


def build_optimizer(config: OptimConfig, parameters: Iterable[Parameter]) -> torch.optim.Optimizer:
    """AdamW from torch, or SGD from torch or from NVIDIA's apex; the two SGDs compute the same update.

    With optim.impl=auto, torch's SGD is used, because no record in benchmarks/records shows that apex is faster. Raises
    UserError for `apex` if its compiled extension is not installed.
    """
    if config.kind == "adamw":
        return build_adamw(parameters, config.lr, config.betas, config.weight_decay)
    if config.impl != "apex":
        return build_sgd(parameters, config.lr, config.momentum, config.weight_decay)
    if importlib.util.find_spec("amp_C") is None:
        raise UserError(
            "optim.impl=apex needs apex's extension amp_C, which is not installed: build it as the README says, or "
            "set optim.impl=torch"
        )
    from apex.optimizers import FusedSGD  # type: ignore[import-not-found]

    optimizer = FusedSGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    start_momentum(optimizer)
    count_changes(optimizer)
    return optimizer


def count_changes(optimizer: torch.optim.Optimizer) -> None:
    """Make each step of `optimizer` increase the version counters (`Tensor._version`) of its weights and momenta.

    Torch counts all in-place changes except those of its fused optimizers. The snapshot writer uses the counters to
    detect changes that were made outside of `Writer.changing_weights`.
    """

    def after_step(*_: object) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        momenta = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
        torch.autograd.graph.increment_version([*weights, *momenta])

    optimizer.register_step_post_hook(after_step)


def build_sgd(parameters: Iterable[Parameter], lr: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """Torch's fused SGD for all `parameters` in one group. As in published recipes, weight decay also applies to
    biases and norms.

    Momentum is set to zero here, which gives the same first step as torch's own initialisation (dampening 0). Torch
    would leave the momentum uninitialised if the very first step was skipped because its gradients were not finite.
    """
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True)
    start_momentum(optimizer)
    count_changes(optimizer)
    return optimizer


def build_adamw(
    parameters: Iterable[Parameter], lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """Torch's fused AdamW for all `parameters` in one group. Weight decay also applies to biases and norms.

    As in `build_sgd`, the averages and the number of steps are created here. So a snapshot can be copied into these
    tensors, and they remain zero if the first step is skipped. Source: Loshchilov and Hutter, ICLR 2019.
    """
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    count_changes(optimizer)
    return optimizer


def start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Set the momentum of every parameter to zero, if the optimizer uses momentum."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def clip_and_check(parameters: Iterable[Parameter], max_norm: float | None) -> tuple[Tensor, Tensor]:
    """Scale gradients in place so that their total 2-norm is at most `max_norm`, as torch's clip_grad_norm_ does.
    With `max_norm` None, gradients stay as they are.

    Returns the total norm before clipping and whether it is finite, as scalars on the device; the host does not wait.
    Under DDP all ranks get the same results.
    """
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm, norm.isfinite()


def step_if(optimizer: torch.optim.Optimizer, ok: Tensor) -> None:
    """Step a fused optimizer if `ok`, a bool scalar on the device, is true. Otherwise change no weights or momentum.

    The optimizer's kernels read the flag on the device, so the host does not wait for it. Torch's optimizers read it
    from `found_inf`, which GradScaler also sets. Apex's optimizer reads it from the overflow buffer.
    """
    if hasattr(optimizer, "_dummy_overflow_buf"):
        optimizer._dummy_overflow_buf.copy_(~ok)  # type: ignore[attr-defined]
    optimizer.found_inf = (~ok).float()  # type: ignore[attr-defined]
    optimizer.step()


class BufferGuard:
    """Restores buffers that a forward pass has changed (BatchNorm statistics, prototypes) if gradients are not finite.

    Call `hold()` before the forward pass and `settle(ok)` after the gradients have been checked. The host does not wait
    for the device: `settle` multiplies the new and the old contents by 1 or 0 and adds the products. It computes on
    integer views of the buffers, because in floating point NaN times 0 is NaN.
    """

    def __init__(self, buffers: Iterable[Tensor]) -> None:
        integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        # For each integer type: the buffers of the network viewed as that type, and backups of these buffers.
        self._groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        # a buffer that has two names counts once
        for buffer in {buffer.data_ptr(): buffer for buffer in buffers}.values():
            bits = buffer.detach().view(integers[buffer.itemsize])
            live, backups = self._groups.setdefault(bits.dtype, ([], []))
            live.append(bits)
            backups.append(bits.clone())

    def hold(self) -> None:
        """Copy the present contents of the buffers to the backups."""
        for live, backups in self._groups.values():
            torch._foreach_copy_(backups, live)

    def settle(self, ok: Tensor) -> None:
        """If `ok`, a bool scalar on the device, is false, restore the contents that the buffers had at `hold`."""
        for integer, (live, backups) in self._groups.items():
            torch._foreach_mul_(live, ok.to(integer))
            torch._foreach_mul_(backups, (~ok).to(integer))
            torch._foreach_add_(live, backups)


def learning_rate(
    schedule: Schedule,
    epoch: int,
    step: int,
    steps_per_epoch: int,
    *,
    base_lr: float,
    num_epochs: int,
    eta_min: float = 0.0,
    warmup_epochs: int = 0,
    milestones: Sequence[int] = (),
) -> float:
    """Learning rate of step `step` (from 0) of epoch `epoch` (from 0). It does not depend on earlier steps.

    During warm-up, base_lr is multiplied by a factor that rises from 0.1 to 1 by the same amount at each epoch (for 5
    epochs: 0.1, 0.325, 0.55, 0.775, 1), as in mmengine's LinearLR(start_factor=0.1, by_epoch=True). Afterwards `cosine`
    lowers the rate from base_lr to eta_min over the remaining epochs, once per epoch; `cosine_per_step` lowers it at
    every step. `multistep` multiplies the rate by GAMMA at the start of each epoch in `milestones`. Source:
    docs/sources.md, "Schedules", "Staged recipe" and "Guide recipes".
    """
    if epoch < warmup_epochs:
        return base_lr * (0.1 + 0.9 * epoch / max(warmup_epochs - 1, 1))
    if schedule == "multistep":
        return base_lr * GAMMA ** sum(epoch >= milestone for milestone in milestones)
    if schedule == "constant":
        return base_lr
    epochs = epoch - warmup_epochs + (step / steps_per_epoch if schedule == "cosine_per_step" else 0)
    return eta_min + (base_lr - eta_min) * (1 + math.cos(math.pi * epochs / (num_epochs - warmup_epochs))) / 2


@dataclass(kw_only=True, slots=True)
class EarlyStopping:
    """Decides when to end training: after `patience` validations in a row that did not reach best + min_delta.

    This is MMEngine's rule, except that a score of NaN counts as no improvement (docs/sources.md, "Schedules").
    """

    patience: int
    min_delta: float = 0.0
    best: float = -math.inf
    waited: int = 0

    @property
    def due(self) -> bool:
        """Whether training should end now."""
        return self.waited >= self.patience

    def update(self, score: float) -> None:
        """Count one more validation, which had this score."""
        if score >= self.best + self.min_delta:
            self.best = score
            self.waited = 0
        else:
            self.waited += 1

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `best` and `waited`. `patience` and `min_delta` keep the values of the present experiment."""
        self.best, self.waited = state["best"], state["waited"]


class Ema:
    """Exponential moving averages (EMA) of a network's weights and float buffers, in a copy of the network.

    The averages start at the current weights. After each step, the difference between an average and its weight is
    multiplied by `decay`. Source: Polyak and Juditsky 1992.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        self._step = 1 - decay

    def networks(self) -> list[nn.Module]:
        """A list with the network of averages (`NoEma` returns an empty list)."""
        return [self.network]

    def tensors(self) -> list[Tensor]:
        """The averages as a list, first those of the weights, then those of the float buffers."""
        return _floating(self.network)

    @torch.no_grad()
    def update(self, live: nn.Module) -> None:
        torch._foreach_lerp_(self.tensors(), [tensor.detach() for tensor in _floating(live)], self._step)

    def measured(self, live: nn.Module, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Call `measure` while `live` computes with the averages. Returns the metrics of `measure`, named ema/NAME."""
        with self.in_place_of(live):
            return {f"ema/{name}": value for name, value in measure().items()}

    @contextmanager
    @torch.no_grad()
    def in_place_of(self, live: nn.Module) -> Iterator[None]:
        """A context in which the network `live` contains the averages.

        When the context ends, even after an error, the network's own weights are restored.
        """
        weights = [tensor.detach() for tensor in _floating(live)]
        backup = [tensor.clone() for tensor in weights]
        torch._foreach_copy_(weights, self.tensors())
        try:
            yield
        finally:
            torch._foreach_copy_(weights, backup)

    def state_dict(self) -> dict[str, Tensor]:
        return self.network.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.network.load_state_dict(state)


class NoEma:
    """Stands in for `Ema` in a run without moving averages (optim.ema=None)."""

    def networks(self) -> list[nn.Module]:
        return []

    def tensors(self) -> list[Tensor]:
        return []

    def update(self, live: nn.Module) -> None:
        """Do nothing, because there are no averages."""

    def measured(self, live: nn.Module, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        return {}

    def state_dict(self) -> None:
        """Return None, which snapshots contain in place of averages."""
        return None

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Ignore the averages of a snapshot."""


def _floating(network: nn.Module) -> list[Tensor]:
    return [tensor for tensor in (*network.parameters(), *network.buffers()) if tensor.is_floating_point()]
