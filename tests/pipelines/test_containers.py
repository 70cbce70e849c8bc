"""All programs read the same frames, sizes, times and turns from a container.

Every video is made by the test, with marks in its frames (made_videos.py).
"""

import io
import shutil
import subprocess
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.prepare.encode import Job, encode_clip
from pipelines.videos.decode import decode
from pipelines.videos.header import Header, read_header, shape_of
from pipelines.videos.hidden_edges import hides_edges
from pipelines.videos.times import frame_times
from pipelines.videos.turn import NO_TURN, AnnotatedImage, Turn, wanted_turn
from tests.pipelines.made_videos import EDGE, TURNS, Made, make, number_of

CLOCKWISE, HALF, COUNTER, MIRRORED = (Turn.of_code(code) for code in ("110", "011", "101", "010"))
INTERLACED = {"flags": "+ildct+ilme", "x264-params": "tff=1"}
VP9 = Made(file="a.webm", codec="libvpx-vp9")
WIDE, HIGH = Fraction(4, 3), Fraction(3, 4)
LARGE = (64 + 2 * EDGE, 48 + 2 * EDGE)
FEW = {
    "plain": Made(),
    **{f"turn {turn.code} in .mp4": Made(turn=turn) for turn in TURNS.values() if turn},
    "turned in .mkv": Made(file="a.mkv", turn=CLOCKWISE),
    "mirrored in .webm": replace(VP9, turn=MIRRORED),
    "turned by the stream": Made(turn=CLOCKWISE, by_stream=True),
    "square and turned": Made(size=(64, 64), turn=COUNTER),
    "first frames hidden": Made(hide=(2, 0)),
    "last frames hidden": Made(hide=(0, 3)),
    "wide pixels": Made(pixel=WIDE),
    "wide pixels, turned": Made(pixel=WIDE, turn=CLOCKWISE),
    "cropped": Made(cropped=True, size=LARGE),
    "uneven times": Made(time="uneven"),
    "uneven times in .webm": replace(VP9, time="uneven"),
    "late start": Made(file="a.mov", time="late"),
    "cover": Made(cover=True),
    "interlaced": Made(options=INTERLACED),
    "full range": Made(full_range=True),
    "NTU's times": Made(file="a.avi"),
    "all at once": Made(turn=HALF, hide=(1, 2), pixel=WIDE, time="uneven", full_range=True, cover=True),
}
MORE = {
    **{f"turn {turn.code} in .mkv": Made(file="a.mkv", turn=turn) for turn in TURNS.values() if turn},
    **{f"turn {turn.code}, 4:2:2": Made(turn=turn, pixels="yuv422p") for turn in TURNS.values() if turn.swap},
    **{f"turn {code} by the stream": Made(turn=TURNS[code], by_stream=True) for code in ("011", "101", "010", "001")},
    **{f"hidden {hide}, uneven": Made(hide=hide, time="uneven") for hide in ((1, 0), (4, 0), (0, 1), (3, 3))},
    **{f"hidden {hide}, turned": Made(hide=hide, turn=COUNTER) for hide in ((2, 0), (0, 3), (2, 2))},
    **{
        f"pixels {pixel} in {file}": Made(file=file, pixel=pixel)
        for pixel in (WIDE, HIGH)
        for file in ("a.mkv", "a.ts")
    },
    **{
        f"{time} times in {file}": Made(file=file, time=time)
        for time in ("late", "uneven")
        for file in ("a.mkv", "a.mp4")
    },
    "B-frames in .ts": Made(file="a.ts"),
    "MPEG-2 in .mpg": Made(file="a.mpg", codec="mpeg2video"),
    "MPEG-2, interlaced": Made(file="a.ts", codec="mpeg2video", options={"flags": "+ildct+ilme"}),
    "MPEG-4 in .avi": Made(file="a.avi", codec="mpeg4"),
    "interlaced, turned": Made(options=INTERLACED, turn=CLOCKWISE),
    "full range, turned": Made(full_range=True, turn=CLOCKWISE),
    "full range, wide pixels, in .mkv": Made(file="a.mkv", full_range=True, pixel=WIDE),
    "cover, turned": Made(cover=True, turn=COUNTER),
    "cover, first frames hidden": Made(cover=True, hide=(3, 0)),
    "cropped, turned": Made(cropped=True, size=LARGE, turn=CLOCKWISE),
    "cropped, mirrored, wide pixels": Made(cropped=True, size=LARGE, turn=MIRRORED, pixel=WIDE),
    "late, turned, in .mkv": Made(file="a.mkv", time="late", turn=COUNTER),
    "HEVC, turned": Made(codec="libx265", turn=CLOCKWISE, options={"x265-params": "log-level=none:crf=8"}),
    "square, upside down": Made(size=(64, 64), turn=Turn(False, False, True)),
    "square, mirrored, uneven": Made(size=(64, 64), turn=MIRRORED, time="uneven"),
    "one frame": Made(count=1, turn=CLOCKWISE),
}


def check(folder: Path, made: Made) -> None:
    """Compare the header, the decoded frames, the times and the packed frames of a video with what is drawn in it."""
    video, shown = str(make(folder, made)), list(made.shown())
    edge = 2 * EDGE * made.cropped
    size = made.turn.size(made.size[0] - edge, made.size[1] - edge)
    header, frames, times = read_header(video), list(decode(video, 99)), frame_times(video)
    assert (header.width, header.height, header.frames, header.reason) == (*size, len(shown), "")
    pixel = 1 / made.pixel if made.turn.swap else made.pixel
    assert (header.display, header.turn) == ((round(size[0] * pixel), size[1]), made.turn.code)
    special = (header.interlaced, header.full_range, header.has_more_streams, header.hides_frames)
    assert special == ("flags" in made.options, made.full_range, made.cover, made.hide != (0, 0))
    assert [(frame.width, frame.height) for frame in frames] == [size] * len(shown)
    assert [number_of(frame.to_ndarray(format="rgb24")) for frame in frames] == shown
    seconds = [times.seconds(frame) for frame in range(len(shown))]
    np.testing.assert_allclose(seconds, made.times(), atol=0.001)  # .mkv rounds times to milliseconds
    assert len(times.start) == len(shown) + 1
    assert times.seconds(len(shown)) > seconds[-1]
    assert packed_numbers(folder, video, size, len(shown)) == shown


def packed_numbers(folder: Path, video: str, size: tuple[int, int], count: int) -> list[int | None]:
    """Return the frame numbers that are drawn in a packed clip of the video."""
    width, height = size
    job = Job(
        **{"name": "a", "video": video, "target": str(folder / "clip.mov"), "num_frames": count, "quality": 2},
        **{"region": (0, 0, width, height), "side": float(height), "fewest": 1, "width": width, "height": height},
        box_pixels=1000,
    )
    clip = encode_clip(job)
    content, start, numbers = Path(job.target).read_bytes(), clip.first, []
    left, top = -clip.region[0], -clip.region[1]
    for length in clip.sizes:
        picture = np.asarray(Image.open(io.BytesIO(content[start : start + length])).convert("RGB"))
        numbers.append(number_of(picture[top : top + height, left : left + width]))
        start += length
    return numbers


@pytest.mark.parametrize("made", FEW.values(), ids=FEW)
def test_a_container_is_taken_at_its_word(tmp_path, made):
    check(tmp_path, made)


@pytest.mark.soak
@pytest.mark.parametrize("made", (FEW | MORE).values(), ids=FEW | MORE)
def test_every_container_is_taken_at_its_word(tmp_path, made):
    check(tmp_path, made)


@pytest.mark.soak
@pytest.mark.skipif(
    shutil.which("ffmpeg") is None, reason="the program ffmpeg, with which frames are compared, is not installed"
)
@pytest.mark.parametrize("made", (FEW | MORE).values(), ids=FEW | MORE)
def test_the_program_ffmpeg_shows_the_same_frames(tmp_path, made):
    video, shown = make(tmp_path, made), list(made.shown())
    header = read_header(str(video))
    whole = ("-flags", "unaligned")  # without this option, ffmpeg crops fewer columns on the left than H.264 requires
    to_pixels = ("-fps_mode", "passthrough", "-pix_fmt", "rgb24", "-f", "rawvideo", "-")
    command = ["ffmpeg", "-v", "error", *whole, "-i", video, *to_pixels]
    pixels = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8)
    frames = pixels.reshape(-1, header.height, header.width, 3)
    # In H.264 a message about the rotation holds until the next such message, but ffmpeg 5.1 turns only the frames that
    # carry a message.
    if made.by_stream:
        frames, shown = frames[:1], shown[:1]
    assert [number_of(frame) for frame in frames] == shown


WIDE_STORED = (64, 48)


@pytest.mark.parametrize(
    ("turn", "image", "expected"),
    [
        (CLOCKWISE, AnnotatedImage(48, 64, "stored"), (CLOCKWISE, False)),
        (CLOCKWISE, AnnotatedImage(64, 48, "shown"), (NO_TURN, False)),
        # the annotation describes a larger copy of the video
        (CLOCKWISE, AnnotatedImage(480, 640), (CLOCKWISE, False)),
        (CLOCKWISE, AnnotatedImage(640, 480), (NO_TURN, False)),
        (CLOCKWISE, AnnotatedImage(50, 50), (CLOCKWISE, True)),  # neither the shown nor the stored shape fits
        (HALF, AnnotatedImage(64, 48, "shown"), (HALF, True)),
        (HALF, AnnotatedImage(64, 48, "stored"), (NO_TURN, True)),
        (MIRRORED, AnnotatedImage(64, 48, "stored"), (NO_TURN, True)),
        (NO_TURN, AnnotatedImage(48, 64), (NO_TURN, False)),
        (CLOCKWISE, None, (CLOCKWISE, False)),
    ],
)
def test_the_shape_of_the_annotated_image_decides_where_it_can(turn, image, expected):
    assert wanted_turn(turn, WIDE_STORED, 1, image) == expected


def test_an_almost_square_image_decides_by_its_exact_size():
    assert wanted_turn(CLOCKWISE, (480, 478), 1, AnnotatedImage(480, 478)) == (NO_TURN, False)
    assert wanted_turn(CLOCKWISE, (480, 478), 1, AnnotatedImage(478, 480, "stored")) == (CLOCKWISE, False)


def test_shapes_of_wide_pixels_fit_with_and_without_them():
    header = Header(width=720, height=576, frames=1, pixel=(64, 45))
    sizes = {
        (720, 576): "same",
        (1024, 576): "same",
        (512, 288): "scaled",
        (576, 720): "turned",
        (500, 500): "other shape",
    }
    assert {size: shape_of(header, *size) for size in sizes} == sizes


def clean_aperture(video: Path, width: int) -> None:
    """Add a `clap` box to the track's description in an .mp4 file. It has this width, and the height of the frames."""
    data, entry = bytearray(video.read_bytes()), 0
    box = b"".join(number.to_bytes(4) for number in (width, 1, 48, 1, 0, 1, 0, 1))
    box = (8 + len(box)).to_bytes(4) + b"clap" + box
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        entry = data.index(name, entry) - 4
        size = int.from_bytes(data[entry : entry + 4])
        data[entry : entry + 4] = (size + len(box)).to_bytes(4)
    data[entry + size : entry + size] = box
    video.write_bytes(data)


def test_edges_that_an_mp4_hides_are_noticed_and_not_hidden(tmp_path):
    video = make(tmp_path, Made())
    assert not read_header(str(video)).hides_edges
    clean_aperture(video, 64)
    assert not read_header(str(video)).hides_edges  # the clean aperture is as large as the frames
    video = make(tmp_path, Made(file="b.mp4", turn=CLOCKWISE))
    clean_aperture(video, 60)
    header = read_header(str(video))
    assert header.hides_edges
    assert (header.width, header.height, header.frames) == (48, 64, 9)
    assert [number_of(frame.to_ndarray(format="rgb24")) for frame in decode(str(video), 99)] == list(range(9))


def test_edges_that_an_mkv_hides_are_noticed(tmp_path):
    """The file has only PixelCropLeft and the elements that contain it.

    Their length fields have one, two or eight bytes, or say that the length is not known.
    """
    crop = {left: b"\x54\xcc\x81" + bytes([left]) for left in (0, 2)}
    for left, element in crop.items():
        picture = b"\xb0\x81\x40" + element
        track = b"\x16\x54\xae\x6b\x40\x0b" + b"\xae\x89" + b"\xe0\x87" + picture
        head, segment = b"\x1a\x45\xdf\xa3\x01" + bytes(7), b"\x18\x53\x80\x67"
        for length in (b"\x01" + b"\xff" * 7, b"\x01" + len(track).to_bytes(7)):
            (tmp_path / "a.mkv").write_bytes(head + segment + length + track)
            assert hides_edges(str(tmp_path / "a.mkv")) == (left > 0)
    assert not hides_edges(str(make(tmp_path, Made(file="b.mkv"))))
    for content in (b"", b"\x1a\x45\xdf\xa3" + b"\xff" * 20, b"\x1a\x45\xdf\xa3" + bytes(100), bytes(4) + b"moov" * 9):
        (tmp_path / "a.mkv").write_bytes(content)
        assert not hides_edges(str(tmp_path / "a.mkv"))
