"""Lists the calls of our kernels that an experiment makes, by running its network on the meta device.

Each kernel has a module here with a class for its calls. The fields of the class are the sizes and options of a call,
and its method `find` lists the calls that a network makes. To add a kernel, write such a module and add its class to
CALLS.
"""

from collections import Counter
from dataclasses import fields, replace
from typing import Any, ClassVar, Protocol

import torch

from benchmarks.kernels.launches.conv_bn import ConvBnCall
from benchmarks.kernels.launches.depthwise import DepthwiseCall
from benchmarks.kernels.launches.heatmap import HeatmapCall
from benchmarks.kernels.launches.moments import MomentsCall
from benchmarks.kernels.launches.norm_act import NormActCall
from benchmarks.kernels.launches.residual_conv import ResidualConvCall
from benchmarks.kernels.launches.seen import CLIPS, Seen, noted
from benchmarks.kernels.launches.shift_conv import ShiftConvCall
from benchmarks.synthetic import random_batch
from models.config import FusedPart
from models.fused import PARTS, fuse
from models.networks import build_model
from trainer.config import Experiment
from trainer.experiments import MA52_RUN, NTU60, NTU60_X3D

WITH_LIMBS = replace(NTU60_X3D, name="ntu60_x3d_limbs", clip=replace(NTU60_X3D.clip, limbs=True))
LISTED = (NTU60_X3D, NTU60, MA52_RUN, WITH_LIMBS)
"""Experiments whose launches are all compiled ahead of time."""


class Call(Protocol):
    """One call of a function that launches kernels. Equal calls launch the same kernels on tensors of equal sizes."""

    kernel: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def clips(self) -> int: ...

    def toy(self) -> "Call":
        """Return the same call with few pixels and one clip, for Triton's interpreter."""
        ...

    def plain(self) -> None:
        """Compute what the call computes, but with torch's own operators on the meta device, forward and backward."""
        ...

    def run(self) -> None:
        """Make the call with uninitialised tensors on the CPU, forward and, for blocks, backward."""
        ...


CALLS = (HeatmapCall, ShiftConvCall, DepthwiseCall, NormActCall, MomentsCall, ConvBnCall, ResidualConvCall)


def calls_of(experiment: Experiment, train: bool, parts: tuple[FusedPart, ...] = PARTS) -> Counter[Call]:
    """Count how often each call is made in a training step or, without `train`, in a validation batch.

    `parts` are the parts of the network that run through kernels.
    """
    clip, model = experiment.clip, experiment.model
    lengths = dict(zip(("rgb_size", "heatmap_size"), clip.sizes(train), strict=True))
    few = replace(experiment, clip=replace(clip, **lengths), optim=replace(experiment.optim, batch_size=CLIPS))
    with torch.device("meta"):
        network = build_model(replace(model, pcan=None) if hasattr(model, "pcan") else model)
    fuse(network, parts)
    batch = [tensor.to("meta") for tensor in random_batch(few, torch.device("cpu"))]
    with noted() as made:
        network.train(train)(*batch)
    clips = experiment.optim.batch_size if train else experiment.val.batch_size
    seen = Seen(experiment=few, calls=made, clips=clips, train=train)
    calls: Counter[Call] = Counter()
    for kind in CALLS:
        calls.update(kind.find(seen))
    return calls


def describe(call: Call) -> str:
    """Describe a call by its fields, on one line."""
    values = {field.name: getattr(call, field.name) for field in fields(call)}
    return " ".join(f"{name}={value}" for name, value in values.items() if isinstance(value, int | float | str))
