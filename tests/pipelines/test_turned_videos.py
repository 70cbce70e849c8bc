"""Videos that players turn are annotated, verified, packed and trained on, either as shown or as stored."""

import io
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from kernels.program import UserError
from pipelines.annotate.estimator import DEFAULT
from pipelines.annotate.keypoints import header_of, read_npz, write_poses
from pipelines.annotate.labels import read_labels
from pipelines.annotate.make import annotate, estimated_poses, poses_from_files, write
from pipelines.annotations.table import open_table
from pipelines.packs.format import UNKNOWN, PackSettings, clip_id, read_index
from pipelines.prepare.make import prepare
from pipelines.verify.report import show, verify
from pipelines.videos.dali import decode_frames
from pipelines.videos.source import check_videos, open_videos
from pipelines.videos.turn import Turn
from tests.pipelines.made_videos import Made, make, number_of

pytestmark = pytest.mark.usefixtures("build_here")

QUIET = Console(quiet=True)
HALF, CLOCKWISE = Turn.of_code("011"), Turn.of_code("110")
PLAIN, TURNED, UPSIDE_DOWN = (
    Made(file="plain.mp4"),
    Made(file="turned.mp4", turn=CLOCKWISE),
    Made(file="half.mp4", turn=HALF),
)


class Videos:
    """A folder of videos with a skeleton for each video, in pixels of the frames as they are shown."""

    def __init__(self, folder: Path, *videos: Made):
        self.folder = folder
        for place in ("videos", "poses"):
            (folder / place).mkdir()
        for number, made in enumerate(videos):
            path = make(folder / "videos", made)
            width, height = made.turn.size(*made.size)
            people = [
                {
                    "image_id": frame,
                    "keypoints": [[width * x / 20, height * x / (20 + number), 0.9] for x in range(2, 19)],
                    "score": 1,
                }
                for frame in range(len(made.shown()))
            ]
            (folder / "poses" / f"{path.stem}.json").write_text(json.dumps(people))
            with open(folder / "labels.csv", "a") as file:
                file.write(f"{path.name},{number % 2},{'val' if number else 'train'}\n")

    def annotate(self, rotation="shown") -> Path:
        labels, out = read_labels(self.folder / "labels.csv"), self.folder / "my.pkl"
        clips = annotate(self.folder / "videos", labels, poses_from_files(self.folder / "poses", 1, rotation), QUIET)
        write(out, clips, labels, rotation)
        return out

    def of_others(self, annotations: Path) -> Path:
        """Rewrite the annotation file in the form of another program, which does not say how frames are turned."""
        content = pickle.loads(annotations.read_bytes())
        del content["rotation"]
        annotations.write_bytes(pickle.dumps(content))
        return annotations

    def table(self, annotations: Path):
        return open_table(annotations, self.folder / "cache")

    def prepare(self, annotations: Path, rotation="shown"):
        """Make the pack. Returns the pack and the messages."""
        said, settings = io.StringIO(), PackSettings(count=8, rotation=rotation)
        places = (self.folder / "videos", self.folder / "pack")
        options = {"workers": 1, "max_bad": 0.5, "console": Console(file=said, width=1000)}
        return prepare(self.table(annotations), *places, settings, **options), said.getvalue()

    def verify(self, annotations: Path, rotation="shown") -> tuple[dict, str]:
        said = io.StringIO()
        folders = annotations, self.folder / "videos"
        facts = verify(*folders, rotation=rotation, cache=self.folder / "cache", console=QUIET, max_bad=0.5)
        show(facts, Console(file=said, width=300))
        return facts["videos"], said.getvalue()


def first_number(pack, name: str) -> int | None:
    """Return the number in the first frame of a packed clip, or None if the frame does not look as players show it."""
    row = pack.names.tolist().index(name)
    (packet,), _ = pack.read_frames(row, [0])
    left, top, right, bottom = pack.region[row].astype(int).tolist()
    pixels = np.asarray(Image.open(io.BytesIO(packet)).convert("RGB").resize((right - left, bottom - top)))
    width, height = pack.source_size[row]
    whole = np.zeros((height, width, 3), np.uint8)
    at = slice(max(top, 0), bottom), slice(max(left, 0), right)
    whole[at] = pixels[max(-top, 0) :, max(-left, 0) :][: height - at[0].start, : width - at[1].start]
    return number_of(whole)


def test_skeletons_of_shown_frames_belong_to_them_in_every_program(tmp_path):
    work = Videos(tmp_path, PLAIN, TURNED, UPSIDE_DOWN)
    annotations = work.annotate()
    content = pickle.loads(annotations.read_bytes())
    assert content["rotation"] == "shown"
    shapes = {clip["frame_dir"]: clip["img_shape"] for clip in content["annotations"]}
    assert shapes == {"plain": (48, 64), "turned": (64, 48), "half": (48, 64)}
    facts, said = work.verify(annotations)
    assert facts["rotation"] == {"shown": 2}
    assert "2: 2 annotated as they are shown" in said
    pack, _ = work.prepare(annotations)
    assert not pack.bad
    assert [first_number(pack, name) for name in ("plain", "turned", "half")] == [0, 0, 0]
    assert work.prepare(annotations)[1] == ""


def test_skeletons_of_stored_frames_keep_them_stored(tmp_path):
    work = Videos(tmp_path, replace(TURNED, size=(64, 48)), UPSIDE_DOWN)
    for name in ("turned", "half"):  # replaces the skeletons by those of a program that does not turn frames
        shape = np.broadcast_to(np.linspace(5, 43, 17, dtype=np.float32)[:, None], (1, 9, 17, 2))
        arrays = {"keypoint": shape, "keypoint_score": np.ones((1, 9, 17)), "img_shape": (48, 64)}
        np.savez(tmp_path / "poses" / f"{name}.npz", **arrays)
        (tmp_path / "poses" / f"{name}.json").unlink()
    annotations = work.annotate("stored")
    # The annotation file says `rotation: stored`, which takes precedence over the argument "shown".
    facts, said = work.verify(annotations, "shown")
    assert facts["rotation"] == {"stored": 2}
    assert "2: 2 annotated as they are stored" in said
    pack, _ = work.prepare(annotations)
    assert pack.source_size.tolist() == [[64, 48], [64, 48]]
    assert [first_number(pack, name) for name in ("turned", "half")] == [None, None]


def test_the_setting_decides_for_files_of_others_and_makes_other_clips(tmp_path):
    work = Videos(tmp_path, PLAIN, TURNED, UPSIDE_DOWN)
    annotations = work.of_others(work.annotate())
    assert work.verify(annotations)[0]["rotation"] == {"shown": 1, "assumed shown": 1}
    facts, said = work.verify(annotations, "stored")
    assert facts["rotation"] == {"shown": 1, "assumed stored": 1}
    assert "because img_shape does not decide" in said
    shown, _ = work.prepare(annotations)
    assert first_number(shown, "half") == 0
    stored, said = work.prepare(annotations, "stored")
    assert "packing 1 of 3 clips: 1 whose frames have to be turned differently" in said
    assert (first_number(stored, "half"), first_number(stored, "turned")) == (None, 0)
    again, said = work.prepare(annotations)
    assert (said, first_number(again, "half")) == ("", 0)


def as_earlier(pack: Path, keep: list[str]) -> None:
    """Convert a pack into the form of an earlier version, which did not record rotations."""
    lines = [json.loads(line) for line in (pack / "manifest.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["name"] in keep]
    for line in lines:
        line["clip"] = clip_id(line["source"], line["joints"], line["settings"])
        del line["rotation"]
    (pack / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.rmtree(pack / "index")
    assert set(read_index(pack).columns["rotation"].tolist()) == {UNKNOWN}


def test_clips_of_earlier_versions_are_made_again_only_if_their_frames_have_to_be_turned(tmp_path, monkeypatch):
    work = Videos(tmp_path, PLAIN, TURNED, UPSIDE_DOWN)
    annotations = work.of_others(work.annotate())
    names = {name: clip for name, clip in zip(*_clips(work.prepare(annotations, "stored")[0]), strict=True)}
    as_earlier(tmp_path / "pack", ["plain", "half"])
    pack, said = work.prepare(annotations)
    assert "packing 2 of 3 clips: 1 " in said
    assert "1 whose frames have to be turned differently" in said
    assert first_number(pack, "half") == 0
    now = {name: clip for name, clip in zip(*_clips(pack), strict=True)}
    assert [now[name] == names[name] for name in ("plain", "turned", "half")] == [True, True, False]
    monkeypatch.setattr("pipelines.prepare.turned.read_headers", lambda *_: pytest.fail("the headers were read again"))
    assert work.prepare(annotations)[1] == ""


def _clips(pack) -> tuple[list[str], list[str]]:
    return pack.names.tolist(), pack.columns["clip"].tolist()


def test_annotate_refuses_skeletons_of_the_other_rotation_and_its_advice_works(tmp_path):
    work = Videos(tmp_path, replace(TURNED, size=(96, 48)), PLAIN)
    people = [{"image_id": 0, "keypoints": [[x * 5, 20, 0.9] for x in range(17)], "score": 1}]
    (tmp_path / "poses" / "turned.json").write_text(json.dumps(people))
    with pytest.raises(UserError, match=r"as they are stored, not as they are shown .* give --rotation stored"):
        work.annotate()
    assert pickle.loads(work.annotate("stored").read_bytes())["annotations"][0]["img_shape"] == (48, 96)


def test_estimates_of_an_earlier_version_are_made_again_for_turned_videos(tmp_path, monkeypatch):
    video = str(make(tmp_path, UPSIDE_DOWN))
    header, calls = header_of(video), []

    class Estimator:
        def __init__(self, *_):
            pass

        def estimate(self, video, header, people, advance):
            calls.append(video)
            return read_npz(tmp_path / "poses" / "half.npz", (48, 64))

    monkeypatch.setattr("pipelines.annotate.make.PoseEstimator", Estimator)
    (tmp_path / "poses").mkdir()
    arrays = {"keypoint": np.ones((1, 9, 17, 2)), "keypoint_score": np.ones((1, 9, 17)), "img_shape": (48, 64)}
    np.savez(tmp_path / "poses" / "half.npz", **arrays)  # the file does not contain a rotation
    source = estimated_poses(tmp_path / "poses", 1, DEFAULT, print)
    assert source.poses("half", video, header).rotation == "shown"
    assert source.poses("half", video, header).rotation == "shown"
    assert len(calls) == 1
    write_poses(tmp_path / "plain.npz", read_npz(tmp_path / "poses" / "half.npz", (1, 1), "stored"))
    assert read_npz(tmp_path / "plain.npz", (1, 1)).rotation == "shown"


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (Made(file="a.webm", codec="libvpx-vp9", turn=HALF), "1 videos are to be turned or mirrored"),
        (Made(cover=True), "1 videos contain other pictures beside their video stream"),
        (Made(hide=(2, 0)), "1 videos have an edit list that hides frames"),
    ],
    ids=["turned", "cover", "trimmed"],
)
def test_training_from_videos_refuses_what_dali_ignores(tmp_path, made, reason):
    work = Videos(tmp_path, PLAIN, made)
    table = work.table(work.annotate())
    options = {"max_bad": 0, "console": QUIET}
    with pytest.raises(UserError, match=f"{reason}, which DALI ignores, .* train with data.source=packs instead"):
        open_videos(table, tmp_path / "videos", tmp_path / "cache", torch.device("cpu"), **options)


def test_training_from_videos_takes_stored_frames_as_they_are(tmp_path):
    work = Videos(tmp_path, *(Made(file=f"{name}.webm", codec="libvpx-vp9", turn=HALF) for name in "ab"))
    table = work.table(work.of_others(work.annotate()))
    options = {"max_bad": 0, "console": QUIET, "rotation": "stored"}
    frames = open_videos(table, tmp_path / "videos", tmp_path / "cache", torch.device("cpu"), **options)
    assert frames.sizes.tolist() == [[64, 48], [64, 48]]


def test_dali_shows_full_range_as_it_is(tmp_path):
    video = make(tmp_path, Made(file="a.webm", codec="libvpx-vp9", full_range=True))
    frames = decode_frames(np.fromfile(video, np.uint8), np.arange(9), torch.device("cpu"))
    assert [number_of(frame) for frame in frames] == list(range(9))
    check_videos([(str(video), 9)], torch.device("cpu"))
