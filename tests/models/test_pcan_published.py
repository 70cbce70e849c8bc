"""PCAN's head against the published code, in float64: every pcan_head_<case>.json (52 and 7 classes)."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from models import COARSE_MAPS, PcanConfig, RGBPoseConfig
from models.contrast import diversity
from models.pcan import FINE_SCALES, PcanHead, peak_of_time_mean
from tests.parity.published import assert_close, det_tensor, det_u01, folded, load_json, sample

CONFIG = RGBPoseConfig(
    num_classes=52,
    num_coarse=7,
    pose_channels=28,
    dropout=0.0,
    pcan=PcanConfig(coarse_map=COARSE_MAPS["ma52"], diversity="published"),
)
OURS = {
    "rgb_loss_cls": "loss_rgb",
    "pose_loss_cls": "loss_pose",
    "rgb_coarse_loss_cls": "loss_rgb_coarse",
    "pose_coarse_loss_cls": "loss_pose_coarse",
    "rgb_fr_coarse_loss": "loss_contrast_rgb_coarse",
    "pose_fr_coarse_loss": "loss_contrast_pose_coarse",
    "rgb_fr_loss": "loss_contrast_rgb",
    "pose_fr_loss": "loss_contrast_pose",
    "hierarchy_rgb_loss": "loss_tree_rgb",
    "hierarchy_pose_loss": "loss_tree_pose",
}


class Case(NamedTuple):
    head: PcanHead
    x: dict[str, Tensor]
    """Features [N, C, T, H, W] by stream, leaves."""
    label: Tensor
    coarse_label: Tensor

    def inputs(self) -> tuple[dict[str, Tensor], dict[str, int], Tensor, Tensor]:
        frames = {stream: x.shape[2] for stream, x in self.x.items()}
        return {stream: folded(x) for stream, x in self.x.items()}, frames, self.label, self.coarse_label


def published_name(name: str) -> str:
    """Our parameter's name in the published head."""
    if not name.startswith("contrast_"):
        return name
    contrast, rest = name.removeprefix("contrast_").split(".", 1)
    stream, _, coarse = contrast.partition("_")
    kind = f"fr_coarse_{stream}" if coarse else f"fr_{stream}"
    return f"{kind}.spatio_cl_net.{'avg_f' if rest == 'prototypes' else rest}"


def make_case(fixtures, name: str) -> Case:
    facts = load_json(fixtures / "pcan_head_info.json")["formula"]
    case = facts["cases"][name]
    head = PcanHead(CONFIG, (2048, 512)).double()
    state = {}
    for key, value in head.state_dict().items():
        turned = key.endswith("prototypes")
        tensor = det_tensor("cls_head." + published_name(key), tuple(value.shape[::-1] if turned else value.shape))
        state[key] = tensor.T if turned else tensor
    head.load_state_dict(state)
    features = {}
    for stream in ("rgb", "pose"):
        shape = tuple(case["shape"][stream])
        u = torch.from_numpy(det_u01(f"input.head.{name}.{stream}", int(np.prod(shape))).reshape(shape))
        fine, coarse = (list(column) for column in zip(*case["want"][stream], strict=True))
        towards = (
            head.get_parameter(f"fc_{stream}.weight")[fine] + head.get_parameter(f"fc_{stream}_coarse.weight")[coarse]
        )
        scale = torch.tensor(case["scale"], dtype=torch.float64).view(-1, 1, 1, 1, 1)
        x = scale * (0.5 * u + facts["GAIN"] * towards.detach()[..., None, None, None])
        features[stream] = x.float().double().requires_grad_()
    label = torch.tensor(case["labels"])
    return Case(head, features, label, torch.tensor(COARSE_MAPS["ma52"])[label])


@pytest.fixture(params=["b16", "b5"])
def case(request, fixtures) -> tuple[str, Case]:
    if not (fixtures / f"pcan_head_{request.param}.json").exists():
        pytest.skip(f"no pcan_head_{request.param}.json")
    return request.param, make_case(fixtures, request.param)


def test_losses_logits_and_prototypes_equal_the_published(fixtures, case):
    name, made = case
    published = load_json(fixtures / f"pcan_head_{name}.json")
    arrays = np.load(fixtures / f"pcan_head_{name}.npz")
    output = made.head(*made.inputs())
    for theirs, ours in OURS.items():
        assert output.losses[ours].item() == pytest.approx(published["loss"]["f64"][theirs], rel=1e-6), theirs
    assert sum(output.losses.values()).item() == pytest.approx(published["total"]["f64"], rel=1e-7)
    for stream in made.x:
        for head in (stream, f"{stream}_coarse"):
            assert_close(output.logits[head], arrays[f"logit_{head}"], 1e-5)
        peak = peak_of_time_mean(folded(made.x[stream]), made.x[stream].shape[2])
        assert_close(peak[:, ::4], arrays[f"aux_feature_{stream}"], 1e-6)
    after = np.load(fixtures / f"pcan_head_{name}_prototypes.npz")
    for stream in made.x:
        assert_close(made.head.get_buffer(f"contrast_{stream}.prototypes").T, after[f"after_{stream}"], 1e-6)
        coarse = made.head.get_buffer(f"contrast_{stream}_coarse.prototypes").T
        assert_close(coarse, after[f"after_coarse_{stream}"], 1e-6)


def test_score_matrices_equal_the_published(fixtures, case):
    name, made = case
    arrays = np.load(fixtures / f"pcan_head_{name}.npz")
    terms = load_json(fixtures / f"pcan_head_{name}.json")["terms_f64"]
    logits = made.head(*made.inputs()).logits
    fresh = make_case(fixtures, name).head  # the prototypes before the step
    for stream, x in made.x.items():
        peak = peak_of_time_mean(folded(x), x.shape[2])
        right = logits[f"{stream}_coarse"].argmax(1) == made.coarse_label
        fine = fresh.contrast(f"contrast_{stream}").contrast(peak, logits[stream], made.label, right)
        coarse = fresh.contrast(f"contrast_{stream}_coarse")
        coarse_scores = coarse.contrast(peak, logits[f"{stream}_coarse"], made.coarse_label, None).scores
        assert diversity(fine.prototypes).item() == pytest.approx(terms[stream]["div"], rel=1e-6)
        for kind, scale, score in zip(("FN1", "FN2", "FN3", "FP"), FINE_SCALES, fine.scores, strict=True):
            assert_close(scale * score, arrays[f"score_{stream}_{kind}"], 1e-5)  # stored with the factor
            term = torch.nn.functional.cross_entropy(scale * score, made.label).item()
            assert term == pytest.approx(terms[stream][kind], rel=1e-6)
        for kind, score in zip(("FN", "FP"), coarse_scores, strict=True):
            assert_close(score, arrays[f"score_coarse_{stream}_{kind}"], 1e-5)


def test_gradients_equal_the_published(fixtures, case):
    name, made = case
    grads = np.load(fixtures / f"pcan_head_{name}_grads.npz")
    output = made.head(*made.inputs())
    parameters = dict(made.head.named_parameters())
    leaves = [*made.x.values(), *parameters.values()]
    compared = 0
    for theirs, ours in (OURS | {"total": "total"}).items():
        loss = sum(output.losses.values()) if ours == "total" else output.losses[ours]
        got = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
        mine = dict(zip([*(f"x_{stream}" for stream in made.x), *map(published_name, parameters)], got, strict=True))
        for tensor, gradient in mine.items():
            # Ours is one feature where theirs are two leaves of equal value: their gradients add.
            keys = [f"{theirs}|{tensor}", f"{theirs}|aux_{tensor[2:]}" if tensor.startswith("x_") else ""]
            parts = [grads[key] for key in keys if key in grads.files]
            if parts:
                assert_close(sample(gradient, 256), np.sum(parts, axis=0), 1e-4)
                compared += 1
    assert compared >= 36


def test_inference_logits_equal_the_published(fixtures, case):
    name, made = case
    path = fixtures / f"pcan_head_{name}_inference.npz"
    published = np.load(path)
    with torch.no_grad():
        for moment in ("initial", "after"):
            logits = made.head.eval()(*made.inputs()[:2], None, None).logits
            for head, scores in logits.items():
                assert_close(scores, published[f"{moment}_{head}"], 1e-5)
            made.head.train()(*made.inputs())


def test_head_has_the_published_parameters(fixtures):
    head = PcanHead(CONFIG, (2048, 512))
    keys = {
        key.removeprefix("cls_head."): tuple(shape)
        for key, shape, _ in load_json(fixtures / "pcan_head_state_dict.json")["state_dict"]
    }
    ours = {published_name(key): tuple(value.shape) for key, value in head.state_dict().items()}
    assert {key: shape for key, shape in ours.items() if "avg_f" not in key} == {
        key: shape for key, shape in keys.items() if "avg_f" not in key
    }
    assert ours["fr_rgb.spatio_cl_net.avg_f"] == (52, 256)
