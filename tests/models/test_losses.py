"""Tests the values and gradients of losses and heads that experiments can turn on. They apply in training only."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.config import SingleStreamConfig
from models.heads import ClassifierHead, FrameClassifier
from models.losses import ClassifierLosses, adjust_logits, full_precision, soft_f1_loss
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
    """With smoothing s and K classes, the target is s / K for each class, plus 1 - s for the class of the label."""
    losses = ClassifierLosses(replace(SMALL_PAIR, label_smoothing=0.1))
    logits = drawn().requires_grad_()
    target = F.one_hot(LABEL, 4).double() * 0.9 + 0.1 / 4
    loss = losses("rgb", logits, LABEL, 1.0)["loss_rgb"]
    torch.testing.assert_close(loss, -(target * logits.log_softmax(1)).sum(1).mean())
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, (logits.softmax(1) - target).detach() / len(LABEL))


def test_soft_f1_of_certain_predictions_is_f1():
    """If each probability is 0 or 1, the soft F1 scores are those of the metrics, provided that each class occurs."""
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


def test_the_soft_f1_loss_ignores_the_adjustment_of_logits():
    losses = ClassifierLosses(replace(SMALL_PAIR, f1_weight=1.0))
    before = losses("rgb", drawn(), LABEL, 1.0)["loss_f1_rgb"]
    adjust_logits(losses, torch.tensor([100, 1, 30, 5]), 1.0)
    assert losses("rgb", drawn(), LABEL, 1.0)["loss_f1_rgb"] == before


def test_losses_of_16_bit_logits_are_computed_in_float32():
    losses = ClassifierLosses(replace(SMALL_PAIR, f1_weight=1.0, label_smoothing=0.1))
    logits = drawn().bfloat16()
    computed, expected = (losses("rgb", each, LABEL, 1.0) for each in (logits, logits.float()))
    assert all(loss.dtype == torch.float32 for loss in computed.values())
    assert computed == expected


@pytest.mark.parametrize("config", CONFIGS)
def test_every_classifier_gets_each_term_in_training_only(config):
    torch.manual_seed(0)
    full = replace(config, label_smoothing=0.3, f1_weight=2.0, frame_weight=0.5)
    model, plain, inputs = build_model(full), build_model(config), batch(frames=(2, 8))
    plain.load_state_dict(model.state_dict(), strict=False)
    outputs = []
    for network in (model, plain):
        torch.manual_seed(1)  # so that both networks draw the same dropout in PCAN's attention
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


@pytest.mark.parametrize("config", CONFIGS)
def test_gradients_of_the_heads_in_float32_are_those_in_float64(config):
    torch.manual_seed(0)
    full = replace(config, label_smoothing=0.1, f1_weight=1.0, frame_weight=0.5)
    head = build_model(full).cls_head
    widths = {stream: getattr(head, f"frames_{stream}").squeeze.in_features for stream in config.streams}
    features = {stream: torch.rand(8 * 3, width, 2, 3) for stream, width in widths.items()}
    label = torch.arange(8)
    gradients = []
    for dtype in (torch.float64, torch.float32):
        net = copy.deepcopy(head).to(dtype)
        adjust_logits(net, torch.arange(11) + 1, 0.25)
        inputs = {stream: feature.to(dtype) for stream, feature in features.items()}
        losses = net(inputs, dict.fromkeys(inputs, 3), label, label % 3).losses
        total = torch.stack([loss for loss in losses.values() if loss.requires_grad]).sum()
        gradients.append(torch.autograd.grad(total, list(net.parameters()), allow_unused=True))
    for exact, rounded in zip(*gradients, strict=True):
        if exact is not None:
            torch.testing.assert_close(rounded.double(), exact, rtol=1e-3, atol=1e-6)


def test_every_parameter_of_the_frame_classifiers_has_a_gradient():
    """A parameter without a gradient makes DDP raise an error at the next step."""
    torch.manual_seed(0)
    model = build_model(replace(SMALL_PAIR, frame_weight=0.5))
    torch.stack(list(model(**batch()).losses.values())).sum().backward()
    frames = {name: p for name, p in model.named_parameters() if ".frames_" in name}
    assert len(frames) == 4 * 4
    assert all(p.grad is not None for p in frames.values())


def wave(*shape: int) -> torch.Tensor:
    """Return numbers from -3 to 3 that look random and are the same with every version of torch."""
    return (3 * torch.sin(torch.arange(1, math.prod(shape) + 1, dtype=torch.float64) ** 2)).reshape(shape)


class Fixed(nn.Module):
    """A layer that returns the same tensor for any input."""

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value)

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.value


# The numbers in the four tests below were computed in float64 with published code that is not part of this repository:
# CombinedF1Loss, CrossEntropyF1LossFineACoarseDouble and FrameLevelPrediction of qklee-lz/ACMMM2024-MAC at commit
# 372ab24 (docs/sources.md, "Losses for MA-52"), and build_loss_fn of google-research/logit_adjustment.
MA52_LABEL = torch.tensor([0, 7, 7, 30, 51])
MA52_BODY = torch.tensor([0, 1, 1, 3, 6])


def test_soft_f1_is_that_of_the_published_code():
    logits = wave(5, 52).requires_grad_()
    loss = soft_f1_loss(logits, MA52_LABEL)
    assert loss.item() == pytest.approx(1.9836225135476238, rel=1e-9)
    assert soft_f1_loss(wave(5, 7), MA52_BODY).item() == pytest.approx(1.7207058481500803, rel=1e-9)
    (gradient,) = torch.autograd.grad(loss, logits)
    expected = (0.03125008568011226, -0.0014910875799876502, 2.2070969556510327e-05)
    assert (gradient.abs().sum().item(), gradient[3, 30].item(), gradient[1, 8].item()) == pytest.approx(expected)


def test_the_losses_of_all_heads_add_up_to_the_published_loss():
    """Tests the sum of the losses of all classifiers, for clips and single frames, with the published loss weights."""
    config = replace(
        SMALL_SINGLE, num_classes=52, num_coarse=7, coarse_weight=0.5, frame_weight=0.5, f1_weight=1.0, dropout=0.5
    )
    head = ClassifierHead(config, (16,))
    logits = {"fc_cls": wave(5, 52), "frames_pose": wave(15, 52) / 2}
    logits |= {"fc_pose_coarse": wave(5, 7), "frames_pose_coarse": wave(15, 7) / 2}
    for name, value in logits.items():
        setattr(head, name, Fixed(value))
    losses = head({"pose": torch.rand(15, 16, 2, 2)}, {"pose": 3}, MA52_LABEL, MA52_BODY).losses
    total = torch.stack(list(losses.values())).sum()
    assert total.item() == pytest.approx(14.298700373823765, rel=1e-9)
    gradients = torch.autograd.grad(total, [head.get_submodule(name).value for name in logits])
    expected = (2.003123229713937, 1.0016559182539824, 0.9271626844138372, 0.5123503787554752)
    assert [gradient.abs().sum().item() for gradient in gradients] == pytest.approx(expected, rel=1e-9)


def test_the_classifier_of_frames_is_that_of_the_published_code():
    """The input is passed to the published code as [N, C, T, H, W], which it reshapes to these frames."""
    classifier = FrameClassifier(32, 4).double()
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.copy_(wave(*parameter.shape))
    expected = [-6.4098256672218445, 9.799866847967763, -2.406384013307962, 5.90599625542914, -2.07130725028226]
    expected += [5.465983562655218, -1.9514399635201416, 5.364160387665277, -2.1611318201147753, 5.554849577942274]
    expected += [-8.711363299115202, 7.527436039318526]
    assert classifier(wave(6, 32, 2, 2))[:, :2].flatten().tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("strength", "expected"),
    [(0.0, 3.3766088718958303), (0.25, 3.551397468013877), (1.0, 4.359921966412825), (2.0, 6.439335292638719)],
)
def test_adjusted_logits_are_those_of_the_published_code(strength, expected):
    """The published code adds 1e-12 to each frequency, so the losses differ by about 1e-9."""
    losses = ClassifierLosses(SMALL_PAIR)
    adjust_logits(losses, torch.tensor([100, 1, 30, 5]), strength)
    logits = wave(5, 4).requires_grad_()
    label = torch.tensor([0, 1, 1, 3, 2])
    loss = losses("rgb", logits, label, 1.0)["loss_rgb"]
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert torch.autograd.gradcheck(lambda x: losses("rgb", x, label, 1.0)["loss_rgb"], logits)
    plain = F.cross_entropy(logits, label)
    assert losses("rgb_coarse", logits, label, 1.0)["loss_rgb_coarse"] == plain
    adjust_logits(losses, torch.tensor([100, 0, 30, 5]), strength)  # a class without clips counts as having one
    assert losses("rgb", logits, label, 1.0)["loss_rgb"] == loss
    assert losses.eval()("rgb", logits, label, 1.0)["loss_rgb"] == plain
