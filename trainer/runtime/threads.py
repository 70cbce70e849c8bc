"""The number of threads with which torch computes on the CPU, if the experiment sets it."""

import torch

from kernels.program import UserError
from trainer.config import Experiment


def use_threads(experiment: Experiment) -> None:
    """Make torch use the experiment's `threads` and `interop_threads`; None leaves a number as it is.

    Raises UserError if it is too late to change the threads for independent operators.
    """
    if experiment.threads is not None:
        torch.set_num_threads(experiment.threads)
    wanted = experiment.interop_threads
    if wanted is None or wanted == torch.get_num_interop_threads():
        return
    try:
        torch.set_num_interop_threads(wanted)
    except RuntimeError:  # torch allows one change, before the first operator that uses these threads
        raise UserError(
            f"interop_threads={wanted} cannot take effect, because this process has already used "
            f"{torch.get_num_interop_threads()} of these threads: leave this setting out, or use a new process"
        ) from None
