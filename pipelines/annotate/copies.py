"""Finds videos that show the same recording: exact, resized, recompressed or trimmed copies, and mirror images.

If one copy is used for training and another one for validation, the network has seen its validation clips, and the
scores say nothing about new videos. So the default split keeps copies together.

Each video is reduced to a tiny grey picture of every frame. Two videos are copies if these pictures, or the mirror
images of one video's pictures, agree everywhere in the image and at all times, after one video has been shifted in
time. Videos of another take by the same camera agree in the background, but not where people are.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from kernels.names import SHORT, printable
from pipelines.videos.container import VideoError
from pipelines.videos.decode import decode

SIDE = 16  # width and height of the tiny pictures in pixels
MAX_FRAMES = 900  # only this many frames at the start of a video are compared
MOMENTS = 8  # number of frames of one video that are compared with frames of the other video
MAX_SHIFT = 0.33  # share of the longer video that the other video may lack at the start or the end
# Two videos are copies if the difference of their grey levels, averaged over the compared frames, is less than CLOSE at
# every pixel of the tiny pictures, and less than ALIKE on average over all pixels. The levels of each video are divided
# by their standard deviation first.
CLOSE, ALIKE = 0.35, 0.1
# Two videos are compared frame by frame only if their mean pictures differ by less than this at every pixel.
LIKELY = 0.8

# For each pair of copies, the numbers of the two videos, and whether one is mirrored.
Copies = list[tuple[int, int, bool]]


@dataclass(frozen=True, slots=True)
class Thumbnails:
    """The tiny grey pictures of a video. levels: [frames, SIDE, SIDE] float32. times: [frames], in seconds."""

    levels: np.ndarray
    times: np.ndarray


def thumbnails_of(video: str) -> Thumbnails | None:
    """The tiny pictures of the first MAX_FRAMES frames of a video, or None if the video cannot be decoded."""
    levels, times = [], []
    try:
        for frame in decode(video, MAX_FRAMES + 1):
            if len(levels) == MAX_FRAMES:
                break
            small = frame.reformat(width=SIDE, height=SIDE, format="gray", interpolation="AREA")
            levels.append(small.to_ndarray())
            times.append(len(times) / 30 if frame.time is None else frame.time)
    except VideoError:
        return None
    if not levels:
        return None
    return Thumbnails(np.stack(levels).astype(np.float32), np.array(times) - times[0])


def find_copies(videos: Sequence[str], advance: Callable[[], None]) -> Copies:
    """The pairs of videos that show the same recording.

    advance: a function that is called after each video.
    """
    thumbnails = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for each in pool.map(thumbnails_of, videos):
            thumbnails.append(each)
            advance()
    return [
        (first, second, mirrored)
        for first, second, mirrored in _likely_pairs(thumbnails)
        if _are_copies(thumbnails[first], thumbnails[second], mirrored)
    ]


def _likely_pairs(thumbnails: list[Thumbnails | None]) -> Iterator[tuple[int, int, bool]]:
    """Pairs of videos whose mean pictures (the means of their frames) are similar.

    Comparing only mean pictures is fast even for thousands of videos.
    """
    numbers = [number for number, each in enumerate(thumbnails) if each is not None]
    if not numbers:
        return
    means = np.stack([_normalised(each.levels.mean(axis=0)) for each in thumbnails if each is not None])
    for place, number in enumerate(numbers):
        rest = means[place + 1 :]
        for mirrored in (False, True):
            own = means[place][:, ::-1] if mirrored else means[place]
            for other in np.flatnonzero(np.abs(rest - own).max(axis=(1, 2), initial=0) < LIKELY).tolist():
                yield number, numbers[place + 1 + other], mirrored


def _normalised(levels: np.ndarray) -> np.ndarray:
    """Levels with mean 0 and standard deviation 1. Adding 2 to the divisor keeps the noise of a black video small."""
    return (levels - levels.mean()) / (levels.std() + 2)


def _are_copies(first: Thumbnails, second: Thumbnails, mirrored: bool) -> bool:
    """Whether the pictures of two videos agree, after one video is shifted in time so that they agree best."""
    short, long = sorted((first, second), key=lambda each: each.times[-1])
    spare = max(0.0, long.times[-1] - short.times[-1])
    reach = MAX_SHIFT * max(long.times[-1], 1e-3)
    if spare > reach:
        return False
    at = ((np.arange(MOMENTS) + 0.5) / MOMENTS * len(short.times)).astype(int)
    own = _normalised(short.levels)[at]
    own = own[:, :, ::-1] if mirrored else own
    other = _normalised(long.levels)
    step = max(1e-3, float(np.median(np.diff(long.times)))) if len(long.times) > 1 else 1.0
    for shift in np.arange(-reach, spare + reach + step, step):
        wanted = short.times[at] + shift
        inside = (wanted >= -step) & (wanted <= long.times[-1] + step)
        if inside.sum() < MOMENTS // 2:
            continue
        nearest = np.abs(long.times[:, None] - wanted[inside]).argmin(axis=0)
        difference = np.abs(other[nearest] - own[inside]).mean(axis=0)
        if difference.max() < CLOSE and difference.mean() < ALIKE:
            return True
    return False


def groups_of(count: int, pairs: Copies) -> list[int]:
    """A number for each of `count` videos. Videos that are connected by pairs of copies have the same number."""
    group = list(range(count))
    for first, second, _ in pairs:
        old, new = max(group[first], group[second]), min(group[first], group[second])
        group = [new if each == old else each for each in group]
    return group


def describe(names: Sequence[str], pairs: Copies) -> str:
    """A clause that counts the copies among these videos and names the first pair."""
    members: dict[int, list[int]] = defaultdict(list)
    for number, group in enumerate(groups_of(len(names), pairs)):
        members[group].append(number)
    groups = [numbers for numbers in members.values() if len(numbers) > 1]
    first, second, mirrored = pairs[0]
    kind = "is the mirror image of" if mirrored else "shows the same as"
    example = f"{printable(names[second], SHORT)} {kind} {printable(names[first], SHORT)}"
    return (
        f"{sum(map(len, groups))} of {len(names)} videos are copies or mirror images of each other, in {len(groups)} "
        f"groups; for example, {example}"
    )
