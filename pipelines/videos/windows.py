"""Cuts a long video into overlapping windows, each of which is treated like a clip in validation.

The video is decoded once from start to end, and only frames that a window samples are kept in memory. These frames go
through the same steps as the frames of a pack (crop, JPEG compression, the DALI graph), but no file is written.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import av
import numpy as np
import torch

from pipelines.annotations.table import ClipTable
from pipelines.dali import FrameDecoder, Step, resize_regions
from pipelines.frame_source import Decoding
from pipelines.packs.format import PackSettings
from pipelines.packs.source import packet_boxes
from pipelines.plan import ClipPlan
from pipelines.prepare.encode import Crop, Job, write_jpegs
from pipelines.videos.container import VideoError
from pipelines.videos.decode import SLACK
from pipelines.videos.turn import AnnotatedImage

Windows = list[tuple[int, int]]  # for each window, its first frame and the frame after its last one


def windows_of(total: int, window: int, stride: int) -> Windows:
    """Windows of `window` frames that start every `stride` frames, for a video of `total` frames.

    The last window ends with the video and may be shorter.
    """
    num_more = max(0, -(-(total - window) // stride))
    return [(start, min(start + window, total)) for start in range(0, num_more * stride + 1, stride)]


def window_table(
    joints: np.ndarray, image: AnnotatedImage, windows: Windows, people: Sequence[slice] | None = None
) -> ClipTable:
    """An annotation table with one row per window.

    joints: [M, T, V, 3] (x, y, score) of the whole video, in pixels of `image`. If M is 0, each row gets one person
        whose joints are all missing.
    people: for each window, the people of its row; None stands for all people in every row.
    """
    joints = joints if len(joints) else np.zeros((1, *joints.shape[1:]), np.float32)
    chosen = [joints[each] for each in people or [slice(None)] * len(windows)]
    parts = [
        own[:, start:end].reshape(-1, *joints.shape[2:]) for own, (start, end) in zip(chosen, windows, strict=True)
    ]
    rows = np.array([len(part) for part in parts], np.int64)
    ones = np.ones(len(windows), np.int32)
    return ClipTable(
        digest="",
        names=np.array([f"frames {start} to {end - 1}" for start, end in windows]),
        label=0 * ones,
        total_frames=np.array([end - start for start, end in windows], np.int32),
        height=image.height * ones,
        width=image.width * ones,
        num_persons=np.array([len(own) for own in chosen], np.int32),
        first_row=np.concatenate([[0], np.cumsum(rows)[:-1]]).astype(np.int64),
        joints=np.concatenate(parts),
        splits={},
        rotation=image.rotation,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowFrames:
    """Reads the frames of a `window_table`.

    Each batch contains one row, and the batches are in the order in which their windows end.

    frames: the decoded frames of the video, turned like the annotated image. windows: the window of each row.
    settings: the settings of a pack. Frames are cropped and compressed as in such a pack.
    each: a function that is called with every decoded frame of the video.
    """

    frames: Iterator[av.VideoFrame]
    table: ClipTable
    windows: Windows
    settings: PackSettings
    each: Callable[[av.VideoFrame], None]

    def has_frames(self) -> np.ndarray:
        return np.ones(len(self.windows), bool)

    def decode(self, plans: Callable[[int], ClipPlan], decoding: Decoding) -> "WindowDecoder":
        assert decoding.num_clips == 1
        return WindowDecoder(self, list(_all_plans(plans)), decoding)

    def job(self, row: int) -> Job:
        """The encoding job that `prepare` would create if this window were a clip, but without a file to write to."""
        return Job.of(self.table, row, self.settings, video="", target="")


def _all_plans(plans: Callable[[int], ClipPlan]) -> Iterator[ClipPlan]:
    for step in count():
        try:
            yield plans(step)
        except StopIteration:
            return


class WindowDecoder:
    """Delivers the frames of one window after another. Raises VideoError if the video ends early or is damaged."""

    def __init__(self, frames: WindowFrames, plans: list[ClipPlan], decoding: Decoding):
        self.frames, self.plans = frames, plans
        self.total = frames.windows[-1][1]
        self.numbers = [self._numbers(plan) for plan in plans]
        # For each sampled frame, the number of windows that still need it.
        self.uses_left = Counter(number for numbers in self.numbers for number in set(numbers))
        self.frames_in_memory: dict[int, av.VideoFrame] = {}
        self.last_frame: av.VideoFrame
        self.num_read = 0
        # With prefetch=1, DALI does not ask for later windows in advance, so fewer frames are in memory.
        shape = (decoding.num_frames, decoding.size, decoding.device, decoding.backends)
        self.decoder = FrameDecoder(self._read, *shape, threads=decoding.threads, prefetch=1)

    def next(self) -> torch.Tensor:
        """Return the frames of the next window, uint8 [T, size, size, 3]."""
        return self.decoder.next()

    def _numbers(self, plan: ClipPlan) -> list[int]:
        start, _ = self.frames.windows[int(plan.row[0])]
        return (start + plan.rgb_frames[0]).tolist()

    def _read(self, step: int) -> Step:
        plan, numbers = self.plans[step], self.numbers[step]
        row = int(plan.row[0])
        self._read_to(self.frames.windows[row][1])
        sampled_frames = [self.frames_in_memory[number] for number in numbers]
        job, first = self.frames.job(row), sampled_frames[0]
        crop = Crop.of(job, first.width, first.height)
        try:
            _, packets = write_jpegs(job, crop, first, iter(sampled_frames[1:]))
        except av.FFmpegError as error:
            raise VideoError(f"frames {numbers[0]} to {numbers[-1]} cannot be converted ({error.strerror})") from None
        self._drop(numbers)
        sizes = [[job.width, job.height], [first.width, first.height], crop.frame_size]
        annotation_size, video_size, packet_size = np.array(sizes, np.float64)[:, None]
        box = packet_boxes(plan.box, annotation_size, video_size, np.array([crop.region]), packet_size)
        box, flip = np.repeat(box, len(packets), axis=0), np.repeat(plan.flip, len(packets))
        return [np.frombuffer(packet, np.uint8) for packet in packets], *resize_regions(box, flip)

    def _read_to(self, end: int) -> None:
        """Decode frames up to `end`. If `end` is the end of the last window, continue to the end of the video."""
        while self.num_read < end or end == self.total:
            frame = next(self.frames.frames, None)
            if frame is None:
                self._fill_up()
                return
            self.frames.each(frame)
            if self.num_read in self.uses_left:
                self.frames_in_memory[self.num_read] = frame
            self.last_frame = frame
            self.num_read += 1

    def _fill_up(self) -> None:
        """If up to SLACK frames are missing at the end, use the last frame in their place, as readers of a pack do."""
        if self.num_read < max(1, self.total - SLACK):
            raise VideoError(f"the video ends after {self.num_read} of {self.total} frames")
        for number in self.uses_left:
            if number >= self.num_read:
                self.frames_in_memory[number] = self.last_frame

    def _drop(self, numbers: list[int]) -> None:
        """Remove these frames from memory, except those that a later window samples."""
        for number in set(numbers):
            self.uses_left[number] -= 1
            if not self.uses_left[number]:
                del self.uses_left[number], self.frames_in_memory[number]
