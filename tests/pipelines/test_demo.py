"""The demo's data set resembles the published data sets in its files, schema, missing joints and damaged videos."""

import pickle
import re
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from pipelines.annotations.table import open_table
from pipelines.demo.classes import (
    COARSE_MAP,
    COARSE_NAMES,
    COLOUR_ONLY,
    FINE_NAMES,
    MOTION_ONLY,
    TRAIN,
    VAL,
    DemoConfig,
    clip_ids,
    corrupt_video,
    missing_skeleton,
)
from pipelines.demo.clip import annotate, film, generator, person_box, stage
from pipelines.demo.make import make_demo
from pipelines.demo.scene import room

SHIPPED = DemoConfig()
SAMPLE = DemoConfig(num_train=12, num_val=1)  # a clip of each class at the size of the shipped demo
KEYS = {"frame_dir", "label", "img_shape", "original_shape", "total_frames", "keypoint", "keypoint_score"}


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    return make_demo(tmp_path_factory.mktemp("demo") / "data", SAMPLE).parent


def decoded(path: Path) -> list[av.VideoFrame]:
    with av.open(path) as container:
        return list(container.decode(video=0))


def test_counts_of_the_shipped_set():
    clips = clip_ids(SHIPPED)
    assert len(FINE_NAMES) == len(set(FINE_NAMES)) == len(COARSE_MAP) >= 12
    assert len(COARSE_NAMES) == 4
    assert set(COARSE_MAP) == set(range(4))
    labels = {split: [clip.label for clip in clips if clip.split == split] for split in (TRAIN, VAL)}
    assert len(labels[VAL]) >= 240
    assert len(labels[TRAIN]) >= 2 * len(labels[VAL])
    for of_split in labels.values():
        assert np.ptp(np.bincount(of_split, minlength=len(FINE_NAMES))) == 0
    names = [clip.name for clip in clips]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"S\d{3}C\d{3}P\d{3}R\d{3}A\d{3}", name) for name in names)
    assert all(int(clip.name[-3:]) == clip.label + 1 for clip in clips)
    subjects = {split: {clip.name[8:12] for clip in clips if clip.split == split} for split in (TRAIN, VAL)}
    assert not subjects[TRAIN] & subjects[VAL]
    for one, other in (*MOTION_ONLY, *COLOUR_ONLY):
        assert COARSE_MAP[one] == COARSE_MAP[other]
    assert missing_skeleton(SHIPPED).split == corrupt_video(SHIPPED).split == TRAIN
    assert missing_skeleton(SHIPPED) != corrupt_video(SHIPPED)
    assert min(SHIPPED.size) >= 240
    assert max(SHIPPED.size) >= 320
    assert SHIPPED.num_frames == (20, 45)


def test_schema_is_the_published_one(sample):
    content = pickle.loads((sample / "annotations.pkl").read_bytes())
    assert content.keys() == {"split", "annotations"}
    clips = clip_ids(SAMPLE)
    assert content["split"] == {
        split: [clip.name for clip in clips if clip.split == split] for split in ("xsub_train", "xsub_val")
    }
    assert [clip["frame_dir"] for clip in content["annotations"]] == [clip.name for clip in clips]
    for clip in content["annotations"]:
        assert clip.keys() == KEYS
        assert [type(clip[key]) for key in ("frame_dir", "label", "total_frames")] == [str, int, int]
        assert clip["img_shape"] == clip["original_shape"] == (240, 320)
        keypoint, score = clip["keypoint"], clip["keypoint_score"]
        assert keypoint.dtype == score.dtype == np.float16
        assert keypoint.shape == (2 if clip["label"] >= 9 else 1, clip["total_frames"], 17, 2)
        assert score.shape == keypoint.shape[:3]
    table = open_table(sample / "annotations.pkl", sample / "cache")
    assert len(table) == 13
    assert table.rows_in_split("xsub_val").tolist() == [12]


def test_videos_are_real(sample):
    """One video cannot be decoded. The others are H.264 with one key frame, B-frames, and `total_frames` frames."""
    corrupt, lengths = corrupt_video(SAMPLE).name, set()
    for clip in pickle.loads((sample / "annotations.pkl").read_bytes())["annotations"]:
        path = sample / "videos" / f"{clip['frame_dir']}.mp4"
        if clip["frame_dir"] == corrupt:
            with pytest.raises(av.FFmpegError):
                decoded(path)
            continue
        with av.open(path) as container:
            (stream,) = container.streams
            assert (stream.codec_context.name, stream.average_rate) == ("h264", SAMPLE.rate)
            assert (stream.width, stream.height, stream.pix_fmt) == (320, 240, "yuv420p")
        frames = decoded(path)
        assert len(frames) == clip["total_frames"]
        assert 20 <= len(frames) <= 45
        assert sum(frame.key_frame for frame in frames) == 1
        assert {frame.pict_type for frame in frames} >= {av.video.frame.PictureType.B}
        lengths.add(len(frames))
    assert len(lengths) > 4
    assert len(list((sample / "videos").iterdir())) == 13


def planes(frame: av.VideoFrame) -> np.ndarray:
    """Return the planes Y, Cb and Cr as [H, W, 3], like the generator's images."""
    values = frame.to_ndarray().astype(np.int16)  # [H * 3 / 2, W]
    width, height = frame.width, frame.height
    chroma = values[height:].reshape(2, height // 2, width // 2).repeat(2, axis=1).repeat(2, axis=2)
    return np.stack([values[:height], *chroma], axis=-1)


def test_joints_lie_on_the_people(sample):
    """The video differs from the empty room at nearly all joints. It differs less often 48 px to the right of them."""
    on, beside, far = [], [], []
    for clip in clip_ids(SAMPLE):
        if clip in (missing_skeleton(SAMPLE), corrupt_video(SAMPLE)):
            continue
        plate = np.asarray(room(SAMPLE.size, stage(SAMPLE, clip).floor, generator(SAMPLE, clip, 2)), np.int16)
        keypoint = annotate(SAMPLE, clip)["keypoint"].astype(np.float32)
        left, top, right, bottom = person_box(stage(SAMPLE, clip).points)
        for time_, frame in enumerate(decoded(sample / "videos" / f"{clip.name}.mp4")):
            if time_ % 3:
                continue
            changed = np.abs(planes(frame) - plate).max(axis=-1) > 14
            seen = keypoint[:, time_][keypoint[:, time_, :, 0] > 0].round().astype(int)
            for joints, shift in ((on, 0), (beside, 48)):
                x, y = (seen[:, 0] + shift).clip(2, 317), seen[:, 1].clip(2, 237)
                joints += [changed[j - 2 : j + 3, i - 2 : i + 3].mean() > 0.3 for i, j in zip(x, y, strict=True)]
            changed[max(0, top - 20) : bottom + 20, max(0, left - 20) : right + 20] = False
            far.append(changed.mean())
    assert len(on) > 1500
    assert np.mean(on) > 0.93
    assert np.mean(beside) < 0.45
    assert np.mean(far) < 0.01


def test_detections_have_holes():
    """2 to 4 % of the joints are missing. In some clips the same joint is missing in many frames.

    A missing joint is at (0, 0) and has score 0.
    """
    missing, longest = [], []
    for clip in clip_ids(SHIPPED)[:96]:
        found = annotate(SHIPPED, clip)
        keypoint, score = found["keypoint"], found["keypoint_score"]
        hole = score == 0
        assert ((keypoint == 0).all(axis=-1) == hole).all()
        seen, size = keypoint[~hole], np.array(SHIPPED.size)
        assert (seen > 0).all()
        assert (seen < size).all()
        assert (score[~hole] >= 0.59).all()
        missing.append(hole.mean())
        longest.append(hole.mean(axis=1).max())
    assert 0.02 < np.mean(missing) < 0.04
    assert 0.1 < np.mean(np.array(longest) > 0.29) < 0.5
    nobody = annotate(SHIPPED, missing_skeleton(SHIPPED))
    assert nobody["keypoint"].shape[0] == 1
    assert not nobody["keypoint"].any()
    assert not nobody["keypoint_score"].any()


def test_a_clip_depends_on_no_other_clip():
    more = replace(SHIPPED, num_train=SHIPPED.num_train + 24, num_val=SHIPPED.num_val + 12)
    for clip in (clip_ids(SHIPPED)[5], clip_ids(SHIPPED)[-1]):
        for one, other in zip(annotate(SHIPPED, clip).values(), annotate(more, clip).values(), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("label", [6, 9])  # class 6 has a ball, and class 9 has a box
def test_the_control_hides_all_of_the_people(label):
    clip = clip_ids(SHIPPED)[label]
    shown, hidden = film(SHIPPED, clip), film(replace(SHIPPED, hide_people=True), clip)
    left, top, right, bottom = person_box(stage(SHIPPED, clip).points)
    for frame, covered in zip(shown[::10], hidden[::10], strict=True):
        assert (
            covered.crop((max(0, left), max(0, top), min(320, right), min(240, bottom))).getextrema()
            == ((128, 128),) * 3
        )
        changed = (np.asarray(frame) != np.asarray(covered)).any(axis=-1)
        changed[max(0, top) : bottom, max(0, left) : right] = False
        assert not changed.any()
    rest = [np.asarray(frame) for frame in hidden]
    assert all(np.array_equal(frame, rest[0]) for frame in rest)  # nothing that moves is visible
    assert isinstance(shown[0], Image.Image)
