"""`predict` chooses windows that are as long as the training clips, and can label each person separately."""

import json
import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from kernels.program import UserError
from pipelines.annotate.keypoints import header_of
from pipelines.annotate.tracking import separate_people
from tests.trainer.predicting import VIDEO, predicted
from trainer.experiments import EXPERIMENTS
from trainer.predict.skeletons import Skeletons
from trainer.predict.window_choice import LONGEST, choose_windows, training_lengths


def test_windows_are_as_long_as_the_clips_of_the_training(trained, paths):
    content = pickle.loads(paths[1].read_bytes())
    length = {clip["frame_dir"]: clip["total_frames"] for clip in content["annotations"]}
    lengths = [length[name] for name in content["split"]["xsub_train"]]
    snapshot = trained.parent / "latest.pth"
    used = training_lengths(snapshot)
    assert Counter(used) < Counter(lengths)
    assert len(used) == len(lengths) - 1  # one clip is not used, because its video is broken
    choice = choose_windows(None, None, snapshot)
    assert choice.window == round(float(np.median(used)))
    assert choice.whole <= max(lengths) < LONGEST
    assert f"a video of up to {choice.whole} frames is one window" in choice.reason
    assert choice.of(choice.whole) == [(0, choice.whole)]
    assert choice.of(choice.whole + 1)[0] == (0, choice.window)


def test_what_the_user_chooses_counts(trained):
    assert replace(choose_windows(16, None, trained), reason="").of(40) == [(0, 16), (8, 24), (16, 32), (24, 40)]
    assert choose_windows(16, 4, trained).reason == ""
    unknown = choose_windows(None, None, trained)  # the file contains only weights, but no settings
    assert (unknown.window, unknown.stride, unknown.whole) == (64, 32, 64)
    assert "net.safetensors does not say how long its training clips were" in unknown.reason
    for window, stride in ((8, 9), (0, 1), (LONGEST + 1, 1), (None, 65)):
        with pytest.raises(UserError, match="1 <= stride <= window"):
            choose_windows(window, stride, trained)


def test_a_whole_clip_is_one_window_by_default(tiny, trained, paths, tmp_path, capsys):
    snapshot = trained.parent / "latest.pth"
    found = predicted(tiny, snapshot, tmp_path, paths[0] / f"{VIDEO}.mp4", "--pose", paths[1])[VIDEO]
    assert len(found["windows"]) == 1
    assert "training sampled whole clips" in capsys.readouterr().err


def test_each_person_has_the_labels_of_this_person_alone(tiny, trained, paths, annotation, tmp_path):
    video, one = paths[0] / f"{VIDEO}.mp4", annotation["keypoint"][:1]
    other = (one * 0.5 + (60, 20)) * one.any(axis=-1, keepdims=True)  # joints that are missing stay at (0, 0)
    other[:, 40:] = 0  # the second person leaves before the second window
    for name, people in (("one", [one]), ("other", [other]), ("both", [one, other])):
        np.savez(tmp_path / f"{name}.npz", keypoint=np.concatenate(people))
    window = ("--window", 40, "--stride", 40)
    alone = {
        name: predicted(tiny, trained, tmp_path / name, video, "--pose", tmp_path / f"{name}.npz", *window)[VIDEO]
        for name in ("one", "other")
    }
    words = ("--pose", tmp_path / "both.npz", *window, "--per-person")
    both = predicted(tiny, trained, tmp_path / "both", video, *words)[VIDEO]
    first = [window for window in both["windows"] if window["first_frame"] == 0]
    assert [window["person"] for window in first] == [1, 2]
    for found, name in zip(first, ("one", "other"), strict=True):
        for stream in ("rgb", "pose", "fused"):
            expected = alone[name]["windows"][0][stream]
            assert [guess["class"] for guess in found[stream]] == [guess["class"] for guess in expected]
            values = [[guess["probability"] for guess in guesses] for guesses in (found[stream], expected)]
            np.testing.assert_allclose(*values, atol=1e-5)
    assert first[0]["rgb"] != first[1]["rgb"]
    assert [window["person"] for window in both["windows"][2:]] == [1] * (len(both["windows"]) - 2)
    assert [person["person"] for person in both["people"]] == [1, 2]
    assert "whole" not in both


def test_people_who_share_an_index_are_told_apart():
    joints = np.zeros((2, 30, 17, 3), np.float32)
    body = np.random.default_rng(0).uniform(0, 40, (17, 2))
    for index, start, end, place in ((0, 0, 10, (10, 10)), (0, 12, 30, (200, 50)), (1, 0, 30, (90, 90)), (1, 3, 5, 0)):
        for frame in range(start, end):
            joints[index, frame, :, :2] = body + place + (frame, 0) if place else 0
            joints[index, frame, :, 2] = 0.9 if place else 0
    people = separate_people(joints)
    assert people.shape == (3, 30, 17, 3)
    visible = (people[..., 2] > 0).any(axis=-1)
    assert [np.nonzero(own)[0][[0, -1]].tolist() for own in visible] == [[0, 9], [12, 29], [0, 29]]
    assert visible.sum() == 10 + 18 + 28
    np.testing.assert_array_equal(people[2], joints[1])


def test_pose_takes_files_of_pose_estimators(paths, annotation, tmp_path):
    """The skeleton is given as an .npz file, as JSON of one video, and as a folder with JSON for several videos."""
    other = paths[0] / "S001C001P022R001A012.mp4"
    headers = {path: header_of(str(path)) for path in (paths[0] / f"{VIDEO}.mp4", other)}
    joints = np.concatenate([annotation["keypoint"], np.full_like(annotation["keypoint"][..., :1], 0.5)], axis=-1)[0]
    people = [{"image_id": t, "keypoints": body.ravel().tolist()} for t, body in enumerate(joints.astype(float))]
    for name in (VIDEO, other.stem):
        (tmp_path / "poses").mkdir(exist_ok=True)
        (tmp_path / "poses" / f"{name}.json").write_text(json.dumps(people[: headers[other].frames]))
    (tmp_path / "any name.json").write_text(json.dumps(people))
    np.savez(tmp_path / "own.npz", keypoint=joints[None, ..., :2], keypoint_score=joints[None, ..., 2])
    frames = headers[other].frames
    for file, count in (("own.npz", len(joints)), ("any name.json", len(joints)), ("poses", frames)):
        chosen = dict(list(headers.items())[: 2 if file == "poses" else 1])
        skeletons = Skeletons(tmp_path / file, 2, EXPERIMENTS["demo"], Console(quiet=True))
        skeletons.survey(chosen)
        for video, header in chosen.items():
            poses = skeletons.of(video, header, tmp_path)
            np.testing.assert_allclose(poses.joints[0, : min(count, frames)], joints[: min(count, frames)], atol=0.1)
