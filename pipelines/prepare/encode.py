"""One video -> one clip of a pack: decoded in order, cropped, scaled, written as Motion JPEG.

Frames are taken in the order in which the decoder returns them, because the timestamps of NTU's .avi files are wrong
(docs/sources.md, "NTU RGB+D 60").
"""

import hashlib
import io
import itertools
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from pathlib import Path

import av
import av.filter

from pipelines.annotations.table import ClipTable
from pipelines.geometry import crop_region
from pipelines.packs.format import PackSettings
from pipelines.videos.decode import MATRICES, MAX_PIXELS, SLACK, VideoError, decode

MEBIBYTE = 1 << 20
FULL = 2  # AVColorRange; what is not tagged is limited, but for JPEG's own formats
# Limited to full range with whole rounding: the scale filter's own way leaves chroma half a level low.
TO_FULL = "y='clip((val-16)*255/219+0.5,0,255)':" + ":".join(
    f"{plane}='clip((val-128)*255/224+128.5,0,255)'" for plane in "uv"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What to make of a video: `region` (left, top, right, bottom), its smallest sampled box `side` and (`height`,
    `width`) are in pixels of the annotation; that box keeps `box_pixels` pixels."""

    name: str
    video: str
    target: str
    region: tuple[float, float, float, float]
    side: float
    height: int
    width: int
    num_frames: int
    box_pixels: int
    quality: int

    @classmethod
    def of(cls, table: ClipTable, row: int, settings: PackSettings, video: str, target: str) -> "Job":
        """To pack row `row` of the table, out of `video` into the file `target`."""
        height, width = int(table.height[row]), int(table.width[row])
        region, side = crop_region(table.clip_joints(row)[..., :2], height, width, settings.count)
        return cls(
            name=str(table.names[row]),
            video=video,
            target=target,
            region=region,
            side=side,
            height=height,
            width=width,
            num_frames=int(table.total_frames[row]),
            box_pixels=settings.box_pixels,
            quality=settings.quality,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """A clip as written: `region` in pixels of the video, `frame_size` and `source_size` (w, h); a packet a frame."""

    source: str  # digest, size and time of last change (ns) of the video
    source_bytes: int
    source_time: int
    source_size: list[int]
    region: list[int]
    frame_size: list[int]
    clip_bytes: int
    first: int  # the byte of the clip at which the packets start, one after another
    sizes: list[int]
    crcs: list[int]


def encode_clip(job: Job) -> Encoded:
    """Write the clip of a job, whole or not at all. Raises VideoError when the video is at fault."""
    source, source_bytes, source_time = describe(job.video)
    frames = decode(job.video, job.num_frames + SLACK)
    try:
        first = next(frames)
        crop = Crop.of(job, first.width, first.height)
        content, packets = write_jpegs(job, crop, first, frames)
    except av.FFmpegError as error:
        raise VideoError(f"it does not decode ({error.strerror})") from None
    except StopIteration:
        raise VideoError("it holds no frame") from None
    if len(packets) < job.num_frames - SLACK:
        raise VideoError(f"it has {len(packets)} frames, its skeleton {job.num_frames}")
    target = Path(job.target)
    part = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    part.write_bytes(content)
    part.replace(target)
    return Encoded(
        source=source,
        source_bytes=source_bytes,
        source_time=source_time,
        source_size=[first.width, first.height],
        region=list(crop.region),
        frame_size=list(crop.frame_size),
        clip_bytes=len(content),
        first=content.index(b"mdat") + 4,
        sizes=[len(packet) for packet in packets],
        crcs=[zlib.crc32(packet) for packet in packets],
    )


def describe(video: str) -> tuple[str, int, int]:
    """A digest of the size and of the first and last MiB; the size; the time of the last change in ns."""
    try:
        with open(video, "rb") as file:
            stat = os.fstat(file.fileno())
            digest = hashlib.sha256(str(stat.st_size).encode())
            for start in (0, max(0, stat.st_size - MEBIBYTE)):
                file.seek(start)
                digest.update(file.read(MEBIBYTE))
    except OSError as error:
        raise VideoError(f"it cannot be read ({error.strerror})") from None
    return digest.hexdigest()[:20], stat.st_size, stat.st_mtime_ns


@dataclass(frozen=True, slots=True)
class Crop:
    """`region` of the video (even pixels; it may leave the picture) becomes a frame of `frame_size` (w, h)."""

    region: tuple[int, int, int, int]
    frame_size: tuple[int, int]

    @classmethod
    def of(cls, job: Job, width: int, height: int) -> "Crop":
        """Room for the job's region at the scale that keeps its smallest box; never enlarged."""
        transposed = abs(width / height / (job.height / job.width) - 1) < 0.02
        if transposed and abs(width / height / (job.width / job.height) - 1) > 0.02:
            raise VideoError(f"it is {width}x{height}, but its skeleton was found on {job.width}x{job.height}")
        to_x, to_y = width / job.width, height / job.height
        left, top, right, bottom = job.region
        left, right, columns = _fit(left * to_x, right * to_x, job.box_pixels / (job.side * to_x))
        top, bottom, rows = _fit(top * to_y, bottom * to_y, job.box_pixels / (job.side * to_y))
        return cls((left, top, right, bottom), (columns, rows))

    def filters(self, frame: av.VideoFrame) -> list[tuple[str, str]]:
        """Cut, surround with black, scale, and turn into JPEG's colours (BT.601, full range)."""
        left, top, right, bottom = self.region
        # Chroma has every second pixel, so an odd last column or row counts as outside.
        x0, x1 = max(left, 0), min(right, frame.width // 2 * 2)
        y0, y1 = max(top, 0), min(bottom, frame.height // 2 * 2)
        if x0 >= x1 or y0 >= y1:
            raise VideoError("its skeleton lies outside the picture")
        if (right - left) * (bottom - top) > MAX_PIXELS:
            reach = f"{right - left:,}x{bottom - top:,}"
            raise VideoError(
                f"its skeleton reaches over {reach} pixels of {frame.width}x{frame.height}: a joint is far off"
            )
        matrix = MATRICES.get(int(frame.colorspace), "bt601")
        full = int(frame.color_range) == FULL or frame.format.name.startswith("yuvj") or frame.format.is_rgb
        kept = "full" if full else "limited"
        return [
            ("crop", f"{x1 - x0}:{y1 - y0}:{x0}:{y0}"),
            ("pad", f"{right - left}:{bottom - top}:{x0 - left}:{y0 - top}:color=black"),
            (
                "scale",
                f"{self.frame_size[0]}:{self.frame_size[1]}:flags=bicubic+accurate_rnd+full_chroma_int+bitexact"
                f":in_color_matrix={matrix}:in_range={kept}:out_color_matrix=bt601:out_range={kept}",
            ),
            ("format", "yuv420p"),
            ("null", "") if full else ("lutyuv", TO_FULL),
            ("setparams", "range=full"),
            ("format", "yuvj420p"),
        ]


def _fit(low: float, high: float, scale: float) -> tuple[int, int, int]:
    """Widen an interval of source pixels, so that its ends are even and its scaled length stands in the short list."""
    scale = min(1.0, scale)
    start, end = 2 * floor(low / 2), 2 * ceil(high / 2)
    pixels = listed_length((end - start) * scale)
    length = 2 * floor(pixels / scale / 2)
    start -= 2 * ((length - (end - start)) // 4)
    return start, start + length, pixels


def listed_length(length: float) -> int:
    """The next side of the short list of frame sides: multiples of 32, above 512 of 64, above 1024 of 128."""
    step = 32 if length <= 512 else 64 if length <= 1024 else 128
    return step * max(1, ceil(length / step))


def _graph(crop: Crop, frame: av.VideoFrame) -> av.filter.Graph:
    graph = av.filter.Graph()
    graph.threads = 1
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 30))
    filters = [graph.add(name, arguments) for name, arguments in crop.filters(frame)]
    graph.link_nodes(source, *filters, graph.add("buffersink"))
    graph.configure()
    return graph


def write_jpegs(job: Job, crop: Crop, first: av.VideoFrame, rest: Iterator[av.VideoFrame]) -> tuple[bytes, list[bytes]]:
    """A .mov file of JPEG packets, and the packets. One thread: same bytes on every machine, no restart markers."""
    graph, shape = _graph(crop, first), (first.width, first.height, first.format.name)
    file, packets = io.BytesIO(), []
    quality = {"qmin": str(job.quality), "qmax": str(job.quality), "flags": "+bitexact"}
    with av.open(file, "w", format="mov", options={"fflags": "bitexact"}) as container:
        stream = container.add_stream("mjpeg", rate=30, options=quality)
        stream.width, stream.height = crop.frame_size
        stream.pix_fmt = "yuvj420p"
        stream.codec_context.thread_count = 1
        for number, frame in enumerate(itertools.chain([first], rest)):
            if (frame.width, frame.height, frame.format.name) != shape:
                raise VideoError(f"its frame {number} has another size or pixel format than its first")
            graph.push(frame)
            picture = graph.pull()
            assert isinstance(picture, av.VideoFrame)
            picture.pts, picture.time_base = number, Fraction(1, 30)
            for packet in stream.encode(picture):
                packets.append(bytes(packet))
                container.mux(packet)
        assert not stream.encode(None)
    return file.getvalue(), packets
