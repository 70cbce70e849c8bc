"""Reads the frames for a loader from a clip pack, in which each frame is one JPEG packet.

A damaged packet is reported once; the nearest good frame of the same clip is used in its place.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from kernels.names import SHORT, printable
from pipelines.annotations.table import ClipTable
from pipelines.dali import FrameDecoder, Step, resize_regions
from pipelines.frame_source import Decoding
from pipelines.packs.format import PackError
from pipelines.packs.pack import Pack
from pipelines.plan import ClipPlan
from pipelines.read_ahead import ReadAhead


class ClipPackets(NamedTuple):
    """The packets of a clip's planned frames, and the numbers of damaged frames, which other frames replace."""

    packets: list[bytes]
    damaged: list[int]


@dataclass
class PackFrames:
    """Reads the frames of a table's clips from a pack whose rows are those of the table.

    damaged: (clip name, frame number) of each damaged packet that has been reported so far.
    """

    table: ClipTable
    pack: Pack
    damaged: set[tuple[str, int]] = field(default_factory=set)

    def has_frames(self) -> np.ndarray:
        return self.pack.num_frames > 0

    def decode(self, plans: Callable[[int], ClipPlan], decoding: Decoding) -> FrameDecoder:
        ahead = ReadAhead(decoding.readers, plans, self.read, depth=decoding.prefetch + 1)

        def source(step: int) -> Step:
            plan, clips = ahead.take(step)
            for row, clip in zip(plan.row, clips, strict=True):
                self._report_damage(str(self.table.names[row]), clip.damaged, decoding.say)
            return self.step(plan, clips)

        return FrameDecoder(
            source,
            decoding.num_clips * decoding.num_frames,
            decoding.size,
            decoding.device,
            decoding.backends,
            threads=decoding.threads,
            prefetch=decoding.prefetch,
        )

    def step(self, plan: ClipPlan, clips: list[ClipPackets]) -> Step:
        """The decoder's input for a plan: the packets of the planned frames, and the region to crop from each."""
        packets = [np.frombuffer(packet, np.uint8) for clip in clips for packet in clip.packets]
        num_frames = plan.rgb_frames.shape[1]
        box = np.repeat(self._boxes(plan), num_frames, axis=0)
        return packets, *resize_regions(box, np.repeat(plan.flip, num_frames))

    def read(self, plan: ClipPlan, clip: int) -> ClipPackets:
        """Read the planned frames of clip number `clip`, with the nearest good frame in place of a damaged one.

        Several threads may read at once. Raises PackError if no frame of the clip can be read.
        """
        row, frames = int(plan.row[clip]), plan.rgb_frames[clip].tolist()
        packets, damaged = self.pack.read_frames(row, frames)
        for position in damaged:
            packets[position] = self._nearest_good(row, frames[position])
        return ClipPackets(packets, [frames[position] for position in damaged])

    def _nearest_good(self, row: int, frame: int) -> bytes:
        num_frames = int(self.pack.num_frames[row])
        for other in sorted(range(num_frames), key=lambda other: abs(other - frame)):
            (packet,), damaged = self.pack.read_frames(row, [other])
            if not damaged:
                return packet
        file = self.pack.clip_file(row)
        raise PackError(f"no frame of {file} can be read; remove this file and run python -m pipelines.prepare again")

    def _report_damage(self, name: str, frames: list[int], say: Callable[[str], None]) -> None:
        for frame in frames:
            if (name, frame) not in self.damaged:
                self.damaged.add((name, frame))
                text = f"frame {frame} in the pack is damaged, so the nearest good frame is used instead"
                say(f"{printable(name, SHORT)}: {text}")

    def _boxes(self, plan: ClipPlan) -> np.ndarray:
        """The plan's boxes, converted to pixels of the packets: [N, 4]."""
        rows = plan.row
        annotation_size = np.stack([self.table.width[plan.row], self.table.height[plan.row]], axis=1)
        pack = self.pack
        return packet_boxes(plan.box, annotation_size, pack.source_size[rows], pack.region[rows], pack.frame_size[rows])


def packet_boxes(
    box: np.ndarray, annotation_size: np.ndarray, video_size: np.ndarray, region: np.ndarray, packet_size: np.ndarray
) -> np.ndarray:
    """Convert boxes [N, 4] from pixels of the annotation to pixels of the packets.

    annotation_size, video_size, packet_size: [N, 2] (width, height) of the annotation, the video and the packets.
    region: [N, 4] (left, top, right, bottom) of the part of the video that the pack stores, in pixels of the video.
    """
    to_pack = packet_size / (region[:, 2:] - region[:, :2])
    corners = box.reshape(-1, 2, 2) * (video_size / annotation_size)[:, None]
    return ((corners - region[:, None, :2]) * to_pack[:, None]).reshape(-1, 4)
