"""Several machines can pack parts of one data set at the same time. No clip is lost, and no clip is made twice."""

import errno
import fcntl
import io
import os
import signal
import threading
import time

import pytest
from rich.console import Console

from kernels.program import UserError
from pipelines.packs.format import index_is_current, parts_of, read_manifest
from pipelines.prepare import make
from pipelines.prepare.locks import make_clips
from pipelines.prepare.make import prepare_shard
from pipelines.prepare.shard import Shard
from pipelines.prepare.users import key_of
from tests import programs
from tests.pipelines.test_prepare import digests, words_of

QUIET = Console(quiet=True)


def another_shard(work):
    """Hold the locks that a run holds while it makes another shard of the scene's pack."""
    return make_clips(work.out, key_of(work.table(), work.settings), QUIET, fcntl.LOCK_SH)


def pack_shard(work, text: str, max_bad: float = 0.5) -> str:
    """Make one shard of the scene's pack in this process. Returns the messages that were printed."""
    said = io.StringIO()
    shard = Shard.parse(text)
    options = {"workers": 1, "max_bad": max_bad, "console": Console(file=said)}
    prepare_shard(work.table(), work.videos, work.out, work.settings, shard, **options)
    return said.getvalue()


@pytest.mark.parametrize("count", [1, 2, 3, 16])
def test_shards_have_no_clip_in_common_and_together_all(count):
    rows = [row for index in range(count) for row in Shard.parse(f"{index}/{count}").rows(10)]
    assert sorted(rows) == list(range(10))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("16/16", "--shard 16/16 does not exist: .* choose one of --shard 0/16 to --shard 15/16"),
        ("0/0", "--shard 0/0 does not exist: .* --shard 0/N to --shard N-1/N"),
        *(
            (text, "is not of the form I/N; the first of 16 shards is --shard 0/16")
            for text in ("3", "-1/4", "/4", "a/b")
        ),
    ],
)
def test_a_shard_that_does_not_exist_is_one_sentence(text, sentence):
    with pytest.raises(UserError, match=sentence):
        Shard.parse(text)


def test_commands_refuse_such_a_shard(scene):
    work = scene(8)
    for words in (words_of(work, "--shard", "2/2"), ["-m", "trainer", "prepare", "--exp", "demo", "--shard", "2/2"]):
        done = programs.run_here(*words)
        assert done.returncode == 2
        assert "--shard 2/2 does not exist" in done.stderr
        assert done.stderr.count("\n") == 1
    assert not work.out.exists()


# Runs `pipelines.prepare` with the arguments after the first three. After its second clip, the run waits until the
# other shard has two clips as well. Then the run for shard 0/2 kills itself.
MEETING = """
import os, signal, sys, time
from pathlib import Path
from pipelines.packs.format import read_manifest
from pipelines.prepare.run import Run
from pipelines.prepare.__main__ import start

out, own, other = Path(sys.argv[1]), sys.argv[2].split(), sys.argv[3].split()
append = Run._append

def made(names):
    return sum(line["name"] in names for line in read_manifest(out).values())

def meet(self, line):
    append(self, line)
    if made(own) == 2:
        while made(other) < 2:
            time.sleep(0.01)
        if sys.argv[-1] == "0/2":
            os.kill(os.getpid(), signal.SIGKILL)

Run._append = meet
sys.argv[1:] = sys.argv[4:]
start()
"""


def test_two_shards_at_once_of_which_one_is_killed_make_the_pack_of_an_unbroken_run(scene):
    work = scene(*[8 + number for number in range(10)])
    expected = work.folder / "unbroken"
    work.prepare(expected)
    names = [" ".join(work.names[index::2]) for index in range(2)]
    _, _, *words = words_of(work, "--workers", "1", "--shard")
    with (
        programs.Fork(["-c", MEETING, work.out, names[0], names[1], *words, "0/2"]) as killed,
        programs.Fork(["-c", MEETING, work.out, names[1], names[0], *words, "1/2"]) as other,
    ):
        assert other.wait(280) == 0, other.stderr
        assert killed.wait(280) == -signal.SIGKILL, killed.stderr
    assert "shard 1/2 is complete, 5 of its 5 clips were made in" in other.stderr
    assert len(read_manifest(work.out)) == 2 + 5
    again = programs.run_forked(*words_of(work, "--workers", "1", "--shard", "0/2"))
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip() == str(work.out)
    assert "shard 0/2 is complete, 3 of its 5 clips were made in" in again.stderr
    assert "; the pack has 10 of 10 clips" in again.stderr
    for leftover in (work.out / "clips").glob("*.tmp*"):  # the worker of the killed run left this file
        leftover.unlink()
    assert digests(work.out) == digests(expected)
    assert work.prepare()[1] == ""


def test_the_last_of_the_runs_merges_the_parts_of_all(scene):
    work = scene(8, 9, 10)
    with another_shard(work):  # simulates a shard that another machine is making
        said = pack_shard(work, "0/2")
        assert said.endswith("s\n")
        assert "the pack has" not in said
        assert len(parts_of(work.out)) == 1
        assert not (work.out / "index").exists()
    assert "; the pack has 3 of 3 clips" in pack_shard(work, "1/2")
    assert parts_of(work.out) == []
    assert work.prepare()[1] == ""


def test_a_run_without_a_shard_waits_for_shards_and_makes_the_rest(scene):
    work = scene(8, 9, 10)
    said, answers = io.StringIO(), []
    with another_shard(work):
        waiting = threading.Thread(target=lambda: answers.append(work.prepare(console=Console(file=said))))
        waiting.start()
        while "waiting for another run" not in said.getvalue():
            assert waiting.is_alive()
            time.sleep(0.01)
        pack_shard(work, "0/2")
    waiting.join()
    assert "packing 1 of 3 clips: 1 that are not in the pack yet" in said.getvalue()
    assert answers[0][0].num_frames.tolist() == [8, 9, 10]


def test_parts_of_killed_runs_are_merged_by_the_next_run(scene, monkeypatch):
    work = scene(8, 9, 10)
    expected = work.folder / "unbroken"
    work.prepare(expected)

    def killed(out) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(make, "merge_parts", killed)
    for shard in ("0/2", "1/2"):
        with pytest.raises(KeyboardInterrupt):
            pack_shard(work, shard)
    monkeypatch.undo()
    assert len(parts_of(work.out)) == 2
    with open(parts_of(work.out)[0], "a") as part:
        part.write('{"name": "S001C0')  # a line that was cut off by a kill
    assert not index_is_current(work.out)
    pack, said = work.prepare()
    assert "3 of 3 clips; 0 made" in said
    assert pack.num_frames.tolist() == [8, 9, 10]
    assert digests(work.out) == digests(expected)


def test_the_newest_line_of_a_clip_counts(scene, film):
    """An older part of the manifest that is still unmerged must not hide the clips that a later run has made."""
    work = scene(8, 9)
    with another_shard(work):
        pack_shard(work, "0/1")
    (old,) = parts_of(work.out)
    film.write(work.video(0), film.frames(8, *work.size, seed=7))
    with another_shard(work):
        said = pack_shard(work, "0/1")
    assert "packing 1 of 2 clips: 1 whose video changed" in said
    assert len(parts_of(work.out)) == 2
    assert parts_of(work.out)[0] == old
    assert "2 of 2 clips; 0 made" in work.prepare()[1]
    assert work.prepare()[1] == ""


def test_the_allowance_for_bad_videos_is_that_of_the_whole_pack(scene):
    work = scene(*[8] * 10)
    work.video(0).write_bytes(b"\0" * 1000)
    work.prepare(work.folder / "whole", max_bad=0.1)
    assert "1 of its 1 clips were made" in pack_shard(work, "0/10", max_bad=0.1)
    for number in (1, 2):  # these videos belong to other shards
        work.video(number).unlink()
    with pytest.raises(UserError, match=r"2 of 10 clips have no usable video, and at most 10\.0% may lack one"):
        pack_shard(work, "5/10", max_bad=0.1)


def flock_of_nfs(flock):
    """Return a flock as on NFS: a shared lock needs a file open for reading, an exclusive lock one open for writing."""

    def on_nfs(file, operation: int) -> None:
        mode = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE
        if mode == (os.O_RDONLY if operation & fcntl.LOCK_EX else os.O_WRONLY):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(file, operation)

    return on_nfs


def flock_of_lustre(flock):
    """Return a flock that fails, as on a Lustre file system that is mounted without the option flock."""

    def without_locks(file, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    return without_locks


@pytest.mark.parametrize("kind", [flock_of_nfs, flock_of_lustre])
def test_network_file_systems(scene, monkeypatch, kind):
    work = scene(8, 9, 10)
    work.table()  # builds the table now: without locks, a program can read a table but cannot build one
    monkeypatch.setattr(fcntl, "flock", kind(fcntl.flock))
    said = pack_shard(work, "0/3") + pack_shard(work, "1/3")
    pack, last = work.prepare()
    assert pack.num_frames.tolist() == [8, 9, 10]
    assert "3 of 3 clips; 1 made" in last
    assert ("; the pack has 2 of 3 clips" in said) == (kind is flock_of_nfs)
    assert (said + last).count("its file system has no locks") == (0 if kind is flock_of_nfs else 3)


def test_a_shard_of_an_experiment(scene):
    work = scene(8, 9, 10)
    work.table()
    words = ["-m", "trainer", "prepare", "--exp", "custom"]
    for setting in (
        *(f"data.annotations={work.folder / 'annotations.pkl'}", f"data.videos={work.videos}"),
        *(f"data.packs={work.folder / 'packs'}", f"data.cache={work.folder / 'cache'}"),
        *("data.num_classes=4", "data.split=None"),
    ):
        words += ["--set", setting]
    done = programs.run_forked(*words, "--shard", "1/2")
    assert done.returncode == 0, done.stderr
    assert "shard 1/2 is complete, 1 of its 1 clips were made" in done.stderr
    done = programs.run_forked(*words)
    assert done.returncode == 0, done.stderr
    assert "packing 2 of 3 clips" in done.stderr
