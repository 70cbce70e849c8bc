"""The number format in which a run computes. It is decided here once for the network, the heatmaps and the kernels."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from models.config import FusedPart
from trainer.config import PrecisionSetting
from trainer.runtime.cards import card_name, computes_in_bf16
from trainer.runtime.ranks import Ranks

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, slots=True)
class Precision:
    """A number format and the device that computes in it.

    Calling the object returns a new context for a forward pass. Weights and losses are float32 in every format.
    `reason` is a sentence for the user that says why `auto` did not choose bf16 on a GPU; otherwise it is empty.
    """

    name: Literal["bf16", "fp16", "fp32"]
    device: torch.device
    reason: str = ""

    @property
    def dtype(self) -> torch.dtype:
        """The type of activations, and of the heatmaps that the loader draws."""
        return TYPES[self.name]

    def __call__(self) -> AbstractContextManager:
        return nullcontext() if self.name == "fp32" else torch.autocast(self.device.type, self.dtype)

    def runnable(self, parts: tuple[FusedPart, ...]) -> tuple[FusedPart, ...]:
        """The `parts` whose kernels compute in this format: none on a GPU unless the format is bf16, otherwise all."""
        return parts if self.name == "bf16" or self.device.type != "cuda" else ()

    def loss_scale(self) -> "LossScale | NoLossScale":
        """A new LossScale for fp16, or a NoLossScale for the other formats, which need none."""
        return LossScale(self.device) if self.name == "fp16" else NoLossScale()


def precision_of(setting: PrecisionSetting, ranks: Ranks) -> Precision:
    """The precision of a run with this `optim.precision`. All ranks call this together and get the same answer.

    `auto` means bf16 if every rank's GPU computes in it, and otherwise fp16 with a scaled loss. On a CPU `auto` means
    float32, because most CPUs only emulate bf16 and fp16.
    """
    device = ranks.device
    if setting != "auto":
        return Precision(setting, device)
    if device.type != "cuda":
        return Precision("fp32", device)
    index = device.index or 0
    lacks_bf16 = not computes_in_bf16(index)
    if not ranks.any(lacks_bf16):
        return Precision("bf16", device)
    card = card_name(index) if lacks_bf16 else "the GPU of another rank"
    return Precision("fp16", device, f"{card} has no bf16, so the run computes in fp16 and scales its loss")


class LossScale:
    """Scales the loss so that fp16 gradients do not become zero.

    The scale is halved after a step with an overflow, and doubled after 2000 steps in a row without an overflow, as in
    torch.amp.GradScaler. Unlike GradScaler, this class does not check the gradients: the caller checks them and passes
    the result to `settle` as a tensor, so the host does not wait for the device.
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
        """Adapt the scale after a step. `ok`, a bool scalar on the device, says whether its gradients were finite."""
        torch._amp_update_scale_(self._scale, self._good, (~ok).float(), 2.0, 0.5, 2000)

    def state_dict(self) -> dict[str, Tensor]:
        return {"scale": self._scale, "good": self._good}

    def load_state_dict(self, state: dict[str, Tensor] | None) -> None:
        """Restore the scale of a snapshot. If the snapshot has none (None), the scale keeps its initial value."""
        if state is not None:
            self._scale.copy_(state["scale"])
            self._good.copy_(state["good"])


class NoLossScale:
    """Stands in for `LossScale` in bf16 and float32, whose range is large enough for gradients."""

    def scale(self, loss: Tensor) -> Tensor:
        return loss

    def unscale(self, parameters: Iterable[Parameter]) -> None:
        """Do nothing, because the gradients are not scaled."""

    def settle(self, ok: Tensor) -> None:
        """Do nothing, because there is no scale."""

    def state_dict(self) -> None:
        """Return None, which snapshots contain in place of a scale."""
        return None

    def load_state_dict(self, state: dict[str, Tensor] | None) -> None:
        """Ignore the scale of a snapshot."""
