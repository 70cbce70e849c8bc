"""Files are read in threads, in parallel and not too far ahead. The threads end with their epoch."""

import errno
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.config import ClipConfig
from pipelines.loader import Loader
from pipelines.packs.source import PackFrames
from pipelines.read_ahead import ReadAhead, reader_threads
from pipelines.skeleton import COCO_17

CONFIG = ClipConfig(
    skeleton=COCO_17, rgb_frames=2, pose_frames=8, rgb_size=32, rgb_size_val=32, heatmap_size=8, heatmap_size_val=8
)
PREFETCH, BATCHES, CLIPS = 2, 12, 2  # number of batches to decode ahead, batches of an epoch, clips of a batch
AHEAD = (1 + PREFETCH + 1) * CLIPS  # number of files in the first batch and in the batches that are read ahead


@pytest.fixture(scope="module")
def shared(tmp_path_factory, scene_class):
    work = scene_class(tmp_path_factory.mktemp("ahead"), [8, 9, 10])
    return work.table(), work.prepare()[0]


@pytest.fixture
def loader(shared) -> Loader:
    table, pack = shared
    return Loader(
        table=table,
        frames=PackFrames(table, pack),
        rows=np.resize(np.arange(len(table)), BATCHES * CLIPS),
        config=CONFIG,
        coarse_map=(0,) * 4,
        train=True,
        batch_size=CLIPS,
        device=torch.device("cpu"),
        prefetch=PREFETCH,
        threads=1,
    )


class Opener:
    """Replaces os.open. Opening a clip waits until `gate` is set, which simulates a slow file system."""

    def __init__(self, monkeypatch):
        self.gate, self.threads, self.open = threading.Event(), [], os.open
        monkeypatch.setattr(os, "open", self)

    def __call__(self, path, *more, **options):
        if Path(path).suffix == ".mov":
            self.threads.append(threading.current_thread())
            self.gate.wait()
        return self.open(path, *more, **options)

    def wait_for(self, count: int) -> None:
        """Wait until `count` calls to open a file have begun."""
        deadline = time.monotonic() + 100
        while len(self.threads) < count:
            if time.monotonic() > deadline:
                self.gate.set()  # otherwise the threads that open files would keep the tests from ending
                pytest.fail(f"only {len(self.threads)} of {count} files are being opened")
            time.sleep(0.001)


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("reader")]


def pictures(batches) -> list[torch.Tensor]:
    return [batch.rgb.clone() for batch in batches]


def test_files_are_opened_side_by_side_and_a_bounded_number_ahead(loader, monkeypatch):
    expected = pictures(loader.epoch(0))
    opener, epoch, batches = Opener(monkeypatch), loader.epoch(0), []
    waiting = threading.Thread(target=lambda: batches.append(next(epoch)))
    waiting.start()
    opener.wait_for(AHEAD)  # none of these calls has returned yet, so all of them wait at the same time
    time.sleep(0.05)
    assert len(opener.threads) == AHEAD
    opener.gate.set()
    waiting.join()
    assert not {waiting, threading.current_thread()} & set(opener.threads)
    for number in range(1, BATCHES):
        batches.append(next(epoch))
        assert len(opener.threads) <= AHEAD + (PREFETCH - 1 + number) * CLIPS  # PREFETCH - 1 batches are decoded ahead
    assert all(map(torch.equal, pictures(batches), expected))
    assert list(epoch) == []
    assert len(opener.threads) == BATCHES * CLIPS
    assert readers() == []


@pytest.mark.parametrize("end", ["close", "forget"])
def test_an_epoch_that_ends_early_reads_no_more(loader, monkeypatch, end):
    opener = Opener(monkeypatch)
    opener.gate.set()
    epoch = loader.epoch(0)
    next(epoch)
    assert readers()
    if end == "close":
        epoch.close()
    del epoch
    assert readers() == []
    assert len(opener.threads) <= AHEAD + (PREFETCH - 1) * CLIPS


def test_two_epochs_at_once_do_not_disturb_each_other(loader):
    alone = [pictures(loader.epoch(number)) for number in range(2)]
    both = zip(loader.epoch(0), loader.epoch(1), strict=True)
    for batches, expected in zip(zip(*both, strict=True), alone, strict=True):
        assert all(map(torch.equal, pictures(batches), expected))


def test_an_error_of_a_reading_thread_is_raised_by_next(loader, monkeypatch):
    reads, pread = [], os.pread

    def failing(*arguments):
        reads.append(threading.current_thread())
        if len(reads) > 5 * CLIPS * CONFIG.rgb_frames:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(*arguments)

    monkeypatch.setattr(os, "pread", failing)
    batches = []
    with pytest.raises(OSError, match="Input/output error"):
        batches.extend(loader.epoch(0))
    assert len(batches) <= 5 - PREFETCH + 1
    assert threading.current_thread() not in reads
    assert readers() == []
    monkeypatch.undo()
    assert len(list(loader.epoch(0, first=5))) == BATCHES - 5


def test_an_error_of_planning_has_its_own_message(loader, monkeypatch):
    plan = loader.plan

    def failing(epoch: int, step: int):
        assert step < 4, f"no plan for step {step}"
        return plan(epoch, step)

    monkeypatch.setattr(loader, "plan", failing)
    with pytest.raises(AssertionError, match="no plan for step 4"):
        list(loader.epoch(0))
    assert readers() == []


def test_signals_are_handled_while_a_batch_is_awaited(loader, monkeypatch):
    """Reading waits until the signal handler sets the gate. Without the handler, the batch would never arrive."""
    opener = Opener(monkeypatch)
    before = signal.signal(signal.SIGUSR1, lambda number, frame: opener.gate.set())
    try:

        def send() -> None:
            opener.wait_for(AHEAD)
            os.kill(os.getpid(), signal.SIGUSR1)

        sender = threading.Thread(target=send)
        sender.start()
        assert len(list(loader.epoch(0))) == BATCHES
        sender.join()
    finally:
        opener.gate.set()
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_fork_in_the_middle_of_an_epoch_reads_in_its_own_threads(loader):
    def first_batch() -> list[bytes]:
        with reader_threads() as readers:
            ahead = ReadAhead(readers, lambda step: loader.plan(0, step), loader.frames.read, depth=1)
            return [packet for clip in ahead.take(0)[1] for packet in clip.packets]

    expected, whole, epoch = first_batch(), pictures(loader.epoch(0)), loader.epoch(0)
    next(epoch)
    pid = os.fork()
    if not pid:
        same = False
        try:
            same = first_batch() == expected
        finally:
            os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert all(map(torch.equal, pictures(epoch), whole[1:]))
