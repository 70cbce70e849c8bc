"""What decodes frames and what draws heatmaps: a GPU's own ways at first, and slower ones after these have failed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass
class Backends:
    """The decoder and the renderer in use. All loaders of a run share one object, so each failure is reported once.

    decoder: `mixed` decodes JPEG packets with the GPU's JPEG engine; `cpu` decodes them with libjpeg-turbo and copies
        the frames to the device. Frames of data.source=video are always decoded by the device.
    renderer: `kernel` draws heatmaps with Triton, and `reference` with plain torch.
    decoder_reason, renderer_reason: why the slower way was chosen, or empty.
    hw_decoder_load: share of the frames that `mixed` gives to the JPEG engine. CUDA kernels decode the others.
    """

    decoder: Literal["mixed", "cpu"]
    renderer: Literal["kernel", "reference"]
    say: Callable[[str], None]
    decoder_reason: str = ""
    renderer_reason: str = ""
    hw_decoder_load: float = 0.75

    @classmethod
    def fastest(cls, device: torch.device, say: Callable[[str], None]) -> "Backends":
        """The choice with which loaders on this device begin."""
        return cls("mixed", "kernel", say) if device.type == "cuda" else cls("cpu", "reference", say)

    def decode_on_cpu(self, reason: str) -> None:
        self.decoder, self.decoder_reason = "cpu", reason
        self.say(f"the GPU cannot decode JPEG frames ({reason}), so the CPU decodes them, which is slower")

    def draw_by_reference(self, reason: str) -> None:
        self.renderer, self.renderer_reason = "reference", reason
        self.say(f"the heatmap kernel cannot be used ({reason}), so plain torch draws the heatmaps, which is slower")
