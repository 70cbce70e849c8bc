"""`python -m pipelines.verify` on the demo's data: every defect is counted and named, and may change the verdict."""

import json
import pickle
import shutil
from pathlib import Path
from subprocess import CompletedProcess

import av
import numpy as np
import pytest
from rich.console import Console

from pipelines.demo.classes import DemoConfig
from pipelines.demo.make import make_demo
from pipelines.verify.facts import NTU_CLIPS, NTU_SPLITS, split_facts
from pipelines.verify.report import unusable, verify
from pipelines.videos.header import read_header
from tests.programs import run

pytestmark = pytest.mark.usefixtures("build_here")

CONFIG = DemoConfig(num_train=24, num_val=12, size=(96, 64), num_frames=(12, 16))
CUT = 16  # index of the demo's broken video
EMPTY = 8  # index of the demo's clip without a skeleton


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("verify")
    make_demo(root, CONFIG)
    return root


class DataSet:
    """A copy of the demo's data, in which tests make defects."""

    def __init__(self, demo: Path, folder: Path):
        self.folder, self.videos = folder, folder / "videos"
        shutil.copytree(demo / "videos", self.videos)
        self.content = pickle.loads((demo / "annotations.pkl").read_bytes())
        self.clips = self.content["annotations"]
        self.names = [clip["frame_dir"] for clip in self.clips]

    def write(self) -> Path:
        path = self.folder / "annotations.pkl"
        path.write_bytes(pickle.dumps(self.content))
        return path

    def facts(self, **options) -> dict:
        options = {"cache": self.folder / "cache", "console": Console(quiet=True)} | options
        return verify(self.write(), self.videos, **options)

    def video(self, place: int) -> Path:
        return self.videos / f"{self.names[place]}.mp4"

    def command(self, *options: str) -> CompletedProcess[str]:
        words = (self.write(), "--videos", self.videos, "--cache", self.folder / "cache", *options)
        return run("-m", "pipelines.verify", *words)


@pytest.fixture
def data(demo, tmp_path) -> DataSet:
    return DataSet(demo, tmp_path)


def test_demo_as_it_comes(data):
    facts = data.facts(max_bad=0.05)
    train, val = facts["splits"]
    assert (train["clips"], val["clips"], facts["clips"]) == (24, 12, 36)
    assert (train["classes"], train["fewest"], train["median"], train["most"], train["absent"]) == (12, 2, 2.0, 2, [])
    assert train["published"] is None  # no published split has twelve classes
    assert facts["findings"] == []
    assert facts["persons"] == {"0": 0, "1": 27, "2": 9, ">2": 0}
    assert list(facts["videos"]["broken"]) == [data.names[CUT]]
    assert facts["videos"]["length"] == {"0": 35, "1": 0, "2": 0, ">2": 0}
    assert facts["videos"]["size"]["same"] == 35
    assert facts["joints"]["without_joints"] == [data.names[EMPTY]]
    assert facts["usable"]
    assert facts["verdict"] == "usable: 35 of 36 clips; training leaves 1 out"


def test_annotations_alone_are_enough_for_a_network_that_reads_only_skeletons(data):
    shutil.rmtree(data.videos)
    done = run("-m", "pipelines.verify", data.write(), "--cache", data.folder / "cache")
    assert done.returncode == 0, done.stderr
    assert "usable: 36 of 36 clips; no videos were checked" in done.stdout


def test_videos_that_lack_or_mislead(data):
    data.video(0).unlink()
    shutil.copy(data.video(1), data.videos / f"{data.names[1]}_rgb.avi")
    for place, longer in ((2, 1), (3, 2), (4, 3)):
        clip = data.clips[place]
        for key in ("keypoint", "keypoint_score"):
            more = np.repeat(clip[key][:, -1:], longer, axis=1)
            clip[key] = np.concatenate([clip[key], more], axis=1)
        clip["total_frames"] += longer
    data.clips[5]["img_shape"] = (128, 192)
    data.clips[6]["img_shape"] = (96, 64)
    videos = data.facts()["videos"]
    assert (list(videos["missing"]), list(videos["ambiguous"])) == ([data.names[0]], [data.names[1]])
    assert videos["length"] == {"0": 30, "1": 1, "2": 1, ">2": 1}
    assert videos["size"] == {"same": 31, "scaled": 1, "other shape": 0, "turned": 1}
    assert list(videos["broken"]) == [data.names[place] for place in (4, 6, CUT)]
    frames = data.clips[4]["total_frames"]
    assert videos["broken"][data.names[4]] == f"the video has {frames - 3} frames, but its skeleton has {frames}"
    assert "is 96x64, but its skeleton belongs to an image of 64x96" in videos["broken"][data.names[6]]
    quick = data.facts(quick=True)
    assert not quick["videos"]["broken"]
    assert len(unusable(quick)) == 2


def test_joints_that_are_missing_outside_or_no_number(data):
    clip = data.clips[0]
    clip["keypoint"][:], clip["keypoint_score"][:] = 20, 1
    before = data.facts()["joints"]
    assert before["nan"] == 0
    frames = clip["total_frames"]
    assert clip["keypoint"].shape[0] == 1
    clip["keypoint"][0, :, :4] = [(-5, 10), (97, 10), (10, -3), (10, 65)]
    clip["keypoint"][0, :, 4] = np.nan
    clip["keypoint_score"][0, :, 5] = 0
    after = data.facts()["joints"]
    coordinates = sum(clip["keypoint"].size for clip in data.clips)
    assert after["nan"] == pytest.approx(2 * frames / coordinates)
    assert after["joints"] == coordinates // 2
    assert after["missing"] * after["joints"] == pytest.approx(before["missing"] * before["joints"] + 2 * frames)
    seen_before, seen = ((1 - joints["missing"]) * joints["joints"] for joints in (before, after))
    assert after["outside"] * seen == pytest.approx(before["outside"] * seen_before + 4 * frames)


def test_swapped_image_sizes_are_seen_without_a_video(data):
    for clip in data.clips:
        clip["img_shape"] = clip["img_shape"][::-1]
    with pytest.raises(ValueError, match=r"write img_shape as \(height, width\)"):
        data.facts(quick=True)


def test_classes_out_of_range_absent_or_rare(data):
    data.clips[0]["label"] = 20
    facts = data.facts(max_bad=0.05)
    assert facts["usable"]
    assert facts["splits"][0]["absent"] == list(range(12, 20))
    assert (facts["splits"][0]["fewest"], facts["splits"][0]["ratio"]) == (1, 2.0)
    facts = data.facts(max_bad=0.05, num_classes=12)
    assert facts["verdict"] == "labels are 0 to 20, but must be within 0 to 11; correct the labels or --num-classes"


def test_a_clip_on_both_sides_is_counted(data):
    data.content["split"]["xsub_val"].append(data.names[0])
    (finding,) = data.facts(max_bad=0.05)["findings"]
    assert (finding["kind"], finding["clips"], finding["fatal"]) == ("overlap", [data.names[0]], False)
    assert finding["text"].startswith(
        f"xsub_train and xsub_val: 1 of the 13 validation clips are training clips too, such as {data.names[0]}, "
    )


def ntu_names() -> dict[str, list[str]]:
    """Make up clip names for NTU-60's subject splits. There are as many names in each split as are published."""
    sides = {"xsub_train": (1, 2), "xsub_val": (3, 6)}
    counts = {"xsub_train": 40091, "xsub_val": 16487}
    names = {}
    for split, subjects in sides.items():
        names[split] = [
            f"S{i // 720 % 17 + 1:03}C{i // 240 % 3 + 1:03}P{subjects[i // 60 % 2]:03}R{i // 120 % 2 + 1:03}"
            f"A{i % 60 + 1:03}/{i}"
            for i in range(counts[split])
        ]
    return names


class Bare:
    """A table that has only the columns that are needed to count clips."""

    class_names = ()

    def __init__(self, splits: dict[str, list[str]]):
        names = [name for split in splits.values() for name in split]
        self.names, self.splits, start = np.array([name.partition("/")[0] for name in names]), {}, 0
        self.label = np.array([int(name[17:20]) - 1 for name in names])
        for split, members in splits.items():
            self.splits[split] = np.arange(start, start + len(members))
            start += len(members)

    def __len__(self) -> int:
        return len(self.names)


def test_published_counts_of_ntu60():
    table = Bare(ntu_names())
    train, val = split_facts(table, None)
    assert (train["published"], val["published"]) == (train["clips"], val["clips"]) == (40091, 16487)
    assert train["wrong_side"] == val["wrong_side"] == 0
    table.splits["xsub_val"] = np.append(table.splits["xsub_val"], 0)  # adds a clip of a training subject
    _, val = split_facts(table, 60)
    assert (val["clips"], val["published"], val["wrong_side"]) == (16488, 16487, 1)
    swapped = Bare(ntu_names())
    swapped.splits = {"xview_train": np.arange(300)}  # the first 300 clips, from cameras 1 and 2
    (train,) = split_facts(swapped, 60)
    assert (train["published"], train["wrong_side"]) == (37646, 240)


def test_splits_of_ntu120_follow_its_rules():
    """Subject 45 and setup 2 are for training. Subject 60 and setup 1 are not."""
    names = [
        f"S{setup:03}C001P{person:03}R001A{action:03}" for setup in (1, 2) for person in (45, 60) for action in (1, 120)
    ]
    table = Bare({"all": names})
    table.splits = {"xsub_train": np.arange(2), "xsub_val": np.arange(3), "xset_train": np.arange(5)}
    assert [(facts["published"], facts["wrong_side"]) for facts in split_facts(table, None)] == [
        (63026, 0),
        (50919, 2),
        (54468, 4),
    ]
    assert {sum(sizes.values()) for sizes in NTU_SPLITS.values()} == {2 * clips for clips in NTU_CLIPS.values()}
    table.splits = {}
    (facts,) = split_facts(table, None)
    assert facts["expected"] == [50919, 54468, 59477, 63026, 113945]


def test_a_plain_list_of_a_published_length():
    table = Bare(ntu_names())
    table.splits = {}
    (facts,) = split_facts(table, None)
    assert (facts["split"], facts["matches"], facts["published"]) == ("all", "all clips", 56578)
    table.names, table.label = table.names[1:], table.label[1:]
    (facts,) = split_facts(table, None)
    assert (facts["matches"], facts["published"]) == (None, None)


def test_frames_are_counted_where_the_header_is_silent(film, tmp_path):
    path = film.write(tmp_path / "clip.mkv", film.frames(9, 64, 48), preset="ultrafast")
    header = read_header(str(path))
    assert (header.width, header.height, header.frames, header.codec) == (64, 48, 9, "h264")
    (tmp_path / "text.mp4").write_text("ffconcat version 1.0\nfile clip.mkv\n")
    assert read_header(str(tmp_path / "text.mp4")).reason.startswith("the video cannot be decoded")
    assert read_header(str(tmp_path / "none.mp4")).reason


def test_a_file_that_was_cut_short_is_told_by_its_header(tmp_path, film):
    whole = film.write(tmp_path / "whole.mp4", film.frames(20, 96, 64))
    streamed = tmp_path / "streamed.mp4"  # this file can be opened even if its end is missing
    with av.open(whole) as source, av.open(streamed, "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    for path in (streamed, film.write(tmp_path / "clip.avi", film.frames(20, 96, 64), "mpeg4")):
        assert read_header(str(path)).reason == ""
        path.write_bytes(path.read_bytes()[:-200])
        assert read_header(str(path)).reason == "the video is cut short: some of its 20 frames are missing"


def test_command_tells_the_verdict_last_and_writes_json(data, tmp_path):
    out = tmp_path / "facts.json"
    done = data.command("--max-bad", "0.05", "--json", str(out))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.rstrip().splitlines()
    assert lines[-1] == "usable: 35 of 36 clips; training leaves 1 out"
    assert len(lines) < 34
    assert "\x1b" not in done.stdout + done.stderr
    assert "reading headers 36/36" in done.stderr
    facts = json.loads(out.read_text())
    assert facts["verdict"] == lines[-1]
    assert facts == json.loads(json.dumps(data.facts(max_bad=0.05)))


def test_command_refuses_with_the_way_out(data):
    done = data.command()
    assert done.returncode == 2
    last = done.stdout.rstrip().splitlines()[-1]
    assert last.startswith(
        f"1 of 36 clips have no usable video, and at most 1.0% may lack one; the first is {data.names[CUT]}: the video "
    )
    assert "--max-bad" in last
    shutil.rmtree(data.videos)
    done = data.command()
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == f"error: there is no folder {data.videos}; name the folder of the videos (data.videos, --videos)\n"
    )


def test_a_trial_with_one_validation_clip_of_a_class_of_its_own_is_usable_with_a_warning(tmp_path, film):
    clips = [
        film.annotation(name, film.person(9, 64, 48, seed=label), 64, 48, label=label)
        for label, name in enumerate("ab")
    ]
    path = tmp_path / "my.pkl"
    path.write_bytes(pickle.dumps({"split": {"own_train": ["a"], "own_val": ["b"]}, "annotations": clips}))
    facts = verify(path, None, cache=tmp_path / "cache")
    assert facts["usable"]
    assert any("never occur in train" in finding["text"] for finding in facts["findings"])
