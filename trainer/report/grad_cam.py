"""Grad-CAM: which parts of the frames and of the heatmaps made a network favour a class.

Source: Selvaraju et al., Grad-CAM: Visual explanations from deep networks via gradient-based localization, ICCV 2017.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.colors import to_rgb
from torch import Tensor, nn

from pipelines.batch import Batch

COLOURS = {"rgb": "#ff5400", "pose": "#80ed99"}  # colour of the parts that mattered, for each stream
STRONGEST = 0.65  # share of this colour in a pixel where the map is 1


def where_it_looked(network: nn.Module, batch: Batch, classes: Tensor) -> dict[str, Tensor]:
    """For each stream, how much each pixel of its input contributes to a class: [N, T, H, W] float32 from 0 to 1.

    network: any network of models/networks.py, uncompiled and in evaluation mode. classes: [N] int64, one class for
    each clip of the batch. T, H and W are the sizes of the stream's input: of the RGB frames for "rgb", and of the
    heatmaps for "pose".

    The maps come from the features of the stream's last stage. Each channel is weighted by the mean gradient of the
    stream's own logit of the class with respect to this channel. The lowest value of a clip becomes 0 and the highest
    1. If nothing in a clip contributes to the class, its map is 0.
    """
    assert not network.training, "Grad-CAM needs a network in evaluation mode"
    with torch.no_grad(), last_features(network) as features:
        logits = network(batch.rgb, batch.heatmap).logits
    chosen = [logits[stream].gather(1, classes[:, None].to(logits[stream].device)).sum() for stream in features]
    gradients = torch.autograd.grad(chosen, list(features.values()))
    sizes = {}
    if batch.rgb is not None:
        sizes["rgb"] = tuple(batch.rgb.shape[1:4])
    if batch.heatmap is not None:
        sizes["pose"] = (batch.heatmap.shape[1], *batch.heatmap.shape[3:])
    return {
        stream: _maps(feature.detach().float(), gradient.float(), *sizes[stream])
        for (stream, feature), gradient in zip(features.items(), gradients, strict=True)
    }


@contextlib.contextmanager
def last_features(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """A context in which a forward pass of `network` stores the features [N*T, C, h, w] of each stream's last stage.

    Autograd records what the network computes from these features, even inside of torch.no_grad(), but not how it
    computes the features.
    """
    stored: dict[str, Tensor] = {}

    def from_here(stream: str, feature: Tensor) -> Tensor:
        torch.set_grad_enabled(True)  # not undone here, because torch.no_grad() of the caller restores the former mode
        stored[stream] = feature.detach().requires_grad_()
        return stored[stream]

    def before_head(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        features, *others = arguments
        return {stream: from_here(stream, feature) for stream, feature in features.items()}, *others

    hook = network.get_submodule("cls_head").register_forward_pre_hook(before_head)
    try:
        yield stored
    finally:
        hook.remove()


def _maps(feature: Tensor, gradient: Tensor, num_frames: int, height: int, width: int) -> Tensor:
    """The maps [N, T, H, W] of one stream, from its features and their gradient, both [N*T, C, h, w]."""
    feature, gradient = (tensor.unflatten(0, (-1, num_frames)) for tensor in (feature, gradient))
    weight = gradient.mean(dim=(1, 3, 4), keepdim=True)  # [N, 1, C, 1, 1]
    maps = (weight * feature).sum(dim=2).relu()  # [N, T, h, w]
    maps = F.interpolate(maps, (height, width), mode="bilinear", align_corners=False)
    maps = maps - maps.amin(dim=(1, 2, 3), keepdim=True)
    return maps / maps.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)


def overlay(picture: np.ndarray, looked: np.ndarray, stream: str) -> np.ndarray:
    """Tint a picture [H, W, 3] uint8 where the map `looked` [H, W] of a stream is high. Returns uint8 [H, W, 3].

    The values of the map are squared, so that the picture stays visible where they are low.
    """
    share = STRONGEST * np.square(looked)[..., None]
    return (picture * (1 - share) + 255 * np.array(to_rgb(COLOURS[stream])) * share).round().astype(np.uint8)
