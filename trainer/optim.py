"""Optimizer, learning rate, clipping, moving average of the weights (EMA), precision and loss scale."""

import copy
import importlib.util
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from kernels.program import UserError
from trainer.config import Impl, Precision, Schedule

GAMMA = 0.1  # of the multistep schedule


def build_optimizer(
    impl: Impl, parameters: Iterable[Parameter], lr: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """SGD of torch or of NVIDIA's apex, the same update. `auto` is torch until a committed record shows apex faster.

    Raises UserError where apex's compiled extension is not there.
    """
    if impl != "apex":
        return build_sgd(parameters, lr, momentum, weight_decay)
    if importlib.util.find_spec("amp_C") is None:
        raise UserError("optim.impl=apex, but apex's extension amp_C is not built: see README or set optim.impl=torch")
    from apex.optimizers import FusedSGD  # type: ignore[import-not-found]

    optimizer = FusedSGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay)
    start_momentum(optimizer)
    count_changes(optimizer)
    return optimizer


def count_changes(optimizer: torch.optim.Optimizer) -> None:
    """Make each step of `optimizer` count as a change of its weights and momenta (`Tensor._version`).

    Torch counts every other change in place, but not those of its fused optimizers. The snapshot writer needs the
    count to notice a change that it was not asked about.
    """

    def after_step(*_: object) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        momenta = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
        torch.autograd.graph.increment_version([*weights, *momenta])

    optimizer.register_step_post_hook(after_step)


def build_sgd(parameters: Iterable[Parameter], lr: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """Torch's fused SGD over all `parameters` in one group, biases and norms decayed too, as published.

    Momentum starts as zeros, which gives torch's own first step (dampening 0); left to torch it would be
    uninitialised memory whenever the very first step is skipped.
    """
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True)
    start_momentum(optimizer)
    count_changes(optimizer)
    return optimizer


def start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Zero momentum for every parameter, where the optimizer has momentum."""
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
    """Scale gradients in place so that their total 2-norm is at most `max_norm` (None: leave them).

    Returns the total norm before clipping and whether it is finite, scalars on the device: nothing waits for it.
    Same rule as torch.nn.utils.clip_grad_norm_. Under DDP every rank sees the same norm, so the same verdict.
    """
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm, norm.isfinite()


def step_if(optimizer: torch.optim.Optimizer, ok: Tensor) -> None:
    """Step a fused optimizer where `ok` (bool scalar on the device), else leave weights and momentum bit-identical.

    The kernel reads the verdict itself (torch: GradScaler's found_inf protocol; apex: its overflow flag, whose kernels
    return at once where it is set), so the host does not wait.
    """
    if hasattr(optimizer, "_dummy_overflow_buf"):
        optimizer._dummy_overflow_buf.copy_(~ok)  # type: ignore[attr-defined]
    optimizer.found_inf = (~ok).float()  # type: ignore[attr-defined]
    optimizer.step()


class BufferGuard:
    """Puts buffers that a forward pass has changed (BatchNorm statistics, prototypes) back after a bad step.

    `hold()` before the forward pass, `settle(ok)` after the verdict; neither waits for the device. Contents are
    chosen as integers of the same width: a float product would keep NaN alive.
    """

    def __init__(self, buffers: Iterable[Tensor]) -> None:
        integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        self._groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}  # integer type -> live, held
        for buffer in {buffer.data_ptr(): buffer for buffer in buffers}.values():  # once each, also under two names
            bits = buffer.detach().view(integers[buffer.itemsize])
            live, held = self._groups.setdefault(bits.dtype, ([], []))
            live.append(bits)
            held.append(bits.clone())

    def hold(self) -> None:
        for live, held in self._groups.values():
            torch._foreach_copy_(held, live)

    def settle(self, ok: Tensor) -> None:
        """Keep the new contents where `ok` (bool scalar on the device), else bring the held ones back."""
        for integer, (live, held) in self._groups.items():
            torch._foreach_mul_(live, ok.to(integer))
            torch._foreach_mul_(held, (~ok).to(integer))
            torch._foreach_add_(live, held)


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
    """Learning rate of step `step` (from 0) of epoch `epoch` (from 0); depends on nothing before it.

    Warm-up: factors from .1 to 1 in equal steps, epoch by epoch (5 epochs: .1 .325 .55 .775 1), which is
    mmengine's LinearLR(start_factor=.1, by_epoch). Then `cosine` falls per epoch from base_lr to eta_min over the
    epochs left, and `cosine_per_step` per step; `multistep` multiplies by GAMMA at each milestone (an epoch).
    Source: docs/sources.md, "Schedules", "Staged recipe" and "Guide recipes".
    """
    if epoch < warmup_epochs:
        return base_lr * (0.1 + 0.9 * epoch / max(warmup_epochs - 1, 1))
    if schedule == "multistep":
        return base_lr * GAMMA ** sum(epoch >= milestone for milestone in milestones)
    if schedule == "constant":
        return base_lr
    done = epoch - warmup_epochs + (step / steps_per_epoch if schedule == "cosine_per_step" else 0)
    return eta_min + (base_lr - eta_min) * (1 + math.cos(math.pi * done / (num_epochs - warmup_epochs))) / 2


@dataclass(kw_only=True, slots=True)
class EarlyStopping:
    """Stops after `patience` validations in a row that did not reach best + min_delta.

    This is MMEngine's rule, except that a score that is not a number counts as no improvement (docs/sources.md,
    "Schedules"). `state_dict` goes into the snapshot.
    """

    patience: int
    min_delta: float = 0.0
    best: float = -math.inf
    waited: int = 0

    @property
    def due(self) -> bool:
        """Whether it is time to stop."""
        return self.waited >= self.patience

    def update(self, score: float) -> None:
        """Count one validation."""
        if score >= self.best + self.min_delta:
            self.best = score
            self.waited = 0
        else:
            self.waited += 1

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the count; patience and min_delta stay those of this run's experiment."""
        self.best, self.waited = state["best"], state["waited"]


class Averages:
    """`network` holds moving averages of a network's weights and float buffers, which start as their present values.

    After each step every average moves by 1 - `decay` of the way to the weight. Source: Polyak and Juditsky 1992.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        self._step = 1 - decay

    def networks(self) -> list[nn.Module]:
        """The network of the averages, in a list as `NoAverages` has none."""
        return [self.network]

    def tensors(self) -> list[Tensor]:
        """The averages themselves."""
        return _floating(self.network)

    @torch.no_grad()
    def update(self, live: nn.Module) -> None:
        torch._foreach_lerp_(self.tensors(), [tensor.detach() for tensor in _floating(live)], self._step)

    def measured(self, live: nn.Module, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        """What `measure` returns while `live` computes with the averages, each name as ema/NAME."""
        with self.in_place_of(live):
            return {f"ema/{name}": value for name, value in measure().items()}

    @contextmanager
    @torch.no_grad()
    def in_place_of(self, live: nn.Module) -> Iterator[None]:
        """Within, `live` computes with the averages; its own weights come back at the end, whatever happens."""
        own = [tensor.detach() for tensor in _floating(live)]
        backup = [tensor.clone() for tensor in own]
        torch._foreach_copy_(own, self.tensors())
        try:
            yield
        finally:
            torch._foreach_copy_(own, backup)

    def state_dict(self) -> dict[str, Tensor]:
        return self.network.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.network.load_state_dict(state)


class NoAverages:
    """Stands in for `Averages` in a run without moving averages (optim.ema=None)."""

    def networks(self) -> list[nn.Module]:
        return []

    def tensors(self) -> list[Tensor]:
        return []

    def update(self, live: nn.Module) -> None:
        """Nothing to update."""

    def measured(self, live: nn.Module, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        return {}

    def state_dict(self) -> None:
        """What a snapshot holds where there are no averages."""
        return None

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The averages of a snapshot are not used."""


def _floating(network: nn.Module) -> list[Tensor]:
    return [tensor for tensor in (*network.parameters(), *network.buffers()) if tensor.is_floating_point()]


def autocast_of(wanted: Precision, device: torch.device) -> Callable[[], AbstractContextManager]:
    """A factory of the context in which forward passes run.

    auto: bf16 where the device computes in it; float32 on CPUs, most of which only emulate bf16, and on GPUs older
    than that, where fp16 is the user's to choose.
    """
    if wanted == "auto":
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        wanted = "bf16" if native else "fp32"
    if wanted == "fp32":
        return nullcontext
    return lambda: torch.autocast(device.type, torch.bfloat16 if wanted == "bf16" else torch.float16)


class LossScale:
    """Scales losses so that fp16 gradients do not vanish: halved by a step that overflows, doubled by 2000 good ones.

    The rule of torch.amp.GradScaler; the verdict is given, not looked for, so that nothing waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._scale = torch.full((), 65536.0, device=device)
        self._good = torch.zeros((), dtype=torch.int32, device=device)

    def scale(self, loss: Tensor) -> Tensor:
        return loss * self._scale

    def unscale(self, parameters: Iterable[Parameter]) -> None:
        """Divide the gradients of `parameters` by the scale, in place."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._foreach_mul_(gradients, self._scale.reciprocal())

    def settle(self, ok: Tensor) -> None:
        """Count a step whose gradients were finite or (`ok` False, a scalar on the device) were not."""
        torch._amp_update_scale_(self._scale, self._good, (~ok).float(), 2.0, 0.5, 2000)

    def state_dict(self) -> dict[str, Tensor]:
        return {"scale": self._scale, "good": self._good}

    def load_state_dict(self, state: dict[str, Tensor] | None) -> None:
        """Take up the scale of a snapshot; after a run without one (None) it starts afresh."""
        if state is not None:
            self._scale.copy_(state["scale"])
            self._good.copy_(state["good"])


class NoLossScale:
    """Stands in for `LossScale` where gradients do not vanish: in bf16 and float32."""

    def scale(self, loss: Tensor) -> Tensor:
        return loss

    def unscale(self, parameters: Iterable[Parameter]) -> None:
        """The gradients are not scaled."""

    def settle(self, ok: Tensor) -> None:
        """There is no scale to change."""

    def state_dict(self) -> None:
        """What a snapshot holds where there is no scale."""
        return None

    def load_state_dict(self, state: dict[str, Tensor] | None) -> None:
        """The scale of a snapshot is not used."""
