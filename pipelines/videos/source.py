"""Training without packs (data.source=video): reads frames from the videos, and checks DALI's decoder beforehand.

Before training starts, a few videos are decoded by DALI and by PyAV, and their frames are compared. Some files have
wrong timestamps, and a decoder that finds frames by timestamp then returns a wrong frame without an error
(docs/sources.md, "NTU RGB+D 60"). If DALI fails or its frames are wrong, PyAV decodes the videos during training too.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from kernels.names import SHORT, printable
from kernels.program import UserError
from kernels.whole_files import read_sealed, sealed, write_whole
from pipelines.annotations.table import ClipTable
from pipelines.dali import resize_regions
from pipelines.frame_source import Decoding
from pipelines.plan import ClipPlan
from pipelines.read_ahead import Content, ReadAhead
from pipelines.videos.container import VideoError
from pipelines.videos.dali import VideoDecodeError, VideoDecoder, VideoStep, decode_frames
from pipelines.videos.decode import SLACK, decode, in_rgb
from pipelines.videos.find import MissingVideo, clips_on_one_file, find_videos
from pipelines.videos.header import Header, read_header, read_headers
from pipelines.videos.on_cpu import decode_clip
from pipelines.videos.turn import AnnotatedImage, Rotation

MAX_CHECKS = 4  # DALI's frames are compared with PyAV's in at most this many videos


@dataclass(frozen=True)
class VideoFrames:
    """Reads the frames of a table's n clips from their videos.

    videos: the path of each clip's video, or a MissingVideo.
    sizes: [n, 2] (width, height) of the videos' frames in pixels, as they are stored.
    lengths: [n] frames of each video; 0 for a clip that is left out.
    fault: why DALI cannot decode the videos on the device; empty if it can.
    """

    table: ClipTable
    videos: list[str]
    sizes: np.ndarray
    lengths: np.ndarray
    fault: str = ""

    def has_frames(self) -> np.ndarray:
        return self.lengths > 0

    def decode(self, plans: Callable[[int], ClipPlan], decoding: Decoding) -> "SwitchingDecoder":
        return SwitchingDecoder(self, plans, decoding)

    def read(self, plan: ClipPlan, clip: int) -> np.ndarray:
        """The bytes of the video file of clip number `clip` in a plan. Raises UserError if the file cannot be read."""
        video = self.videos[plan.row[clip]]
        try:
            return np.fromfile(video, np.uint8)
        except OSError as error:
            raise UserError(f"{video} cannot be read ({error.strerror}); {USE_PACKS}") from None

    def decode_on_cpu(self, plan: ClipPlan, clip: int, size: int) -> np.ndarray:
        """Decode clip number `clip` of a plan with PyAV: uint8 [T, size, size, 3].

        Raises UserError if the video can no longer be decoded.
        """
        video = self.videos[plan.row[clip]]
        numbers, corner, shape, start, end = (values[clip] for values in self.step(plan, [])[1:])
        try:
            return decode_clip(video, self.sizes[plan.row[clip]], numbers, corner, shape, start, end, size)
        except VideoError as error:
            raise UserError(f"{video} cannot be used: {error}; {USE_PACKS}") from None

    def step(self, plan: ClipPlan, contents: list[np.ndarray]) -> VideoStep:
        """Build the decoder's input from a plan and the contents of the plan's video files."""
        annotation_size = np.stack([self.table.width[plan.row], self.table.height[plan.row]], axis=1)
        box = plan.box * np.tile(self.sizes[plan.row] / annotation_size, 2)
        corner, far = np.floor(box[:, :2]), np.ceil(box[:, 2:])
        frames = np.minimum(plan.rgb_frames, self.lengths[plan.row, None] - 1)
        return (
            contents,
            frames.astype(np.int32),
            corner[:, ::-1].astype(np.int32),
            (far - corner)[:, ::-1].astype(np.int32),
            *resize_regions(box - np.tile(corner, 2), plan.flip),
        )


class SwitchingDecoder:
    """Decodes videos with DALI on the device. If that fails in a step, PyAV decodes this step and all later steps."""

    def __init__(self, frames: VideoFrames, plans: Callable[[int], ClipPlan], decoding: Decoding):
        self.frames, self.plans, self.decoding = frames, plans, decoding
        self.step = 0  # the step whose frames the next call of `next` returns
        # A function that returns the frames of `step`; None before the first step.
        self.run: Callable[[], torch.Tensor] | None = None
        self.in_use = ""  # the name of the decoder that `run` uses
        if frames.fault and decoding.backends.decoder == "mixed":
            decoding.backends.decode_videos_on_cpu(frames.fault)

    def next(self) -> torch.Tensor:
        """Return the frames of the next step, uint8 [N*T, size, size, 3]. Raises UserError if PyAV fails as well."""
        try:
            pictures = self._run()
        except VideoDecodeError as error:
            self.decoding.backends.decode_videos_on_cpu(str(error))
            pictures = self._run()
        self.step += 1
        return pictures

    def _run(self) -> torch.Tensor:
        backends = self.decoding.backends
        if self.run is None or self.in_use != backends.decoder:
            self.in_use = backends.decoder
            self.run = self._on_device() if backends.decoder == "mixed" else self._on_cpu()
        return self.run()

    def _on_device(self) -> Callable[[], torch.Tensor]:
        decoding, ahead = self.decoding, self._read_ahead(self.frames.read)
        shape = (decoding.num_clips, decoding.size, decoding.device)
        options = {"threads": decoding.threads, "prefetch": decoding.prefetch}
        return VideoDecoder(lambda step: self.frames.step(*ahead.take(step)), *shape, **options).next

    def _on_cpu(self) -> Callable[[], torch.Tensor]:
        size, device, steps = self.decoding.size, self.decoding.device, count()
        ahead = self._read_ahead(lambda plan, clip: self.frames.decode_on_cpu(plan, clip, size))

        def run() -> torch.Tensor:
            _, clips = ahead.take(next(steps))
            pictures = torch.from_numpy(np.concatenate(clips))
            return pictures if device.type == "cpu" else pictures.pin_memory().to(device, non_blocking=True)

        return run

    def _read_ahead(self, read: Callable[[ClipPlan, int], Content]) -> ReadAhead[Content]:
        """Return a ReadAhead that plans and reads batches in advance. Its batch number 0 is step `self.step`."""
        first, depth = self.step, self.decoding.prefetch + 1
        return ReadAhead(self.decoding.readers, lambda step: self.plans(first + step), read, depth=depth)


def open_videos(
    table: ClipTable,
    folder: Path,
    cache: Path,
    device: torch.device,
    *,
    max_bad: float,
    console: Console,
    follow_links: bool = False,
    rotation: Rotation = "shown",
) -> VideoFrames:
    """Find the videos of a table's clips in `folder`, check all headers, and check DALI's decoding of a few videos.

    cache: folder in which headers are stored. device: where DALI will decode.
    max_bad: maximum share of clips without a usable video; clips without one are left out.
    rotation: see AnnotatedImage.
    Raises UserError if this share is exceeded, or if neither DALI nor PyAV can decode the videos correctly.
    """
    videos = find_videos(folder, table.names.tolist(), follow_links)
    if warning := clips_on_one_file(table.names.tolist(), videos):
        console.print(f"warning: {warning}", markup=False, highlight=False, soft_wrap=True)
    headers = _headers(videos, cache / f"headers-{table.digest}.json", console)
    reasons = {}
    for row, (video, header) in enumerate(zip(videos, headers, strict=True)):
        reason = str(video) if isinstance(video, MissingVideo) else _fault(header, table, row)
        if reason:
            reasons[row] = f"{printable(str(table.names[row]), SHORT)}: {printable(reason)}"
    if len(reasons) > max_bad * len(table):
        raise UserError(
            f"{len(reasons)} of {len(table)} clips have no usable video, and at most {max_bad:.1%} may lack one "
            f"(data.max_bad); the first is {next(iter(reasons.values()))}"
        )
    if reasons:
        first = next(iter(reasons.values()))
        text = f"{len(reasons)} of {len(table)} clips are left out; the first is {first}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    lengths = np.array([0 if row in reasons else header.frames for row, header in enumerate(headers)])
    sizes = np.array([header.stored for header in headers])
    _check_container(table, videos, headers, lengths, rotation)
    try:
        check_videos(_videos_to_check(videos, headers, lengths), device)
    except VideoMismatch as mismatch:
        return VideoFrames(table, videos, sizes, lengths, fault=str(mismatch))
    return VideoFrames(table, videos, sizes, lengths)


def _fault(header: Header, table: ClipTable, row: int) -> str:
    """Why a clip cannot be used, judging by the header of its video, or "" if the clip can be used."""
    if header.reason:
        return header.reason
    frames = int(table.total_frames[row])
    if abs(header.frames - frames) > SLACK:
        return f"the video has {header.frames} frames, but its skeleton has {frames}"
    return ""


def _check_container(
    table: ClipTable, videos: list[str], headers: list[Header], lengths: np.ndarray, rotation: Rotation
) -> None:
    """Raise UserError if a container asks for something that DALI does not do."""
    reasons: dict[str, list[str]] = {}
    for row in np.flatnonzero(lengths).tolist():
        header = headers[row]
        if header.frames_for(table.image(row, rotation)).turn:
            reasons.setdefault("are to be turned or mirrored", []).append(videos[row])
        if header.hides_frames:
            reasons.setdefault("have an edit list that hides frames", []).append(videos[row])
        if header.has_more_streams:
            reasons.setdefault("contain other pictures beside their video stream", []).append(videos[row])
    for reason, names in reasons.items():
        raise UserError(f"{len(names)} videos {reason}, which DALI ignores, such as {names[0]}; {USE_PACKS}")


def _videos_to_check(videos: list[str], headers: list[Header], lengths: np.ndarray) -> list[tuple[str, int]]:
    """Choose the videos to check: one usable video for each combination of container, codec, size and range of levels.

    Returns (path, number of frames) of at most MAX_CHECKS videos.
    """
    kinds: dict[tuple, tuple[str, int]] = {}
    for row in np.flatnonzero(lengths).tolist():
        header = headers[row]
        kind = (os.path.splitext(videos[row])[1], header.codec, header.stored, header.full_range, header.interlaced)
        kinds.setdefault(kind, (videos[row], header.frames))
    unusual_first = sorted(kinds, key=lambda kind: kind[-2:], reverse=True)
    return [kinds[kind] for kind in unusual_first][:MAX_CHECKS]


def _headers(videos: list[str], cache_file: Path, console: Console) -> list[Header]:
    """The headers of all videos. Headers of unchanged files are read from `cache_file`, which is updated."""
    stamps = {}
    for video in videos:
        if not isinstance(video, MissingVideo):
            stat = os.stat(video)
            stamps[video] = [stat.st_size, stat.st_mtime_ns]
    entries = json.loads(read_sealed(cache_file) or "{}")
    new = [video for video, stamp in stamps.items() if video not in entries or entries[video]["stamp"] != stamp]
    if new:
        for video, header in zip(new, read_headers(new, console), strict=True):
            entries[video] = {"stamp": stamps[video], "header": asdict(header)}
        write_whole(cache_file, sealed(json.dumps({video: entries[video] for video in stamps}).encode()))
    return [Header(**entries[video]["header"]) if video in stamps else Header() for video in videos]


USE_PACKS = "train with data.source=packs instead; python -m pipelines.prepare makes the packs"
MAX_COMPARED = 32  # frames of each video that are compared: half at its start, half at its end
COMPARED_WIDTH = 160  # frames are compared after their rows are reduced to about this many pixels
# A frame that DALI returns counts as wrong if its difference from the requested frame exceeds this factor times its
# difference from the most similar frame. The factor is above 1 because in scenes without motion all frames are similar.
ALIKE = 1.02
MAX_COLOUR_ERROR = 6.0  # mean difference in levels from 0 to 255; two correct decoders differ by 2 to 3


class VideoMismatch(Exception):
    """DALI does not decode a video correctly. The message names the video and says what is wrong."""


def check_videos(videos: Sequence[tuple[str, int]], device: torch.device) -> None:
    """Compare DALI's frames with PyAV's for each video (path, number of frames).

    Raises VideoMismatch for the first video that DALI decodes differently, and UserError if PyAV cannot decode it.
    """
    for video, num_frames in videos:
        _check(video, num_frames, device)


def _check(video: str, num_frames: int, device: torch.device) -> None:
    reference = _frames_in_order(video, num_frames)
    if len(reference) != num_frames:
        raise UserError(f"{video} has {len(reference)} frames, but its header says {num_frames}; {USE_PACKS}")
    half = MAX_COMPARED // 2
    numbers = np.array(sorted({*range(min(half, num_frames)), *range(max(0, num_frames - half), num_frames)}))
    try:
        decoded = decode_frames(np.fromfile(video, np.uint8), numbers, device)
    except VideoDecodeError as error:
        raise VideoMismatch(f"{video}: {error}") from None
    compare(video, reference, np.stack([_sparse(frame) for frame in decoded]), numbers)


def compare(video: str, reference: np.ndarray, decoded: np.ndarray, numbers: np.ndarray) -> None:
    """Raise VideoMismatch unless DALI returned the requested frames in the right colours.

    reference: [T, h, w, 3], all frames as PyAV decodes them, in levels from 0 to 255.
    decoded: [n, h, w, 3], the frames that DALI returned for the frame numbers `numbers` [n].
    """
    if decoded.shape[1:] != reference.shape[1:]:
        raise VideoMismatch(f"{video} has frames of different sizes in DALI and in PyAV")
    # [n, T]: the difference between each frame that DALI returned and each frame of the video
    difference = np.stack([np.abs(reference - frame).mean(axis=(1, 2, 3)) for frame in decoded])
    own = difference[np.arange(len(numbers)), numbers]
    wrong = np.flatnonzero(own > ALIKE * difference.min(axis=1))
    if len(wrong):
        frame, other = numbers[wrong[0]], difference[wrong[0]].argmin()
        raise VideoMismatch(
            f"{video}: DALI returns frame {other} instead of frame {frame}, because the timestamps are out of order"
        )
    if own.mean() > MAX_COLOUR_ERROR:
        raise VideoMismatch(
            f"{video}: DALI's colours are {own.mean():.1f} levels off, because DALI decodes BT.601 with limited range "
            "only"
        )


def _frames_in_order(video: str, num_frames: int) -> np.ndarray:
    """All frames as PyAV decodes them, in RGB with a pack's colours, reduced by `_sparse`: [T, h, w, 3] float32."""
    frames = []
    try:
        as_stored = AnnotatedImage(*read_header(video).stored, "stored")  # DALI does not turn frames either
        for frame in decode(video, num_frames, as_stored):
            frames.append(_sparse(in_rgb(frame)))
    except VideoError as error:
        raise UserError(f"{video} cannot be used: {error}; {USE_PACKS}") from None
    return np.stack(frames) if frames else np.zeros((0, 0, 0, 3), np.float32)


def _sparse(frame: np.ndarray) -> np.ndarray:
    """Keep every n-th pixel of a frame [H, W, 3] in both directions, so that a row has about COMPARED_WIDTH pixels."""
    stride = max(1, frame.shape[1] // COMPARED_WIDTH)
    return frame[::stride, ::stride].astype(np.float32)
