"""`prepare` makes the same pack after any interruption, does no work twice, and reports bad videos by name."""

import hashlib
import io
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from kernels.program import UserError
from pipelines.config import ClipConfig
from pipelines.geometry import crop_region
from pipelines.packs.format import PackSettings, read_manifest
from pipelines.plan import plan_eval, plan_train
from pipelines.prepare import pool as prepare_pool
from pipelines.prepare.elsewhere import note
from pipelines.prepare.make import dry_run
from pipelines.skeleton import COCO_17
from tests import programs


def digests(folder: Path) -> dict[str, str]:
    """Return the digest of each file of a pack by its path, except the lock and the folder `users`."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    files = [path for path in files if folder / "users" not in path.parents]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def words_of(work, *more: str) -> list[str]:
    table = work.table()
    assert table
    return [
        *("-m", "pipelines.prepare", work.folder / "annotations.pkl"),
        *("--videos", work.videos, "--out", work.out, "--cache", work.folder / "cache"),
        *("--packs", work.folder / "packs"),
        *("--count", "8", "--box-pixels", "64", *more),
    ]


def run(work, *more: str) -> subprocess.CompletedProcess:
    return programs.run(*words_of(work, *more))


def test_bytes_depend_on_no_number_of_workers(scene):
    work = scene(8, 20, 9, 30, 10)
    packs = []
    for workers in (1, 3):
        work.prepare(work.folder / f"pack{workers}", workers=workers)
        packs.append(digests(work.folder / f"pack{workers}"))
    assert packs[0] == packs[1]
    assert sum(name.startswith("clips") for name in packs[0]) == 5


def test_second_run_does_nothing(scene):
    work = scene(8, 9)
    _, said = work.prepare()
    assert "2 that are not in the pack yet" in said
    before = {path: path.stat().st_mtime_ns for path in work.out.rglob("*")}
    pack, said = work.prepare()
    assert said == ""
    assert {path: path.stat().st_mtime_ns for path in work.out.rglob("*")} == before
    assert pack.num_frames.tolist() == [8, 9]


def test_whatever_changes_is_made_anew_and_nothing_else(scene, film):
    work = scene(8, 9, 10)
    work.prepare()

    def changed(expected: str, names: list[str], **options) -> None:
        before = digests(work.out / "clips")
        _, said = work.prepare(**options)
        assert expected in said
        new = digests(work.out / "clips").keys() - before.keys()
        assert sorted(path.partition(".")[0] for path in new) == names
        assert work.prepare(**options)[1] == ""

    film.write(work.video(1), film.frames(9, *work.size, seed=7))
    changed("1 whose video changed", [work.names[1]])
    work.clips[2]["keypoint"] = work.clips[2]["keypoint"] + np.float16(2)
    changed("1 whose skeleton changed", [work.names[2]])
    work.clip(0).unlink()
    changed("1 whose file in the pack is missing", [work.names[0]])
    changed("3 made with other settings", work.names, settings=PackSettings(count=8, box_pixels=64, quality=5))


def test_new_time_of_an_old_video_costs_nothing(scene):
    work = scene(8, 9)
    work.prepare()
    before = digests(work.out / "clips")
    os.utime(work.video(0), ns=(1, 1))
    _, said = work.prepare()
    assert "made" not in said.replace("0 made", "")
    assert digests(work.out / "clips") == before
    assert 1 in [line["stamps"][0][1] for line in read_manifest(work.out).values()]
    assert work.prepare()[1] == ""


def test_a_pack_takes_in_a_second_table(scene):
    """MA-52 has one annotation file per split, so a pack must accept clips from a second table."""
    work = scene(8, 9)
    both = work.clips
    for clips in (both[:1], both[1:], both):
        work.clips = clips
        pack, said = work.prepare()
    assert said == ""
    assert pack.num_frames.tolist() == [8, 9]


def test_a_complete_pack_needs_no_videos(scene):
    work = scene(8)
    work.prepare()
    work.videos.rename(work.folder / "elsewhere")
    assert work.prepare()[0].num_frames.tolist() == [8]
    work.clip(0).unlink()
    with pytest.raises(ValueError, match="there is no folder"):
        work.prepare()


def test_bad_videos_are_named_once_and_left_out(scene):
    work = scene(8, 9, 10, 11)
    work.video(1).write_bytes(work.video(1).read_bytes()[:500])
    work.video(3).unlink()
    pack, said = work.prepare(max_bad=0.5)
    assert said.count(f"{work.names[1]}: the video cannot be decoded") == 1
    assert said.count(f"{work.names[3]}: there is no such video") == 1
    assert pack.num_frames.tolist() == [8, 0, 10, 0]
    _, said = work.prepare(max_bad=0.5)
    assert said.startswith("2 of 4 clips are left out: the video cannot be decoded")
    assert f"there is no such video: 1 ({work.names[3]})" in said
    with pytest.raises(
        ValueError, match=r"2 of 4 clips have no usable video, and at most 25.0% may lack one \(--max-bad\)"
    ):
        work.prepare(max_bad=0.25)


def test_too_many_bad_videos_stop_the_run(scene):
    work = scene(8, 9, 10, 11)
    for number in (0, 1, 2):
        work.video(number).write_bytes(b"\0" * 1000)
    with pytest.raises(ValueError, match=rf"2 of 4 .*: the video cannot be decoded .*: 2 \({work.names[0]}, "):
        work.prepare(max_bad=0.25)
    assert not list((work.out / "clips").glob(f"{work.names[3]}*"))


def test_a_mended_video_is_taken_in(scene):
    work = scene(8, 9)
    whole = work.video(0).read_bytes()
    work.video(0).write_bytes(whole[:500])
    assert work.prepare()[0].num_frames.tolist() == [0, 9]
    work.video(0).write_bytes(whole)
    pack, said = work.prepare()
    assert "1 whose video changed" in said
    assert pack.num_frames.tolist() == [8, 9]


def workers_of(parent: int) -> list[int]:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(child) for child in children]


def test_killed_runs_go_on_to_the_same_bytes(scene):
    work = scene(*[30 + number for number in range(12)])
    expected_folder = work.folder / "unbroken"
    work.prepare(expected_folder, workers=1)
    made = []
    for stop_at in (1, 5):
        process = programs.Fork(words_of(work, "--workers", "2"))
        while len(list((work.out / "clips").glob("*.mov"))) < stop_at:
            assert process.poll() is None
            time.sleep(0.005)
        workers = workers_of(process.pid)
        process.kill()
        process.wait()
        made.append(len(read_manifest(work.out)))
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{worker}").exists() for worker in workers):
            assert time.monotonic() < deadline, "workers are still running after their run has ended"
            time.sleep(0.01)
    (work.out / "clips" / "torn.mov.123.tmp").write_bytes(b"half a clip")
    with open(work.out / "manifest.jsonl", "a") as manifest:
        manifest.write('{"name": "S001C0')  # a line that was cut off by a kill
    finished = programs.run_forked(*words_of(work))
    assert finished.returncode == 0, finished.stderr
    assert made == sorted(made)
    assert made[-1] < 12
    assert digests(work.out) == digests(expected_folder)


def test_crashed_and_hung_decoders_cost_one_clip_each(scene, monkeypatch):
    """Workers get SIGKILL or SIGSTOP during a job. This simulates a decoder that crashes or hangs."""
    work = scene(8, 9, 10, 11)
    start = prepare_pool.Worker.start
    strike = {work.names[0]: signal.SIGKILL, work.names[2]: signal.SIGSTOP}

    def struck(self, job):
        if job.name in strike:
            self.process.send_signal(strike[job.name])
            self.process.stdin.flush()
        start(self, job)

    monkeypatch.setattr(prepare_pool.Worker, "start", struck)
    monkeypatch.setattr(prepare_pool, "time_limit", lambda job: 2 if job.name in strike else 60)
    pack, said = work.prepare(workers=2)
    assert pack.num_frames.tolist() == [0, 9, 0, 11]
    assert f"{work.names[0]}: the decoder was killed by signal 9" in said
    assert f"{work.names[2]}: encoding the video took longer than 2 s" in said


def test_command_line(scene, tmp_path):
    work = scene(8, 9)
    good = run(work)
    assert good.returncode == 0, good.stderr
    assert good.stdout.strip() == str(work.out)
    assert "packing clips 2/2" in good.stderr
    for more, expected in (
        (("--videos", str(tmp_path / "nowhere"), "--out", str(tmp_path / "p2")), "there is no folder"),
        (("--out", "/proc/pack"), "/proc/pack cannot be written"),
        (("--out", str(work.video(0) / "pack")), "cannot be written (Not a directory); choose another folder"),
        (("--out", str(tmp_path / "p2"), "--workers", "-1"), "--workers -1 is not between 1 and 100000"),
        (("--out", str(tmp_path / "p2"), "--count", "0"), "--count 0 is not between"),
        (("--out", str(tmp_path / "p2"), "--quality", "99"), "--quality 99 is not between 2 and 31"),
        (("--out", str(tmp_path / "p2"), "--box-pixels", "0"), "--box-pixels 0 is not between"),
        (("--out", str(tmp_path / "p2"), "--max-bad", "-1"), "--max-bad -1 is not between 0 and 1"),
    ):
        bad = programs.run_here(*words_of(work, *more))
        assert bad.returncode == 2
        assert expected in bad.stderr
        assert bad.stderr.count("\n") == 1
    (work.folder / "annotations.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    bad = programs.run_here("-m", "pipelines.prepare", work.folder / "annotations.pkl", "--videos", work.videos)
    assert bad.returncode == 2
    assert "os.system" in bad.stderr


CONFIG = ClipConfig(skeleton=COCO_17, rgb_frames=4, pose_frames=12)


def joints_with_holes(
    rng: np.random.RandomState, total: int, persons: int, spread: float, missing: float
) -> np.ndarray:
    """Return joints of moving people, some of them outside the 320x240 picture. Some joints and frames are missing."""
    walk = np.cumsum(rng.randn(persons, total, 1, 2) * spread / 10, axis=1)
    shape = rng.randn(persons, 1, 17, 2) * spread
    joints = rng.uniform(-20, 340, (persons, 1, 1, 2)) + walk + shape
    joints[rng.random_sample(joints.shape[:3]) < missing] = 0
    joints[rng.random_sample(joints.shape[:2]) < missing] = 0
    return np.concatenate([joints, np.ones((*joints.shape[:3], 1))], axis=-1)


KINDS_OF_CLIPS = st.tuples(
    st.integers(1, 40),  # frames
    st.integers(0, 3),  # people
    st.sampled_from([0.5, 3, 10, 40, 150]),  # spread
    st.sampled_from([0, 0.1, 0.6, 0.95]),  # share of missing joints
)


@settings(deadline=None, max_examples=6)
@given(seed=st.integers(0, 2**31), kinds=st.lists(KINDS_OF_CLIPS, min_size=10, max_size=10))
def test_region_holds_every_sampled_box(tmp_path_factory, film, seed, kinds):
    rng = np.random.RandomState(seed)
    clips = [joints_with_holes(rng, *kind) for kind in kinds]
    folder = tmp_path_factory.mktemp("region")
    table = film.table(folder, [film.annotation(f"clip{i}", joints, 320, 240) for i, joints in enumerate(clips)])
    rows = np.arange(len(clips))
    region = np.array([crop_region(table.clip_joints(row)[..., :2], 240, 320).region for row in rows])
    plans = [plan_train(table, rows, CONFIG, seed, epoch) for epoch in range(20)]
    whole = [plan_eval(table, rows, CONFIG, clip, count) for clip, count in ((0, 1), (0, 10), (9, 10))]
    for plan in [*plans, *whole]:
        assert (plan.box[:, :2] >= region[:, :2]).all()
        assert (plan.box[:, 2:] <= region[:, 2:]).all()


def test_a_video_that_could_not_be_decoded_for_another_pack_is_not_tried_again(scene, tmp_path):
    work = scene(8, 8)
    work.video(1).write_bytes(b"no video")
    work.prepare(tmp_path / "elsewhere")
    note(work.out, tmp_path / "elsewhere")
    _, said = work.prepare()
    assert "packing" not in said
    pack, said = work.prepare()
    assert "packing" not in said
    assert "1 of 2 clips are left out" in said
    assert list(pack.bad) == [work.names[1]]


def test_an_estimate_for_nothing_but_a_broken_video(scene):
    work = scene(8, 8)
    content = work.video(1).read_bytes()
    work.video(1).unlink()
    work.prepare()
    work.video(1).write_bytes(content[:100])
    said = io.StringIO()
    places = (work.table(), work.videos, work.out, work.settings)
    dry_run(*places, workers=1, max_bad=0.5, console=Console(file=said, width=300))
    assert "1 of 2 clips have to be made" in said.getvalue()
    assert "none of these clips can be decoded, so they are left out" in said.getvalue()
    with pytest.raises(UserError, match="can be decoded"):
        dry_run(*places, workers=1, max_bad=0.4, console=Console(file=said))
