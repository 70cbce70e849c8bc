"""`python -m pipelines.annotate` reads all forms of labels, keypoints and people, and training accepts its output."""

import csv
import json
import os
import pickle
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from kernels.program import UserError
from models.weights.files import load
from pipelines.annotate.folder import PoseFolder
from pipelines.annotate.keypoints import Poses, read_npz, write_poses
from pipelines.annotate.labels import read_labels
from pipelines.annotate.splitting import split_labels
from pipelines.annotate.tracking import Person, follow
from pipelines.annotations.table import open_table
from pipelines.demo import clip as demo_clip
from pipelines.demo.classes import DemoConfig, clip_ids
from pipelines.videos.header import Header
from tests.programs import run
from trainer.cli import run_command
from trainer.data import with_class_names
from trainer.experiments import EXPERIMENTS
from trainer.settings import override

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(*words: object, **environment: str) -> tuple[int, str, str]:
    """Run `python -m WORDS` with additional environment variables. Returns the exit code, stdout and stderr."""
    done = run("-m", *words, environment=os.environ | environment)
    return done.returncode, done.stdout, done.stderr


def labels_in(folder: Path, text: str):
    (folder / "labels.csv").write_bytes(text.encode())
    return read_labels(folder / "labels.csv")


def test_labels_as_spreadsheets_write_them(tmp_path):
    lines = ["a b.mp4,1,train", "sub/c.mp4,0,train", '"d, e.mp4",1,val']
    expected = (["a b.mp4", "sub/c.mp4", "d, e.mp4"], [1, 0, 1], ["train", "train", "val"], ())
    for heading in ([], ["video,label,split"]):
        for end in ("\n", "\r\n"):
            for mark, last in (("", ""), ("\ufeff", end), ("", end + end)):
                found = labels_in(tmp_path, mark + end.join(heading + lines) + last)
                assert (found.videos, found.labels, found.splits, found.class_names) == expected


def test_spaces_around_cells_do_not_count_except_at_the_start_of_a_quoted_name(tmp_path):
    found = labels_in(tmp_path, '" a.mp4" ,0 , train\n  b.mp4, 1,val \n"c, d.mp4",0,val')
    assert (found.videos, found.labels) == ([" a.mp4", "b.mp4", "c, d.mp4"], [0, 1, 0])


def test_words_as_labels(tmp_path):
    found = labels_in(tmp_path, "video,label,split\na,wave,train\nb,hop,train\nc,wave,val")
    assert (found.labels, found.class_names) == ([1, 0, 1], ("hop", "wave"))


def test_one_in_five_of_each_class_is_validation(tmp_path):
    text = "\n".join([f"{label}-{take},{label}" for label in range(4) for take in range(10 * label + 1)])
    found = split_labels(labels_in(tmp_path, text), [], print)
    pairs = list(zip(found.labels, found.splits, strict=True))
    counts = [pairs.count((label, "val")) for label in range(4)]
    assert counts == [0, 2, 4, 6]  # class 0 has a single clip, which is in the training split
    assert split_labels(labels_in(tmp_path, text), [], print) == found
    again = split_labels(labels_in(tmp_path, text + "\n0-new,0"), [], print)
    old = dict(zip(found.videos, found.splits, strict=True))
    assert all(old[video] == split for video, split in zip(again.videos[1:-1], again.splits[1:-1], strict=True))


def test_numbers_of_pandas_are_numbers(tmp_path):
    lines = [f"v{number},{number}.0" for number in range(11)] + [f"w{number},{number}.0" for number in range(11)]
    found = labels_in(tmp_path, "\n".join(lines))
    assert (found.labels, found.class_names) == ([*range(11), *range(11)], ())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "lists no video"),
        ("video,label\n", "lists no video"),
        ("a;1\nb;2", "line 1: 'a;1' is not `video,label`"),
        ("a,1\nb,0,val", "line 2: 'b,0,val' is not"),
        ("a,0\nb,", "line 2: 'b,' is not"),
        ("a,0,train\nb,0,test", "line 2: the split is 'test'; write train or val"),
        ("a,0,train\nb,0,train", "has the split val; write val into the column split"),
        ("a,0\na,1", "lines 1 and 2 name the same video"),
        ("a,0\nb,1.5", "has the label 1.5; number the classes with whole numbers from 0"),
        ("a,-1\nb,0", "has the label -1; number the classes"),
        ("a,1.0\nb,nan", "numbers and words as labels, '1.0' and 'nan'"),
        ("a,0\nb,wave", "numbers and words as labels, '0' and 'wave'"),
        ("a,1\nb,2\nc,2", "has labels up to 2, but none of them is 0"),
        ("a,0\nb,99999999", "has labels up to 99999999, but none of them is 1"),
    ],
)
def test_labels_that_cannot_be_used(tmp_path, text, sentence):
    with pytest.raises(ValueError, match=r"labels\.csv") as error:
        labels_in(tmp_path, text)
    assert sentence in str(error.value)


def person(x: float, score: float = 1.0, size: float = 20) -> Person:
    """Return a person whose 4 joints are the corners of a square around (x, 100)."""
    corners = np.array([(-1, -1, 1), (1, -1, 1), (1, 1, 1), (-1, 1, 1)], np.float32)
    return Person(corners * (size, size, score) + (x, 100, 0))


def middle(joints: np.ndarray) -> np.ndarray:
    """Return the mean x of each person's joints, [M, T]. It is 0 in frames in which the person is missing."""
    return np.round(joints[..., 0].mean(axis=-1), 3)


def test_people_are_followed_whatever_their_order():
    way = [[person(100 + 4 * t, 0.9), person(300 - 4 * t, 0.8)][:: 1 if t % 2 else -1] for t in range(20)]
    joints = follow(way, 2, 4)
    assert joints.shape == (2, 20, 4, 3)
    np.testing.assert_allclose(middle(joints), [100 + 4 * np.arange(20), 300 - 4 * np.arange(20)])
    np.testing.assert_allclose(middle(follow(way, 1, 4)), [100 + 4 * np.arange(20)])


def test_another_person_does_not_take_over():
    way = [[person(100)]] * 5 + [[person(500)]] + [[person(500), person(100)]] * 4
    np.testing.assert_allclose(middle(follow(way, 2, 4)), [[100] * 5 + [0] + [100] * 4, [0] * 5 + [500] * 5])


def test_nobody_is_zeros():
    joints = follow([[], [person(100)], []], 2, 4)
    assert joints.shape == (1, 3, 4, 3)
    assert not joints[0, [0, 2]].any()
    assert not follow([[], []], 2, 17).any()
    assert follow([[], []], 2, 17).shape == (1, 2, 17, 3)


def test_a_person_who_comes_back_elsewhere_takes_the_free_place():
    way = [[person(100, 0.9)] for _ in range(5)] + [[], []] + [[person(500, 0.9), person(700, 0.2)] for _ in range(5)]
    joints = follow(way, 1, 4)
    np.testing.assert_allclose(middle(joints), [[100] * 5 + [0, 0] + [500] * 5])
    assert len(follow(way, 5, 4)) == 2


def entries_in(folder: Path, entries: object, frames: int = 3) -> np.ndarray:
    """Return the joints [M, T, V, 3] of a video whose poses the file a.json describes."""
    (folder / "a.json").write_text(entries if isinstance(entries, str) else json.dumps(entries))
    poses, header = PoseFolder(folder, 1), Header(width=64, height=48, frames=frames)
    poses.survey({"a": header}, lambda _: None)
    return poses.poses("a", header)[1].joints


ONE = [1.0, 2.0, 0.5] * 17


@pytest.mark.parametrize(
    ("key", "values", "places"),
    [
        ("frame", [0, 1], [0, 1]),
        ("frame", [1, 3], [0, 2]),  # the video has three frames and the file names frame 3, so numbers start at 1
        ("frame", [1, 2], [1, 2]),
        ("frame_id", ["0", "2"], [0, 2]),
        ("image_id", ["clip2/000000.jpg", "clip2/000001.jpg"], [0, 1]),
        ("image_id", [0.0, 2.0], [0, 2]),
    ],
)
def test_frames_of_keypoints(tmp_path, key, values, places):
    joints = entries_in(tmp_path, [{key: value, "keypoints": ONE} for value in values])
    assert (joints.shape[2], np.flatnonzero(joints.any(axis=(0, 2, 3))).tolist()) == (17, places)


def test_keypoints_of_coco(tmp_path):
    flags = [10.0, 20.0, 2, 30.0, 40.0, 1, 0, 0, 0]
    joints = entries_in(tmp_path, {"annotations": [{"image_id": 0, "keypoints": flags, "score": 3.5}]})
    assert joints[0, 0].tolist() == [[10, 20, 1], [30, 40, 1], [0, 0, 0]]
    assert entries_in(tmp_path, '[{"frame": 0, "keypoints": [NaN, 1, 0.5]}]')[0, 0].tolist() == [[0, 1, 0.5]]
    assert not entries_in(tmp_path, []).any()
    images = [{"id": 900 + number, "file_name": f"a_{number:06}.jpg"} for number in range(3)] + [None, {}]
    whole = {"images": images, "annotations": [{"image_id": 902, "keypoints": ONE}]}
    assert entries_in(tmp_path, whole).any(axis=(0, 2, 3)).tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ("{", "a.json is not JSON"),
        ("[" * 100_000, "a.json is not JSON"),
        ("3", "a.json is in no format that is known here"),
        ([3], "a.json is in no format that is known here"),
        ([{"keypoints": ONE}], "entry 0: there is neither frame nor image_id"),
        ([{"frame": 0, "keypoints": ONE[:4]}], "entry 0: keypoints has 4 numbers"),
        ([{"frame": 0, "keypoints": ["x"] * 3}], "entry 0: could not convert"),
        ([{"frame": "last", "keypoints": ONE}], "entry 0: frame is 'last'"),
        ([{"frame": 0.5, "keypoints": ONE}], "entry 0: frame is 0.5"),
        ([{"frame": 4, "keypoints": ONE}], "has people in frame 4, but its video has 3 frames"),
        ([{"frame": -1, "keypoints": ONE}], "has people in frame -1"),
        ([{"frame": 0, "keypoints": ONE}, {"frame": 0, "keypoints": ONE[:6]}], "has people with 2 and 17 joints"),
    ],
)
def test_keypoints_that_cannot_be_used(tmp_path, entries, sentence):
    with pytest.raises(ValueError) as error:
        entries_in(tmp_path, entries)
    assert sentence in str(error.value)
    assert "a.json" in str(error.value)


def test_poses_survive_a_file(tmp_path):
    joints = np.random.default_rng(0).uniform(0, 99, (2, 5, 17, 3)).astype(np.float32)
    write_poses(tmp_path / "a.npz", Poses(joints, 120, 160))
    again = read_npz(tmp_path / "a.npz", (1, 1))
    assert (again.height, again.width) == (120, 160)
    assert np.array_equal(again.joints, joints)


CONFIG = DemoConfig(num_train=24, num_val=12, size=(96, 64), num_frames=(12, 16))
CLIPS = [clip for clip in clip_ids(CONFIG) if clip.label in (0, 2, 6, 9, 11)][:10]
WORDS = {0: "raise", 2: "wave", 6: "lift, red", 9: "give", 11: "push"}


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """Make a folder with ten videos whose names contain spaces, their labels, and JSON keypoints in random order."""
    root = tmp_path_factory.mktemp("own")
    (root / "my videos").mkdir()
    (root / "keypoints").mkdir()
    rng, lines = np.random.default_rng(0), ["video,label"]
    for clip in CLIPS:
        name = f"take {clip.name}"
        demo_clip.write_clip(CONFIG, clip, root / "my videos")
        (root / "my videos" / f"{clip.name}.mp4").rename(root / "my videos" / f"{name}.mp4")
        annotation = demo_clip.annotate(CONFIG, clip)
        entries = []
        for keypoint, scores in zip(annotation["keypoint"], annotation["keypoint_score"], strict=True):
            for frame, (xy, score) in enumerate(zip(keypoint, scores, strict=True)):
                values = np.c_[xy, score].ravel().tolist()
                if frame != 3:  # frame 3 has no people, so the file has no entries for it
                    entries.append({"image_id": f"{frame:06}.jpg", "keypoints": values, "score": float(score.mean())})
        shuffled = [entries[place] for place in rng.permutation(len(entries))]
        (root / "keypoints" / f"{name}.json").write_text(json.dumps(shuffled))
        lines.append(f'{name}.mp4,"{WORDS[clip.label]}"')
    (root / "labels.csv").write_bytes("\r\n".join(lines).encode())
    return root


@pytest.fixture(scope="module")
def annotated(own) -> tuple[Path, str]:
    words = (own / "my videos", own / "labels.csv", "--out", own / "my.pkl", "--poses", own / "keypoints")
    code, shown, error = command("pipelines.annotate", *words)
    assert code == 0, error
    return own / "my.pkl", shown


def test_pickle_holds_what_was_annotated(annotated, tmp_path):
    path, shown = annotated
    table = open_table(path, tmp_path / "cache")
    assert sorted(table.splits) == ["own_train", "own_val"]
    assert table.class_names == tuple(sorted(WORDS.values()))
    assert (len(table.splits["own_train"]), len(table.splits["own_val"])) == (5, 5)
    assert "5 in own_train, 5 in own_val, 5 classes; clips without a person: 0" in shown
    for row, clip in enumerate(CLIPS):
        expected = demo_clip.annotate(CONFIG, clip)
        joints = table.clip_joints(row)
        assert str(table.names[row]) == f"take {clip.name}"
        assert sorted(WORDS.values())[table.label[row]] == WORDS[clip.label]
        assert (table.height[row], table.width[row]) == (64, 96)
        assert len(joints) == len(expected["keypoint"])
        assert not joints[:, 3].any()
        given = np.concatenate([expected["keypoint"], expected["keypoint_score"][..., None]], axis=-1)
        for frame in {*range(joints.shape[1])} - {3}:  # each frame has the same people, in any order
            people = [sorted(each[:, frame].tolist()) for each in (joints, given.astype(np.float32))]
            assert people[0] == people[1]


def test_it_trains_by_the_command_that_is_advised(annotated, own, tmp_path):
    _, shown = annotated
    advised, _, reason = shown.strip().splitlines()[-1].partition(" (")
    assert advised.startswith("train with: python -m trainer --exp custom_small --set ")
    assert re.fullmatch(r"about 1 min on \d+ CPU cores for 5 training clips; custom is for GPUs\)", reason)
    settings = (
        *("model.rgb.widths=(8,16)", "model.rgb.blocks=(1,1)", "model.pose.widths=(8,16)", "model.pose.blocks=(1,1)"),
        *("clip.rgb_frames=2", "clip.pose_frames=4", "clip.rgb_size=32", "clip.rgb_size_val=32", "clip.box_pixels=32"),
        *("clip.heatmap_size=8", "clip.heatmap_size_val=8", "optim.batch_size=4", "val.batch_size=4"),
        *(
            f"data.packs={tmp_path}/packs",
            f"data.cache={tmp_path}/cache",
            "optim.num_epochs=1",
            "optim.warmup_epochs=0",
            "log_every=1",
        ),
    )
    more = "".join(f" --set '{setting}'" for setting in settings)
    words = shlex.split(advised)[5:]
    assert words[:2] == ["--exp", "custom_small"]
    more = [word for setting in settings for word in ("--set", setting)]
    assert run_command([*words, *more, "--work-dir", str(tmp_path / "run"), "--max-steps", "2"]) == 0
    assert "lift" not in advised  # class names come from the annotation file, so the advised command does not list them
    names = sorted(WORDS.values())
    for settings in (
        (tmp_path / "run" / "experiment.json").read_text(),
        load(tmp_path / "run" / "latest.pth")["experiment"],
    ):
        assert json.loads(settings)["data"]["class_names"] == names
    words = ["eval", str(tmp_path / "run"), "--latest", "--out", str(tmp_path / "eval")]
    assert run_command(words) == 0
    with open(tmp_path / "eval" / "classes.csv") as table:
        assert [row["name"] for row in csv.DictReader(table)] == names


def test_names_that_do_not_fit_the_experiment_are_told(annotated, tmp_path, capsys):
    words = ["--exp", "custom", "--set", f"data.annotations={annotated[0]}", "--set", f"data.cache={tmp_path}"]
    words += ["--set", "data.num_classes=2"]
    assert run_command(["prepare", *words]) == 2
    assert "my.pkl names 5 classes, but experiment custom has 2; set data.num_classes=5" in capsys.readouterr().err
    other = override(EXPERIMENTS["custom"], "data.num_classes=5", "data.class_names=give,push,lift,raise,wave")
    said = []
    table = open_table(annotated[0], tmp_path)
    assert with_class_names(other, table, said.append) == other
    assert said == [
        "2 of 5 classes have other names in data/custom/annotations.pkl than in data.class_names, whose names are "
        "used; the first is class 1: 'lift, red', not 'push'"
    ]


# A fake rtmlib 0.0.16, so that PoseEstimator is also tested where the extra is not installed. It finds one person,
# always at the same place, but no person in the fourth frame.
RTMLIB = """
import numpy as np
class Body:
    def __init__(self, mode, backend, device, pose_input_size, det=None, pose=None):
        self.frames = 0
    def det_model(self, picture):
        assert picture.dtype == np.uint8 and picture.shape[2] == 3
        self.frames += 1
        return np.array([[1, 2, 30, 40]]) if self.frames % 13 != 4 else np.zeros((0, 4))
    def pose_model(self, picture, bboxes):
        assert len(bboxes)
        return np.full((1, 17, 2), 7.0), np.full((1, 17), 0.5)
"""


def test_estimated_poses_are_kept(own, tmp_path):
    (tmp_path / "rtmlib.py").write_text(RTMLIB)
    files = (own / "my videos", own / "labels.csv", "--out", tmp_path / "my.pkl")
    words = ("pipelines.annotate", *files, "--estimator", "rtmlib")
    code, _, error = command(*words, PYTHONPATH=str(tmp_path))
    assert code == 0, error
    first = pickle.loads((tmp_path / "my.pkl").read_bytes())["annotations"][0]
    assert not first["keypoint_score"][0, 3].any()
    assert (first["keypoint"][0, 4] == 7).all()
    assert len(list((tmp_path / "my_poses").glob("*.npz"))) == 10
    (tmp_path / "rtmlib.py").write_text(RTMLIB.replace("self.frames += 1", "raise SystemError"))
    assert command(*words, PYTHONPATH=str(tmp_path))[0] == 0  # no video is estimated a second time
    (tmp_path / "rtmlib.py").write_text(RTMLIB.replace("self.frames = 0", "raise OSError('no network')"))
    code, _, error = command(*words, PYTHONPATH=str(tmp_path))
    assert code == 2
    assert error.startswith("error: rtmlib could not load its weights (no network): MMPose publishes them as yolox_m")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"labels": "gone.csv"}, "gone.csv cannot be opened"),
        ({"videos": "gone"}, "there is no folder"),
        ({"poses": "gone"}, "give --poses a folder with NAME.json or NAME.npz"),
        ({"poses": "my videos"}, "has neither take"),
        ({"out": "gone/my.pkl"}, "cannot be written"),
        ({"people": "0"}, "--people 0: the number must be 1 or more"),
        ({"extra": "stranger.mp4,wave"}, "the labels list stranger.mp4, but there is no usable video for it in"),
        ({"extra": f"take {CLIPS[0].name},wave"}, "refer to the video"),
    ],
)
def test_mistakes_are_one_sentence(own, tmp_path, capsys, monkeypatch, change, sentence):
    from pipelines.annotate.cli import main

    labels = own / change.get("labels", "labels.csv")
    if "extra" in change:
        labels = tmp_path / "labels.csv"
        labels.write_bytes((own / "labels.csv").read_bytes() + b"\r\n" + change["extra"].encode())
    with pytest.raises(UserError) as stopped:
        main(
            own / change.get("videos", "my videos"),
            labels,
            out=(own if "out" in change else tmp_path) / change.get("out", "my.pkl"),
            poses=own / change.get("poses", "keypoints"),
            people=int(change.get("people", "2")),
        )
    assert sentence in str(stopped.value)


def test_a_broken_video_is_named_and_left_out(own, tmp_path, capsys):
    from pipelines.annotate.cli import main

    for video in (own / "my videos").glob("*.mp4"):
        (tmp_path / "videos").mkdir(exist_ok=True)
        content = video.read_bytes()
        broken = video.stem == f"take {CLIPS[0].name}"
        (tmp_path / "videos" / video.name).write_bytes(content[: len(content) // 2] if broken else content)
    main(tmp_path / "videos", own / "labels.csv", out=tmp_path / "my.pkl", poses=own / "keypoints")
    shown = capsys.readouterr().out
    assert f"left out: take {CLIPS[0].name}: the video" in shown
    assert len(pickle.loads((tmp_path / "my.pkl").read_bytes())["annotations"]) == 9
