"""Published annotations become a table: both forms of annotation files are read, and every field is checked."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.annotations.schema import AnnotationError
from tests.pipelines.annotated import clip, table_of

pytestmark = pytest.mark.usefixtures("build_here")


def complaint(folder: Path, content) -> str:
    with pytest.raises(AnnotationError) as refused:
        table_of(folder, content)
    text = str(refused.value)
    assert str(folder / "poses.pkl") in text
    assert "\n" not in text
    assert {path.suffix or path.name for path in (folder / "cache").iterdir()} == {"lock", ".digest"}
    return text


def expected(clip: dict) -> np.ndarray:
    return np.concatenate([clip["keypoint"][..., :2], clip["keypoint_score"][..., None]], axis=-1)


@pytest.mark.parametrize("protocol", range(6))
def test_split_and_annotations(tmp_path, protocol):
    """The file has the form of NTU-60: splits that list names, clips with two, one or no people, float16 numbers."""
    clips = [clip("a", 1, 9), clip("b", 2, 6, label=59), clip("c", 0, 4), clip("d", 1, 1, img_shape=(540, 960))]
    content = {"split": {"xsub_train": ["d", "a"], "xsub_val": ["b"], "none": []}, "annotations": clips}
    table = table_of(tmp_path, content, protocol)
    assert len(table) == 4
    assert table.num_joints == 17
    assert table.names.tolist() == ["a", "b", "c", "d"]
    assert table.label.tolist() == [3, 59, 3, 3]
    assert table.total_frames.tolist() == [9, 6, 4, 1]
    assert table.num_persons.tolist() == [1, 2, 0, 1]
    assert table.first_row.tolist() == [0, 9, 21, 21]
    assert (table.height.tolist(), table.width.tolist()) == ([1080] * 3 + [540], [1920] * 3 + [960])
    assert {name: rows.tolist() for name, rows in table.splits.items()} == {
        **{"xsub_train": [3, 0], "xsub_val": [1], "none": []}
    }
    assert table.joints.dtype == np.float16
    for row, source in enumerate(clips):
        np.testing.assert_array_equal(table.clip_joints(row), expected(source))
    assert table.rows_in_split("xsub_train").tolist() == [3, 0]
    assert table.rows_in_split(None).tolist() == [0, 1, 2, 3]
    with pytest.raises(AnnotationError, match=r"no split 'xview_val', only \['none', 'xsub_train', 'xsub_val'\]"):
        table.rows_in_split("xview_val")


def test_plain_list(tmp_path):
    """The file has the form of MA-52: no splits, 28 joints, file names with extension, and NumPy's number types."""
    names = ["train/0003_01_0001.mp4", "0003_01_0002.mp4"]
    clips = [clip(name, joints=28, label=np.int64(51), img_shape=np.array([1296, 1080])) for name in names]
    clips[1]["filename"] = clips[1].pop("frame_dir")
    table = table_of(tmp_path, clips)
    assert table.names.tolist() == names
    assert table.num_joints == 28
    assert table.label.tolist() == [51, 51]
    assert (table.height[0], table.width[0]) == (1296, 1080)
    assert table.splits == {}
    with pytest.raises(AnnotationError, match="no split 'xsub_train', only a plain list; set data"):
        table.rows_in_split("xsub_train")


@pytest.mark.parametrize(
    ("lists", "pair", "train", "val"),
    [
        (("xsub_train", "xsub_val"), "xsub", "xsub_train", "xsub_val"),
        (("train1", "test1", "train2", "test2"), "train2", "train2", "test2"),  # UCF101, HMDB51
        (("train1", "test1", "train2", "test2"), "1", "train1", "test1"),
        (("train", "val", "test"), "train", "train", "val"),  # FineGYM names its splits train and val
        (("train", "test"), "train", "train", "test"),
        (("sub_train", "sub_test"), "sub", "sub_train", "sub_test"),
        (("Training", "Validation"), "Training", "Training", "Validation"),
        (("trainlist01", "testlist01"), "list01", "trainlist01", "testlist01"),
    ],
)
def test_pairs_of_splits_as_files_name_them(tmp_path, lists, pair, train, val):
    clips = [clip(name) for name in lists]
    table = table_of(tmp_path, {"split": {name: [name] for name in lists}, "annotations": clips})
    found = [table.names[table.rows_in_split(f"{pair}_{side}")].tolist() for side in ("train", "val")]
    assert found == [[train], [val]]
    assert table.names[table.rows_in_split(lists[-1])].tolist() == [lists[-1]]


def test_a_pair_that_is_not_there_is_told_with_those_that_are(tmp_path):
    lists = ("train1", "test1", "alone")
    table = table_of(tmp_path, {"split": {name: [name] for name in lists}, "annotations": [clip(n) for n in lists]})
    with pytest.raises(AnnotationError, match=r"only \['alone', 'test1', 'train1'\]; set data.split=1, or"):
        table.rows_in_split("own_val")
    with pytest.raises(AnnotationError, match="no split 'alone_val'"):
        table.rows_in_split("alone_val")


def test_splits_may_list_clips_that_were_filtered_out(tmp_path):
    content = {"split": {"a_train": ["b", "a", "c"], "a_val": ["d"]}, "annotations": [clip("a")]}
    table = table_of(tmp_path, content)
    assert table.rows_in_split("a_train").tolist() == [0]
    assert table.absent == {"a_train": (2, "b"), "a_val": (1, "d")}
    with pytest.raises(AnnotationError, match=r"\(it lists 1, such as d, but the file annotates clips such as a\)"):
        table.rows_in_split("a_val")


def test_names_of_classes_are_read_with_the_clips(tmp_path):
    names = ["drink", "走る", "wave hello", "sit, stand", "unused"]
    content = {"split": {}, "annotations": [clip("a")], "class_names": names}
    assert table_of(tmp_path, content).class_names == tuple(names)
    assert table_of(tmp_path, [clip("a")]).class_names == ()


def test_filename_replaces_frame_dir(tmp_path):
    content = {"split": {"train": np.array(["b.mp4"])}, "annotations": [clip("a", filename="b.mp4")]}
    assert table_of(tmp_path, content).rows_in_split("train").tolist() == [0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_other_numbers_become_float32(tmp_path, dtype):
    odd = clip("b", keypoint=np.arange(2 * 6 * 17 * 2).reshape(2, 6, 17, 2).astype(dtype), keypoint_score=None)
    table = table_of(tmp_path, [clip("a"), odd])
    assert table.joints.dtype == np.float32
    np.testing.assert_array_equal(table.clip_joints(0), expected(clip("a")))
    np.testing.assert_array_equal(table.clip_joints(1)[..., :2], odd["keypoint"])


def test_scores(tmp_path):
    """Without scores, the third number of each joint is its score. Without a third number, the score is 1.

    Scores of shape [M, T, V, 1] are read like scores of shape [M, T, V].
    """
    bare, third, column = (clip(name, persons=2, keypoint_score=None) for name in "abc")
    third["keypoint"] = np.concatenate([third["keypoint"], np.full((2, 6, 17, 1), 0.25, np.float16)], axis=-1)
    column["keypoint_score"] = np.full((2, 6, 17, 1), 0.75, np.float16)
    table = table_of(tmp_path, [bare, third, column])
    assert [np.unique(table.clip_joints(row)[..., 2]).tolist() for row in range(3)] == [[1], [0.25], [0.75]]
    np.testing.assert_array_equal(table.clip_joints(1)[..., :2], third["keypoint"][..., :2])


def test_missing_joints_are_zero(tmp_path):
    holes = clip("a", 2)
    holes["keypoint"][0, 1, 4] = np.nan
    holes["keypoint"][1, 2, 5] = (np.inf, -np.inf)
    holes["keypoint"][1, 3, 6] = 0
    joints = table_of(tmp_path, [holes]).clip_joints(0)
    assert np.isfinite(joints).all()
    for person, frame, joint in ((0, 1, 4), (1, 2, 5), (1, 3, 6)):
        assert joints[person, frame, joint, :2].tolist() == [0, 0]
    assert np.count_nonzero(joints[..., :2]) == 2 * (2 * 6 * 17 - 3)


def test_only_empty_skeletons(tmp_path):
    table = table_of(tmp_path, [clip("a", 0, 5), clip("b", 0, 7)])
    assert table.clip_joints(1).shape == (0, 7, 17, 3)


@pytest.mark.parametrize("told", [4, 5, 6, 7, 8])
def test_length_may_differ_by_two(tmp_path, told):
    source = clip("a", 2, 6, total_frames=told)
    table = table_of(tmp_path, [source, clip("b")])
    frames = min(told, 6)
    assert table.total_frames[0] == frames
    np.testing.assert_array_equal(table.clip_joints(0), expected(source)[:, :frames])
    np.testing.assert_array_equal(table.clip_joints(1), expected(clip("b")))


NO_FORM = (
    "contains neither a list of annotations nor {'split', 'annotations'}; see \"Annotation files\" in docs/data.md"
)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([], NO_FORM),
        ({}, NO_FORM),
        ("text", NO_FORM),
        ([1, 2], NO_FORM),
        (np.zeros(3), NO_FORM),
        ({"annotations": [clip()]}, NO_FORM),
        ({"split": {}, "annotations": {}}, NO_FORM),
        ({"split": ["a"], "annotations": [clip()]}, NO_FORM),
        ({"split": None, "annotations": [clip()]}, NO_FORM),
        ({"split": {"val": 5}, "annotations": [clip()]}, "split 'val' of {} is not a list of names"),
        ({"split": {"val": "a"}, "annotations": [clip("a")]}, "split 'val' of {} is not a list of names"),
        (
            {"split": {"val": ["a", "b", "a"]}, "annotations": [clip("a"), clip("b")]},
            "split 'val' of {} lists clips twice (1 in all, the first is a); remove the duplicates",
        ),
        *(
            ({"split": {}, "annotations": [clip("a")], "class_names": names}, f"class_names in {{}} {sentence}")
            for names, sentence in (
                (5, "is not a list of texts"),
                ("abcd", "is not a list of texts"),
                ([*"abc", b"d"], "is not a list of texts"),
                ([*"abc", ["d"]], "is not a list of texts"),
                ([*"abc", ""], "has the name ''; write 1 to 200 printable characters"),
                ([*"abc", "\x1b[2Jd"], "has the name '\\x1b[2Jd'"),
                ([*"abc", "d" * 201], "has the name '"),
                ([*"abc", "a"], "has two classes with the name a"),
                ([*"abc"], "has 3 names, but the labels go up to 3"),
            )
        ),
        ([clip("a"), clip("b"), clip("a")], "{} lists clips twice (1 in all, the first is a); remove the duplicates"),
        (
            [clip("a"), clip("b"), clip("c", joints=25)],
            "{} has clips of different joint layouts (17 joints: 2 clips, 25 joints: 1 clips)",
        ),
    ],
)
def test_files_that_are_no_annotations(tmp_path, content, sentence):
    assert sentence.replace("{}", str(tmp_path / "poses.pkl")) in complaint(tmp_path, content)


SHAPE = "not (people, frames, joints, 2)"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        *(({key: None}, f"'{key}' is missing") for key in ("frame_dir", "label", "keypoint", "total_frames")),
        ({"img_shape": None}, "'img_shape' is missing"),
        (
            {"img_shape": None, "keypoint": np.zeros((1, 6, 25, 3))},
            "its skeleton is 3-D; use 2-D skeletons",
        ),
        (
            {"keypoint": np.zeros((6, 1, 17, 2)), "keypoint_score": None},
            "skeleton has 1 frames; write the axes of keypoint in the order (people, frames, joints, 2)",
        ),
        ({"keypoint": np.zeros((6, 17, 2))}, f"keypoint has shape (6, 17, 2), {SHAPE}"),
        ({"keypoint": np.zeros((1, 6, 17, 4))}, f"keypoint has shape (1, 6, 17, 4), {SHAPE}"),
        ({"keypoint": np.zeros((1, 6, 0, 2))}, f"keypoint has shape (1, 6, 0, 2), {SHAPE}"),
        ({"keypoint": np.zeros(0)}, f"keypoint has shape (0,), {SHAPE}"),
        ({"keypoint": [[1], [1, 2]]}, "inhomogeneous"),
        ({"keypoint": np.full((1, 6, 17, 2), "left")}, "keypoint contains something other than numbers"),
        ({"total_frames": 9}, "total_frames is 9, but the skeleton has 6 frames"),
        ({"total_frames": 3}, "total_frames is 3, but the skeleton has 6 frames"),
        ({"total_frames": 0}, "total_frames is 0, but"),
        ({"total_frames": -1, "keypoint": np.zeros((1, 1, 17, 2))}, "total_frames is -1, but"),
        ({"total_frames": float("inf")}, "total_frames is inf, not a whole number"),
        (
            {"keypoint_score": np.ones((6, 1, 17))},
            "keypoint_score has shape (6, 1, 17), but keypoint has (1, 6, 17, 2)",
        ),
        (
            {"keypoint_score": np.ones((1, 6, 16))},
            "keypoint_score has shape (1, 6, 16), but keypoint has (1, 6, 17, 2)",
        ),
        ({"img_shape": (1080, 1920, 3)}, "img_shape is (1080, 1920, 3), not (height, width)"),
        ({"img_shape": (0, 1920)}, "img_shape is (0, 1920), not (height, width)"),
        ({"img_shape": 1080}, "img_shape is 1080, not (height, width)"),
        ({"img_shape": (1 << 40, 9)}, "height is"),
        ({"label": [1, 2]}, "label is [1, 2], not a whole number"),
        ({"label": "wave"}, "label is 'wave', not a whole number"),
        ({"label": 1.5}, "label is 1.5, not a whole number"),
        ({"label": float("nan")}, "label is nan, not a whole number"),
        ({"label": 1 << 40}, f"label is {1 << 40}, not a whole number"),
    ],
)
def test_a_bad_clip_is_named(tmp_path, changes, reason):
    text = complaint(tmp_path, [clip("good"), clip("bad", **changes)])
    assert f"clip 1 ({'?' if changes.get('frame_dir', '') is None else 'bad'}): " in text
    assert reason in text


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../a", "a/../../b", "a\\..\\b", "\\\\host\\a", "C:\\a", "a\0b", "/"]
)
def test_names_that_lead_out_are_refused(tmp_path, name):
    assert f"the name {name!r} leads out of the data folder" in complaint(tmp_path, [clip("a"), clip(name)])


@pytest.mark.parametrize("name", ["a b/c.d_rgb.avi", "val\\clip", "..a", "a..", "übung"])
def test_names_that_stay_inside_are_kept(tmp_path, name):
    assert table_of(tmp_path, [clip(name)]).names.tolist() == [name]


@pytest.mark.parametrize("upright", [True, False])
def test_exchanged_image_shapes_are_told(tmp_path, upright):
    """Joints at x = 1900 (in upright videos, y = 1900) show that img_shape contains (width, height), which is wrong."""
    keypoint = np.full((1, 6, 17, 2), 500.0, np.float32)
    keypoint[0, 0, 0] = (500, 1900) if upright else (1900, 500)
    right, wrong = ((1920, 1080), (1080, 1920)) if upright else ((1080, 1920), (1920, 1080))
    clips = [clip(f"c{number}", keypoint=keypoint, img_shape=wrong) for number in range(4)]
    with pytest.raises(
        ValueError, match=r"poses\.pkl: in 4 clips, such as c0 with .* write img_shape as \(height, width\)"
    ):
        table_of(tmp_path, clips)
    assert len(table_of(tmp_path, [{**each, "img_shape": right} for each in clips])) == 4
    odd = [clip(f"d{number}", keypoint=keypoint, img_shape=right) for number in range(30)]
    # height and width seem exchanged in only 2 of 32 clips, so the joints of these 2 clips may be wrong instead
    assert len(table_of(tmp_path, [*odd, *clips[:2]])) == 32
