"""Makes tiny videos with unusual metadata, such as rotations and edit lists, and with marks in every frame.

The marks show how a player has to display the frame: each corner has a different colour, and a row of black and white
fields in the middle encodes the frame number.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import av.container
import numpy as np
from av.bitstream import BitStreamFilterContext
from av.stream import Disposition

from pipelines.videos.turn import NO_TURN, Turn

BITS, FIELD = 6, 8  # number of fields in the row of marks, and side of a field in pixels
CORNER = 12  # side of a corner mark in pixels
CORNERS = {(0, 0): (235, 235, 235), (0, 1): (220, 30, 30), (1, 0): (30, 200, 30), (1, 1): (40, 40, 230)}
GREY, BORDER = 64, (128, 0, 128)  # grey level of the background, and colour of the border that cropping hides
EDGE = 16  # width in pixels of the border that cropping hides on each side
UNIT = Fraction(1, 600)  # unit of the times below, in seconds; a frame usually lasts 20 units, which is 1/30 s

TIMES: dict[str, Callable[[int], int]] = {
    "even": lambda number: 20 * number,
    "uneven": lambda number: 20 * number + 7 * (number % 3) + 100 * (number > 4),
    "late": lambda number: 20 * number + 900,
}
# containers that store the time of each frame; in other containers, videos have 30 frames a second
FINE = (".mp4", ".mov", ".mkv", ".webm")
TURNS = {f"{code:03b}": Turn.of_code(f"{code:03b}") for code in range(8)}


@dataclass(frozen=True, kw_only=True)
class Made:
    """Describes how a video is made.

    turn: how players have to turn its frames. by_stream: an SEI message in the stream describes the turn, and the
    container does not. size: (width, height) of the frames as they are stored. pixel: width of a stored pixel divided
    by its height. hide: how many frames an edit list hides at the start and at the end. cropped: whether the stream
    hides EDGE pixels on each side.
    """

    file: str = "a.mp4"
    codec: str = "libx264"
    size: tuple[int, int] = (64, 48)
    pixels: str = "yuv420p"
    options: dict[str, str] = field(default_factory=dict)
    turn: Turn = NO_TURN
    by_stream: bool = False
    pixel: Fraction = Fraction(1)
    time: str = "even"
    hide: tuple[int, int] = (0, 0)
    cropped: bool = False
    interlaced: bool = False
    full_range: bool = False
    cover: bool = False
    count: int = 9

    def shown(self) -> range:
        """Return the numbers of the frames that players show."""
        return range(self.hide[0], self.count - self.hide[1])

    def times(self) -> list[float]:
        """Return the times in seconds at which players show the frames, measured from the first shown frame."""
        times = [float(TIMES[self.time](number) * UNIT) for number in self.shown()]
        return [time - times[0] for time in times]


BY_STREAM = {
    "110": "rotate=270",
    "011": "rotate=180",
    "101": "rotate=90",
    "010": "flip=horizontal",
    "001": "flip=vertical",
}


def picture(number: int, width: int, height: int) -> np.ndarray:
    """Return frame `number` as players show it: [height, width, 3] uint8."""
    pixels = np.full((height, width, 3), GREY, np.uint8)
    for (row, column), colour in CORNERS.items():
        top, left = row * (height - CORNER), column * (width - CORNER)
        pixels[top : top + CORNER, left : left + CORNER] = colour
    top, left = height // 2 - FIELD // 2, width // 2 - BITS * FIELD // 2
    for bit in range(BITS):
        pixels[top : top + FIELD, left + bit * FIELD : left + (bit + 1) * FIELD] = 235 * (number >> bit & 1)
    return pixels


def number_of(pixels: np.ndarray) -> int | None:
    """Return the number of a frame, or None unless all marks have the places and colours that players show."""
    height, width = pixels.shape[:2]
    half = CORNER // 2
    for (row, column), colour in CORNERS.items():
        y, x = half + row * (height - CORNER), half + column * (width - CORNER)
        if np.abs(pixels[y - 2 : y + 2, x - 2 : x + 2].mean(axis=(0, 1)) - colour).max() > 40:
            return None
    if abs(pixels[height // 2 + FIELD, width // 2].mean() - GREY) > 5:
        return None
    left = width // 2 - BITS * FIELD // 2 + FIELD // 2
    bits = [pixels[height // 2, left + bit * FIELD].mean() > 128 for bit in range(BITS)]
    return sum(int(on) << bit for bit, on in enumerate(bits))


def make(folder: Path, made: Made) -> Path:
    """Write the video to `folder`."""
    path = folder / made.file
    bare = path.with_name(f"bare_{path.name}")
    filters = _metadata(made)
    _encode(bare if filters else path, made)
    if filters:
        _copy(bare, path, filters)
        bare.unlink()
    if made.hide != (0, 0):
        path.write_bytes(_with_edit_list(path.read_bytes(), made))
    if made.cover:
        path.write_bytes(_with_cover_first(path.read_bytes()))
    return path


def _stored(made: Made, number: int) -> np.ndarray:
    edge = EDGE * made.cropped
    width, height = made.turn.size(made.size[0] - 2 * edge, made.size[1] - 2 * edge)
    pixels = picture(number, width, height)
    # Undo the turn: first the flips, then the exchange of x and y.
    pixels = Turn(False, made.turn.flip_x, made.turn.flip_y).apply(pixels)
    pixels = Turn(made.turn.swap).apply(pixels)
    stored = np.full((made.size[1], made.size[0], 3), BORDER, np.uint8)
    stored[edge : made.size[1] - edge, edge : made.size[0] - edge] = pixels
    return stored


def _encode(path: Path, made: Made) -> None:
    options = {"g": "250", "bf": "2"} if made.codec in ("libx264", "mpeg4") else {}
    fine = {"libx264": {"crf": "8", "preset": "ultrafast"}, "libvpx-vp9": {"b": "2M", "cpu-used": "8"}}
    options |= fine.get(made.codec, {"qscale": "2"}) | made.options
    with av.open(
        path, "w", options={"video_track_timescale": "600"} if path.suffix in (".mp4", ".mov") else {}
    ) as file:
        cover = file.add_stream("mjpeg", rate=1) if made.cover else None
        stream = file.add_stream(made.codec, rate=30, options=options)
        (stream.width, stream.height), stream.pix_fmt = made.size, made.pixels
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = UNIT if path.suffix in FINE else Fraction(1, 30)
        stream.codec_context.sample_aspect_ratio = made.pixel
        if made.full_range:
            stream.codec_context.color_range = 2
        if made.turn and not made.by_stream:
            stream.set_display_matrix(matrix(made.turn))
        if cover is not None:
            (cover.width, cover.height), cover.pix_fmt = (32, 32), "yuvj420p"
            cover.disposition = Disposition.attached_pic
            file.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
            file.mux(cover.encode())
        for number in range(made.count):
            frame = av.VideoFrame.from_ndarray(_stored(made, number), format="rgb24")
            levels = "JPEG" if made.full_range else "MPEG"
            frame = frame.reformat(format=made.pixels, dst_color_range=levels)
            frame.pts, frame.time_base = TIMES[made.time](number), UNIT
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def matrix(turn: Turn) -> list[int]:
    """Return the display matrix of a turn as containers store it.

    A player shows a stored pixel (x, y) at (ax + cy, bx + dy).
    """
    x, y = (-1 if flip else 1 for flip in (turn.flip_x, turn.flip_y))
    a, b, c, d = (0, y, x, 0) if turn.swap else (x, 0, 0, y)
    return [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]


def _metadata(made: Made) -> str:
    """Return an FFmpeg filter that writes metadata into the H.264 stream.

    The filter writes what the container does not say. It is "" if there is nothing to write.
    """
    parts = []
    if made.by_stream:
        parts += [BY_STREAM[made.turn.code], "display_orientation=insert"]
    if made.cropped:
        parts += [f"crop_{side}={EDGE}" for side in ("left", "right", "top", "bottom")]
    return "h264_metadata=" + ":".join(parts) if parts else ""


def _copy(source: Path, target: Path, filters: str) -> None:
    with av.open(source) as old, av.open(target, "w", options={"video_track_timescale": "600"}) as new:
        (stream,) = old.streams.video
        copy = new.add_stream_from_template(stream)
        context = BitStreamFilterContext(filters, stream, copy)
        for packet in [*old.demux(stream), None]:
            if packet is not None and not packet.size:
                continue
            for part in context.filter(packet):
                part.stream = copy
                new.mux(part)


def _box(data: bytes, *names: bytes) -> tuple[int, int]:
    """Return where a box of an .mp4 file begins and ends.

    names: the names of the boxes around it, from the outside in, and the name of the box itself.
    """
    start, end = 0, len(data)
    for depth, name in enumerate(names):
        at = start if depth == 0 else start + 8
        while data[at + 4 : at + 8] != name:
            at += int.from_bytes(data[at : at + 4])
            assert at < end, name
        start, end = at, at + int.from_bytes(data[at : at + 4])
    return start, end


def _with_edit_list(data: bytes, made: Made) -> bytes:
    """Return the .mp4 file `data` with an edit list that hides the frames counted by `made.hide`."""
    start, end = _box(data, b"moov", b"trak", b"edts", b"elst")
    head, _ = _box(data, b"moov", b"mvhd")
    movie_scale = int.from_bytes(data[head + 20 : head + 24])
    first, last = TIMES[made.time](made.hide[0]), TIMES[made.time](made.count - made.hide[1])
    assert int.from_bytes(data[start + 12 : start + 16]) == 1  # the number of entries in the list
    shift = int.from_bytes(data[start + 20 : start + 24])  # the media time of the first frame
    length = round((last - first) * UNIT * movie_scale)
    entry = struct.pack(">II", length, shift + first - TIMES[made.time](0))
    return data[: start + 16] + entry + data[start + 24 : end] + data[end:]


def _with_cover_first(data: bytes) -> bytes:
    """Move the box with the cover of an .mp4 file before the box with the video, so that the cover comes first."""
    start, end = _box(data, b"moov")
    cover_start, cover_end = _box(data, b"moov", b"udta")
    track, _ = _box(data, b"moov", b"trak")
    assert data.index(b"mdat") < start  # the frames come before these boxes in the file, so no frame moves
    return data[:track] + data[cover_start:cover_end] + data[track:cover_start] + data[cover_end:end] + data[end:]
