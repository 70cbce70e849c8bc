"""Frames out of a clip pack. A damaged packet is named, and replaced by the nearest good frame of its clip."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from pipelines.annotations.table import ClipTable
from pipelines.dali import FrameDecoder, Step, mirrored
from pipelines.frame_source import Decoding
from pipelines.packs.format import Pack, PackError
from pipelines.plan import ClipPlan


@dataclass
class PackFrames:
    """The frames of a table's clips in a pack; `damaged` are the (name, frame) found damaged so far."""

    table: ClipTable
    pack: Pack
    damaged: set[tuple[str, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.pack_rows = self.pack.rows_of(self.table)

    def rows_of(self, table: ClipTable) -> np.ndarray:
        return self.pack.rows_of(table)

    def decode(self, plans: Callable[[int], ClipPlan], decoding: Decoding) -> FrameDecoder:
        def source(step: int) -> Step:
            return self.packets(plans(step), decoding.say)

        return FrameDecoder(
            source,
            decoding.num_clips * decoding.num_frames,
            decoding.size,
            decoding.device,
            threads=decoding.threads,
            prefetch=decoding.prefetch,
        )

    def packets(self, plan: ClipPlan, say: Callable[[str], None]) -> Step:
        """What the decoder is given for a plan: the packets of its frames, and their regions."""
        packets = [
            packet
            for row, frames in zip(plan.row, plan.rgb_frames, strict=True)
            for packet in self._frames(int(row), frames, say)
        ]
        num_frames = plan.rgb_frames.shape[1]
        box = np.repeat(self._boxes(plan), num_frames, axis=0)
        return packets, *mirrored(box, np.repeat(plan.flip, num_frames))

    def _frames(self, row: int, frames: np.ndarray, say: Callable[[str], None]) -> list[np.ndarray]:
        """JPEG packets of the planned frames; a damaged one gives its place to the nearest good frame."""
        pack_row = int(self.pack_rows[row])
        packets, damaged = self.pack.read_frames(pack_row, frames.tolist())
        for place in damaged:
            frame = int(frames[place])
            self._name_damage(str(self.table.names[row]), frame, say)
            packets[place] = self._nearest_good(pack_row, frame)
        return [np.frombuffer(packet, np.uint8) for packet in packets]

    def _nearest_good(self, pack_row: int, frame: int) -> bytes:
        num_frames = int(self.pack.num_frames[pack_row])
        for other in sorted(range(num_frames), key=lambda other: abs(other - frame)):
            (packet,), damaged = self.pack.read_frames(pack_row, [other])
            if not damaged:
                return packet
        raise PackError(f"no frame of {self.pack.names[pack_row]} in {self.pack.folder} is readable; prepare it again")

    def _name_damage(self, name: str, frame: int, say: Callable[[str], None]) -> None:
        if (name, frame) not in self.damaged:
            self.damaged.add((name, frame))
            say(f"{name}: frame {frame} of its pack is damaged, its nearest good frame takes its place")

    def _boxes(self, plan: ClipPlan) -> np.ndarray:
        """Boxes in packet pixels: annotation pixels -> pixels of the video -> pixels of the packed region."""
        packed = self.pack_rows[plan.row]
        annotated = np.stack([self.table.width[plan.row], self.table.height[plan.row]], axis=1)
        pack = self.pack
        return packet_boxes(plan.box, annotated, pack.source_size[packed], pack.region[packed], pack.frame_size[packed])


def packet_boxes(
    box: np.ndarray, annotated: np.ndarray, video: np.ndarray, region: np.ndarray, packed: np.ndarray
) -> np.ndarray:
    """[N, 4] boxes of annotation pixels in those of packets that show `region` [N, 4] of the video.

    annotated, video, packed [N, 2]: the (width, height) of the annotation, of the video and of the packets.
    """
    to_pack = packed / (region[:, 2:] - region[:, :2])
    corners = box.reshape(-1, 2, 2) * (video / annotated)[:, None]
    return ((corners - region[:, None, :2]) * to_pack[:, None]).reshape(-1, 4)
