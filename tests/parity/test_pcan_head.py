"""Compares PCAN's head with the published code in float64: every pcan_head_<case>.json, for any number of classes."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from models.classes import COARSE_MAPS
from models.config import PcanConfig, RGBPoseConfig
from models.pcan import FINE_SCALES, PcanHead, diversity, peak_of_time_mean
from models.weights import published as layout
from tests.parity.published import assert_close, det_tensor, det_u01, fill, folded, load_json, sample

MAPS = {(len(coarse), max(coarse) + 1): coarse for coarse in (COARSE_MAPS["ma52"], COARSE_MAPS["semantic8"])}
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
    """The features [N, C, T, H, W] of each stream, which are leaves of the autograd graph."""
    label: Tensor
    coarse_label: Tensor

    def inputs(self) -> tuple[dict[str, Tensor], dict[str, int], Tensor, Tensor]:
        frames = {stream: x.shape[2] for stream, x in self.x.items()}
        return {stream: folded(x) for stream, x in self.x.items()}, frames, self.label, self.coarse_label


def published(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the head's tensors by their published names."""
    named, _ = layout.write({f"cls_head.{name}": tensor for name, tensor in tensors.items()}, layout.MMACTION2)
    return {name.removeprefix("cls_head."): tensor for name, tensor in named.items()}


def case_of(path: Path, facts) -> Case:
    """Make the case of a file pcan_head_<case>.json. The logits in its .npz file show the numbers of classes."""
    arrays = np.load(path.with_suffix(".npz"))
    classes = arrays["logit_rgb"].shape[1], arrays["logit_rgb_coarse"].shape[1]
    return make_case(path.stem.removeprefix("pcan_head_"), classes, facts)


def make_case(name: str, classes: tuple[int, int], facts) -> Case:
    """Make the head, features and labels of a case from its name, by the formulas in the fixtures' README."""
    formula = facts("pcan_head_info.json")["formula"]
    case = formula["cases"][name]
    coarse_map = MAPS[classes]
    channels = {stream: shape[1] for stream, shape in case["shape"].items()}
    config = RGBPoseConfig(
        num_classes=len(coarse_map),
        num_coarse=max(coarse_map) + 1,
        dropout=0.0,
        pcan=PcanConfig(coarse_map=coarse_map, diversity="published"),
    )
    head = PcanHead(config, (channels["rgb"], channels["pose"])).double()
    fill(head, layout.MMACTION2, "cls_head.")
    features = {}
    for stream, shape in case["shape"].items():
        u = torch.from_numpy(det_u01(f"input.head.{name}.{stream}", int(np.prod(shape))).reshape(shape))
        fine, coarse = (list(column) for column in zip(*case["want"][stream], strict=True))
        towards = torch.zeros(shape[:2], dtype=torch.float64)
        for suffix, wanted in (("", fine), ("_coarse", coarse)):
            weight = head.get_parameter(f"fc_{stream}{suffix}.weight")
            towards += det_tensor(f"cls_head.fc_{stream}{suffix}.weight", tuple(weight.shape)).double()[wanted]
        scale = torch.tensor(case["scale"], dtype=torch.float64).view(-1, 1, 1, 1, 1)
        x = scale * (0.5 * u + formula["GAIN"] * towards[..., None, None, None])
        features[stream] = x.float().double().requires_grad_()
    label = torch.tensor(case["labels"])
    return Case(head, features, label, torch.tensor(coarse_map)[label])


def paths(kind: str, fixtures: Path) -> list[Path]:
    found = [path for path in fixtures.glob("pcan_head_b*.json") if path.with_suffix(".npz").exists()]
    found = [path for path in found if beside(path, kind).exists()]
    if not found:
        pytest.skip(f"no pcan_head_b*{kind} in {fixtures}")
    return sorted(found)


def beside(path: Path, kind: str) -> Path:
    """Return the path of another file of the same case. `kind` is the end of its name."""
    return path.with_name(f"{path.stem}{kind}")


def test_losses_logits_and_prototypes_equal_the_published(fixtures, facts):
    for path in paths("_prototypes.npz", fixtures):
        made, expected, arrays = case_of(path, facts), load_json(path), np.load(path.with_suffix(".npz"))
        output = made.head(*made.inputs())
        for theirs, ours in OURS.items():
            assert output.losses[ours].item() == pytest.approx(expected["loss"]["f64"][theirs], rel=1e-6), theirs
        assert sum(output.losses.values()).item() == pytest.approx(expected["total"]["f64"], rel=1e-7)
        after = np.load(beside(path, "_prototypes.npz"))
        for stream, x in made.x.items():
            for head in (stream, f"{stream}_coarse"):
                assert_close(output.logits[head], arrays[f"logit_{head}"], 1e-5)
            assert_close(x.flatten()[:64], arrays[f"feature_head_{stream}"], 1e-7)
            peak = peak_of_time_mean(folded(x), x.shape[2])
            assert_close(peak[:, ::4], arrays[f"aux_feature_{stream}"], 1e-6)
            fine, coarse = (made.head.get_buffer(f"contrast_{stream}{s}.prototypes").T for s in ("", "_coarse"))
            assert_close(fine, after[f"after_{stream}"], 1e-6)
            assert_close(coarse, after[f"after_coarse_{stream}"], 1e-6)


def test_losses_of_every_described_case_equal_the_published(facts):
    """Case `b5` is special: its five clips belong to four coarse classes, and one of its streams makes no mistake."""
    about, classes = facts("pcan_head_info.json"), classes_of(facts)
    described = [name for name in about["formula"]["cases"] if name in about]
    assert described
    for name in described:
        made, expected = make_case(name, classes, facts), about[name]
        losses = made.head(*made.inputs()).losses
        for theirs, ours in OURS.items():
            assert losses[ours].item() == pytest.approx(expected["loss"]["f64"][theirs], rel=1e-7), f"{name} {theirs}"
        assert sum(losses.values()).item() == pytest.approx(expected["total"]["f64"], rel=1e-7), name


def classes_of(facts) -> tuple[int, int]:
    """Return the numbers of fine and coarse classes of the published head."""
    keys = {key: shape for key, shape, _ in facts("pcan_head_state_dict.json")["state_dict"]}
    return keys["cls_head.fc_rgb.weight"][0], keys["cls_head.fc_rgb_coarse.weight"][0]


def test_score_matrices_equal_the_published(fixtures, facts):
    for path in paths(".npz", fixtures):
        made, arrays, terms = case_of(path, facts), np.load(path.with_suffix(".npz")), load_json(path)["terms_f64"]
        logits = made.head(*made.inputs()).logits
        fresh = case_of(path, facts).head  # a new head, which still has the prototypes from before the step
        for stream, x in made.x.items():
            peak = peak_of_time_mean(folded(x), x.shape[2])
            right = logits[f"{stream}_coarse"].argmax(1) == made.coarse_label
            fine = fresh.contrast(f"contrast_{stream}").contrast(peak, logits[stream], made.label, right)
            coarse = fresh.contrast(f"contrast_{stream}_coarse")
            coarse_scores = coarse.contrast(peak, logits[f"{stream}_coarse"], made.coarse_label, None).scores
            assert diversity(fine.prototypes).item() == pytest.approx(terms[stream]["div"], rel=1e-6)
            for kind, scale, score in zip(("FN1", "FN2", "FN3", "FP"), FINE_SCALES, fine.scores, strict=True):
                # The stored scores of FN2 and FN3 are already multiplied by their scale (FINE_SCALES), although the
                # fixtures' README says otherwise.
                assert_close(scale * score, arrays[f"score_{stream}_{kind}"], 1e-5)
                term = torch.nn.functional.cross_entropy(scale * score, made.label).item()
                assert term == pytest.approx(terms[stream][kind], rel=1e-6)
            for kind, score in zip(("FN", "FP"), coarse_scores, strict=True):
                assert_close(score, arrays[f"score_coarse_{stream}_{kind}"], 1e-5)


def test_gradients_equal_the_published(fixtures, facts):
    for path in paths("_grads.npz", fixtures):
        made, grads = case_of(path, facts), np.load(beside(path, "_grads.npz"))
        output = made.head(*made.inputs())
        parameters = dict(made.head.named_parameters())
        compared = set()
        for theirs, ours in (OURS | {"total": "total"}).items():
            loss = sum(output.losses.values()) if ours == "total" else output.losses[ours]
            leaves = [*made.x.values(), *parameters.values()]
            got = torch.autograd.grad(loss, leaves, retain_graph=True, materialize_grads=True)
            mine = published(dict(zip(parameters, got[len(made.x) :], strict=True)))
            for name, gradient in mine.items():
                if f"{theirs}|{name}" in grads.files:
                    assert_close(sample(gradient, 256), grads[f"{theirs}|{name}"], 1e-4)
                    compared.add(f"{theirs}|{name}")
            for stream, gradient in zip(made.x, got, strict=False):
                # The published code has two equal leaf tensors, x and aux, where we have one feature, so we add
                # the gradients of both.
                keys = {f"{theirs}|{leaf}_{stream}" for leaf in ("x", "aux")} & set(grads.files)
                if keys:
                    assert_close(sample(gradient, 256), sum(grads[key] for key in keys), 1e-4)
                    compared |= keys
        rest = set(grads.files) - compared
        assert all(name.endswith(".sum_thw") or "avg_f" in name for name in rest), rest


def test_inference_logits_equal_the_published(fixtures, facts):
    for path in paths("_inference.npz", fixtures):
        made, expected = case_of(path, facts), np.load(beside(path, "_inference.npz"))
        with torch.no_grad():
            for moment in ("initial", "after"):
                logits = made.head.eval()(*made.inputs()[:2], None, None).logits
                for head, scores in logits.items():
                    assert_close(scores, expected[f"{moment}_{head}"], 1e-5)
                made.head.train()(*made.inputs())


def test_head_has_the_published_parameters(facts):
    keys = {key: tuple(shape) for key, shape, _ in facts("pcan_head_state_dict.json")["state_dict"]}
    classes, groups = classes_of(facts)
    pcan = PcanConfig(coarse_map=MAPS[classes, groups])
    config = RGBPoseConfig(num_classes=classes, num_coarse=groups, pcan=pcan)
    head = PcanHead(config, (keys["cls_head.fc_rgb.weight"][1], keys["cls_head.fc_pose.weight"][1]))
    ours = {f"cls_head.{name}": tuple(tensor.shape) for name, tensor in published(head.state_dict()).items()}
    assert ours == keys
