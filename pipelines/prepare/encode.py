"""Makes one clip of a pack: decodes the video, crops and scales its frames, and writes them as Motion JPEG.

Frames are numbered in the order in which the decoder returns them, because the timestamps in NTU's .avi files are wrong
(docs/sources.md, "NTU RGB+D 60").
"""

import io
import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from pathlib import Path

import av

from kernels.whole_files import sync
from pipelines.annotations.table import ClipTable
from pipelines.geometry import FEWEST, crop_region
from pipelines.packs.format import PackSettings
from pipelines.prepare.content import digest_of_video
from pipelines.videos.container import MAX_PIXELS, VideoError, has_full_range
from pipelines.videos.decode import MATRICES, SLACK, FrameReader, filter_graph
from pipelines.videos.turn import AnnotatedImage, Rotation

# With these arguments, FFmpeg's lutyuv filter converts colours from limited to full range, with correct rounding.
# FFmpeg's scale filter could convert colours as well, but would make chroma half a level too low.
TO_FULL = "y='clip((val-16)*255/219+0.5,0,255)':" + ":".join(
    f"{plane}='clip((val-128)*255/224+128.5,0,255)'" for plane in "uv"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """The task of making one clip. Lengths are in pixels of the annotated image, except for `box_pixels`."""

    name: str  # name of the clip
    video: str  # path of the video
    target: str  # path of the clip's file until it is recorded in the pack
    region: tuple[float, float, float, float]  # (left, top, right, bottom) of the part of the image to store
    side: float  # side of the smallest box that a sample of 32 pose frames can have
    fewest: int  # the region suffices for samples of this many pose frames and more
    height: int  # height of the annotated image
    width: int
    num_frames: int  # number of frames in the annotation
    box_pixels: int  # the length of `side` in the encoded clip, in pixels; less if the video has fewer pixels
    quality: int  # quality of the JPEG frames, from 2 (best) to 31
    rotation: Rotation = "shown"  # see AnnotatedImage

    @classmethod
    def of(cls, table: ClipTable, row: int, settings: PackSettings, video: str, target: str) -> "Job":
        """The job for row `row` of the table, which reads `video` and writes `target`."""
        height, width = int(table.height[row]), int(table.width[row])
        stored = crop_region(table.clip_joints(row)[..., :2], height, width, min(FEWEST, settings.count))
        return cls(
            name=str(table.names[row]),
            video=video,
            target=target,
            region=stored.region,
            side=stored.side,
            fewest=stored.fewest,
            height=height,
            width=width,
            num_frames=int(table.total_frames[row]),
            box_pixels=settings.box_pixels,
            quality=settings.quality,
            rotation=table.rotation or settings.rotation,
        )

    def image(self) -> AnnotatedImage:
        """The annotated image."""
        return AnnotatedImage(self.width, self.height, self.rotation)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedClip:
    """A clip that has been written. The fields are explained at COLUMNS in packs/format.py."""

    source: str
    stamps: list[list[int]]
    rotation: str
    source_size: list[int]
    region: list[int]
    frame_size: list[int]
    fewest: int
    clip_bytes: int
    first: int
    sizes: list[int]  # sizes of the packets in bytes; there is one packet per frame, one after another in the file
    crcs: list[int]  # CRC-32 of each packet


def encode_clip(job: Job) -> EncodedClip:
    """Make the clip of a job. When this returns, the clip is on the disk, under its temporary name `job.target`.

    Raises VideoError if the video cannot be used, and OSError if the clip cannot be written.
    """
    source, stamp = digest_of_video(job.video)  # this also brings the file into the page cache, for decoding
    frames = FrameReader(job.video, job.num_frames + SLACK, job.image())
    try:
        first = next(frames)
        crop = Crop.of(job, first.width, first.height)
        content, packets = write_jpegs(job, crop, first, frames)
    except av.FFmpegError as error:
        raise VideoError(f"the video cannot be decoded ({error.strerror})") from None
    except StopIteration:
        raise VideoError("the video has no frames") from None
    if len(packets) < job.num_frames - SLACK:
        raise VideoError(f"the video has {len(packets)} frames, but its skeleton has {job.num_frames}")
    Path(job.target).write_bytes(content)
    sync(Path(job.target))
    return EncodedClip(
        source=source,
        stamps=stamp.before([]),
        rotation=job.rotation if frames.undecided else "",
        source_size=[first.width, first.height],
        region=list(crop.region),
        frame_size=list(crop.frame_size),
        fewest=job.fewest,
        clip_bytes=len(content),
        first=content.index(b"mdat") + 4,
        sizes=[len(packet) for packet in packets],
        crcs=[zlib.crc32(packet) for packet in packets],
    )


@dataclass(frozen=True, slots=True)
class Crop:
    """The part of the video to store, and the size at which it is stored."""

    # (left, top, right, bottom) in pixels of the video, all even; the region may extend beyond the frame
    region: tuple[int, int, int, int]
    frame_size: tuple[int, int]  # (width, height) of the stored frames in pixels

    @classmethod
    def of(cls, job: Job, width: int, height: int) -> "Crop":
        """The crop for a job whose video has frames of (width, height).

        The scale is chosen so that the smallest box of a sample has sides of `box_pixels` pixels; frames are never
        enlarged. Raises VideoError if the video is turned by 90 degrees relative to the annotation.
        """
        turned = abs(width / height / (job.height / job.width) - 1) < 0.02
        if turned and abs(width / height / (job.width / job.height) - 1) > 0.02:
            raise VideoError(
                f"the video is turned: it is {width}x{height}, but its skeleton belongs to an image of "
                f"{job.width}x{job.height}"
            )
        to_x, to_y = width / job.width, height / job.height
        left, top, right, bottom = job.region
        left, right, columns = _fit(left * to_x, right * to_x, job.box_pixels / (job.side * to_x))
        top, bottom, rows = _fit(top * to_y, bottom * to_y, job.box_pixels / (job.side * to_y))
        return cls((left, top, right, bottom), (columns, rows))

    def filters(self, frame: av.VideoFrame) -> list[tuple[str, str]]:
        """FFmpeg filters that crop a frame, pad it with black, scale it, and convert it to JPEG's colours.

        JPEG's colours are BT.601 with full range. Raises VideoError if the region to store lies outside the frame or
        has too many pixels.
        """
        left, top, right, bottom = self.region
        # Chroma has half the resolution, so the last column of an odd width and the last row of an odd height are
        # treated as outside the frame.
        x0, x1 = max(left, 0), min(right, frame.width // 2 * 2)
        y0, y1 = max(top, 0), min(bottom, frame.height // 2 * 2)
        if x0 >= x1 or y0 >= y1:
            raise VideoError("the skeleton lies outside the frame")
        if (right - left) * (bottom - top) > MAX_PIXELS:
            extent = f"{right - left:,}x{bottom - top:,}"
            raise VideoError(
                f"the skeleton extends over {extent} pixels, but the frames have {frame.width}x{frame.height}: at "
                "least one joint is far outside"
            )
        matrix = MATRICES.get(int(frame.colorspace), "bt601")
        full = has_full_range(frame)
        color_range = "full" if full else "limited"
        return [
            ("crop", f"{x1 - x0}:{y1 - y0}:{x0}:{y0}"),
            ("pad", f"{right - left}:{bottom - top}:{x0 - left}:{y0 - top}:color=black"),
            (
                "scale",
                f"{self.frame_size[0]}:{self.frame_size[1]}:flags=bicubic+accurate_rnd+full_chroma_int+bitexact"
                f":in_color_matrix={matrix}:in_range={color_range}:out_color_matrix=bt601:out_range={color_range}",
            ),
            ("format", "yuv420p"),
            ("null", "") if full else ("lutyuv", TO_FULL),
            ("setparams", "range=full"),
            ("format", "yuvj420p"),
        ]


def _fit(low: float, high: float, scale: float) -> tuple[int, int, int]:
    """Widen the interval from `low` to `high`, in pixels of the video. Returns (start, end, length in the clip).

    start and end are even numbers in pixels of the video. The length, in pixels of the clip, is a `standard_length`.
    """
    scale = min(1.0, scale)
    start, end = 2 * floor(low / 2), 2 * ceil(high / 2)
    pixels = standard_length((end - start) * scale)
    length = 2 * floor(pixels / scale / 2)
    start -= 2 * ((length - (end - start)) // 4)
    return start, start + length, pixels


def standard_length(length: float) -> int:
    """Round a length in pixels up to a multiple of 32 (above 512: of 64; above 1024: of 128).

    As a result, the frames of all clips together have only a few different sizes.
    """
    step = 32 if length <= 512 else 64 if length <= 1024 else 128
    return step * max(1, ceil(length / step))


def write_jpegs(job: Job, crop: Crop, first: av.VideoFrame, rest: Iterator[av.VideoFrame]) -> tuple[bytes, list[bytes]]:
    """Convert frames to JPEG. Returns the content of a .mov file, and its packets, one per frame.

    A single thread is used, so that the bytes are the same on every machine and the JPEGs contain no restart markers.
    Raises VideoError if the size or the pixel format of a frame differs from that of the first frame.
    """
    graph, shape = filter_graph(first, crop.filters(first)), (first.width, first.height, first.format.name)
    file, packets = io.BytesIO(), []
    quality = {"qmin": str(job.quality), "qmax": str(job.quality), "flags": "+bitexact"}
    with av.open(file, "w", format="mov", options={"fflags": "bitexact"}) as container:
        stream = container.add_stream("mjpeg", rate=30, options=quality)
        stream.width, stream.height = crop.frame_size
        stream.pix_fmt = "yuvj420p"
        stream.codec_context.thread_count = 1
        for number, frame in enumerate(itertools.chain([first], rest)):
            if (frame.width, frame.height, frame.format.name) != shape:
                raise VideoError(f"frame {number} differs from the first frame in size or pixel format")
            graph.push(frame)
            scaled = graph.pull()
            assert isinstance(scaled, av.VideoFrame)
            scaled.pts, scaled.time_base = number, Fraction(1, 30)
            for packet in stream.encode(scaled):
                packets.append(bytes(packet))
                container.mux(packet)
        assert not stream.encode(None)
    return file.getvalue(), packets
