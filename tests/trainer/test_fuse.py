"""`python -m trainer fuse` matches clips by name, fits weights as well as a grid search, and refuses bad files."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from trainer.cli import run_command
from trainer.experiments import EXPERIMENTS
from trainer.scores.files import read_scores
from trainer.scores.fusion import fit_weights, grid, halves, neighbours, without
from trainer.scores.members import Members, join_members, read_members
from trainer.scores.outcome import interval, mcnemar, outcome_of, resampled
from trainer.scores.views import Views
from trainer.settings import override
from trainer.stored import to_settings

FIVE = override(EXPERIMENTS["custom"], "data.num_classes=5")
FAR = override(EXPERIMENTS["custom"], "data.num_classes=5", "data.coarse_map=(0,1,2,3,999999999999)")
NAMES = np.array([f"clip{number:02}" for number in range(40)])


def probabilities(seed, label, num_classes, strength):
    """Return scores [N, K] whose rows sum to 1. The label gets a higher score the larger `strength` is."""
    logits = np.random.default_rng(seed).normal(size=(len(label), num_classes))
    logits[np.arange(len(label)), label] += strength
    return (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)


def store(path, order=None, **changes):
    """Write the scores of 40 clips of five classes. `order` gives the order of the clips in the file."""
    label = np.arange(len(NAMES)) % 5
    arrays = {"name": NAMES, "label": label, "rgb": probabilities(0, label, 5, 1.0)} | changes
    order = np.arange(len(NAMES)) if order is None else order
    path.parent.mkdir(exist_ok=True, parents=True)
    arrays = {key: value[order] if np.ndim(value) else value for key, value in arrays.items() if value is not None}
    np.savez(path, **arrays)
    return str(path)


def fuse(*words, out):
    return run_command(["fuse", *map(str, words), "--out", str(out)])


def report_in(folder):
    return json.loads((folder / "fusion.json").read_text())


TEN, ONE = '{"clips": 10, "crops": 1, "flip": true}', '{"clips": 1}'


def test_members_that_were_scored_in_different_ways_are_refused_unless_they_are_accepted(tmp_path, capsys):
    ten, one = store(tmp_path / "ten" / "scores.npz", views=TEN), store(tmp_path / "one" / "scores.npz", views=ONE)
    assert fuse(ten, one, out=tmp_path / "no") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{ten}: 10 samples, mirrored too; {one}: 1 sample): evaluate all checkpoints with the same" in line
    assert not (tmp_path / "no").exists()
    assert fuse(ten, one, "--mixed-views", out=tmp_path / "mixed") == 0
    assert f"{ten}: 10 samples, mirrored too; {one}: 1 sample)" in capsys.readouterr().out
    assert read_scores(tmp_path / "mixed" / "scores.npz").views is None
    assert fuse(ten, ten, out=tmp_path / "same") == 0
    assert "same way" not in capsys.readouterr().out
    assert read_scores(tmp_path / "same" / "scores.npz").views == Views(clips=10, flip=True)


def test_a_file_that_does_not_say_its_views_is_fused_and_named(tmp_path, capsys):
    ten, foreign = store(tmp_path / "ten" / "scores.npz", views=TEN), store(tmp_path / "foreign" / "scores.npz")
    assert fuse(ten, foreign, out=tmp_path / "fused") == 0
    assert f"not computed in the same way ({ten}: 10 samples, mirrored too; {foreign}: unknown views)" in (
        capsys.readouterr().out
    )


def test_weights_are_not_fitted_on_scores_of_other_views_or_other_networks(tmp_path, capsys):
    """Weights that --fit val finds for one network and its views are not right for other networks or views."""

    def runs(name, **changes):
        """Store validation and test scores of two runs, and return the folders of the test scores."""
        for run in "ab":
            origin = {"settings": json.dumps(to_settings(FIVE)), "checkpoint": f"best_{run}.pth", "views": ONE}
            store(tmp_path / name / run / "eval" / "scores.npz", **origin)
            tests = origin | {"name": np.char.add("t", NAMES)} | (changes if run == "b" else {})
            store(tmp_path / name / run / "eval_test" / "scores.npz", **tests)
        return [tmp_path / name / run / "eval_test" for run in "ab"]

    assert fuse(*runs("good"), "--fit", "val", out=tmp_path / "out") == 0
    later = runs("later", checkpoint="epoch_9.pth")
    assert fuse(*later, "--fit", "val", out=tmp_path / "no") == 2
    assert "scores of epoch_9.pth of custom, but " in (error := capsys.readouterr().err)
    assert "has scores of best_b.pth of custom: evaluate the same snapshot" in error
    exchanged = [tmp_path / "good" / run / "eval" for run in "ba"]
    assert fuse(*runs("good"), "--fit", *exchanged, out=tmp_path / "no") == 2
    assert "name the runs in the same order" in capsys.readouterr().err
    a, b = runs("views", views=TEN)
    assert fuse(a, b, "--mixed-views", "--fit", "val", out=tmp_path / "out") == 0
    assert fuse(b, b, "--fit", "val", out=tmp_path / "no") == 2
    assert "b/eval/scores.npz: 1 sample): evaluate all checkpoints with the same --clips" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_a_fusion_that_was_fitted_on_its_own_clips_says_so_wherever_it_is_used(tmp_path, capsys):
    label = np.arange(len(NAMES)) % 5
    places = [store(tmp_path / "a.npz"), store(tmp_path / "b.npz", rgb=probabilities(9, label, 5, 1.0))]
    assert fuse(*places, "--fit", "same", out=tmp_path / "same") == 0
    warning = f"the weights in {tmp_path / 'same' / 'scores.npz'} were fitted on the clips of the results"
    capsys.readouterr()
    for word in ("half", "same"):
        assert fuse(tmp_path / "same", places[0], "--fit", word, out=tmp_path / "nested") == 0
        assert warning in capsys.readouterr().out
    assert run_command(["compare", str(tmp_path / "same"), places[0]]) == 0
    assert warning in capsys.readouterr().out
    assert run_command(["compare", str(tmp_path / "nested"), str(tmp_path / "same")]) == 0
    assert "nested/scores.npz" in capsys.readouterr().out
    assert fuse(*places, "--fit", "half", out=tmp_path / "half") == 0
    assert fuse(*places, out=tmp_path / "equal") == 0
    capsys.readouterr()
    assert run_command(["compare", str(tmp_path / "equal"), places[0]]) == 0
    assert "warning" not in capsys.readouterr().out
    assert not read_scores(tmp_path / "half" / "scores.npz").fitted_here


@pytest.mark.parametrize(
    "views", ['{"clips": "x"}', '{"crops": 2}', '{"flip": 3}', '{"rows": 1}', "[1]", "{", "[" * 5000]
)
def test_views_that_cannot_be_are_refused(tmp_path, capsys, views):
    assert fuse(store(tmp_path / "a" / "scores.npz", views=views), "b.npz", out=tmp_path) == 2
    assert "does not contain matching names and scores of clips" in capsys.readouterr().err


def margins(*pairs):
    """Return the scores of two members (networks) for N clips and two classes: [2, N, 2]. All clips have the label 0.

    pairs: for each clip, the score of class 0 minus that of class 1, by the first member and by the second member.
    """
    halved = torch.tensor(pairs, dtype=torch.float64).T / 2
    return torch.stack([0.5 + halved, 0.5 - halved], dim=2)


def test_only_weights_between_known_limits_are_right_for_every_clip():
    """The first clip is right if the first member's weight is above 0.28, and the second clip if it is below 0.32."""
    zeros = torch.zeros(2, dtype=torch.int64)
    members = Members(margins((0.72, -0.28), (-0.68, 0.32)), None, zeros, zeros)
    weights = fit_weights(members, "top1")
    assert 0.28 < weights[0] < 0.32
    assert sum(weights) == pytest.approx(1)
    assert members.outcome(weights).measure("top1") == 1


def test_small_steps_find_weights_between_the_points_of_the_grid():
    """The four clips are right if the first weight is above 0.29, above 0.31, below 0.34 and below 0.36.

    At each of the grid's points 0.3 and 0.35, one clip is wrong.
    """
    above, below = [(1 - limit, -limit) for limit in (0.29, 0.31)], [(limit - 1, limit) for limit in (0.34, 0.36)]
    zeros = torch.zeros(4, dtype=torch.int64)
    weights = fit_weights(Members(margins(*above, *below), None, zeros, zeros), "top1")
    assert 0.31 < weights[0] < 0.34


@pytest.mark.parametrize("metric", ["top1", "mean1", "f1_mean"])
def test_fitted_weights_are_as_good_as_a_plain_grid_search(metric):
    """The grid search tries every multiple of 1/20 as a weight, and computes the metric with scikit-learn or NumPy."""
    from sklearn.metrics import balanced_accuracy_score, f1_score

    label = np.random.default_rng(1).integers(0, 6, 150)
    fine = np.stack([probabilities(seed, label, 6, strength) for seed, strength in ((1, 1.0), (2, 0.7), (3, 0.2))])
    coarse = np.stack([fine[..., :3].sum(axis=-1), fine[..., 3:].sum(axis=-1)], axis=-1)
    tensors = [torch.from_numpy(each).double() for each in (fine, coarse)]
    members = Members(*tensors, torch.from_numpy(label), torch.from_numpy(label // 3))

    def measure(weights):
        guess = np.tensordot(weights, fine.astype(float), 1).argmax(axis=1)
        body = np.tensordot(weights, coarse.astype(float), 1).argmax(axis=1)
        if metric == "top1":
            return (guess == label).mean()
        if metric == "mean1":
            return balanced_accuracy_score(label, guess)
        levels = ((label, guess), (label // 3, body))
        return np.mean([f1_score(*level, average=kind) for level in levels for kind in ("macro", "micro")])

    steps = [(a / 20, b / 20, 1 - a / 20 - b / 20) for a in range(21) for b in range(21 - a)]
    weights = fit_weights(members, metric)
    assert members.outcome(weights).measure(metric) == pytest.approx(measure(weights))
    assert measure(weights) >= max(map(measure, steps)) - 1e-12
    assert measure(weights) >= max(measure(corner) for corner in np.eye(3))


def test_the_grid_and_the_steps_between_its_points():
    points = set(grid(3, 4))
    assert points == {w for w in itertools.product((0, 0.25, 0.5, 0.75, 1), repeat=3) if sum(w) == 1}
    assert set(neighbours((1.0, 0.0), 0.25)) == {(0.75, 0.25)}
    assert without((0.5, 0.3, 0.2), 0) == (0, pytest.approx(0.6), pytest.approx(0.4))
    assert without((1.0, 0.0), 0) is None


def test_clips_are_matched_by_name_and_never_by_order(tmp_path, capsys):
    label = np.arange(len(NAMES)) % 5
    pose = probabilities(7, label, 5, 1.0)
    first = store(tmp_path / "a" / "scores.npz")
    second = store(tmp_path / "b" / "scores.npz", rgb=None, pose=pose)
    third = store(tmp_path / "c" / "scores.npz", np.random.default_rng(3).permutation(40), rgb=None, pose=pose)
    assert fuse(first, second, "--weights", 3, 1, out=tmp_path / "straight") == 0
    assert fuse(first, tmp_path / "c", "--weights", 3, 1, out=tmp_path / "shuffled") == 0
    straight, shuffled = (read_scores(tmp_path / each / "scores.npz") for each in ("straight", "shuffled"))
    assert straight.names == shuffled.names == NAMES.tolist()
    expected = 0.75 * probabilities(0, label, 5, 1.0) + 0.25 * pose
    for each in (straight, shuffled):
        np.testing.assert_allclose(each.scores.probability["fused"].numpy(), expected, rtol=1e-6)
    assert report_in(tmp_path / "shuffled")["fused"] == pytest.approx((expected.argmax(axis=1) == label).mean())
    capsys.readouterr()
    incomplete = store(tmp_path / "d.npz", np.r_[0:11, 12:40])
    for members in ((third, incomplete), (incomplete, third)):
        assert fuse(*members, out=tmp_path / "no") == 2
        assert "d.npz has no scores of 1 of 40 clips, such as clip11: evaluate" in capsys.readouterr().err


def test_weights_fitted_on_half_of_the_clips_and_the_result_on_the_other_half(tmp_path, capsys):
    label = np.arange(len(NAMES)) % 5
    places = [store(tmp_path / "a.npz"), store(tmp_path / "b.npz", rgb=probabilities(9, label, 5, 1.0))]
    assert fuse(*places, "--fit", "half", out=tmp_path / "out") == 0
    shown = capsys.readouterr().out
    assert "fitted on 20 of 40 clips; the results are those of the other 20" in shown
    report, members = report_in(tmp_path / "out"), join_members(read_members(places))
    some, others = halves(NAMES.tolist(), members.label)
    assert sorted([*some.tolist(), *others.tolist()]) == list(range(40))
    assert torch.bincount(members.label[some]).tolist() == [4] * 5
    assert read_scores(tmp_path / "out" / "scores.npz").names == NAMES[others].tolist()
    fitted = members.at(some)
    assert tuple(report["weights"]) == fit_weights(fitted, "top1") != fit_weights(members, "top1")
    on_fitted = [fitted.outcome(weights).measure("top1") for weights in (report["weights"], (1, 0), (0, 1))]
    assert on_fitted[0] >= max(on_fitted)
    assert report["fused"] == members.at(others).outcome(report["weights"]).measure("top1")
    first, second = report["contributions"]
    for member, other in ((first, second), (second, first)):  # without one member, the scores are those of the other
        assert member["gain"] == pytest.approx(report["fused"] - other["alone"])
        assert member["gain_interval"][0] <= member["gain"] <= member["gain_interval"][1]
    assert report["interval"][0] <= report["fused"] <= report["interval"][1]
    low, high = report["interval"]
    assert f"fused top-1: {report['fused']:.4f}, 95 % interval {low:.4f} to {high:.4f}" in shown
    # The two halves do not depend on the order of the clips.
    order = np.random.default_rng(0).permutation(40)
    again, _ = halves(NAMES[order].tolist(), members.label[order])
    assert set(NAMES[order][again]) == set(NAMES[some])


def test_weights_are_never_fitted_and_judged_on_the_same_clips_in_silence(tmp_path, capsys):
    places = [store(tmp_path / run / "eval" / "scores.npz") for run in ("a", "b")]
    assert fuse(*places, "--fit", "val", out=tmp_path / "out") == 2
    assert "40 clips of" in (error := capsys.readouterr().err)
    assert "are also clips of the results: use --fit half, or --fit same to accept that" in error
    assert fuse(*places, "--fit", *places, out=tmp_path / "out") == 2
    assert fuse(*places, "--fit", "same", out=tmp_path / "out") == 0
    assert "fitted on the clips of the results, which therefore look better" in capsys.readouterr().out
    tests = [store(tmp_path / run / "eval_test" / "scores.npz", name=np.char.add("t", NAMES)) for run in ("a", "b")]
    assert fuse(*tests, "--fit", "val", out=tmp_path / "out") == 0
    assert "fitted on 40 other clips" in capsys.readouterr().out


@pytest.mark.parametrize("out", ["a", "a/eval", "b/../a/eval", "mine"])
def test_the_scores_of_members_are_not_replaced(tmp_path, capsys, out):
    """Fused scores in the folder of a run would be taken for those of the run."""
    places = [store(tmp_path / folder / "scores.npz") for folder in ("a/eval", "mine")]
    before = [Path(place).read_bytes() for place in places]
    (tmp_path / "b").mkdir()
    assert fuse(tmp_path / "a", tmp_path / "mine", out=tmp_path / out) == 2
    assert "which the fused scores would replace or hide: name a folder of its own" in capsys.readouterr().err
    assert [Path(place).read_bytes() for place in places] == before
    assert not (tmp_path / "a" / "scores.npz").exists()
    assert fuse(tmp_path / "a", tmp_path / "mine", out=tmp_path / "a" / "fused") == 0


def test_clips_without_labels_are_fused_and_not_judged(tmp_path, capsys):
    hidden = {"label": np.zeros(40, np.int64), "name": np.char.add("t", NAMES)}
    tests = [store(tmp_path / run / "eval_test" / "scores.npz", **hidden) for run in ("a", "b")]
    for run in ("a", "b"):
        store(tmp_path / run / "eval" / "scores.npz")
    assert fuse(*tests, "--fit", "half", out=tmp_path / "out") == 2
    assert "these clips have no labels" in capsys.readouterr().err
    assert fuse(*tests, "--fit", "val", out=tmp_path / "out") == 0
    assert "the clips have no labels, so there are no metrics" in capsys.readouterr().out
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_a_fusion_for_ma52_is_submitted(tmp_path, capsys):
    """A pose network without coarse heads gets coarse scores that are computed from its fine scores."""
    label, settings = np.arange(40) % 52, json.dumps(to_settings(EXPERIMENTS["ma52"]))
    rgb = {"rgb": probabilities(0, label, 52, 2.0), "rgb_coarse": probabilities(1, label % 7, 7, 1.0)}
    pose = {"pose": probabilities(2, label, 52, 2.0), "pose_coarse": probabilities(3, label % 7, 7, 1.0)}
    first = store(tmp_path / "a.npz", label=label, settings=settings, **rgb | pose)
    second = store(tmp_path / "b.npz", label=label, settings=settings, rgb=None, pose=pose["pose"])
    assert fuse(first, second, f"{first}:rgb", out=tmp_path / "out") == 0
    assert "F1 mean" in capsys.readouterr().out
    fused = read_scores(tmp_path / "out" / "scores.npz").scores.probability
    body = np.stack(
        [pose["pose"][:, np.equal(EXPERIMENTS["ma52"].data.coarse_map, n)].sum(axis=1) for n in range(7)], 1
    )
    expected = ((rgb["rgb_coarse"] + pose["pose_coarse"]) / 2 + body + rgb["rgb_coarse"]) / 3
    np.testing.assert_allclose(fused["fused_coarse"].numpy(), expected, rtol=1e-5)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["f1/mean"] == pytest.approx(report_in(tmp_path / "out")["fused"])
    assert run_command(["submit", str(tmp_path / "out"), "--out", str(tmp_path / "s.zip")]) == 0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": NAMES.astype("S")}, "does not contain matching names and scores of clips"),
        ({"rgb": np.zeros((40, 5), np.int64)}, "does not contain matching names and scores of clips"),
        ({"label": np.full(40, 5)}, "does not contain matching names and scores of clips"),
        ({"label": np.full(40, -1)}, "does not contain matching names and scores of clips"),
        ({"rgb": None}, "does not contain matching names and scores of clips"),
        ({"rgb": np.zeros((40, 5000), np.float32)}, "does not contain matching names and scores of clips"),
        ({"rgb": np.full((40, 5), 1e300)}, "has rgb scores that are not finite: evaluate an earlier snapshot"),
        ({"name": np.array([*NAMES[:39], "clip00"])}, "has 2 scores of the clip clip00: evaluate each clip once"),
        ({"rgb": np.full((40, 5), 3.0)}, "the clip clip00 have the sum 15: apply softmax"),
        ({"label": np.arange(40) % 4}, "the clip clip04 has label 4 in"),
        ({"rgb": np.full((40, 6), 1 / 6)}, "has 5 classes, but"),
        ({"settings": json.dumps(to_settings(EXPERIMENTS["demo"]))}, "are for other classes than its scores: write it"),
        ({"settings": json.dumps(to_settings(FAR))}, "are for other classes than its scores: write it"),
        ({"name": np.array(NAMES, object)}, "is damaged or hostile (the size of name.npy does not fit its shape (40,)"),
    ],
)
def test_foreign_files_are_refused_in_one_sentence(tmp_path, capsys, changes, sentence):
    good, bad = store(tmp_path / "good.npz"), store(tmp_path / "bad.npz", **changes)
    assert fuse(good, bad, out=tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line
    assert not (tmp_path / "out").exists()


def test_mcnemars_test_and_the_bootstrap_agree_with_scipy():
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.rand(3000, generator=generator) < share for share in (0.6, 0.58))
    only_first, only_second, p = mcnemar(first, second)
    assert (only_first, only_second) == (int((first & ~second).sum()), int((~first & second).sum()))
    assert p == pytest.approx(stats.binomtest(only_first, only_first + only_second).pvalue)
    assert mcnemar(first, first) == (0, 0, 1.0)
    score = torch.stack([~first, first], dim=1).double()
    outcome = outcome_of(score, torch.ones(3000, dtype=torch.int64), None, torch.zeros(3000, dtype=torch.int64))
    assert torch.equal(outcome.is_right, first)
    assert interval(torch.arange(1001) / 1000) == pytest.approx((0.025, 0.975))
    low, high = interval(resampled([outcome], "top1")[:, 0])
    expected = stats.binomtest(int(first.sum()), 3000).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.003)
