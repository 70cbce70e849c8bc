"""The memory and the load of the GPU, as the driver's library NVML reports them.

torch asks NVML through the package nvidia-ml-py. NVML answers without waiting for the GPU's work.
"""

import time
from functools import lru_cache

import torch


def card_use() -> list[str]:
    """Two facts about the current GPU: "GPU memory 31.2 of 139.8 GB" and "GPU load 97%".

    Without a GPU the list is empty. NVML is asked once a second at most. A fact that NVML does not know is left out,
    such as the load of a part of a card.
    """
    return _measured(int(time.monotonic())) if torch.cuda.is_initialized() else []


@lru_cache(maxsize=1)
def _measured(_second: int) -> list[str]:
    facts = []
    for measure in (_memory, _load):
        try:
            facts.append(measure())
        except Exception:  # whatever NVML and torch raise: a number that is missing on the display must not end a run
            continue
    return facts


def _memory() -> str:
    used, total = torch.cuda.device_memory_used(), torch.cuda.get_device_properties().total_memory
    return f"GPU memory {used / 1e9:.1f} of {total / 1e9:.1f} GB"


def _load() -> str:
    return f"GPU load {torch.cuda.utilization()}%"
