"""Records which decoder, heatmap renderer and augmentation code are in use.

On a GPU, loaders begin with the fastest ones, and change to a slower one after a failure.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass
class Backends:
    """The decoder, the heatmap renderer and the augmentation code that are in use.

    All loaders of a run share one object, so each failure is reported once.

    decoder: `mixed` decodes JPEG packets with the GPU's JPEG engine; `cpu` decodes them with libjpeg-turbo and copies
        the frames to the device. With data.source=video, `mixed` means the GPU's video engine, and `cpu` means PyAV.
    renderer: `kernel` draws heatmaps with Triton, and `reference` with plain torch.
    compiles: whether the augmentation of frames is compiled to a single kernel. If not, the same operations run one
        after the other, with the same results.
    decoder_reason: why the slower decoder was chosen; empty if it was not.
    hw_decoder_load: share of the frames that `mixed` gives to the JPEG engine. CUDA kernels decode the other frames.
    """

    decoder: Literal["mixed", "cpu"]
    renderer: Literal["kernel", "reference"]
    say: Callable[[str], None]
    decoder_reason: str = ""
    hw_decoder_load: float = 0.75
    compiles: bool = False

    @classmethod
    def fastest(cls, device: torch.device, say: Callable[[str], None]) -> "Backends":
        """The fastest choices for the device, with which loaders begin."""
        return cls("mixed", "kernel", say, compiles=True) if device.type == "cuda" else cls("cpu", "reference", say)

    def decode_on_cpu(self, reason: str) -> None:
        self.decoder, self.decoder_reason = "cpu", reason
        self.say(f"the GPU cannot decode JPEG frames ({reason}), so the CPU decodes them, which is slower")

    def decode_videos_on_cpu(self, reason: str) -> None:
        self.decoder, self.decoder_reason = "cpu", reason
        self.say(
            f"the GPU cannot decode the videos ({reason}), so the CPU decodes them, which is much slower than training "
            "from packs (without data.source=video)"
        )

    def draw_by_reference(self, reason: str) -> None:
        self.renderer = "reference"
        self.say(f"the heatmap kernel cannot be used ({reason}), so plain torch draws the heatmaps, which is slower")

    def change_frames_uncompiled(self, reason: str) -> None:
        self.compiles = False
        self.say(
            f"the augmentation of frames cannot be compiled ({reason}), so it takes several kernels, which is slower"
        )
