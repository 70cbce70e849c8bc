"""The GPUs of this machine that a run may use, and the GPU that belongs to this rank.

Each rank sees only its own GPU, as cuda:0. Torch stores compiled code under the number of the device, so each rank
would compile the network again if the ranks' devices had different numbers.
"""

import os

from trainer.runtime.srun import RUN_ID

VISIBLE = "CUDA_VISIBLE_DEVICES"
# This environment variable names all GPUs of the machine. In a rank, CUDA_VISIBLE_DEVICES names only the rank's own.
ALL = "DUET_CARDS"


def cards() -> list[str]:
    """The GPUs that a run may use on this machine, as CUDA_VISIBLE_DEVICES names them: 2, GPU-8f1c..., MIG-41aa...

    Does not initialise CUDA, which reads CUDA_VISIBLE_DEVICES only once. (Torch can count GPUs without initialising
    CUDA, but it does not count parts of GPUs, whose names begin with MIG.)
    """
    if ALL in os.environ:
        return [name for name in os.environ[ALL].split(",") if name]
    names = [name.strip() for name in os.environ[VISIBLE].split(",")] if VISIBLE in os.environ else None
    if names and names[0].startswith("MIG-"):
        return list(filter(None, names))
    import torch  # imported only here, because the entry point of the commands imports this file and must start quickly

    count = torch.cuda.device_count()
    return ([str(number) for number in range(count)] if names is None else names)[:count]


def see_own_card() -> None:
    """Hide the GPUs of other ranks from this rank. Must be called before anything uses CUDA."""
    machine, number = cards(), int(os.environ["LOCAL_RANK"])
    if len(machine) == 1 and os.environ["TORCHELASTIC_RUN_ID"].startswith(RUN_ID):
        # SLURM may show each task only the GPU that is bound to this task.
        machine *= int(os.environ["LOCAL_WORLD_SIZE"])
    os.environ[ALL] = ",".join(machine)
    if number < len(machine):  # if there are too few GPUs, world_size_of in num_ranks.py raises UserError
        os.environ[VISIBLE] = machine[number]


def idle_cards() -> list[str]:
    """The GPUs of this machine that the run leaves idle."""
    return cards()[int(os.environ.get("LOCAL_WORLD_SIZE", "1")) :]
