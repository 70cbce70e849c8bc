"""Batch: the tensors that the pipelines pass to the trainer at each step."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """N clips on the device.

    rgb: [N, T, H, W, 3] uint8.
    heatmap: [N, T', C, H', W'], a view of channels-last memory.
    label, coarse_label: [N] int64.
    index: [N] int64, the row of each clip in the annotation table.
    valid: [N] bool. In evaluation, False marks the copies that fill up the last batch.
    """

    rgb: Tensor
    heatmap: Tensor
    label: Tensor
    coarse_label: Tensor
    index: Tensor
    valid: Tensor
