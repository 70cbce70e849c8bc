"""Copies of a recording are found even if they were scaled, mirrored, trimmed or encoded again.

The default split puts all videos of a group, and all copies of a recording, on the same side.
"""

import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from kernels.program import UserError
from pipelines.annotate.copies import describe, find_copies, groups_of
from pipelines.annotate.labels import Labels, read_labels
from pipelines.annotate.splitting import choose, split_labels
from pipelines.demo.classes import DemoConfig, clip_ids
from pipelines.demo.clip import write_clip

CONFIG = DemoConfig(num_train=12, num_val=1, size=(160, 120), num_frames=(20, 24), rate=30)


def rewritten(source: Path, target: Path, size=(160, 120), *, mirrored=False, first=0, last=None, crf=23) -> Path:
    """Decode a video, change its frames, and encode the video again."""
    with av.open(source) as container:
        frames = [
            frame.to_ndarray(width=size[0], height=size[1], format="rgb24") for frame in container.decode(video=0)
        ]
    with av.open(target, "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": str(crf), "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for pixels in frames[first:last]:
            pixels = np.ascontiguousarray(pixels[:, ::-1] if mirrored else pixels)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode())
    return target


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[str]:
    """Return six different videos of the demo, followed by copies of the first two."""
    folder = tmp_path_factory.mktemp("videos")
    # leaves out class 8, because the file of its clip is cut off
    clips = [clip for clip in clip_ids(CONFIG) if clip.label != 8][:6]
    one, two, *others = [folder / f"{write_clip(CONFIG, clip, folder)}.mp4" for clip in clips]
    copies = [
        Path(shutil.copy(one, folder / "copy.mp4")),
        rewritten(one, folder / "small.mp4", (112, 64), crf=33),
        rewritten(one, folder / "mirrored.mp4", mirrored=True),
        rewritten(two, folder / "trimmed.mp4", first=4, last=-2),
        rewritten(two, folder / "trimmed, small and mirrored.mp4", (96, 96), mirrored=True, first=3, crf=30),
    ]
    return [str(path) for path in (one, two, *others, *copies)]


def test_copies_in_any_form_are_found_and_other_videos_are_not(videos):
    pairs = find_copies(videos, lambda: None)
    assert groups_of(len(videos), pairs) == [0, 1, 2, 3, 4, 5, 0, 0, 0, 1, 1]
    assert {(0, 8, True), (1, 10, True), (1, 9, False)} <= set(pairs)
    said = describe([os.path.basename(video) for video in videos], pairs)
    assert said.startswith(
        "7 of 11 videos are copies or mirror images of each other, in 2 groups; for example, copy.mp4"
    )


def test_a_video_that_cannot_be_decoded_has_no_copies(videos, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    assert find_copies([str(tmp_path / "broken.mp4"), *videos[:2]], lambda: None) == []


@pytest.mark.parametrize("name", ["group", "subject", "camera", "source"])
def test_groups_of_the_labels_stay_whole(tmp_path, name):
    """Sixteen subjects show each of six classes once. The default split puts three subjects into validation."""
    lines = [
        f"video,label,{name}",
        *(f"s{who}-{what}.mp4,class {what},s{who}" for who in range(16) for what in range(6)),
    ]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    said = []
    labels = split_labels(read_labels(tmp_path / "labels.csv"), [], said.append)
    sides = {}
    for group, split in zip(labels.groups, labels.splits, strict=True):
        sides.setdefault(group, set()).add(split)
    assert all(len(of_group) == 1 for of_group in sides.values())
    assert Counter(labels.splits) == {"train": 78, "val": 18}
    assert said == ["split: 13 groups for training, 3 others for validation"]


def test_copies_stay_on_one_side(videos):
    names = [os.path.basename(video) for video in videos]
    pairs, said = find_copies(videos, lambda: None), []
    labels = split_labels(Labels(names, [0] * len(names), [], ()), pairs, said.append)
    assert len({labels.splits[place] for place in (0, 6, 7, 8)}) == 1
    assert len({labels.splits[place] for place in (1, 9, 10)}) == 1
    assert labels.splits.count("val") == 2
    assert said[0].endswith("all copies of a recording are on one side of the split")


def test_a_given_split_with_copies_on_both_sides_is_told(videos):
    names = [os.path.basename(video) for video in videos]
    splits, said = ["train"] * 8 + ["val"] * 3, []
    labels, pairs = Labels(names, [0] * len(names), splits, ()), find_copies(videos, lambda: None)
    assert split_labels(labels, pairs, said.append) == labels
    assert "3 of 3 validation videos, such as mirrored.mp4, have a copy or a mirror image in training" in said[0]
    without = split_labels(replace(labels, splits=[]), pairs, said.append)
    assert split_labels(without, pairs, said.append) == without
    assert "have a copy" not in said[1]
    assert len(said) == 2  # said[1] announces the new split, and a check of this split prints nothing
    grouped = Labels(["a", "b", "c"], [0, 0, 0], ["train", "val", "val"], (), ["x", "x", "y"])
    split_labels(grouped, [], said.append)
    assert "1 of 2 validation videos, such as b, have videos of their group in training" in said[2]


def test_few_groups_and_rare_classes():
    names = [str(number) for number in range(40)]
    two = choose(names, [number % 2 for number in range(40)], [number < 15 for number in range(40)])
    assert Counter(two) == {"train": 25, "val": 15}  # the smaller of the two groups is for validation
    assert set(choose(names, [0] * 40, [0] * 40)) == {"train"}
    rare = choose(names, [0] * 39 + [1], list(range(40)))
    assert rare[39] == "train"
    assert rare.count("val") == 7
    with pytest.raises(UserError, match="leave no video for val"):
        split_labels(Labels(["a", "b"], [0, 1], [], (), ["x", "x"]), [], print)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("video,label,who\na,0,x", "has a column 'who'; the columns may be video, label, split, group, subject"),
        ("video,label,subject,camera\na,0,x,y", "has the columns subject and camera; keep one of them"),
        ("video,label,split,split\na,0,train,val", "has two columns of the same name"),
        ("video,label,group\na,0", "line 2: 'a,0' is not `video,label,group`"),
        ("video,label,coarse\na,0,x\nb,0,y", "the same label into the coarse classes 'x' and 'y'"),
    ],
)
def test_columns_that_cannot_be_used(tmp_path, text, sentence):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(UserError, match=r"labels\.csv") as error:
        read_labels(tmp_path / "labels.csv")
    assert sentence in str(error.value)


def test_columns_in_any_order_with_coarse_classes(tmp_path):
    (tmp_path / "labels.csv").write_text("video,label,coarse,split,subject\na,hop,legs,train,x\nb,wave,arms,val,y\n")
    labels = read_labels(tmp_path / "labels.csv")
    assert (labels.class_names, labels.coarse_map) == (("hop", "wave"), (1, 0))
    assert (labels.splits, labels.groups) == (["train", "val"], ["x", "y"])
