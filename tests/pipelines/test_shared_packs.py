"""A clip is packed only once for all annotation files and experiments. Packs of earlier versions are used as well."""

import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from kernels.program import UserError
from pipelines.packs.format import PackError, PackSettings, digest_of, parts_of, read_manifest
from pipelines.packs.pack import open_pack
from pipelines.prepare.content import digest_of_video
from pipelines.prepare.locks import make_clips
from pipelines.prepare.run import Run
from trainer.experiments import EXPERIMENTS

pytestmark = pytest.mark.usefixtures("build_here")


def test_nothing_but_a_changed_clip_is_encoded_again(data):
    """Other splits, orders, frame counts, annotation files and experiments use clips that are already in the pack."""
    clips, names = data.clips, [clip["frame_dir"] for clip in data.clips]
    reverse = list(reversed(clips))
    splits = {"xsub_train": names[:16], "xsub_val": names[16:], "mine_train": names[:3], "mine_val": names[3:]}
    assert data.encoded({"split": splits, "annotations": clips}) == 0
    assert data.encoded({"split": splits, "annotations": reverse}) == 0
    assert data.encoded(reverse[::2]) == 0
    for count in (32, 64, 8):
        assert data.encoded(clips, settings=PackSettings(box_pixels=64, count=count)) == 0
    assert data.encoded(clips, "copy.pkl") == 0
    for name in ("ntu60", "ntu60_x3d"):
        experiment = replace(EXPERIMENTS[name].clip, box_pixels=64)
        assert data.encoded(clips, settings=PackSettings.of(experiment)) == 0
    clips[5] = clips[5] | {"keypoint": clips[5]["keypoint"].copy()}
    clips[5]["keypoint"][0, 0, 0, 0] += 1
    assert data.encoded(clips) == 1
    assert len(list((data.packs / "clips").glob(f"{names[5]}.*.mov"))) == 2
    pack, said = data.pack(reverse)
    assert said == ""
    assert pack.names.tolist() == names[::-1]
    other = data.pack(clips)[0]
    differ = pack.columns["clip"][::-1] != other.columns["clip"]
    assert np.flatnonzero(differ).tolist() == [5]
    files = {pack.clip_file(18), other.clip_file(5)}
    assert files == set((data.packs / "clips").glob(f"{names[5]}.*.mov"))


def test_clips_change_places_but_not_their_frames(data):
    first, _ = data.pack(data.clips)
    other, _ = data.pack(list(reversed(data.clips)))
    for row in range(24):
        assert first.read_frames(row, [0, 3, 7]) == other.read_frames(23 - row, [0, 3, 7])


def test_few_frames_need_whole_images_of_clips_in_which_nobody_is_seen_at_times(data):
    data.clips[3]["keypoint"] = data.clips[3]["keypoint"].copy()
    data.clips[3]["keypoint"][:, 2] = 0
    assert data.encoded(data.clips) == 1
    _, said = data.pack(data.clips, settings=PackSettings(box_pixels=64, count=4))
    assert "packing 1 of 24 clips: 1 made for samples of more pose frames" in said
    assert data.pack(data.clips, settings=PackSettings(box_pixels=64, count=4))[1] == ""
    assert data.encoded(data.clips) == 0


def test_two_names_of_the_same_video_share_a_clip(tmp_path, data_class):
    data = data_class(tmp_path, 1)
    data.clips.append(data.clips[0] | {"frame_dir": "other"})
    shutil.copy(next(data.videos.iterdir()), data.videos / "other.mp4")
    assert data.encoded(data.clips) == 1
    pack, said = data.pack(data.clips)
    assert said == ""
    assert pack.clip_file(0) == pack.clip_file(1)
    assert pack.num_frames.tolist() == [8, 8]


def test_names_and_folders_of_videos_do_not_matter(data):
    for clip in data.clips:
        clip["frame_dir"] = f"train/{clip['frame_dir']}"
    assert data.encoded(data.clips) == 0


def test_the_whole_content_of_a_video_counts(tmp_path):
    content = random.Random(0).randbytes(5 << 20)
    digests = set()
    for middle in (b"", b"mended"):
        (tmp_path / "video").write_bytes(content[: 2 << 20] + middle + content[(2 << 20) + len(middle) :])
        digests.add(digest_of_video(str(tmp_path / "video"))[0])
    assert len(digests) == 2


@pytest.mark.parametrize("mended", [True, False])
def test_a_video_that_was_replaced_under_the_same_size_and_time(data, film, tmp_path, mended):
    """The file's inode shows that the file was replaced, and its content shows whether the video has changed."""
    data.videos = shutil.copytree(data.videos, tmp_path / "copy")
    assert data.encoded(data.clips) == 0
    video = data.videos / f"{data.clips[0]['frame_dir']}.mp4"
    stat, content = video.stat(), video.read_bytes()
    if mended:
        other = film.write(tmp_path / "other.mp4", [np.zeros((96, 128, 3), np.uint8)] * 8, preset="ultrafast")
        content = other.read_bytes().ljust(len(content), b"\0")
    (tmp_path / "new").write_bytes(content)
    os.utime(tmp_path / "new", ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    (tmp_path / "new").replace(video)
    assert video.stat().st_size == stat.st_size
    _, said = data.pack(data.clips)
    assert ("packing 1 of 24 clips: 1 whose video changed" in said) == mended
    assert "comparing videos 1/1" in said
    assert data.pack(data.clips)[1] == ""


def test_two_copies_of_a_data_set_can_be_used_in_turn(data, tmp_path):
    copies = [shutil.copytree(data.videos, tmp_path / name) for name in "ab"]
    for number in range(4):
        data.videos = copies[number % 2]
        said = data.pack(data.clips)[1]
        assert said.count("comparing videos 24/24") == (number < 2)  # only the first run on each copy reads the videos
        assert "packing" not in said


def test_links_are_followed_if_they_may_be(data, tmp_path):
    farm = tmp_path / "farm"
    farm.mkdir()
    for video in data.videos.iterdir():
        (farm / video.name).symlink_to(video)
    data.videos = farm
    with pytest.raises(UserError, match=r"if you trust them, set data\.follow_links=true \(--follow-links\)"):
        data.pack(data.clips)
    assert data.encoded(data.clips, follow_links=True) == 0


def test_runs_for_different_tables_do_not_wait_for_one_another(data):
    with make_clips(data.packs, "another-table", Console(quiet=True)):
        more = [clip | {"keypoint": clip["keypoint"] + 1} for clip in data.clips[:3]]
        pack, said = data.pack(more)
        assert "3 of 3 clips; 3 made" in said
        assert pack.num_frames.tolist() == [8, 9, 10]
        assert len(parts_of(data.packs)) == 1  # not merged yet, because another run has not ended
    assert "3 of 3 clips; 0 made" in data.pack(more)[1]
    assert parts_of(data.packs) == []
    assert data.pack(more)[1] == ""


def as_format_2(data, folder: Path, count: int) -> None:
    """Move the pack to `folder`, and give it the form of packs that an earlier version made for `count` pose frames."""
    settings = digest_of({"format": 2, "count": count, "box_pixels": 64, "quality": 3})
    (folder / "clips").mkdir(parents=True)
    (folder / "index").mkdir()
    lines = []
    for line in read_manifest(data.packs).values():
        if line["file"]:
            (data.packs / line["file"]).rename(folder / "clips" / f"{line['name']}.mov")
        (size, date, _), *_ = line["stamps"]
        old = {key: value for key, value in line.items() if key not in {"clip", "file", "fewest", "stamps"}}
        lines.append(
            old | {"source_bytes": size, "source_time": date} | {"settings": settings, "table": "t", "source": "0" * 20}
        )
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    np.save(folder / "index" / "table.npy", np.array(["t"]))
    for name in ("clips", "index", "users", "parts"):
        shutil.rmtree(data.packs / name, ignore_errors=True)
    for name in ("manifest.jsonl", "lock"):
        (data.packs / name).unlink()
    data.packs.mkdir(exist_ok=True)


def test_a_killed_takeover_can_be_done_again(data, monkeypatch):
    as_format_2(data, data.packs / "0123456789abcdef", 48)
    append, count = Run._append, []

    def killed(self, line) -> None:
        append(self, line)
        count.append(line)
        if len(count) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "_append", killed)
    with pytest.raises(KeyboardInterrupt):
        data.pack(data.clips)
    monkeypatch.undo()
    _, said = data.pack(data.clips)
    assert "19 clips of other packs are used without being copied" in said
    assert "24 of 24 clips; 0 made" in said


def test_packs_for_samples_of_few_frames_serve_these_and_longer_ones(data):
    few = PackSettings(box_pixels=64, count=4)
    data.clips[3] = data.clips[3] | {"keypoint": data.clips[3]["keypoint"].copy()}
    data.clips[3]["keypoint"][:, 2] = 0
    shutil.rmtree(data.packs)
    data.pack(data.clips, settings=few)
    as_format_2(data, data.packs / "0123456789abcdef", 4)
    assert data.encoded(data.clips, settings=few) == 0
    assert data.encoded(data.clips) == 0


@pytest.mark.parametrize("place", ["packs/0123456789abcdef", "packs"])
def test_packs_of_earlier_versions_are_taken_over(data, tmp_path, place):
    expected = [data.pack(data.clips)[0].read_frames(row, [0, 7]) for row in range(24)]
    as_format_2(data, tmp_path / "old", 48)
    if place == "packs":
        data.packs.rmdir()
    (tmp_path / "old").rename(tmp_path / place)
    random.Random(0).shuffle(data.clips)
    pack, said = data.pack(data.clips[:9])
    assert "9 clips of other packs are used without being copied" in said
    assert "9 of 9 clips; 0 made" in said
    assert data.encoded(data.clips) == 0
    assert data.encoded(data.clips, settings=PackSettings(box_pixels=64, count=32)) == 0
    pack, said = data.pack(sorted(data.clips, key=lambda clip: clip["frame_dir"]))
    assert said == ""
    assert [pack.read_frames(row, [0, 7]) for row in range(24)] == expected
    assert data.encoded(data.clips, settings=PackSettings(box_pixels=32)) == 24


def test_a_video_with_another_date_is_packed_anew_if_only_its_ends_are_known(data, tmp_path):
    as_format_2(data, data.packs / "0123456789abcdef", 48)
    data.videos = shutil.copytree(data.videos, tmp_path / "copy", copy_function=shutil.copyfile)
    _, said = data.pack(data.clips)
    assert "24 whose video has a new date and may have changed (an earlier version of Duet recorded" in said


def test_a_clip_of_an_earlier_version_with_too_small_a_region_is_made_again(data):
    as_format_2(data, data.packs / "0123456789abcdef", 48)
    manifest = data.packs / "0123456789abcdef" / "manifest.jsonl"
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    with pytest.raises(PackError, match=r"was made by an earlier version; run python -m pipelines.prepare for its"):
        open_pack(data.packs / "0123456789abcdef")
    for line in lines:
        left, top, right, bottom = line["region"]
        line["region"] = [(left + right) // 2, top, right, bottom] if line["name"].endswith("007") else line["region"]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert data.encoded(data.clips) == 1


def test_a_video_that_an_earlier_version_could_not_decode_is_not_tried_again(tmp_path, data_class):
    data = data_class(tmp_path, 2)
    (data.videos / f"{data.clips[1]['frame_dir']}.mp4").write_bytes(b"no video")
    data.pack(data.clips, max_bad=0.5)
    as_format_2(data, data.packs / "0123456789abcdef", 48)
    pack, said = data.pack(data.clips, max_bad=0.5)
    assert "2 clips of other packs are used without being copied" in said
    assert "packing" not in said
    assert list(pack.bad) == [data.clips[1]["frame_dir"]]
    assert "1 of 2 clips are left out" in data.pack(data.clips, max_bad=0.5)[1]
