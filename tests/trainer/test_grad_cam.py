"""Grad-CAM finds the place and the moment on which a decision depends, in every family of networks."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.config import ResNetPathConfig, SingleStreamConfig, X3DStreamConfig
from models.networks import build_model
from pipelines.batch import Batch
from tests.models import small
from trainer.report.grad_cam import overlay, where_it_looked

PATH = X3DStreamConfig(widths=(8,), blocks=(1,), stem_stride=1, shift_divisor=8)
SIDE, FRAMES, PATCH = 32, 4, 8


def batch_of(**columns: torch.Tensor | None) -> Batch:
    """Return a batch with the given columns. Labels and the other columns that a network does not need are empty."""
    empty = torch.zeros(0)
    return Batch(**{"label": empty, "coarse_label": empty, "index": empty, "valid": empty, **columns})


def clips(draw: np.random.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Return clips of noise with a bright patch, which is red in class 0 and green in class 1.

    The clips are [count, FRAMES, SIDE, SIDE, 3] uint8. Also returns the labels, and for each clip the frame, top and
    left of its patch. The patch is in one frame only.
    """
    rgb = draw.integers(90, 130, (count, FRAMES, SIDE, SIDE, 3), np.uint8)
    label = draw.integers(0, 2, count)
    place = np.stack([draw.integers(0, FRAMES, count), *draw.integers(0, SIDE - PATCH, (2, count))], axis=1)
    for clip, (frame, top, left) in enumerate(place):
        rgb[clip, frame, top : top + PATCH, left : left + PATCH] = (255, 0, 0) if label[clip] == 0 else (0, 255, 0)
    return torch.from_numpy(rgb), torch.from_numpy(label), place


def test_the_map_of_a_trained_network_is_highest_on_what_tells_the_classes_apart():
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    network = build_model(SingleStreamConfig(stream="rgb", num_classes=2, in_channels=3, path=PATH, dropout=0.0))
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    for _ in range(30):
        rgb, label, _ = clips(draw, 8)
        loss = F.cross_entropy(network(rgb, None).logits["rgb"], label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    rgb, label, place = clips(draw, 32)
    batch = batch_of(rgb=rgb, heatmap=None)
    maps = where_it_looked(network.eval(), batch, label)["rgb"]
    assert maps.shape == (32, FRAMES, SIDE, SIDE)
    assert on_patch(maps, place) >= 28
    # the patch is evidence against these labels
    assert on_patch(where_it_looked(network, batch, 1 - label)["rgb"], place) <= 16
    # where_it_looked has not removed the gradients of the last training step
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert not network.backbone._forward_hooks


RESNET = ResNetPathConfig(base_channels=4, blocks=(1, 1), inflate=(False, True), strides=(1, 2), stem_stride=1)


def on_patch(maps: torch.Tensor, place: np.ndarray) -> int:
    """Return the number of clips whose map has its maximum on the patch or next to it."""
    count = 0
    for looked, (frame, top, left) in zip(maps, place, strict=True):
        at, y, x = np.unravel_index(int(looked.argmax()), looked.shape)
        count += abs(at - frame) <= 1 and -4 <= y - top < PATCH + 4 and -4 <= x - left < PATCH + 4
    return count


FAMILIES = {
    "x3d pair": (small.SMALL_PAIR, small.batch()),
    "epam": (small.SMALL_EPAM, small.epam_batch()),
    "rgbpose": (small.SMALL_RGBPOSE, small.batch(frames=(3, 12))),
    "pcan": (small.SMALL_PCAN, small.batch(frames=(3, 12))),
    "pose alone": (SingleStreamConfig(stream="pose", num_classes=11, in_channels=5, path=RESNET), small.batch()),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_maps_of_its_own_class_for_each_stream(family):
    config, inputs = FAMILIES[family]
    torch.manual_seed(0)
    network = small.stir(build_model(config)).eval()
    batch = batch_of(rgb=inputs["rgb"], heatmap=inputs["heatmap"])
    by_class = [where_it_looked(network, batch, torch.full((3,), label)) for label in range(11)]
    sides = (37, 29) if family == "epam" else (10, 7)
    shapes = {"rgb": inputs["rgb"].shape[:-1], "pose": (*inputs["heatmap"].shape[:2], *sides)}
    for stream in config.streams:
        maps = torch.stack([each[stream] for each in by_class])
        assert maps.shape[1:] == shapes[stream]
        assert not maps.requires_grad
        assert 0 <= float(maps.min()) < float(maps.max()) <= 1
        # Not all 11 maps have to differ, because the maps of classes without any evidence are 0 everywhere.
        assert len({tuple(each.flatten().tolist()) for each in maps}) > 3
    assert by_class[0].keys() == set(config.streams)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.is_grad_enabled()


def test_the_overlay_tints_only_where_the_map_is_high():
    picture = np.full((4, 6, 3), 100, np.uint8)
    looked = np.zeros((4, 6))
    looked[1, 2] = 1
    tinted = overlay(picture, looked, "rgb")
    changed = (tinted != picture).any(axis=-1)
    assert changed[1, 2]
    assert changed.sum() == 1
    assert tinted[1, 2, 0] > tinted[1, 2, 2]
