"""Batch: what pipelines hand to the trainer."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """N clips on the device.

    rgb [N, T, H, W, 3] uint8; heatmap [N, T', C, H', W'] viewed over channels-last memory; label, coarse_label and
    index [N] int64 (index: row of the annotation table); valid [N] bool, False for the padding of a last batch.
    """

    rgb: Tensor
    heatmap: Tensor
    label: Tensor
    coarse_label: Tensor
    index: Tensor
    valid: Tensor
