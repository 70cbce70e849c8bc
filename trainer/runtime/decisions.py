"""The decisions of the first look at a run's device (trainer/runtime/first_look.py). Snapshots contain them."""

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Decisions:
    """How a run computes on its device. None means that nothing has been decided.

    network: the name of a `Way` (trainer/runtime/forward.py), in lower case. cudnn_benchmark: whether cuDNN times its
    algorithms for each convolution. renderer, decoder and hw_decoder_load: the fields of `Backends` with these names
    (pipelines/backends.py). kernels_failed: whether the kernels of the setting `fused` have failed.
    """

    network: str | None = None
    cudnn_benchmark: bool | None = None
    renderer: str | None = None
    decoder: str | None = None
    hw_decoder_load: float | None = None
    kernels_failed: bool | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Decisions":
        return cls(**json.loads(text))
