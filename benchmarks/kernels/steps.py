"""Lists the parts of the networks that our kernels can run, with their sizes, the heaviest first."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from benchmarks.step.step import random_batch
from kernels.blocks.conv_bn_reference import WIDEST
from models.config import FusedPart
from models.fused import fuse, materialise
from models.networks import build_model
from models.resnet_path import Bottleneck, Stage
from models.x3d_shift import X3DBlock
from trainer.config import Experiment

Block = X3DBlock | Bottleneck | Stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A part of a network to measure: a block, a stage, or the norm after the first convolution of a block.

    The network contains `times` parts of this kind and of equal sizes. `batch` is the number of clips.
    """

    experiment: str
    part: FusedPart
    block: Block
    shape: tuple[int, int, int]  # channels, height and width of the input
    num_frames: int
    batch: int
    times: int = 1

    @property
    def name(self) -> str:
        channels, height, width = self.shape
        squeezed = "_squeezed" if getattr(self.block, "se_module", None) is not None else ""
        widened = "_widened" if getattr(self.block, "downsample", None) is not None else ""
        ending = "" if self.part == "norm_act" else widened + squeezed
        return f"{self.experiment}_{self.part}_{self.num_frames}x{channels}x{height}x{width}{ending}"

    @property
    def weight(self) -> int:
        """Return the number of input elements per clip of all `times` parts together."""
        return self.times * self.num_frames * torch.Size(self.shape).numel()

    def make(self, device: torch.device, clips: int, *, fused: bool) -> tuple[Block, Tensor]:
        """Return a copy of the block, fused or plain, and an input for the copy.

        The norms of the copy get random weights and biases. The input is [F, C, H, W] in float32, with values that
        bfloat16 can represent. Only the first two blocks of a stage are copied: the second block computes the end of
        the first block, and `run` computes the end of the second block.
        """
        torch.manual_seed(0)
        block = copy.deepcopy(self.block)
        if isinstance(block, Stage):
            del block[2:]
        for module in block.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
        if fused:
            fuse(block, (self.part,))
        x = torch.randn(clips * self.num_frames, *self.shape, device=device).bfloat16().float()
        return block.to(device), x.contiguous(memory_format=torch.channels_last)

    def run(self, block: Block, x: Tensor) -> Tensor:
        """Run the step on x, with a block made by `make`."""
        if self.part != "norm_act":
            return materialise(block(x, self.num_frames))
        assert not isinstance(block, Stage)
        assert block.conv1.bn is not None
        return block.conv1.bn(x, "relu")


def heaviest(experiments: Iterable[Experiment]) -> list[Step]:
    """Return the heaviest step of every part in every experiment, then the second heaviest steps, and so on."""
    ranked: dict[tuple[str, str], list[Step]] = {}
    for experiment in experiments:
        for step in sorted(_steps(experiment), key=lambda step: -step.weight):
            ranked.setdefault((step.part, step.experiment), []).append(step)
    return [step for rank in zip_longest(*ranked.values()) for step in rank if step is not None]


def _steps(experiment: Experiment) -> list[Step]:
    """Return every distinct step of the network of an experiment."""
    model = experiment.model
    network = build_model(replace(model, pcan=None) if hasattr(model, "pcan") else model)
    one = replace(experiment, optim=replace(experiment.optim, batch_size=1))
    batch = [tensor.to("meta") for tensor in random_batch(one, torch.device("cpu"))]
    shadow, block_calls = copy.deepcopy(network).to("meta"), []
    hook = register_module_forward_pre_hook(lambda module, inputs: block_calls.append((module, inputs)))
    try:
        shadow.eval()(*batch)
    finally:
        hook.remove()
    real = {one: other for one, other in zip(shadow.modules(), network.modules(), strict=True)}
    steps: dict[str, Step] = {}
    for module, inputs in block_calls:
        block = real.get(module)
        if isinstance(block, Block):
            for step in _of_block(experiment, block, *inputs):
                counter = steps.setdefault(step.name, replace(step, times=0))
                steps[step.name] = replace(counter, times=counter.times + 1)
    return list(steps.values())


def _of_block(experiment: Experiment, block: Block, x: Tensor, num_frames: int) -> list[Step]:
    channels, height, width = x.shape[1:]
    shapes: dict[FusedPart, tuple[int, int, int]] = {}
    if isinstance(block, X3DBlock):
        shapes["x3d_block"] = (channels, height, width)
    if isinstance(block, Stage) and block.width <= WIDEST:
        shapes["bottlenecks"] = (channels, height, width)
    if not isinstance(block, Stage):
        shapes["norm_act"] = (block.conv2.bn.num_features, height, width)
    common = {"block": block, "num_frames": num_frames, "batch": experiment.optim.batch_size}
    return [Step(experiment=experiment.name, part=part, shape=shape, **common) for part, shape in shapes.items()]
