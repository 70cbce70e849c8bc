"""`prepare` lists which annotation files use a pack, deletes only unused clips, and estimates its work beforehand."""

import fcntl
import io
import json
import shlex
import shutil
import sys

import pytest
from rich.console import Console

from kernels.program import UserError
from pipelines.packs.format import PackSettings, read_manifest
from pipelines.prepare import inventory, run
from pipelines.prepare.__main__ import start
from pipelines.prepare.elsewhere import note
from pipelines.prepare.inventory import drop, show
from pipelines.prepare.locks import make_clips
from pipelines.prepare.make import dry_run
from pipelines.prepare.users import User, key_of
from tests.pipelines.test_shared_packs import as_format_2
from trainer.cli import dispatch

pytestmark = pytest.mark.usefixtures("build_here")


def said_by(function, data, **options) -> str:
    said = io.StringIO()
    function(data.packs, data.folder / "cache", Console(file=said), **options)
    return said.getvalue()


def clips_in(data) -> int:
    return len(list((data.packs / "clips").rglob("*.mov")))


def test_annotation_files_and_experiments_are_listed(data):
    data.pack(data.clips, user=User(data.folder / "annotations.pkl", "ntu60"))
    data.pack(data.clips[:8], "few.pkl", user=User(data.folder / "few.pkl", "ma52"))
    data.pack(data.clips[:8], "copy.pkl", settings=PackSettings(box_pixels=32))
    (data.folder / "copy.pkl").unlink()
    said = said_by(show, data)
    assert f"{data.packs}: 32 clips, " in said
    for file, text in (
        ("annotations.pkl", "24 clips, "),
        ("few.pkl", "8 clips, "),
        ("copy.pkl (gone or changed)", "8 clips, "),
    ):
        assert f"{data.folder / file}: {text}" in said
    assert " ntu60, box_pixels 64, quality 3, last used 20" in said
    assert " no experiment, box_pixels 32, quality 3, last used 20" in said
    assert "used by nothing: 8 clips, " in said


def test_what_nothing_uses_is_freed_and_nothing_else(data):
    data.pack(data.clips)
    other = [clip | {"keypoint": clip["keypoint"] + 1} for clip in data.clips[:9]]
    data.pack(other, "other.pkl")
    assert clips_in(data) == 33
    assert "every clip is used" in said_by(drop, data)
    (data.folder / "other.pkl").unlink()
    (data.packs / "clips" / "left by a kill.mov").write_bytes(b"half a clip")
    before = clips_in(data)
    assert "9 clips and 1 other files, " in said_by(drop, data, only_say=True)
    assert clips_in(data) == before == 34
    said = said_by(drop, data)
    assert "9 clips and 1 other files, " in said
    assert f"no longer used: {data.folder / 'other.pkl'}, box_pixels 64, quality 3 (frees 9 of its 9 clips)" in said
    assert clips_in(data) == len(read_manifest(data.packs)) == 24
    assert data.pack(data.clips)[1] == ""
    assert data.encoded(other, "other.pkl") == 9


def test_of_a_file_that_shares_its_clips_only_the_others_are_freed(data):
    data.pack(data.clips)
    data.pack([*data.clips[:8], data.clips[8] | {"keypoint": data.clips[8]["keypoint"] + 1}], "other.pkl")
    (data.folder / "other.pkl").unlink()
    assert "(frees 1 of its 9 clips)" in said_by(drop, data, only_say=True)


def test_a_living_run_keeps_its_clips(data):
    pack, _ = data.pack(data.clips)
    (data.folder / "annotations.pkl").unlink()
    assert "every clip is used" in said_by(drop, data)
    assert "(gone or changed)" in said_by(show, data)
    assert "(being read now)" in said_by(show, data)
    for file in pack.in_use:  # closing the files releases the locks, as the end of a run does
        file.close()
    assert "24 clips and 0 other files" in said_by(drop, data)
    assert clips_in(data) == 0


def test_a_file_that_changed_keeps_its_clips_until_it_is_prepared_anew(data):
    data.pack(data.clips)
    data.table(data.clips[:20])  # overwrites the annotation file that uses the pack
    assert "every clip is used" in said_by(drop, data)
    assert data.encoded(data.clips[:20]) == 0
    assert "4 clips and 0 other files" in said_by(drop, data)
    assert data.encoded(data.clips[:20]) == 0


def test_files_that_were_not_used_for_long_can_be_given_up(data):
    data.pack(data.clips)
    data.pack(data.clips, "copy.pkl", settings=PackSettings(box_pixels=32))
    (folder,) = (data.packs / "users").glob(f"*-{PackSettings(box_pixels=32).digest()}")
    content = json.loads((folder / "user.json").read_text())
    content["annotations"] = dict.fromkeys(content["annotations"], "2020-01-01 00:00")
    (folder / "user.json").write_text(json.dumps(content))
    assert "every clip is used" in said_by(drop, data)
    assert "24 clips and 0 other files" in said_by(drop, data, days=30)
    assert data.encoded(data.clips) == 0


def test_what_a_killed_run_has_made_is_kept(data, monkeypatch):
    more = [clip | {"keypoint": clip["keypoint"] + 1} for clip in data.clips[:9]]
    record, count = run.Run._append, []

    def killed(self, line) -> None:
        record(self, line)
        count.append(line)
        if len(count) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(run.Run, "_append", killed)
    with pytest.raises(KeyboardInterrupt):
        data.pack(more, "more.pkl")
    monkeypatch.undo()
    data.pack(data.clips)
    drop(data.packs, data.folder / "cache", Console(quiet=True))
    assert data.encoded(more, "more.pkl") == 4


def test_a_killed_drop_can_be_done_again(data, monkeypatch):
    data.pack(data.clips)
    data.pack([clip | {"keypoint": clip["keypoint"] + 1} for clip in data.clips[:9]], "other.pkl")
    (data.folder / "other.pkl").unlink()

    def killed(*_) -> None:
        raise KeyboardInterrupt

    for moment in ("_keep", "_empty_packs"):
        monkeypatch.setattr(inventory, moment, killed)
        with pytest.raises(KeyboardInterrupt):
            said_by(drop, data)
        monkeypatch.undo()
        assert clips_in(data) == 24
        assert data.encoded(data.clips) == 0
    said_by(drop, data)
    assert len(read_manifest(data.packs)) == 24


def test_nothing_is_dropped_while_clips_are_made(data):
    table = data.table(data.clips)
    another_run = make_clips(data.packs, key_of(table, data.settings), Console(quiet=True), fcntl.LOCK_SH)
    with another_run, pytest.raises(UserError, match="nothing can be dropped, because another run is working on it"):
        said_by(drop, data)
    with pytest.raises(UserError, match="there is no pack in "):
        drop(data.folder, data.folder, Console(quiet=True))
    said_by(drop, data)  # works now, because the other run has ended


def test_a_file_on_a_disk_that_is_not_mounted_keeps_its_clips(data):
    disk = data.folder / "disk"
    disk.mkdir()
    data.pack(data.clips, "disk/annotations.pkl")
    disk.rename(data.folder / "away")
    assert "every clip is used" in said_by(drop, data)
    disk.mkdir()  # the disk is mounted again, and the file is not there
    assert "24 clips and 0 other files" in said_by(drop, data)


def test_a_reader_that_may_note_nothing_keeps_all_clips(data):
    (data.packs / "users").write_text("stands for a folder of another user")
    pack, said = data.pack(data.clips)
    assert said == ""
    with pytest.raises(UserError, match="because another run is working on it"):
        said_by(drop, data)
    for file in pack.in_use:
        file.close()
    assert "24 clips and 0 other files" in said_by(drop, data, only_say=True)


def test_files_without_a_record_are_kept_while_a_run_reads_clips(data):
    pack, _ = data.pack(data.clips)
    (data.packs / "clips" / "stray.mov").write_bytes(b"a clip that was made anew under another name")
    assert "every clip is used" in said_by(drop, data)
    for file in pack.in_use:
        file.close()
    assert "0 clips and 1 other files" in said_by(drop, data)


def test_a_pack_of_an_earlier_version_goes_with_its_last_clip(data):
    as_format_2(data, data.packs / "0123456789abcdef", 48)
    data.pack(data.clips[:20])
    assert "made by an earlier version; 20 of its 24 clips are part of this pack" in said_by(show, data)
    (data.folder / "annotations.pkl").unlink()
    assert "20 clips and 0 other files" in said_by(drop, data)
    assert len(list(data.packs.rglob("*.mov"))) == 4  # these clips are kept, because their users are unknown
    data.pack(data.clips[20:])
    (data.folder / "annotations.pkl").unlink()
    said_by(drop, data)
    assert not (data.packs / "0123456789abcdef").exists()


def test_training_finds_what_was_made_elsewhere(data, tmp_path):
    out = tmp_path / "elsewhere"
    note(data.packs, out)
    shutil.rmtree(out)
    data.packs.rename(out)
    note(data.packs, out)
    _, said = data.pack(data.clips)
    assert "24 clips of other packs are used without being copied" in said
    pack, said = data.pack(data.clips)
    assert said == ""
    assert pack.clip_file(0).is_relative_to(out)
    assert pack.read_frames(0, [0])[1] == []
    assert f"{out}: made with --out" in said_by(show, data)
    said = io.StringIO()
    drop(out, data.folder / "cache", Console(file=said))
    assert "every clip is used" in said.getvalue()
    _, said = data.pack(data.clips, settings=PackSettings(box_pixels=32))
    assert f"{out} contains clips of the same videos that cannot be used: 24 made with other settings" in said


@pytest.mark.parametrize("place", ["known clips", "not mounted", "new clips"])
def test_a_pack_that_is_not_there_any_more_stops_the_run_until_it_is_forgotten(data, tmp_path, monkeypatch, place):
    out = tmp_path / "else where"
    note(data.packs.rename(out).with_name("packs"), out)
    if place != "new clips":
        data.pack(data.clips)
        assert data.pack(data.clips)[1] == ""
    out.rename(tmp_path / "away")
    if place == "not mounted":
        out.mkdir()
    with pytest.raises(UserError, match=f"the pack in {out}, made with --out, no longer exists") as error:
        data.pack(data.clips)
    with pytest.raises(UserError, match="no longer exists"):
        dry_run(data.table(data.clips), data.videos, data.packs, data.settings)
    if place != "new clips":
        assert f"{out}: made with --out; it no longer exists" in said_by(show, data)
    command = shlex.split(str(error.value).split("`")[1])
    assert command[:3] == ["python", "-m", "pipelines.prepare"]
    monkeypatch.setattr(sys, "argv", command[2:])
    start()
    with pytest.raises(UserError, match="lists no pack that was made in"):
        start()
    assert "packing 2 of 2 clips: 2 " in data.pack(data.clips[:2])[1]


def test_an_estimate_makes_nothing(data, monkeypatch):
    def estimate(settings) -> str:
        said = io.StringIO()
        dry_run(data.table(data.clips), data.videos, data.packs, settings, workers=1, console=Console(file=said))
        return said.getvalue()

    before = sorted(data.packs.rglob("*"))
    assert estimate(data.settings) == f"{data.packs}: 0 of 24 clips have to be made\n"
    said = estimate(PackSettings(box_pixels=32))
    assert f"{data.packs}: 24 of 24 clips have to be made: 24 made with other settings\n" in said
    assert "this takes about a minute with 1 processes and 0.3 MB of disk space; " in said
    assert "(measured on 16 of these clips)" in said
    assert sorted(data.packs.rglob("*")) == before
    monkeypatch.setattr("pipelines.prepare.estimate.LONG", 20)
    data.pack(data.clips, settings=PackSettings(box_pixels=32))
    for clip in data.clips:
        clip["keypoint"] = clip["keypoint"] + 1
    assert "(judging by the 24 clips that the last run made on this machine)" in estimate(PackSettings(box_pixels=32))


def test_commands(data, monkeypatch, capsys):
    data.pack(data.clips)
    shutil.copytree(data.packs, data.folder / "other")
    places = ("--packs", str(data.packs), "--cache", str(data.folder / "cache"))
    settings = (f"data.packs={data.packs}", f"data.cache={data.folder}/cache", f"data.videos={data.videos}")
    settings = (*settings, f"data.annotations={data.folder}/annotations.pkl", "data.num_classes=4", "data.split=None")
    experiment = [word for it in (*settings, "clip.box_pixels=64") for word in ("--set", it)]
    for words, expected in (
        (("--list", *places), "24 clips, "),
        (("--drop", "--dry-run", *places), "every clip is used"),
    ):
        monkeypatch.setattr(sys, "argv", ["prepare", *words])
        start()
        assert expected in capsys.readouterr().out
    for words, expected in (
        (("--list",), "24 clips, "),
        (("--dry-run",), "0 of 24 clips have to be made"),
        (("--out", str(data.folder / "other")), ""),
    ):
        assert dispatch(["prepare", "--exp", "custom", *experiment, *words]) == 0
        assert expected in "".join(capsys.readouterr())
    assert json.loads((data.packs / "others.json").read_text()) == [str(data.folder / "other")]
