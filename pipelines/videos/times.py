"""The times at which the frames of a video are shown."""

import itertools
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from pipelines.videos.container import open_video

USUAL_RATE = 30  # frames per second of NTU and MA-52, which is assumed for a video without times


@dataclass(frozen=True, slots=True)
class FrameTimes:
    """When the frames of a video are shown. The first frame is shown at 0.

    start: [n + 1] int64, the time of each frame, in the decoder's order, and the time at which the last frame ends. All
        times are in units of `unit` seconds, and each is larger than the one before.
    """

    start: np.ndarray
    unit: Fraction

    def at(self, frame: int) -> int:
        """The time at which frame number `frame` is shown, in units.

        Frames beyond the end of the video are assumed to follow at even intervals.
        """
        past = max(0, frame - (len(self.start) - 1))
        return int(self.start[frame - past]) + past * max(1, int(self.start[-1]) // max(1, len(self.start) - 1))

    def seconds(self, frame: int) -> float:
        """The time in seconds at which frame number `frame` is shown. After the last frame: the end of the video."""
        return float(self.start[min(frame, len(self.start) - 1)] * self.unit)

    def rate(self) -> Fraction:
        """The mean number of frames per second."""
        steps = max(1, len(self.start) - 2)  # leaves out the last frame, whose length is often unknown
        return steps / (int(self.start[steps]) * self.unit)


def frame_times(video: str) -> FrameTimes:
    """Read the times of a video's frames from its packets, without decoding. Raises VideoError.

    The times are sorted. Sorting changes nothing for almost all videos. In NTU's .avi files, the decoder returns frames
    in the right order, but with the times of other frames (docs/sources.md, "NTU RGB+D 60").
    """
    times: list[tuple[int, int]] = []  # for each packet, when its frame is shown, and for how long
    with open_video(video) as (container, stream):
        rate, unit = stream.average_rate or Fraction(USUAL_RATE), stream.time_base or 1 / Fraction(USUAL_RATE)
        is_avi = container.format.name == "avi"  # an .avi contains only the times at which frames are decoded
        packets = itertools.dropwhile(lambda packet: not packet.is_keyframe, container.demux(stream))
        for packet in packets:
            time = packet.dts if is_avi or packet.pts is None else packet.pts
            if packet.size and not packet.is_discard:
                times.append((0 if time is None else time, packet.duration or 0))
    times.sort()
    start = np.array([time for time, _ in times] or [0], np.int64)
    if len(np.unique(start)) <= len(start) // 2:  # the container has no usable times
        start, unit, times = np.arange(len(start), dtype=np.int64), 1 / rate, [(0, 1)]
    length = times[-1][1] if times else 0
    usual_length = int(np.median(np.diff(start))) if len(start) > 1 else round(1 / rate / unit)
    start = np.append(start, start[-1] + max(1, length or usual_length))
    return FrameTimes(_increasing(start - start[0]), unit)


def _increasing(times: np.ndarray) -> np.ndarray:
    """The sorted times, with equal times moved by the smallest steps that make each larger than the one before."""
    numbers = np.arange(len(times))
    return np.maximum.accumulate(times - numbers) + numbers
