"""Tests the values and gradients of losses and heads that experiments can turn on. They apply in training only."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from models.config import SingleStreamConfig
from models.losses import ClassifierLosses, full_precision, soft_f1_loss
from models.networks import build_model
from tests.models.small import SMALL_PAIR, SMALL_PCAN, SMALL_POSE, batch
from trainer.metrics import macro_f1

SMALL_SINGLE = SingleStreamConfig(
    stream="pose", num_classes=11, num_coarse=3, coarse_weight=0.5, in_channels=5, path=SMALL_POSE, dropout=0.0
)
CONFIGS = [SMALL_PAIR, SMALL_SINGLE, SMALL_PCAN]
LABEL = torch.tensor([0, 1, 2, 3, 3, 3, 3, 3])


def drawn(clips: int = 8, classes: int = 4) -> torch.Tensor:
    return 2 * torch.randn(clips, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_label_smoothing_is_its_definition():
    """The target has 1 - s at the label, and s / K at each of the K classes."""
    losses = ClassifierLosses(replace(SMALL_PAIR, label_smoothing=0.1))
    logits = drawn().requires_grad_()
    target = F.one_hot(LABEL, 4).double() * 0.9 + 0.1 / 4
    loss = losses("rgb", logits, LABEL, 1.0)["loss_rgb"]
    torch.testing.assert_close(loss, -(target * logits.log_softmax(1)).sum(1).mean())
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, (logits.softmax(1) - target).detach() / len(LABEL))


def test_soft_f1_of_certain_predictions_is_f1():
    """If each probability is 0 or 1, the soft scores are those of the metrics. Here each class occurs."""
    for seed in range(5):
        predicted = LABEL[torch.randperm(8, generator=torch.Generator().manual_seed(seed))]
        certain = 100 * F.one_hot(predicted, 4).double()
        expected = (1 - macro_f1(certain, LABEL)) + (1 - (predicted == LABEL).double().mean())
        torch.testing.assert_close(soft_f1_loss(certain, LABEL), expected, rtol=0, atol=1e-6)
    assert soft_f1_loss(100 * F.one_hot(LABEL, 4).double(), LABEL) < 1e-6


def test_soft_f1_counts_an_error_in_a_rare_class_more():
    right = F.one_hot(LABEL, 4).double()
    rare, common = right.clone(), right.clone()
    rare[0], common[7] = right[7], right[0]
    losses = [soft_f1_loss(100 * predicted, LABEL) for predicted in (right, common, rare)]
    assert losses[0] < losses[1] < losses[2]


def test_gradients_of_soft_f1():
    """Compares gradients with finite differences, and gradients in float32 with those in float64.

    Logits in bfloat16 are converted to float32 before the loss is computed.
    """
    logits = drawn().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: soft_f1_loss(x, LABEL), logits)
    (exact,) = torch.autograd.grad(soft_f1_loss(logits, LABEL), logits)
    single = logits.detach().float().requires_grad_()
    (rounded,) = torch.autograd.grad(soft_f1_loss(single, LABEL), single)
    torch.testing.assert_close(rounded.double(), exact, rtol=1e-4, atol=1e-6)
    assert full_precision(logits.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("config", CONFIGS)
def test_every_classifier_gets_each_term_in_training_only(config):
    torch.manual_seed(0)
    full = replace(config, label_smoothing=0.3, f1_weight=2.0, frame_weight=0.5)
    model, plain, inputs = build_model(full), build_model(config), batch(frames=(2, 8))
    plain.load_state_dict(model.state_dict(), strict=False)
    outputs = []
    for network in (model, plain):
        torch.manual_seed(1)  # of the dropout in PCAN's attention
        outputs.append(network(**inputs))
    output, expected = outputs
    names = list(output.logits)
    terms = {f"loss_{kind}{name}" for name in names for kind in ("", "f1_", "frames_", "f1_frames_")}
    assert set(output.losses) == set(expected.losses) | terms
    for name in names:
        logits, weight = output.logits[name], config.head_weights()[name]
        label = inputs["coarse_label" if name.endswith("_coarse") else "label"]
        torch.testing.assert_close(logits, expected.logits[name])
        smooth = F.cross_entropy(logits, label, label_smoothing=0.3)
        torch.testing.assert_close(output.losses[f"loss_{name}"], weight * smooth)
        torch.testing.assert_close(output.losses[f"loss_f1_{name}"], weight * 2.0 * soft_f1_loss(logits, label))
    model.eval(), plain.eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    assert model(**inputs).losses == plain(**inputs).losses


@pytest.mark.parametrize("config", CONFIGS)
def test_frames_are_classified_one_by_one(config):
    """A frame's logits do not depend on the other frames, and each of the frames has the label of its clip."""
    torch.manual_seed(0)
    head = build_model(replace(config, frame_weight=0.5)).cls_head.double()
    classifier = head.frames_pose
    feature = torch.rand(3 * 4, classifier.squeeze.in_features, 2, 3, dtype=torch.float64)
    logits = classifier(feature)
    alone = torch.cat([classifier(feature[number : number + 1]) for number in range(12)])
    torch.testing.assert_close(logits, alone)
    label = torch.tensor([4, 0, 7])
    (loss,) = head.frame_losses("pose", feature, 4, label).values()
    one_by_one = F.cross_entropy(logits, torch.tensor([4] * 4 + [0] * 4 + [7] * 4))
    torch.testing.assert_close(loss, 0.5 * config.head_weights()["pose"] * one_by_one)


def test_every_parameter_of_the_frame_classifiers_has_a_gradient():
    """DDP waits for the gradient of every parameter."""
    torch.manual_seed(0)
    model = build_model(replace(SMALL_PAIR, frame_weight=0.5))
    torch.stack(list(model(**batch()).losses.values())).sum().backward()
    frames = {name: p for name, p in model.named_parameters() if ".frames_" in name}
    assert len(frames) == 4 * 4
    assert all(p.grad is not None for p in frames.values())
