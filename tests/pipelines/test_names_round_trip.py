"""The names that `annotate` writes mean the same video in every program, even if two videos have similar names.

Every video has a different number of frames, so the tests notice if two videos are mixed up.
"""

import csv
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from kernels.program import UserError
from pipelines.annotate.cli import main as annotate
from pipelines.annotate.keypoints import header_of, read_poses
from pipelines.annotations.table import open_table
from pipelines.packs.pack import open_pack
from pipelines.prepare.cli import main as prepare
from pipelines.verify.cli import main as verify
from pipelines.videos.find import find_videos
from tests.pipelines.made_videos import Made, make

VIDEOS = (
    *("A.mp4", "A.mp4.mp4", "A.mp4.mp4.mp4", "same/walk.mp4", "other/walk.mp4", "walk.mp4"),
    *("one two.mp4", "v1.2.final.mp4", "sub.folder/b.mov.mp4", "c.ts.mp4"),
)


@pytest.fixture
def own(tmp_path) -> Path:
    """Make a folder with the videos, and a skeleton for each of them in `poses`. Video number n has 6 + n frames."""
    tmp_path.joinpath("made").mkdir()
    lines = []
    for number, file in enumerate(VIDEOS):
        video = tmp_path / "videos" / file
        video.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(make(tmp_path / "made", Made(count=6 + number)), video)
        pose = tmp_path / "poses" / Path(file).with_suffix(".npz")
        pose.parent.mkdir(parents=True, exist_ok=True)
        np.savez(pose, keypoint=np.full((1, 6 + number, 17, 2), 20 + number) + np.arange(17)[:, None])
        lines.append((file, number % 2, "val" if number > 5 else "train"))
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows(lines)
    return tmp_path


def test_every_program_finds_the_video_that_was_annotated(own, capsys):
    out, cache, packs = own / "my.pkl", own / "cache", own / "packs"
    annotate(own / "videos", own / "labels.csv", out=out, poses=own / "poses")
    table = open_table(out, cache)
    files = [own / "videos" / file for file in VIDEOS]
    assert find_videos(own / "videos", table.names.tolist()) == [str(file) for file in files]
    assert verify(out, videos=own / "videos", cache=cache) == 0  # `verify` compares the lengths of videos and skeletons
    prepare(out, videos=own / "videos", packs=packs, cache=cache, workers=1)
    pack = open_pack(packs)
    frames = dict(zip(pack.names.tolist(), pack.num_frames.tolist(), strict=True))
    assert [frames[name] for name in table.names.tolist()] == [6 + number for number in range(len(VIDEOS))]
    for number, file in enumerate(files):  # `predict --pose my.pkl` reads the skeletons in this way
        assert read_poses(out, file, header_of(str(file)), cache).joints.shape[1] == 6 + number
    assert "share their video" not in "".join(capsys.readouterr())


def test_a_pose_file_may_keep_the_extension_of_its_video(own):
    for file in VIDEOS:
        pose = own / "poses" / Path(file).with_suffix(".npz")
        target = own / "full" / f"{file}.npz"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pose, target)
    annotate(own / "videos", own / "labels.csv", out=own / "my.pkl", poses=own / "full")
    assert open_table(own / "my.pkl", own / "cache").total_frames.tolist() == [6 + n for n in range(len(VIDEOS))]


def test_two_videos_that_differ_in_their_extension_alone_cannot_both_be_annotated(own):
    shutil.copy(own / "videos/walk.mp4", own / "videos/walk.mkv")
    # the labels list walk.mp4, but not walk.mkv
    annotate(own / "videos", own / "labels.csv", out=own / "my.pkl", poses=own / "poses")
    assert find_videos(own / "videos", ["walk.mp4"]) == [str(own / "videos/walk.mp4")]
    with open(own / "labels.csv", "a") as labels:
        labels.write("walk.mkv,0,train\n")
    with pytest.raises(UserError, match="two videos have the name walk and different extensions; rename one"):
        annotate(own / "videos", own / "labels.csv", out=own / "my.pkl", poses=own / "poses")


def test_two_annotations_on_one_video_are_told(own, capsys):
    clip = {"label": 0, "img_shape": (48, 64), "total_frames": 7}
    clips = [
        clip | {"frame_dir": name, "keypoint": np.full((1, 7, 17, 2), 20.0 + number) + np.arange(17)[:, None]}
        for number, name in enumerate(("A.mp4.mp4", "train/A.mp4.mp4"))
    ]
    file, cache, videos = own / "two.pkl", own / "cache", own / "videos"
    file.write_bytes(pickle.dumps(clips))
    text = (
        f"2 clips share their video with another clip; for example, A.mp4.mp4 and train/A.mp4.mp4 both match {videos}"
    )
    assert verify(file, videos=videos, cache=cache) == 0
    prepare(file, videos=videos, packs=own / "packs", cache=cache, workers=1)
    done = capsys.readouterr()
    assert text in done.out
    assert text in done.err
