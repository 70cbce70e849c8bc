"""A long video as overlapping windows, each of which becomes a clip as validation sees it.

The video is decoded once, from front to back, and only the frames that a window samples are kept. They take the way of
a pack's clip without the file: the same crop, the same JPEG bytes, the same DALI graph (packs/source.py).
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import count

import av
import numpy as np
import torch

from pipelines.annotations.table import ClipTable
from pipelines.dali import FrameDecoder, Step, mirrored
from pipelines.frame_source import Decoding
from pipelines.packs.format import PackSettings
from pipelines.packs.source import packet_boxes
from pipelines.plan import ClipPlan
from pipelines.prepare.encode import Crop, Job, write_jpegs
from pipelines.videos.decode import CONTAINERS, SLACK, VideoError, decode

Windows = list[tuple[int, int]]  # first frame, and the one past the last


def windows_of(total: int, window: int, stride: int) -> Windows:
    """Windows of `window` frames every `stride` frames; the last one ends with the video and may be shorter."""
    last = max(0, -(-(total - window) // stride))
    return [(start, min(start + window, total)) for start in range(0, last * stride + 1, stride)]


def window_table(joints: np.ndarray, height: int, width: int, windows: Windows) -> ClipTable:
    """A table whose clips are the windows. joints [M, T, V, 3] of the whole video, in pixels of (height, width).

    Where M is 0, a person without joints stands for nobody.
    """
    joints = joints if len(joints) else np.zeros((1, *joints.shape[1:]), np.float32)
    parts = [joints[:, start:end].reshape(-1, *joints.shape[2:]) for start, end in windows]
    rows = np.array([len(part) for part in parts], np.int64)
    same = np.ones(len(windows), np.int32)
    return ClipTable(
        digest="",
        names=np.array([f"frames {start} to {end - 1}" for start, end in windows]),
        label=0 * same,
        total_frames=np.array([end - start for start, end in windows], np.int32),
        height=height * same,
        width=width * same,
        num_persons=len(joints) * same,
        first_row=np.concatenate([[0], np.cumsum(rows)[:-1]]).astype(np.int64),
        joints=np.concatenate(parts),
        splits={},
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowFrames:
    """The frames of a `window_table`'s clips, out of the video itself. `each` is called with every decoded frame.

    It serves batches of one window, in order.
    """

    video: str
    table: ClipTable
    windows: Windows
    settings: PackSettings
    each: Callable[[av.VideoFrame], None]

    def rows_of(self, table: ClipTable) -> np.ndarray:
        return np.arange(len(table))

    def decode(self, plans: Callable[[int], ClipPlan], decoding: Decoding) -> "WindowDecoder":
        assert decoding.num_clips == 1
        return WindowDecoder(self, list(_all(plans)), decoding)

    def job(self, row: int) -> Job:
        """What `prepare` would be given for this clip; no file is written."""
        return Job.of(self.table, row, self.settings, self.video, target="")


def _all(plans: Callable[[int], ClipPlan]) -> Iterator[ClipPlan]:
    for step in count():
        try:
            yield plans(step)
        except StopIteration:
            return


class WindowDecoder:
    """Frames of one window after another. Raises VideoError where the video ends early or does not decode."""

    def __init__(self, frames: WindowFrames, plans: list[ClipPlan], decoding: Decoding):
        self.frames, self.plans = frames, plans
        self.total = frames.windows[-1][1]
        self.numbers = [self._numbers(plan) for plan in plans]
        self.wanted = Counter(number for numbers in self.numbers for number in set(numbers))
        self.kept: dict[int, av.VideoFrame] = {}
        self.last: av.VideoFrame
        self.num_read = 0
        self.pictures = decode(frames.video, self.total + SLACK)
        # With a prefetch of one each window's frames are asked for when its turn comes, in this thread.
        shape = (decoding.num_frames, decoding.size, decoding.device)
        self.decoder = FrameDecoder(self._read, *shape, threads=decoding.threads, prefetch=1)

    def next(self) -> torch.Tensor:
        """Frames of the next window: uint8 [T, size, size, 3]."""
        return self.decoder.next()

    def _numbers(self, plan: ClipPlan) -> list[int]:
        start, _ = self.frames.windows[int(plan.row[0])]
        return (start + plan.rgb_frames[0]).tolist()

    def _read(self, step: int) -> Step:
        plan, numbers = self.plans[step], self.numbers[step]
        row = int(plan.row[0])
        self._read_to(self.frames.windows[row][1])
        pictures = [self.kept[number] for number in numbers]
        job, first = self.frames.job(row), pictures[0]
        crop = Crop.of(job, first.width, first.height)
        try:
            _, packets = write_jpegs(job, crop, first, iter(pictures[1:]))
        except av.FFmpegError as error:
            raise VideoError(f"its frames {numbers[0]} to {numbers[-1]} are not converted ({error.strerror})") from None
        self._drop(numbers)
        sizes = [[job.width, job.height], [first.width, first.height], crop.frame_size]
        annotated, video, packed = np.array(sizes, np.float64)[:, None]
        box = packet_boxes(plan.box, annotated, video, np.array([crop.region]), packed)
        box, flip = np.repeat(box, len(packets), axis=0), np.repeat(plan.flip, len(packets))
        return [np.frombuffer(packet, np.uint8) for packet in packets], *mirrored(box, flip)

    def _read_to(self, end: int) -> None:
        """Decode up to frame `end`; where that is the last window's end, to the end of the video."""
        while self.num_read < end or end == self.total:
            picture = next(self.pictures, None)
            if picture is None:
                self._fill_up()
                return
            self.frames.each(picture)
            if self.num_read in self.wanted:
                self.kept[self.num_read] = picture
            self.last = picture
            self.num_read += 1

    def _fill_up(self) -> None:
        """The last frame takes the place of up to SLACK that are not there, as in a pack's reader."""
        if self.num_read < max(1, self.total - SLACK):
            raise VideoError(f"it ends after {self.num_read} of {self.total} frames")
        for number in self.wanted:
            if number >= self.num_read:
                self.kept[number] = self.last

    def _drop(self, numbers: list[int]) -> None:
        """Let go of the frames that no later window wants."""
        for number in set(numbers):
            self.wanted[number] -= 1
            if not self.wanted[number]:
                del self.wanted[number], self.kept[number]


def frame_rate(video: str) -> Fraction:
    """Frames a second as the header has it, and NTU's and MA-52's 30 where it has none."""
    try:
        with av.open(video, options=CONTAINERS) as container:
            return container.streams.video[0].average_rate or Fraction(30)
    except av.FFmpegError as error:
        raise VideoError(f"it does not open ({error.strerror})") from None
