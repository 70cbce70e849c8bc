"""The network as training and validation call it, and slower ways to compute it if the fastest way fails."""

import contextlib
import traceback
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path

import torch
from torch import Tensor, nn

from kernels.program import UserError
from models.fused import unfuse
from models.heads import Output
from trainer.runtime.faults import first_line, is_from_compiler, is_from_cudnn, is_out_of_memory
from trainer.runtime.ranks import Ranks


class Way(IntEnum):
    """The ways to compute a network, fastest first."""

    COMPILED = 0
    DIRECT = 1
    # without cuDNN and uncompiled, because compiled code expects the memory layout of cuDNN's results
    WITHOUT_CUDNN = 2


LINES = {
    Way.DIRECT: "torch.compile failed ({reason}), so {what} runs uncompiled and slower",
    Way.WITHOUT_CUDNN: "cuDNN cannot compute a convolution ({reason}), so {what} runs uncompiled and without cuDNN, "
    "much slower (if the GPU's memory is nearly full, try optim.accumulate=2 instead)",
}


class Forward(nn.Module):
    """Calls `compiled`, or `network` itself. Both have the same weights. `way` is the way that is used first.

    If a call without gradients fails, or if compiling fails, the call is repeated in a slower way. Other failed calls
    with gradients may have changed buffers, so their callers have to undo the step and call `fall_back`
    (trainer/step.py). Before the network changes to another `Way`, it stops using the kernels of the setting `fused`.
    `say` gets one line for each fall-back, and the full text of the exception is appended to the file `report`.
    """

    def __init__(
        self, network: nn.Module, compiled: Callable[..., Output], way: Way, say: Callable[[str], None], report: Path
    ) -> None:
        super().__init__()
        self.network = network
        self._compiled = [compiled]  # in a list, so that torch does not register the weights a second time
        self._ways = {True: way, False: way}  # the ways in training mode (True) and in evaluation mode (False)
        self._say, self._report = say, report
        self.kernels_failed = False  # whether the kernels of the setting `fused` have failed

    @property
    def way(self) -> Way:
        """The way that is used in the network's present mode, which is training or evaluation."""
        return self._ways[self.network.training]

    @property
    def way_of_training(self) -> Way:
        return self._ways[True]

    def forward(self, *inputs: Tensor) -> Output:
        while True:
            try:
                return self._call(*inputs)
            except Exception as error:
                if torch.is_grad_enabled() and not is_from_compiler(error):
                    raise
                self.fall_back(error)

    def _call(self, *inputs: Tensor) -> Output:
        if self.way is Way.COMPILED:
            return self._compiled[0](*inputs)
        if self.way is Way.DIRECT:
            return self.network(*inputs)
        with torch.backends.cudnn.flags(enabled=False):
            return self.network(*inputs)

    def fall_back(self, error: Exception) -> None:
        """After a call that failed with `error`: choose a slower way, and say so. Raises `error` if no way is slower.

        Also raises `error` if it means too little memory, for which trainer/memory.py has advice, or if it is an error
        of CUDA, after which a process can no longer use the GPU.
        """
        if isinstance(error, UserError | torch.AcceleratorError) or is_out_of_memory(error):
            raise error
        if is_from_cudnn(error) and torch.backends.cudnn.benchmark:
            torch.backends.cudnn.benchmark = False
            self._say(f"cuDNN's benchmark mode is off, because it failed ({first_line(error)})")
            return
        where = f"; the full text is in {self._report}"
        if self.network.training and not is_from_cudnn(error) and self.leave_kernels(first_line(error), where):
            self._write_report(error)
            return
        way = Way.WITHOUT_CUDNN if is_from_cudnn(error) else Way.DIRECT
        if way <= self.way:
            raise error
        self._write_report(error)
        self.use(way, first_line(error), where)

    def _write_report(self, error: Exception) -> None:
        with contextlib.suppress(OSError), open(self._report, "a", encoding="utf-8") as file:
            file.write("".join(traceback.format_exception(error)) + "\n")

    def agree(self, ranks: Ranks) -> None:
        """Use the slowest way that any rank uses. All ranks call this together."""
        reason = "on another rank, whose file fallbacks_rank*.txt contains the full text"
        if ranks.any(self.kernels_failed):
            self.leave_kernels(reason)
        self.use(Way(ranks.largest(self.way)), reason)

    def leave_kernels(self, reason: str, where: str = "") -> bool:
        """Compute all parts of the network by plain torch. Returns whether some of them ran through our kernels."""
        if not unfuse(self.network):
            return False
        self.kernels_failed = True
        self._say(f"the kernels of the setting `fused` failed ({reason}), so plain torch computes these parts{where}")
        return True

    def use(self, way: Way, reason: str, where: str = "") -> None:
        """Run the network in this way from now on, unless a slower way is in use already.

        In evaluation mode, this does not change how training steps run.
        """
        if way <= self.way:
            return
        training = self.network.training
        self._ways = {True: way if training else self._ways[True], False: max(way, self._ways[False])}
        if training and way is Way.WITHOUT_CUDNN:
            # set here because the backward pass, which runs outside of `_call`, needs it too
            torch.backends.cudnn.enabled = False
        what = "the network" if training else "validation"
        self._say(LINES[way].format(reason=reason, what=what) + where)
