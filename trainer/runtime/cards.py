"""What the GPUs of this machine can do, according to their compute capability."""

import re
from collections.abc import Iterable

import torch

from kernels.program import UserError

FIRST_WITH_BF16 = 8  # major number of Ampere's compute capability


def card_name(index: int) -> str:
    """The name of a GPU with its architecture, such as Tesla T4 (sm_75)."""
    major, minor = torch.cuda.get_device_capability(index)
    return f"{torch.cuda.get_device_name(index)} (sm_{major}{minor})"


def computes_in_bf16(index: int) -> bool:
    """Whether a GPU computes in bf16. On other GPUs torch emulates bf16, and torch.compile refuses it."""
    return torch.cuda.get_device_capability(index)[0] >= FIRST_WITH_BF16


def why_no_code(index: int) -> tuple[str, str] | None:
    """Why the installed torch cannot run on a GPU, and what the user can do about it. None if torch can run on it."""
    capability = torch.cuda.get_device_capability(index)
    targets = parsed(torch.cuda.get_arch_list())
    if not targets or has_code(targets, capability):
        return None
    is_old = capability < min(target[1:] for target in targets)
    problem = f"torch {torch.__version__} has no code for {card_name(index)}, which is too {'old' if is_old else 'new'}"
    cuda, way_out = "12" if is_old else "13", "choose another GPU with CUDA_VISIBLE_DEVICES"
    if not (torch.version.cuda or "").startswith(cuda):
        way_out = f"run make CUDA=cu{cuda}, or {way_out}"
    return problem, way_out


def parsed(architectures: Iterable[str]) -> list[tuple[str, int, int]]:
    """Parse names from torch.cuda.get_arch_list: sm_120 becomes ("sm", 12, 0). Names of AMD's GPUs are left out."""
    matches = [re.match(r"(sm|compute)_(\d+)(\d)", name) for name in architectures]
    return [(match[1], int(match[2]), int(match[3])) for match in matches if match]


def has_code(targets: Iterable[tuple[str, int, int]], capability: tuple[int, int]) -> bool:
    """Whether code for one of `targets` runs on a GPU of this compute capability.

    Code for an sm target is machine code, which also runs on later GPUs with the same major number. Code for a compute
    target is assembly code, which the driver can translate for every later GPU.
    """
    return any(
        tuple(version) <= capability and (kind == "compute" or version[0] == capability[0])
        for kind, *version in targets
    )


def check_cards(precision: str, device: str, num_ranks: int) -> None:
    """Raise UserError if a GPU of the `num_ranks` processes cannot run torch or cannot compute in `precision`."""
    for index in range(min(num_ranks, torch.cuda.device_count()) if device == "cuda" else 0):
        reason = why_no_code(index)
        if reason is not None:
            problem, way_out = reason
            raise UserError(f"{problem}: {way_out}, or use --device cpu")
        if precision == "bf16" and not computes_in_bf16(index):
            raise UserError(
                f"optim.precision=bf16: {card_name(index)} has no bf16; set optim.precision=auto, which then uses fp16"
            )
