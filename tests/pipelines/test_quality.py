"""Checks the quality of skeletons: annotate and verify count frames without a person, missing joints and jumps."""

import pickle

import numpy as np
import pytest
from rich.console import Console

from pipelines.annotations.quality import SkeletonQuality, percent
from pipelines.annotations.table import open_table
from pipelines.verify.report import show, verify
from tests.pipelines.annotated import clip


def person(frames: int, rng: np.random.Generator) -> np.ndarray:
    """Return a person [frames, 17, 2] of 60 x 60 pixels who moves by one pixel per frame."""
    pose = np.concatenate([[[20.0, 20.0], [80.0, 80.0]], rng.uniform(20, 80, (15, 2))])
    return pose + np.arange(frames)[:, None, None]


@pytest.fixture
def clips() -> list[dict]:
    rng = np.random.default_rng(0)

    def of(name: str, *people: np.ndarray) -> dict:
        keypoint = np.stack(people)
        score = np.ones(keypoint.shape[:3], np.float32)
        values = {"keypoint": keypoint, "keypoint_score": score, "total_frames": keypoint.shape[1], "label": 0}
        return clip(name, img_shape=(300, 300), original_shape=(300, 300), **values)

    good = of("good", person(20, rng))
    empty = of("empty", person(10, rng))
    empty["keypoint_score"][:, 2:6] = 0
    turns = of("turns", person(8, rng), person(8, rng))  # one of two people leaves, so no frame is without a person
    turns["keypoint_score"][1, 4:] = 0
    holes = of("holes", person(10, rng))
    holes["keypoint_score"][0, :, 3] = 0
    holes["keypoint"][0, :5, 4] = 0
    jumping = of("jumping", person(11, rng))
    jumping["keypoint"][0, 5:] += 100
    return [good, empty, turns, holes, jumping]


EXPECTED = {
    "good": (0, 0, 0),
    "empty": (4 / 10, 0, 0),
    "turns": (0, 0, 0),
    "holes": (0, 15 / 170, 0),
    "jumping": (0, 0, 1 / 10),
}


def test_each_fault_is_counted(clips, tmp_path):
    (tmp_path / "my.pkl").write_bytes(pickle.dumps(clips))
    table = open_table(tmp_path / "my.pkl", tmp_path / "cache")
    for quality in (SkeletonQuality.of_clips(clips), SkeletonQuality.of_table(table)):
        assert list(quality.names) == list(EXPECTED)
        shares = np.stack([quality.nobody, quality.missing, quality.jumps], axis=1)
        np.testing.assert_allclose(shares, list(EXPECTED.values()))
        assert quality.worst(9) == [1, 4, 3]
        assert quality.describe(1) == "40% of frames without a person"
        # shares of all joints, and of all movements from one frame to the next
        missing, jumps = percent(15 / (59 * 17)), percent(1 / 52)
        lines = dict(quality.lines())
        assert (
            lines["skeletons"]
            == f"{percent(4 / 59)} of frames without a person, {missing} of joints missing, {jumps} jumps"
        )
        assert lines["worst skeletons"].startswith("empty: 40% of frames without a person; jumping: 10% jumps; holes: ")


def test_verify_tells_the_quality(clips, tmp_path, capsys):
    (tmp_path / "my.pkl").write_bytes(pickle.dumps(clips))
    facts = verify(tmp_path / "my.pkl", None, cache=tmp_path / "cache")
    assert facts["quality"]["clips"]["jumping"] == [0, 0, 0.1]
    show(facts, Console(width=200))
    assert "worst skeletons" in capsys.readouterr().out


def test_a_small_share_is_not_shown_as_none():
    assert [percent(share) for share in (0, 0.0004, 0.004, 0.25, 1)] == ["0%", "less than 0.1%", "0.4%", "25%", "100%"]
