"""A packed clip contains all frames of its video, in order, with every pixel at the right place in the right colour."""

import io
import itertools
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.prepare.encode import Crop, EncodedClip, Job, encode_clip, standard_length
from pipelines.videos.container import VideoError

COLOURS = np.array(
    [
        [200, 30, 30],
        [30, 200, 30],
        [30, 30, 200],
        [128, 128, 128],
        [220, 200, 60],
        [10, 10, 10],
        [245, 245, 245],
        [60, 180, 200],
    ]
)


def job(video, folder, size, num_frames, **changes) -> Job:
    width, height = size
    values = {
        **{"name": "clip", "video": str(video), "target": str(folder / "clip.mov"), "num_frames": num_frames},
        **{"region": (0, 0, width, height), "side": 1.0, "fewest": 1, "width": width, "height": height},
        **{"box_pixels": 256, "quality": 2},
    }
    return Job(**values | changes)


def pictures(encoded: EncodedClip, folder) -> list[np.ndarray]:
    content = (folder / "clip.mov").read_bytes()
    starts = itertools.accumulate([encoded.first, *encoded.sizes])
    packets = [content[start : start + size] for start, size in zip(starts, encoded.sizes, strict=False)]
    return [np.asarray(Image.open(io.BytesIO(packet)).convert("RGB")) for packet in packets]


def place(encoded: EncodedClip, box) -> np.ndarray:
    """Convert a box from pixels of the video into pixels of the packed frames."""
    region = np.array(encoded.region, float)
    return (np.array(box) - region[[0, 1, 0, 1]]) * np.tile(encoded.frame_size / (region[2:] - region[:2]), 2)


@pytest.mark.parametrize(
    ("size", "count", "extension", "codec"),
    [
        ((160, 120), 40, "mp4", "libx264"),
        ((160, 120), 12, "avi", "libx264"),
        ((160, 120), 12, "avi", "mpeg4"),
        ((112, 130), 12, "mkv", "libx264"),  # a portrait video whose height is not a multiple of 16
        ((322, 242), 1, "mov", "libx264"),
    ],
)
def test_all_frames_in_order(tmp_path, film, size, count, extension, codec):
    video = film.write(tmp_path / f"video.{extension}", film.frames(count, *size), codec)
    encoded = encode_clip(job(video, tmp_path, size, count))
    box = place(encoded, (0, 0, *size))
    assert [film.number(picture, box) for picture in pictures(encoded, tmp_path)] == list(range(count))


def test_ends_of_clip_play_in_any_player(tmp_path, film):
    video = film.write(tmp_path / "video.mp4", film.frames(9, 160, 120))
    encoded = encode_clip(job(video, tmp_path, (160, 120), 9))
    with av.open(tmp_path / "clip.mov") as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    starts = itertools.accumulate([encoded.first, *encoded.sizes[:-1]])
    assert [packet.pos for packet in packets] == list(starts)
    assert [packet.size for packet in packets] == encoded.sizes


def test_pixels_are_those_of_the_video(tmp_path, film):
    """Frames are packed at two thirds of their size. A shift by one pixel would at least double the error."""
    video = film.write(tmp_path / "video.mp4", film.frames(3, 320, 240), crf="10")
    changes = {"region": (64, 40, 220, 200), "side": 96.0, "box_pixels": 64}
    encoded = encode_clip(job(video, tmp_path, (320, 240), 3, **changes))
    with av.open(video) as container:
        sources = [frame.to_image() for frame in container.decode(video=0)]
    for picture, source in zip(pictures(encoded, tmp_path), sources, strict=True):
        crop = source.crop(tuple(encoded.region)).resize(tuple(encoded.frame_size), Image.Resampling.BICUBIC)
        expected, luma = np.asarray(crop.convert("L")).astype(int), np.asarray(Image.fromarray(picture).convert("L"))
        error = np.abs(luma - expected)
        assert error.mean() < 2
        for other in (luma[:, 1:] - expected[:, :-1], luma[1:] - expected[:-1]):
            assert np.abs(other).mean() > 2 * error.mean()
        assert np.abs(picture.astype(int) - np.asarray(crop)).mean() < 4  # chroma has half the resolution


@pytest.mark.parametrize("side", [100.0, 600.0])
def test_outside_is_black(tmp_path, film, side):
    video = film.write(tmp_path / "video.mp4", [np.full((120, 160, 3), 200, np.uint8)] * 2)
    encoded = encode_clip(job(video, tmp_path, (160, 120), 2, region=(-50, -30, 200, 160), side=side))
    left, top, right, bottom = np.rint(place(encoded, (0, 0, 160, 120))).astype(int)
    margin = 8  # pixels of one JPEG block, which may show ringing
    for picture in pictures(encoded, tmp_path):
        inside = picture[top + margin : bottom - margin, left + margin : right - margin]
        assert abs(inside.astype(int) - 200).max() <= 4
        outside = np.ones(picture.shape[:2], bool)
        outside[max(0, top - margin) : bottom + margin, max(0, left - margin) : right + margin] = False
        assert outside.any()
        assert picture[outside].max() <= 1


MATRICES = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}


def coloured(path, matrix: str, full: bool, tag: int, color_range: int, codec: str = "libx264"):
    """Write a video of eight colour patches, converted to YUV by `matrix` and tagged with `tag` and `color_range`."""
    red, blue = MATRICES[matrix]
    r, g, b = COLOURS.T / 255
    y = red * r + (1 - red - blue) * g + blue * b
    planes = np.stack([y, (b - y) / (2 - 2 * blue), (r - y) / (2 - 2 * red)])
    luma, chroma, black = (255, 255, 0) if full else (219, 224, 16)
    values = planes * np.array([[luma], [chroma], [chroma]]) + np.array([[black], [128], [128]])
    patches = np.rint(values).astype(np.uint8).reshape(3, 2, 4)
    with av.open(path, "w") as container:
        best = {"crf": "1", "preset": "ultrafast"} if codec == "libx264" else {"lossless": "1", "cpu-used": "8"}
        stream = container.add_stream(codec, rate=30, options=best)
        stream.width, stream.height, stream.pix_fmt = 256, 128, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = tag, color_range
        halves = [np.kron(patches[0], np.ones((64, 64))), *(np.kron(p, np.ones((32, 32))) for p in patches[1:])]
        frame = av.VideoFrame.from_ndarray(
            np.concatenate([half.ravel() for half in halves]).reshape(192, 256).astype(np.uint8), format="yuv420p"
        )
        frame.pts, frame.time_base = 0, Fraction(1, 30)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("side", [100.0, 512.0])
@pytest.mark.parametrize(
    ("matrix", "full", "tag", "color_range", "codec"),
    [
        ("bt601", False, 2, 0, "libx264"),  # NTU's videos have no tags at all
        ("bt709", False, 1, 1, "libx264"),  # MA-52
        ("bt601", False, 6, 1, "libx264"),
        ("bt601", True, 5, 2, "libx264"),
        ("bt709", True, 1, 2, "libx264"),
        ("bt2020", False, 9, 1, "libx264"),
        ("bt709", True, 1, 2, "libvpx-vp9"),  # only the tag says full range; the pixel format does not
        ("bt709", False, 1, 1, "libvpx-vp9"),
    ],
)
def test_colours(tmp_path, matrix, full, tag, color_range, codec, side):
    video = coloured(tmp_path / "video.mp4", matrix, full, tag, color_range, codec)
    encoded = encode_clip(job(video, tmp_path, (256, 128), 1, side=side))
    (picture,) = pictures(encoded, tmp_path)
    with av.open(video) as container:
        (frame,) = container.decode(video=0)
    named = {"bt601": "ITU601", "bt709": "ITU709"}.get(matrix)
    converted = named and frame.to_ndarray(
        format="rgb24", src_colorspace=named, src_color_range="JPEG" if full else "MPEG", dst_color_range="JPEG"
    )
    for number, colour in enumerate(COLOURS):
        row, column = divmod(number, 4)
        x, y = place(encoded, [column * 64 + 32, row * 64 + 32] * 2)[:2].astype(int)
        packed = picture[y - 2 : y + 3, x - 2 : x + 3].mean(axis=(0, 1))
        assert abs(packed - colour).max() <= 4, colour
        if converted is not None:
            assert abs(packed - converted[row * 64 + 32, column * 64 + 32]).max() <= 4, colour


def test_odd_sides_lose_at_most_their_last_pixel(tmp_path, film):
    frames = [np.full((121, 161, 3), 180, np.uint8)] * 2
    path = tmp_path / "video.avi"
    with av.open(path, "w") as container:
        stream = container.add_stream("mjpeg", rate=30, options={"qmin": "1", "qmax": "1"})
        stream.width, stream.height, stream.pix_fmt = 161, 121, "yuvj420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    encoded = encode_clip(job(path, tmp_path, (161, 121), 2))
    left, top, right, bottom = place(encoded, (0, 0, 160, 120)).astype(int)
    assert encoded.source_size == [161, 121]
    # leaves out pixels near the border
    inside = pictures(encoded, tmp_path)[0][top + 16 : bottom - 16, left + 16 : right - 16]
    assert abs(inside.astype(int) - 180).max() <= 4


@settings(deadline=None, max_examples=300)
@given(
    corner=st.tuples(*[st.floats(-2000, 2000)] * 2),
    extent=st.tuples(*[st.floats(13, 4000)] * 2),
    side=st.floats(12.5, 2000),
    video=st.tuples(*[st.integers(16, 4000)] * 2),
    annotated=st.tuples(*[st.integers(16, 4000)] * 2),
    box_pixels=st.integers(32, 512),
)
def test_crop_holds_its_region_at_the_promised_scale(corner, extent, side, video, annotated, box_pixels):
    region = (*corner, *np.add(corner, extent))
    try:
        crop = Crop.of(job("", Path(), annotated, 1, region=region, side=side, box_pixels=box_pixels), *video)
    except VideoError:  # the video is refused because its picture seems to be turned by 90 degrees
        assert abs(video[0] * annotated[0] / video[1] / annotated[1] - 1) < 0.02
        return
    for axis in (0, 1):
        low, high = crop.region[axis], crop.region[axis + 2]
        pixels, to_video = crop.frame_size[axis], video[axis] / annotated[axis]
        assert low <= region[axis] * to_video
        assert high >= region[axis + 2] * to_video
        assert low % 2 == high % 2 == 0
        assert pixels == standard_length(pixels)
        scale = pixels / (high - low)
        assert min(1, box_pixels / (side * to_video)) - 1e-9 <= scale <= 1


def test_frame_sides_form_a_short_list():
    sides = {standard_length(length) for length in np.arange(1, 2048, 0.5)}
    assert sides == {*range(32, 513, 32), *range(576, 1025, 64), *range(1152, 2049, 128)}


def test_two_frames_more_or_less_are_taken(tmp_path, film):
    video = film.write(tmp_path / "video.mp4", film.frames(20, 160, 120))
    for annotated in (18, 22):
        assert len(encode_clip(job(video, tmp_path, (160, 120), annotated)).sizes) == 20
    with pytest.raises(VideoError, match="the video has more than 19 frames, but its skeleton has 17"):
        encode_clip(job(video, tmp_path, (160, 120), 17))
    with pytest.raises(VideoError, match="the video has 20 frames, but its skeleton has 23"):
        encode_clip(job(video, tmp_path, (160, 120), 23))


def test_picture_on_its_side_is_refused(tmp_path, film):
    video = film.write(tmp_path / "video.mp4", film.frames(3, 160, 120))
    with pytest.raises(
        VideoError, match="the video is turned: it is 160x120, but its skeleton belongs to an image of 120x160"
    ):
        encode_clip(job(video, tmp_path, (120, 160), 3))
    encode_clip(job(video, tmp_path, (320, 180), 3))  # another aspect ratio is allowed, because some data sets need it


def test_skeleton_elsewhere_is_refused(tmp_path, film):
    video = film.write(tmp_path / "video.mp4", film.frames(3, 160, 120))
    with pytest.raises(VideoError, match="outside the frame"):
        encode_clip(job(video, tmp_path, (160, 120), 3, region=(500, 500, 900, 900)))


def test_a_joint_far_off_is_the_skeletons_fault(tmp_path, film):
    """The message blames the skeleton. FFmpeg's filters also refuse such a size, but their message blames the video."""
    video = film.write(tmp_path / "video.mp4", film.frames(3, 160, 120))
    with pytest.raises(
        VideoError, match=r"skeleton extends over 1[\d,]+x4[\d,]+ pixels, but the frames have 160x120: at least"
    ):
        encode_clip(job(video, tmp_path, (160, 120), 3, region=(0, -40000, 100000, 120)))


@pytest.mark.parametrize("damage", ["empty", "noise", "cut", "sound only", "playlist"])
def test_unusable_files_are_refused(tmp_path, film, damage):
    video = film.write(tmp_path / "video.mp4", film.frames(20, 160, 120))
    content = video.read_bytes()
    if damage == "sound only":
        with av.open(video, "w") as container:
            sound = container.add_stream("aac", rate=8000)
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.rate = 8000
            container.mux(sound.encode(silence))
            container.mux(sound.encode())
    else:
        other = tmp_path / "other.mp4"
        other.write_bytes(content)
        playlist = f"ffconcat version 1.0\nfile '{other}'\n".encode()
        noise = np.random.default_rng(0).bytes(5000)
        video.write_bytes(
            {"empty": b"", "noise": noise, "cut": content[: len(content) // 2], "playlist": playlist}[damage]
        )
    with pytest.raises(VideoError):
        encode_clip(job(video, tmp_path, (160, 120), 20))
    assert not (tmp_path / "clip.mov").exists()


@pytest.mark.parametrize(
    ("name", "count"), [("S001C001P001R001A001_rgb.avi", 103), ("ntu_sample.avi", 72), ("test.avi", 164)]
)
def test_real_videos(tmp_path, real_videos, name, count):
    """Each packed frame resembles the decoded frame with its number more than any other frame of the video."""
    video = real_videos / name
    with av.open(video) as container:
        size = (container.streams.video[0].width, container.streams.video[0].height)
        frames = [frame.reformat(240, 136, "gray8", interpolation="AREA") for frame in container.decode(video=0)]
    sources = np.stack([frame.to_ndarray() for frame in frames]).astype(np.int16)
    assert len(sources) == count
    encoded = encode_clip(job(video, tmp_path, size, count, side=size[1] / 1.05))
    left, top, right, bottom = np.rint(place(encoded, (0, 0, *size))).astype(int)
    for number, picture in enumerate(pictures(encoded, tmp_path)):
        whole = Image.fromarray(picture[top:bottom, left:right]).convert("L").resize((240, 136))
        distance = np.abs(sources - np.asarray(whole)).mean(axis=(1, 2))
        assert distance.argmin() == number
