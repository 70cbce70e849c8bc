"""Compares the losses of the classifiers with their definitions in float64."""

from dataclasses import replace

import pytest
import torch

from models.config import SingleStreamConfig
from models.heads import classification_loss
from models.networks import build_model
from tests.models.small import SMALL_PAIR, SMALL_POSE, batch

SMALL_SINGLE = SingleStreamConfig(stream="pose", num_classes=11, in_channels=5, path=SMALL_POSE, dropout=0.0)


def test_label_smoothing_is_its_definition():
    """The target is s / K for each of the K classes, plus 1 - s for the label."""
    logits, label = torch.randn(6, 11, dtype=torch.float64, requires_grad=True), torch.arange(6)
    target = torch.nn.functional.one_hot(label, 11).double() * 0.9 + 0.1 / 11
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    loss = classification_loss(logits, label, None, 0.1)
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, (logits.softmax(1) - target).detach() / 6)


@pytest.mark.parametrize("config", [SMALL_PAIR, SMALL_SINGLE])
def test_label_smoothing_holds_in_training_only_and_for_all_classifiers(config):
    torch.manual_seed(0)
    smooth, inputs = build_model(replace(config, label_smoothing=0.3)), batch()
    plain = build_model(config)
    plain.load_state_dict(smooth.state_dict())
    output = plain(**inputs)
    for name, loss in smooth(**inputs).losses.items():
        head = name.removeprefix("loss_")
        label = inputs["coarse_label" if head.endswith("_coarse") else "label"]
        weight = output.losses[name] / classification_loss(output.logits[head], label, None, 0.0)
        torch.testing.assert_close(loss, weight * classification_loss(output.logits[head], label, None, 0.3))
        assert loss != output.losses[name]
    assert smooth.eval()(**inputs).losses == plain.eval()(**inputs).losses
