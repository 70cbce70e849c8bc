"""One's own videos -> the published annotation pickle: `python -m pipelines.annotate VIDEOS labels.csv --out my.pkl`

Skeletons come from --poses, a folder with a NAME.json (keypoints.py reads both) for each video, or else from
the pose estimator (estimator.py), which keeps them in OUT_poses/, so that a run that was ended goes on from there.
"""

import os
import pickle
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from kernels.program import UserError
from pipelines.annotate.estimator import JOINTS, PoseEstimator
from pipelines.annotate.keypoints import Poses, header_of, read_npz, read_people, write_poses
from pipelines.annotate.labels import SPLITS, Labels
from pipelines.annotate.tracking import follow
from pipelines.annotations.schema import parse_clip
from pipelines.progress import Progress
from pipelines.videos.decode import VideoError
from pipelines.videos.find import Missing, find_videos
from pipelines.videos.header import Header

SPLIT = "own"  # the pair own_train and own_val of the pickle
PoseSource = Callable[[str, str, Header], Poses]  # name, video, header


def annotate(videos: Path, labels: Labels, poses: PoseSource, console: Console) -> list[dict[str, Any] | str]:
    """For each clip of `labels` its annotation, or the reason why its video is not usable."""
    found = find_videos(videos, labels.videos)
    for name, video in zip(labels.videos, found, strict=True):
        if isinstance(video, Missing):
            raise UserError(f"{name} of the labels has no video in {videos}: {video}")
        if found.count(video) > 1:
            raise UserError(f"{name} of the labels is {video}, as another line is; a video can have one label only")
    clips: list[dict[str, Any] | str] = []
    with Progress(console, "annotating", len(found)) as progress:
        for video, label in zip(found, labels.labels, strict=True):
            name = os.path.splitext(os.path.relpath(video, videos))[0].replace(os.sep, "/")
            try:
                clips.append(annotation(name, label, poses(name, video, header_of(video))))
            except VideoError as error:
                clips.append(f"{name}: {error}")
            progress.advance()
    return clips


def annotation(name: str, label: int, poses: Poses) -> dict[str, Any]:
    """An annotation in the published form (docs/sources.md, "Annotation files").

    Raises UserError if training would refuse it.
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


def files_of(folder: Path, most: int) -> PoseSource:
    """Skeletons out of a folder of .json and .npz files."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; --poses takes one with a NAME.json or NAME.npz a video")

    def source(name: str, video: str, header: Header) -> Poses:
        for stem in (folder / name, folder / Path(name).name):
            file = stem.with_name(f"{stem.name}.npz")
            if file.exists():
                return read_npz(file, (header.height, header.width))
            file = stem.with_name(f"{stem.name}.json")
            if file.exists():
                frames, num_joints = read_people(file, header.frames)
                return Poses(follow(frames, most, num_joints or JOINTS), header.height, header.width)
        raise UserError(f"{folder} has neither {name}.json nor {name}.npz; leave out --poses to have poses estimated")

    return source


def estimates_in(folder: Path, most: int) -> PoseSource:
    """Estimated skeletons, kept in a folder and taken from there the next time."""
    estimator = PoseEstimator(JOINTS, "give the folder of your keypoints with --poses")

    def source(name: str, video: str, header: Header) -> Poses:
        file = (folder / name).with_name(f"{Path(name).name}.npz")
        if file.exists():
            return read_npz(file, (header.height, header.width))
        poses = estimator.estimate(video, most, lambda: None)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_poses(file, poses)
        return poses

    return source


def write(out: Path, clips: list[dict[str, Any] | str], labels: Labels) -> dict[str, list[str]]:
    """The pickle of the usable clips, whole or not at all; returns its splits."""
    usable = [(clip, split) for clip, split in zip(clips, labels.splits, strict=True) if isinstance(clip, dict)]
    splits = {f"{SPLIT}_{split}": [clip["frame_dir"] for clip, own in usable if own == split] for split in SPLITS}
    for name, members in splits.items():
        if not members:
            raise UserError(f"no clip with a usable video is left for {name}")
    content = {"split": splits, "annotations": [clip for clip, _ in usable]}
    part = out.with_name(f"{out.name}.{os.getpid()}.tmp")
    try:
        part.write_bytes(pickle.dumps(content, protocol=4))
        part.replace(out)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); name another file with --out") from None
    return splits


def advice(out: Path, videos: Path, labels: Labels, num_joints: int) -> str:
    """The command that trains on the pickle."""
    settings = [f"data.annotations={out}", f"data.videos={videos}", f"data.num_classes={max(labels.labels) + 1}"]
    if labels.class_names:
        settings.append(f"data.class_names={labels.class_names}")
    words = ["python -m trainer --exp custom", *(f"--set {shlex.quote(setting)}" for setting in settings)]
    if num_joints != JOINTS:
        return f"{num_joints} joints a person need an experiment of their own, with their names (pipelines/skeleton.py)"
    return f"train with: {' '.join(words)}"
