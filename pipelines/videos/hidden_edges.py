"""Whether a container asks players to hide the edges of the frames: `clap` in .mp4 and .mov, PixelCrop in .mkv.

FFmpeg's libraries, OpenCV and Duet ignore this. Annotations that were made with these programs fit the whole frames.
`verify` says how many videos have hidden edges. Edges that the stream itself hides are never decoded.
"""

from collections.abc import Iterator
from pathlib import Path

IN_MP4 = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")  # the boxes around the description of a track
SAMPLE_ENTRY = 86  # a sample entry of a video has this many bytes, counting its own header, before the boxes inside it
IN_MKV = (0x18538067, 0x1654AE6B, 0xAE, 0xE0)  # Segment, Tracks, TrackEntry, Video
PIXEL_CROPS = (0x54AA, 0x54BB, 0x54CC, 0x54DD)  # PixelCropBottom, PixelCropTop, PixelCropLeft, PixelCropRight
MAX_MP4, MAX_MKV = 64 << 20, 1 << 20  # at most this many bytes of the description of the tracks are read


def hides_edges(video: str) -> bool:
    """Whether the container hides edges of the frames. False for containers that cannot, and for damaged files."""
    with open(video, "rb") as file:
        head = file.read(12)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return _in_mp4(Path(video))
        return head[:4] == b"\x1a\x45\xdf\xa3" and _in_mkv(Path(video))


def _in_mp4(video: Path) -> bool:
    with open(video, "rb") as file:
        position = 0
        while len(head := file.read(16)) >= 8:
            size = int.from_bytes(head[:4])
            size = int.from_bytes(head[8:]) if size == 1 else size
            if head[4:8] == b"moov":
                file.seek(position)
                return any(map(_is_smaller, _boxes(file.read(min(size, MAX_MP4)), IN_MP4)))
            if size < 8:
                return False
            position += size
            file.seek(position)
    return False


def _boxes(data: bytes, names: tuple[bytes, ...]) -> Iterator[bytes]:
    """The contents of all boxes with the name `names[-1]`.

    The other names are those of the enclosing boxes, outermost first.
    """
    position = 0
    while position + 8 <= len(data):
        size = int.from_bytes(data[position : position + 4])
        if size < 8:
            return
        if data[position + 4 : position + 8] == names[0]:
            content = data[position + 8 : position + size]
            yield from _boxes(content, names[1:]) if names[1:] else (content,)
        position += size


def _is_smaller(descriptions: bytes) -> bool:
    """Whether the frames are larger than the clean aperture in the first sample entry of an `stsd` box."""
    entry = descriptions[8:]
    size = [int.from_bytes(entry[at : at + 2]) for at in (32, 34)]
    for clap in _boxes(entry[SAMPLE_ENTRY : int.from_bytes(entry[:4])], (b"clap",)):
        numbers = [int.from_bytes(clap[at : at + 4]) for at in (0, 4, 8, 12)]
        if 0 not in numbers:
            return numbers[0] / numbers[1] < size[0] or numbers[2] / numbers[3] < size[1]
    return False


def _in_mkv(video: Path) -> bool:
    with open(video, "rb") as file:
        data = file.read(MAX_MKV)
    return any(number in PIXEL_CROPS and any(content) for number, content in _elements(data, IN_MKV))


def _elements(data: bytes, parents: tuple[int, ...]) -> Iterator[tuple[int, bytes]]:
    """The numbers and contents of all elements at one place.

    parents: the numbers of the nested elements that lead to this place, outermost first.
    """
    position = 0
    while position < len(data):
        number, position = _number(data, position, keep_length=True)
        length, position = _number(data, position, keep_length=False)
        content = data[position : position + length]
        if not parents:
            yield number, content
        elif number == parents[0]:
            yield from _elements(content, parents[1:])
        position += length


def _number(data: bytes, position: int, keep_length: bool) -> tuple[int, int]:
    """A number of variable length, and the position after it.

    The leading zero bits of the first byte say how long the number is. keep_length: whether the bit after these zeros
    belongs to the number. A length whose bits are all ones means that the element extends to the
    end of `data`.
    """
    first = data[position] if position < len(data) else 0
    length = 9 - first.bit_length()
    number = int.from_bytes(data[position : position + length])
    if not keep_length:
        number &= (1 << 7 * length) - 1
        number = len(data) if number == (1 << 7 * length) - 1 else number
    return number, position + length
