"""The memory and the load of the GPU, as the driver's library NVML reports them.

torch asks NVML through the package nvidia-ml-py. NVML answers without waiting for the GPU's work.
"""

import time
from functools import lru_cache

import torch


def card_use() -> list[str]:
    """The use of the current GPU as a text in a list: "GPU memory 31.2 of 139.8 GB, load 97%".

    Without a GPU the list is empty. NVML is asked once a second at most. A number that NVML does not know is left out,
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
    return [f"GPU {', '.join(facts)}"] if facts else []


def _memory() -> str:
    used, total = torch.cuda.device_memory_used(), torch.cuda.get_device_properties().total_memory
    return f"memory {used / 1e9:.1f} of {total / 1e9:.1f} GB"


def _load() -> str:
    return f"load {torch.cuda.utilization()}%"
