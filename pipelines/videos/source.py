"""Frames straight from the videos (data.source=video), and the guard that compares DALI's decoder with PyAV's.

Before training, a few videos are decoded by both, frame by frame: the timestamps of some files are wrong, and a decoder
that seeks by them returns other frames than were asked for, without an error (docs/sources.md, "NTU RGB+D 60").
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from kernels.program import UserError
from pipelines.annotations.table import ClipTable
from pipelines.dali import mirrored
from pipelines.frame_source import Decoding
from pipelines.plan import ClipPlan
from pipelines.videos.dali import VideoDecodeError, VideoDecoder, VideoStep, decode_frames
from pipelines.videos.decode import MATRICES, SLACK, VideoError, decode
from pipelines.videos.find import Missing, find_videos
from pipelines.videos.header import Header, read_headers

FEW = 4  # videos that are compared with PyAV


@dataclass(frozen=True)
class VideoFrames:
    """The frames of a table's clips in their videos: a path each, sizes [n, 2] (w, h) in pixels, lengths [n] in frames
    (0 for a clip that is left out).
    """

    table: ClipTable
    videos: list[str]
    sizes: np.ndarray
    lengths: np.ndarray

    def rows_of(self, table: ClipTable) -> np.ndarray:
        assert table is self.table
        return np.where(self.lengths > 0, np.arange(len(table)), -1)

    def decode(self, plans: Callable[[int], ClipPlan], decoding: Decoding) -> "NamingDecoder":
        return NamingDecoder(self, plans, decoding)

    def read(self, plan: ClipPlan) -> VideoStep:
        """One step for the decoder; raises ValueError for a video that is no longer there."""
        annotated = np.stack([self.table.width[plan.row], self.table.height[plan.row]], axis=1)
        box = plan.box * np.tile(self.sizes[plan.row] / annotated, 2)
        corner, far = np.floor(box[:, :2]), np.ceil(box[:, 2:])
        frames = np.minimum(plan.rgb_frames, self.lengths[plan.row, None] - 1)
        return (
            [_bytes_of(self.videos[row]) for row in plan.row.tolist()],
            frames.astype(np.int32),
            corner[:, ::-1].astype(np.int32),
            (far - corner)[:, ::-1].astype(np.int32),
            *mirrored(box - np.tile(corner, 2), plan.flip),
        )


class NamingDecoder:
    """A VideoDecoder that knows which videos it is at: when one of a batch fails, it is found and named."""

    def __init__(self, frames: VideoFrames, plans: Callable[[int], ClipPlan], decoding: Decoding):
        self.frames, self.rows, self.step = frames, {}, 0

        def source(step: int) -> VideoStep:
            plan = plans(step)
            self.rows[step] = plan.row.tolist()
            return frames.read(plan)

        shape = (decoding.num_clips, decoding.size, decoding.device)
        self.decoder = VideoDecoder(source, *shape, threads=decoding.threads, prefetch=decoding.prefetch)

    def next(self) -> torch.Tensor:
        """Frames of the next step: uint8 [N*T, size, size, 3]."""
        try:
            pictures = self.decoder.next()
        except VideoDecodeError as error:
            videos = [self.frames.videos[row] for row in self.rows[self.step]]
            raise UserError(f"{_culprit(videos)} is not decoded by DALI ({error}); {PACKS}") from None
        del self.rows[self.step]
        self.step += 1
        return pictures


def _culprit(videos: list[str]) -> str:
    """The first of these videos that PyAV cannot decode either, or all their names."""
    for video in videos:
        try:
            for _ in decode(video, most=1 << 20):
                pass
        except VideoError:
            return video
    return f"one of {', '.join(videos)}"


def _bytes_of(video: str) -> np.ndarray:
    try:
        return np.fromfile(video, np.uint8)
    except OSError as error:
        raise UserError(f"{video} cannot be read ({error.strerror}); {PACKS}") from None


def open_videos(
    table: ClipTable, folder: Path, cache: Path, device: torch.device, *, max_bad: float, console: Console
) -> VideoFrames:
    """The videos of a table's clips, looked over: headers of all, and every frame of a few.

    Raises UserError when more than `max_bad` of the clips have no usable video, or DALI decodes one differently.
    """
    videos = find_videos(folder, table.names.tolist())
    headers = _headers(videos, cache / f"videos-{table.digest}.json", console)
    reasons = {}
    for row, (video, header) in enumerate(zip(videos, headers, strict=True)):
        reason = str(video) if isinstance(video, Missing) else _fault(header, table, row)
        if reason:
            reasons[row] = f"{table.names[row]}: {reason}"
    if len(reasons) > max_bad * len(table):
        raise UserError(
            f"{len(reasons)} of {len(table)} clips have no usable video, more than {max_bad:.1%} (data.max_bad); "
            f"the first is {next(iter(reasons.values()))}"
        )
    if reasons:
        first = next(iter(reasons.values()))
        text = f"{len(reasons)} of {len(table)} clips are left out, first {first}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    lengths = np.array([0 if row in reasons else header.frames for row, header in enumerate(headers)])
    check_videos(_a_few(videos, headers, lengths), device)
    return VideoFrames(table, videos, np.array([(header.width, header.height) for header in headers]), lengths)


def _fault(header: Header, table: ClipTable, row: int) -> str:
    if header.reason:
        return header.reason
    frames = int(table.total_frames[row])
    return f"it has {header.frames} frames, its skeleton {frames}" if abs(header.frames - frames) > SLACK else ""


def _a_few(videos: list[str], headers: list[Header], lengths: np.ndarray) -> list[tuple[str, int]]:
    """One usable video of each kind (container, codec, size), up to a few."""
    kinds: dict[tuple, tuple[str, int]] = {}
    for row in np.flatnonzero(lengths).tolist():
        header = headers[row]
        kind = (os.path.splitext(videos[row])[1], header.codec, header.width, header.height)
        kinds.setdefault(kind, (videos[row], header.frames))
    return list(kinds.values())[:FEW]


def _headers(videos: list[str], known: Path, console: Console) -> list[Header]:
    """The headers of all videos; those of files that have not changed since are taken from `known`."""
    stamps = {}
    for video in videos:
        if not isinstance(video, Missing):
            stat = os.stat(video)
            stamps[video] = [stat.st_size, stat.st_mtime_ns]
    try:
        old = json.loads(known.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        old = {}
    new = [video for video, stamp in stamps.items() if video not in old or old[video]["stamp"] != stamp]
    if new:
        for video, header in zip(new, read_headers(new, console), strict=True):
            old[video] = {"stamp": stamps[video], "header": asdict(header)}
        part = known.with_name(f"{known.name}.{os.getpid()}.tmp")
        part.write_text(json.dumps({video: old[video] for video in stamps}), encoding="utf-8")
        part.replace(known)
    return [Header(**old[video]["header"]) if video in stamps else Header() for video in videos]


PACKS = "leave data.source at packs, which python -m pipelines.prepare makes"
MOST_FRAMES = 32  # of a file that are compared: its first and its last
WIDE = 160  # pixels of a row that are compared
ALIKE = 1.02  # by how much a frame may be nearer to another than to its own: still scenes repeat themselves
COLOURS = 6.0  # mean difference in levels of 255; another conversion to RGB costs 2 to 3


class VideoMismatch(UserError):
    """A video that DALI does not decode as it should; the text names it and the way out."""


def check_videos(videos: Sequence[tuple[str, int]], device: torch.device) -> None:
    """Raise VideoMismatch for the first of (file, number of frames) that DALI decodes differently from PyAV."""
    for video, num_frames in videos:
        _check(video, num_frames, device)


def _check(video: str, num_frames: int, device: torch.device) -> None:
    right = _frames_in_order(video, num_frames)
    if len(right) != num_frames:
        raise VideoMismatch(f"{video} holds {len(right)} frames, its header says {num_frames}; {PACKS}")
    half = MOST_FRAMES // 2
    asked = np.array(sorted({*range(min(half, num_frames)), *range(max(0, num_frames - half), num_frames)}))
    try:
        found = decode_frames(np.fromfile(video, np.uint8), asked, device)
    except VideoDecodeError as error:
        where = "GPU" if device.type == "cuda" else "CPU"
        raise VideoMismatch(f"{video} is not decoded by DALI on the {where} ({error}); {PACKS}") from None
    compare(video, right, np.stack([_sparse(frame) for frame in found]), asked)


def compare(video: str, right: np.ndarray, found: np.ndarray, asked: np.ndarray) -> None:
    """Raise VideoMismatch unless found [n, h, w, 3] are the frames `asked` [n] of right [T, h, w, 3], levels of 255."""
    if found.shape[1:] != right.shape[1:]:
        raise VideoMismatch(f"{video} has frames of another size in DALI than in PyAV; {PACKS}")
    # [asked, frames]
    difference = np.stack([np.abs(right - frame).mean(axis=(1, 2, 3)) for frame in found])
    own = difference[np.arange(len(asked)), asked]
    wrong = np.flatnonzero(own > ALIKE * difference.min(axis=1))
    if len(wrong):
        frame, other = asked[wrong[0]], difference[wrong[0]].argmin()
        raise VideoMismatch(
            f"{video}: asked for frame {frame}, DALI gives frame {other} (its timestamps are out of order); {PACKS}"
        )
    if own.mean() > COLOURS:
        raise VideoMismatch(f"{video}: DALI's colours are {own.mean():.1f} levels off (it knows BT.601 only); {PACKS}")


def _frames_in_order(video: str, num_frames: int) -> np.ndarray:
    """[T, h, w, 3] float32: every frame, sparsely, in the colours that a pack would have."""
    frames = []
    try:
        for frame in decode(video, num_frames):
            matrix = MATRICES.get(int(frame.colorspace), "bt601")
            space = {"bt601": "ITU601", "bt709": "ITU709"}.get(matrix, "ITU601")
            frames.append(_sparse(frame.to_ndarray(format="rgb24", src_colorspace=space)))
    except VideoError as error:
        raise VideoMismatch(f"{video} cannot be compared: {error}; {PACKS}") from None
    return np.stack(frames) if frames else np.zeros((0, 0, 0, 3), np.float32)


def _sparse(frame: np.ndarray) -> np.ndarray:
    """Every so many pixels of [H, W, 3]."""
    stride = max(1, frame.shape[1] // WIDE)
    return frame[::stride, ::stride].astype(np.float32)
