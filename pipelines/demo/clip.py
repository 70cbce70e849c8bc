"""One clip of the demo: its random choices, its joints as a detector would report them, and its H.264 file."""

import os
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.plane import VideoPlane
from PIL import Image

from kernels.whole_files import whole_file
from pipelines.demo import scene as demo_scene
from pipelines.demo.classes import ClipId, DemoConfig, corrupt_video, missing_skeleton
from pipelines.demo.motion import act

MARGIN = 4  # pixels; detected joints are at least this far from the edge of the image
NOISE_FRAMES = 4  # number of noise images; a randomly chosen one is added to each frame


class View(NamedTuple):
    """The view of the camera.

    scale: height of a person's body in pixels. x, y: pixel at which the origin of the scene, on the floor, appears.
    roll: rotation of the camera in radians.
    """

    scale: float
    x: float
    y: float
    roll: float


class Clip(NamedTuple):
    """The data from which the frames of a clip are drawn, for M people in T frames."""

    points: np.ndarray  # [M, T, 17, 2] joints in pixels
    # [M, T, 17] distance of the joints from the origin towards the camera; the unit is a body's height
    depth: np.ndarray
    object_name: str  # the object in the hands, or ""
    path: np.ndarray  # [T, 2] centre of the object in pixels; [0, 2] if there is no object
    path_depth: np.ndarray  # [T] distance of the object, as in `depth`
    scale: float  # height of a person's body in pixels
    floor: float  # row of pixels at which the floor begins


def generator(config: DemoConfig, clip: ClipId, purpose: int) -> np.random.Generator:
    """A random generator for one purpose in one clip. Its numbers do not depend on other clips or purposes.

    purpose: 0 for motion and view, 1 for the detected joints, 2 for the looks of people and room, 3 for image noise.
    """
    return np.random.Generator(np.random.Philox(key=[config.seed, clip.number * 4 + purpose]))


def stage(config: DemoConfig, clip: ClipId) -> Clip:
    """Compute how the people of a clip move, and where their joints and the object appear in the image."""
    rng = generator(config, clip, 0)
    low, high = config.num_frames
    scene = act(clip.label, int(rng.integers(low, high + 1)), rng)
    joints = scene.joints * np.array([rng.uniform(0.94, 1.06), 1, 1])
    view = place(config, joints, rng)
    points, depth = project(joints, view)
    path, path_depth = np.zeros((0, 2)), np.zeros(0)
    if scene.path is not None:
        path, path_depth = project(scene.path, view)
    return Clip(points, depth, scene.object_name, path, path_depth, view.scale, view.y - 0.1 * view.scale)


def place(config: DemoConfig, joints: np.ndarray, rng: np.random.Generator) -> View:
    """Choose a random view in which the whole scene is inside the image.

    At the default image size, people are 110 to 200 pixels tall.
    """
    width, height = config.size
    x, y = joints[..., 0], joints[..., 1]
    span, top = np.ptp(x) + 0.25, max(y.max(), 1.0) + 0.06
    largest = min(200 / 240 * height, (height - 8) / (top + 0.05), (width - 8) / span)
    scale = rng.uniform(min(120 / 240 * height, largest), largest)
    left, right = (x.min() - 0.12) * scale, (x.max() + 0.12) * scale
    ground = rng.uniform(min(top * scale + 4, height - 8), height - 6 - 0.03 * scale)
    roll = np.radians(rng.uniform(-3, 3))
    return View(scale, rng.uniform(4 - left, max(width - 4 - right, 4 - left)), ground, roll)


def project(joints: np.ndarray, view: View) -> tuple[np.ndarray, np.ndarray]:
    """Project points [..., 3] of the scene to pixels [..., 2] and depths [...]. The camera looks slightly down."""
    x, y, z = joints[..., 0], joints[..., 1], joints[..., 2]
    y = y - 0.12 * z
    c, s = np.cos(view.roll), np.sin(view.roll)
    return np.stack([view.x + view.scale * (c * x + s * y), view.y - view.scale * (c * y - s * x)], axis=-1), z


def detect(config: DemoConfig, clip: ClipId, points: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Imitate a pose estimator: keypoint [M, T, 17, 2] in pixels and keypoint_score [M, T, 17], both float16.

    Joints are displaced at random, with a standard deviation of 0.8 % of the body's height. 2 % of the joints are
    missing: they are (0, 0) with score 0. In a quarter of the clips, one joint is also missing for up to a third of the
    frames. The order of people is random.
    """
    if clip == missing_skeleton(config):
        shape = (1, points.shape[1], 17)
        return np.zeros((*shape, 2), np.float16), np.zeros(shape, np.float16)
    rng = generator(config, clip, 1)
    points = points[rng.permutation(len(points))]
    num_frames = points.shape[1]
    keypoint = points + rng.normal(0, 0.008 * scale, points.shape)
    keypoint = keypoint.clip(MARGIN, np.array(config.size) - 1 - MARGIN)
    score = rng.uniform(0.6, 1, points.shape[:3])
    missing = rng.random(points.shape[:3]) < 0.02
    start = int(rng.integers(num_frames))
    if rng.random() < 0.25:
        missing[rng.integers(len(points)), start : start + num_frames // 3, rng.integers(17)] = True
    keypoint[missing], score[missing] = 0, 0
    return keypoint.astype(np.float16), score.astype(np.float16)


def annotate(config: DemoConfig, clip: ClipId) -> dict[str, object]:
    """Make the annotation of a clip in the published form (docs/sources.md, "Annotation files")."""
    content = stage(config, clip)
    keypoint, score = detect(config, clip, content.points, content.scale)
    width, height = config.size
    return {
        "frame_dir": clip.name,
        "label": clip.label,
        "img_shape": (height, width),
        "original_shape": (height, width),
        "total_frames": keypoint.shape[1],
        "keypoint": keypoint,
        "keypoint_score": score,
    }


def film(config: DemoConfig, clip: ClipId) -> list[Image.Image]:
    """Draw the frames of a clip in Y, Cb, Cr, without noise."""
    content = stage(config, clip)
    rng = generator(config, clip, 2)
    background = demo_scene.room(config.size, content.floor, rng)
    shapes: list[demo_scene.Shape] = []
    for points, depth in zip(content.points, content.depth, strict=True):
        shapes += demo_scene.body_shapes(points, depth, content.scale, demo_scene.Look.draw(rng))
    if content.object_name:
        in_front = content.path_depth + 0.08
        shapes += demo_scene.object_shapes(content.object_name, content.path, in_front, content.scale)
    frames = demo_scene.paint(background, shapes)
    if config.hide_people:
        for frame in frames:
            frame.paste((128, 128, 128), person_box(content.points))
    return frames


def person_box(points: np.ndarray) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) around the people of a clip and their object.

    points: [M, T, 17, 2] joints in pixels. A margin accounts for the size of limbs and object.
    """
    low, high = points.min(axis=(0, 1, 2)), points.max(axis=(0, 1, 2))
    margin = 0.15 * (high - low).max()
    left, top, right, bottom = np.rint([*(low - margin), *(high + margin)]).astype(int).tolist()
    return left, top, right, bottom


def write_clip(config: DemoConfig, clip: ClipId, folder: Path) -> str:
    """Write the video of a clip to `folder`, unless it is there already. Returns the name of the clip.

    The file gets its final name when it is complete.
    """
    target = folder / f"{clip.name}.mp4"
    if target.exists():
        return clip.name
    with whole_file(target) as part:
        encode(film(config, clip), part, config, generator(config, clip, 3))
        if clip == corrupt_video(config):
            os.truncate(part, part.stat().st_size // 2)
    return clip.name


def encode(frames: list[Image.Image], file: Path, config: DemoConfig, rng: np.random.Generator) -> None:
    """Add noise to the frames and write them as H.264 in MP4, with one key frame and B-frames.

    Two options make the output reproducible with the same version of x264: a single encoder thread, and no macroblock
    tree, because the AVX-512 code of the macroblock tree reads uninitialised memory.
    """
    width, height = config.size
    noise = rng.normal(0, rng.uniform(1.5, 3.5), (NOISE_FRAMES, height, width))
    # Y is between 16 and 235 and the noise between -15 and 15, so adding them modulo 256 gives the right sum.
    bank = np.rint(noise).clip(-15, 15).astype(np.int8).view(np.uint8)
    noise_numbers = rng.integers(NOISE_FRAMES, size=len(frames))
    with av.open(file, "w", format="mp4") as container:
        options = {"preset": "veryfast", "crf": str(config.crf), "x264-params": "no-mbtree=1"}
        stream = container.add_stream("libx264", rate=config.rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for image, noise_number in zip(frames, noise_numbers, strict=True):
            luma, *chroma = image.split()
            frame = av.VideoFrame(width, height, "yuv420p")
            fill(frame.planes[0], np.asarray(luma) + bank[noise_number])
            for plane, channel in zip(list(frame.planes)[1:], chroma, strict=True):
                fill(plane, np.asarray(channel.reduce(2)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def fill(plane: VideoPlane, values: np.ndarray) -> None:
    """Copy an image [H, W] to a plane of a video frame. The rows of the plane may be padded."""
    rows = np.zeros((plane.height, plane.line_size), np.uint8)
    rows[:, : plane.width] = values
    plane.update(rows.tobytes())
