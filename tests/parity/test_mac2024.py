"""The losses and the classifier for single frames are those of the winner of MA-52's challenge in 2024.

mac2024.json contains the results of the published code (docs/sources.md, "Losses for MA-52") in float64, for the inputs
that `waves` makes.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from models.classes import MA52
from models.config import SingleStreamConfig
from models.heads import ClassifierHead
from models.losses import soft_f1_loss
from tests.models.small import SMALL_RGB

PUBLISHED = json.loads(Path(__file__).with_name("mac2024.json").read_text())
LABEL = torch.tensor([0, 9, 9, 45, 51, 20])
CLIPS, CHANNELS, FRAMES = len(LABEL), 32, 3
CONFIG = SingleStreamConfig(
    stream="rgb",
    num_classes=52,
    num_coarse=7,
    in_channels=3,
    path=SMALL_RGB,
    coarse_weight=0.5,
    f1_weight=1.0,
    frame_weight=0.5,
)


def waves(*shape: int, start: float = 0.0, gain: float = 1.0) -> Tensor:
    """The sines from which the published numbers were computed."""
    steps = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (gain * torch.sin(start + 1.7 * steps**1.1)).reshape(shape)


def assert_published(name: str, value: Tensor) -> None:
    torch.testing.assert_close(value, torch.tensor(PUBLISHED[name], dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_soft_f1_loss_and_its_gradient():
    logits = waves(CLIPS, 52, gain=3.0).requires_grad_()
    loss = soft_f1_loss(logits, LABEL)
    assert_published("f1", loss)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert_published("f1_gradient", gradient[:, [0, 9, 20, 45, 51]])


def test_sum_of_all_losses_and_its_gradients():
    head = ClassifierHead(CONFIG, (CHANNELS,)).double()
    for name, size, start in (("frames_rgb", 52, 0.5), ("frames_rgb_coarse", 7, 0.7)):
        frames = head.get_submodule(name)
        frames.squeeze.weight.data = waves(CHANNELS // 16, CHANNELS, start=start)
        frames.excite.weight.data = waves(CHANNELS, CHANNELS // 16, start=start + 1, gain=2.0)
        frames.fc.weight.data, frames.fc.bias.data = (
            waves(size, CHANNELS, start=start + 2),
            waves(size, start=start + 3),
        )
    # The published code reads features [N, C, T, H, W] as if they were [N, T, C, H, W]. Our head gets the same numbers,
    # already in the order in which the published code reads them.
    feature = waves(CLIPS, CHANNELS, FRAMES, 2, 2, start=0.3).reshape(-1, CHANNELS, 2, 2).requires_grad_()
    assert_published("frame_logits", head.frames_rgb_coarse(feature).unflatten(0, (CLIPS, FRAMES)))

    fine, coarse = (waves(CLIPS, size, start=start, gain=3.0) for size, start in ((52, 0.9), (7, 1.1)))
    coarse.requires_grad_()
    losses: dict[str, Tensor] = {}
    for name, logits, label in (("rgb", fine, LABEL), ("rgb_coarse", coarse, torch.tensor(MA52)[LABEL])):
        losses |= head.losses_of(name, logits, label, head.weights[name])
        losses |= head.frame_losses(name, feature, FRAMES, label)
    total = torch.stack(list(losses.values())).sum()
    assert_published("total", total)
    squeeze, bias = head.frames_rgb.squeeze.weight, head.frames_rgb_coarse.fc.bias
    gradients = torch.autograd.grad(total, [coarse, squeeze, bias, feature])
    assert_published("coarse_logits_gradient", gradients[0])
    assert_published("squeeze_gradient", gradients[1])
    assert_published("coarse_bias_gradient", gradients[2])
    assert_published("feature_gradient", gradients[3].reshape(CLIPS, CHANNELS, FRAMES, 2, 2)[:2, :, 1, 0, 1])
