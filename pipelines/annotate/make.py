"""Makes an annotation file, in the published form, for your own videos (`python -m pipelines.annotate`).

Skeletons are read from the folder --poses, with a NAME.json or NAME.npz for each video (keypoints.py). Without --poses
they are estimated (estimator.py) and stored in the folder OUT_poses, so that an interrupted run can continue.
"""

import os
import pickle
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from kernels.names import SHORT, printable
from kernels.program import UserError
from pipelines.annotate.estimator import JOINTS, PoseEstimator
from pipelines.annotate.keypoints import Poses, header_of, read_npz, read_people, write_poses
from pipelines.annotate.labels import SPLITS, Labels
from pipelines.annotate.tracking import follow
from pipelines.annotations.schema import class_names_of, fits_only_swapped, parse_clip
from pipelines.progress import Progress
from pipelines.skeleton import fitting
from pipelines.videos.container import VideoError
from pipelines.videos.find import MissingVideo, find_videos
from pipelines.videos.header import Header
from pipelines.videos.turn import Rotation, Turn

SPLIT = "own"  # the annotation file has the splits own_train and own_val
PoseSource = Callable[[str, str, Header], Poses]  # (name of the clip, path of the video, its header) -> skeletons


def annotate(
    videos: Path, labels: Labels, poses: PoseSource, console: Console, follow_links: bool = False
) -> list[dict[str, Any] | str]:
    """Make the annotation of each video in `labels`, or a string that says why the video cannot be used.

    videos: the folder of the videos. Raises UserError if a video is missing, or is listed twice.
    """
    files = find_videos(videos, labels.videos, follow_links)
    for name, video in zip(labels.videos, files, strict=True):
        if isinstance(video, MissingVideo):
            raise UserError(f"the labels list {name}, but there is no usable video for it in {videos}: {video}")
        if files.count(video) > 1:
            raise UserError(f"two lines of the labels, one of them {name}, refer to the video {video}; leave one out")
    clips: list[dict[str, Any] | str] = []
    with Progress(console, "annotating", len(files)) as progress:
        for video, label in zip(files, labels.labels, strict=True):
            name = os.path.splitext(os.path.relpath(video, videos))[0].replace(os.sep, "/")
            try:
                clips.append(annotation(name, label, poses(name, video, header_of(video))))
            except VideoError as error:
                clips.append(f"{printable(name, SHORT)}: {error}")
            progress.advance()
    return clips


def annotation(name: str, label: int, poses: Poses) -> dict[str, Any]:
    """Build an annotation in the published form (docs/sources.md, "Annotation files").

    Raises UserError if training could not use the annotation.
    """
    clip = {
        "frame_dir": name,
        "label": label,
        "img_shape": (poses.height, poses.width),
        "original_shape": (poses.height, poses.width),
        "total_frames": poses.joints.shape[1],
        "keypoint": np.ascontiguousarray(poses.joints[..., :2], np.float32),
        "keypoint_score": np.ascontiguousarray(poses.joints[..., 2], np.float32),
    }
    parse_clip(clip)
    return clip


def poses_from_files(folder: Path, max_people: int, rotation: Rotation = "shown") -> PoseSource:
    """A source that reads skeletons from .json and .npz files in `folder`. Raises UserError if there is no `folder`.

    rotation: whether the skeletons belong to frames as players show them or as the files store them.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give --poses a folder with NAME.json or NAME.npz for each video")

    def source(name: str, video: str, header: Header) -> Poses:
        width, height = (header.width, header.height) if rotation == "shown" else header.stored
        for stem in (folder / name, folder / Path(name).name):
            file = stem.with_name(f"{stem.name}.npz")
            if file.exists():
                return check_rotation(file, header, read_npz(file, (height, width), rotation), rotation)
            file = stem.with_name(f"{stem.name}.json")
            if file.exists():
                frames, num_joints = read_people(file, header.frames)
                joints = follow(frames, max_people, num_joints or JOINTS)
                poses = check_rotation(file, header, Poses(joints, height, width, rotation), rotation)
                return with_square_pixels(poses, header)
        raise UserError(f"{folder} has neither {name}.json nor {name}.npz; leave out --poses to estimate skeletons")

    return source


def check_rotation(file: Path, header: Header, poses: Poses, rotation: Rotation) -> Poses:
    """The poses, unless they are clearly of the other rotation than `rotation`. In this case, raises UserError."""
    fits_other = Turn.of_code(header.turn).swap and fits_only_swapped(poses.joints, poses.height, poses.width)
    if header.turn and (fits_other or poses.rotation != rotation):
        here, other = ("shown", "stored") if rotation == "shown" else ("stored", "shown")
        raise UserError(
            f"{file}: the skeleton belongs to the frames as they are {other}, not as they are {here} (players turn "
            f"this video); give --rotation {other}, and put skeletons of both kinds into separate annotation files"
        )
    return poses


def with_square_pixels(poses: Poses, header: Header) -> Poses:
    """Convert poses to the size at which a video is shown, if the pixels of its frames are not square.

    So boxes and heatmaps show people in their true shape.
    """
    frames = header.frames_for(poses.image())
    if frames.pixel == 1:
        return poses
    width = round(poses.width * frames.pixel)
    scale = np.array([width / poses.width, 1, 1], np.float32)
    return replace(poses, joints=poses.joints * scale, width=width)


def estimated_poses(folder: Path, max_people: int) -> PoseSource:
    """A source that estimates skeletons and stores them in `folder`. Skeletons that were stored earlier are read."""
    estimator = PoseEstimator(JOINTS, "give the folder of your skeletons with --poses")

    def source(name: str, video: str, header: Header) -> Poses:
        file = (folder / name).with_name(f"{Path(name).name}.npz")
        if file.exists():
            # Files of earlier versions do not say their rotation: these versions did not turn frames.
            poses = read_npz(file, (header.height, header.width), "stored")
            if poses.rotation == "shown" or not header.turn:
                return poses
        poses = estimator.estimate(video, header, max_people, lambda: None)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_poses(file, poses)
        return poses

    return source


def write(
    out: Path, clips: list[dict[str, Any] | str], labels: Labels, rotation: Rotation = "shown"
) -> dict[str, list[str]]:
    """Write the annotations of all usable videos and the names of the classes to the pickle `out`. Returns the names of
    the clips in each split.

    A failure leaves no partial file. Raises UserError if a split is empty or the file cannot be written.
    """
    usable = [(clip, split) for clip, split in zip(clips, labels.splits, strict=True) if isinstance(clip, dict)]
    splits = {
        f"{SPLIT}_{split}": [clip["frame_dir"] for clip, clip_split in usable if clip_split == split]
        for split in SPLITS
    }
    for name, members in splits.items():
        if not members:
            raise UserError(f"no usable video is left for the split {name}; add videos to the labels")
    content = {"split": splits, "annotations": [clip for clip, _ in usable], "class_names": list(labels.class_names)}
    content["rotation"] = rotation
    class_names_of(out, content, max(labels.labels) + 1)
    part = out.with_name(f"{out.name}.{os.getpid()}.tmp")
    try:
        part.write_bytes(pickle.dumps(content, protocol=4))
        part.replace(out)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); name another file with --out") from None
    return splits


def advice(out: Path, videos: Path, labels: Labels, num_joints: int) -> str:
    """A sentence with the command that trains on the annotation file."""
    settings = [f"data.annotations={out}", f"data.videos={videos}", f"data.num_classes={max(labels.labels) + 1}"]
    words = ["python -m trainer --exp custom", *(f"--set {shlex.quote(setting)}" for setting in settings)]
    if num_joints != JOINTS:
        return f"train with: {' '.join(words)} --set clip.skeleton=NAME, where NAME is {fitting(num_joints)}"
    return f"train with: {' '.join(words)}"
