"""One clip of the demo: its luck, its joints as a detector would report them, and its H.264 file."""

import os
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.video.plane import VideoPlane
from PIL import Image

from pipelines.demo import scene as demo_scene
from pipelines.demo.classes import ClipId, DemoConfig, corrupt_video, missing_skeleton
from pipelines.demo.motion import act

MARGIN = 4  # pixels that detected joints keep from the image's edge
NOISE_FRAMES = 8


class View(NamedTuple):
    """Where the camera puts a scene: pixels a body height, the floor's point (x, y), roll in radians."""

    scale: float
    x: float
    y: float
    roll: float


class Clip(NamedTuple):
    """Everything about a clip but its pixels."""

    points: np.ndarray  # [M, T, 17, 2] pixels, as drawn
    depth: np.ndarray  # [M, T, 17] towards the camera, body heights
    held: str
    path: np.ndarray  # [T, 2] pixels, [0, 2] where nothing is held
    path_depth: np.ndarray  # [T]
    scale: float
    floor: float


def generator(config: DemoConfig, clip: ClipId, purpose: int) -> np.random.Generator:
    """A clip's own counter-based stream, one for each purpose: its luck depends on no other clip or order."""
    return np.random.Generator(np.random.Philox(key=[config.seed, clip.number * 4 + purpose]))


def stage(config: DemoConfig, clip: ClipId) -> Clip:
    """Perform and film a clip: joints as they will be drawn."""
    rng = generator(config, clip, 0)
    low, high = config.num_frames
    scene = act(clip.label, int(rng.integers(low, high + 1)), rng)
    joints = scene.joints * np.array([rng.uniform(0.94, 1.06), 1, 1])
    view = place(config, joints, rng)
    points, depth = project(joints, view)
    path, path_depth = np.zeros((0, 2)), np.zeros(0)
    if scene.path is not None:
        path, path_depth = project(scene.path, view)
    return Clip(points, depth, scene.held, path, path_depth, view.scale, view.y - 0.1 * view.scale)


def place(config: DemoConfig, joints: np.ndarray, rng: np.random.Generator) -> View:
    """A random view that keeps the whole scene in the image; at the shipped size people are 110 to 200 pixels tall."""
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
    """Image points [.., 2] and depth [..] of scene points [.., 3]; the camera looks slightly down."""
    x, y, z = joints[..., 0], joints[..., 1], joints[..., 2]
    y = y - 0.12 * z
    c, s = np.cos(view.roll), np.sin(view.roll)
    return np.stack([view.x + view.scale * (c * x + s * y), view.y - view.scale * (c * y - s * x)], axis=-1), z


def detect(config: DemoConfig, clip: ClipId, points: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """What a pose estimator would report: keypoint [M, T, 17, 2] and keypoint_score [M, T, 17], float16.

    Joints jitter by 0.8 % of the body's height; 2 % of them, and in a quarter of the clips one joint for a
    third of the time, are missing: (0, 0) with score 0. Persons come in random order.
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
    """The annotation of one clip in the published form (docs/sources.md, "Annotation files")."""
    staged = stage(config, clip)
    keypoint, score = detect(config, clip, staged.points, staged.scale)
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
    """The frames of a clip before noise and encoding, in Y, Cb, Cr."""
    staged = stage(config, clip)
    rng = generator(config, clip, 2)
    background = demo_scene.room(config.size, staged.floor, rng)
    shapes: list[demo_scene.Shape] = []
    for points, depth in zip(staged.points, staged.depth, strict=True):
        shapes += demo_scene.body_shapes(points, depth, staged.scale, demo_scene.Look.draw(rng))
    if staged.held:
        in_front = staged.path_depth + 0.08
        shapes += demo_scene.object_shapes(staged.held, staged.path, in_front, staged.scale)
    frames = demo_scene.paint(background, shapes)
    if config.hide_people:
        for frame in frames:
            frame.paste((128, 128, 128), person_box(staged.points))
    return frames


def person_box(points: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom around all joints [M, T, 17, 2] of a clip, with their flesh and object."""
    low, high = points.min(axis=(0, 1, 2)), points.max(axis=(0, 1, 2))
    margin = 0.15 * (high - low).max()
    left, top, right, bottom = np.rint([*(low - margin), *(high + margin)]).astype(int).tolist()
    return left, top, right, bottom


def write_clip(config: DemoConfig, clip: ClipId, folder: Path) -> str:
    """Make `folder`/<name>.mp4 unless it is there; a file under its final name is complete. Returns the name."""
    target = folder / f"{clip.name}.mp4"
    if target.exists():
        return clip.name
    partial = target.with_suffix(f".{os.getpid()}.tmp")
    encode(film(config, clip), partial, config, generator(config, clip, 3))
    if clip == corrupt_video(config):
        os.truncate(partial, partial.stat().st_size // 2)
    partial.replace(target)
    return clip.name


def encode(frames: list[Image.Image], file: Path, config: DemoConfig, rng: np.random.Generator) -> None:
    """Write frames as the camera sees them, with noise in Y: H.264 in MP4, 30 frames a second, one key frame, B-frames.

    One encoder thread and no macroblock tree, whose AVX-512 code reads memory that nobody wrote: x264's output then
    depends on its version and nothing else.
    """
    width, height = config.size
    noise = rng.normal(0, rng.uniform(1.5, 3.5), (NOISE_FRAMES, height, width))
    bank = np.rint(noise).clip(-15, 15).astype(np.int8).view(np.uint8)  # Y is 16 to 235: the sum never wraps
    picks = rng.integers(NOISE_FRAMES, size=len(frames))
    with av.open(file, "w", format="mp4") as container:
        options = {"preset": "veryfast", "crf": str(config.crf), "x264-params": "no-mbtree=1"}
        stream = container.add_stream("libx264", rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for image, pick in zip(frames, picks, strict=True):
            luma, *chroma = image.split()
            frame = av.VideoFrame(width, height, "yuv420p")
            fill(frame.planes[0], np.asarray(luma) + bank[pick])
            for plane, channel in zip(list(frame.planes)[1:], chroma, strict=True):
                fill(plane, np.asarray(channel.reduce(2)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def fill(plane: VideoPlane, values: np.ndarray) -> None:
    """Copy an image [H, W] into a plane, whose rows may be padded."""
    rows = np.zeros((plane.height, plane.line_size), np.uint8)
    rows[:, : plane.width] = values
    plane.update(rows.tobytes())
