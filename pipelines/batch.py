"""Batch: the tensors that the pipelines pass to the trainer at each step."""

from dataclasses import dataclass, fields

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """N clips on the device.

    rgb: [N, T, H, W, 3] uint8, or None if the network reads no frames.
    heatmap: [N, T', C, H', W'], a view of channels-last memory, or None if the network reads no skeletons.
    label, coarse_label: [N] int64.
    index: [N] int64, the row of each clip in the annotation table.
    valid: [N] bool. It is False for the copies that fill up the last batch in evaluation.
    """

    rgb: Tensor | None
    heatmap: Tensor | None
    label: Tensor
    coarse_label: Tensor
    index: Tensor
    valid: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by field, without the input of a stream that the network does not read."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in columns.items() if tensor is not None}
