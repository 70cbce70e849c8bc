"""The number formats in which a step computes; the weights are always float32."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["auto", "bf16", "fp16", "fp32"]


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

    def unscale(self, gradients: list[Tensor]) -> None:
        torch._foreach_mul_(gradients, self._scale.reciprocal())

    def settle(self, ok: Tensor) -> None:
        """Count a step whose gradients were finite or (`ok` False, a scalar on the device) were not."""
        torch._amp_update_scale_(self._scale, self._good, (~ok).float(), 2.0, 0.5, 2000)

    def state_dict(self) -> dict[str, Tensor]:
        return {"scale": self._scale, "good": self._good}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._scale.copy_(state["scale"])
        self._good.copy_(state["good"])
