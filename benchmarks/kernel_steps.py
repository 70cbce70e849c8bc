"""The steps of the networks' blocks that a kernel may take over, with their sizes, the heaviest first."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from benchmarks.step import random_batch
from models import build_model
from models.norms import normalise, normalised_conv
from models.resnet_path import Bottleneck
from models.x3d_shift import X3DBlock
from trainer.config import Experiment

Block = X3DBlock | Bottleneck


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step of blocks of equal sizes, `times` of them in the network; `batch` is the experiment's."""

    experiment: str
    kernel: str
    block: Block
    shapes: tuple[tuple[int, int, int], ...]  # channels, height and width of what it reads
    num_frames: int
    batch: int
    times: int = 1

    @property
    def name(self) -> str:
        channels, height, width = self.shapes[0]
        stride = self.block.conv2.conv.stride[0] if self.kernel == "depthwise" else 1
        squeezed = self.kernel == "conv_bn" and getattr(self.block, "se_module", None) is not None
        ending = ("_half" if stride == 2 else "") + ("_squeezed" if squeezed else "")
        return f"{self.experiment}_{self.kernel}_{self.num_frames}x{channels}x{height}x{width}{ending}"

    @property
    def weight(self) -> int:
        """Numbers that all the blocks read for it, of a clip."""
        return self.times * self.num_frames * sum(torch.Size(shape).numel() for shape in self.shapes)

    def make(self, device: torch.device, clips: int) -> tuple[Block, list[Tensor]]:
        """A copy of the block whose norms do something, and inputs [F, C, H, W] with bfloat16's values in float32."""
        torch.manual_seed(0)
        block = copy.deepcopy(self.block)
        for module in block.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
        sizes = [(clips * self.num_frames, *shape) for shape in self.shapes]
        inputs = [torch.randn(size, device=device).bfloat16().float() for size in sizes]
        return block.to(device), [x.contiguous(memory_format=torch.channels_last) for x in inputs]

    def run(self, block: Block, inputs: list[Tensor]) -> Tensor:
        if self.kernel == "norm_act":
            assert block.conv1.bn is not None
            return normalise(block.conv1.bn, inputs[0], "relu")
        if isinstance(block, Bottleneck):
            return normalised_conv(block.conv2.bn, "relu", block.conv3, inputs[0], inputs[1])
        if self.kernel == "shift_conv":
            return block.widen(inputs[0], self.num_frames)
        if self.kernel == "depthwise":
            return block.depthwise(inputs[0])
        y, shortcut = inputs
        return normalised_conv(block.conv2.bn, "silu", block.conv3, y, shortcut, block.se_module, self.num_frames)


def heaviest(experiments: Iterable[Experiment]) -> list[Step]:
    """The heaviest step of every kernel in every experiment, then the second of each, and so on."""
    ranked: dict[tuple[str, str], list[Step]] = {}
    for experiment in experiments:
        for step in sorted(_steps(experiment), key=lambda step: -step.weight):
            ranked.setdefault((step.kernel, step.experiment), []).append(step)
    return [step for rank in zip_longest(*ranked.values()) for step in rank if step is not None]


def _steps(experiment: Experiment) -> list[Step]:
    """Every distinct step of a training step's network."""
    model = experiment.model
    network = build_model(replace(model, pcan=None) if hasattr(model, "pcan") else model)
    one = replace(experiment, optim=replace(experiment.optim, batch_size=1))
    batch = [tensor.to("meta") for tensor in random_batch(one, torch.device("cpu"))]
    shadow, seen = copy.deepcopy(network).to("meta"), []
    hook = register_module_forward_pre_hook(lambda module, inputs: seen.append((module, inputs)))
    try:
        shadow.eval()(*batch)
    finally:
        hook.remove()
    real = {one: other for one, other in zip(shadow.modules(), network.modules(), strict=True)}
    steps: dict[str, Step] = {}
    for module, inputs in seen:
        block = real.get(module)
        if isinstance(block, Block):
            for step in _of_block(experiment, block, *inputs):
                known = steps.setdefault(step.name, replace(step, times=0))
                steps[step.name] = replace(known, times=known.times + 1)
    return list(steps.values())


def _of_block(experiment: Experiment, block: Block, x: Tensor, num_frames: int) -> list[Step]:
    channels, height, width = x.shape[1:]
    inner, stride = block.conv2.bn.num_features, block.conv2.conv.stride[0]
    smaller = -(-height // stride), -(-width // stride)
    before, after = (inner, height, width), (inner, *smaller)
    shapes = {"norm_act": (before,), "conv_bn": (after, (block.conv3.bn.num_features, *smaller))}
    if isinstance(block, X3DBlock):
        shapes |= {"shift_conv": ((channels, height, width),), "depthwise": (before,)}
    common = {"block": block, "num_frames": num_frames, "batch": experiment.optim.batch_size}
    return [Step(experiment=experiment.name, kernel=name, shapes=shape, **common) for name, shape in shapes.items()]
