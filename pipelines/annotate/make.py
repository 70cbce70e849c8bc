"""Makes an annotation file, in the published form, for your own videos (`python -m pipelines.annotate`).

Skeletons are read from the folder --poses, which has files of a pose estimator (folder.py). Without --poses,
the skeletons are estimated (estimator.py) and stored in the folder OUT_poses, so that an interrupted run can continue.
"""

import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.console import Console

from kernels.names import SHORT, printable
from kernels.program import UserError
from kernels.whole_files import remove_leftovers, write_whole
from pipelines.annotate.estimator import JOINTS, EstimatorOptions, PoseEstimator
from pipelines.annotate.folder import PoseFolder
from pipelines.annotate.keypoints import Poses, header_of, origin_of, read_npz, write_poses
from pipelines.annotate.labels import SPLITS, Labels
from pipelines.annotations.schema import class_names_of, fits_only_swapped, parse_clip
from pipelines.prepare.content import digest_of_video
from pipelines.progress import Progress
from pipelines.skeleton import SKELETONS
from pipelines.videos.container import VideoError
from pipelines.videos.find import MissingVideo, clip_name, find_videos, names_for
from pipelines.videos.header import Header
from pipelines.videos.turn import Rotation, Turn

SPLIT = "own"  # the annotation file has the splits own_train and own_val


class PoseSource(Protocol):
    """Where the skeletons of videos come from."""

    def survey(self, headers: dict[str, Header], say: Callable[[str], None]) -> None:
        """Prepare the skeletons of all videos. Called once before `poses`.

        headers: the header of each video, by name.
        """

    def poses(self, name: str, video: str, header: Header) -> Poses:
        """The skeletons of the video with this name and path."""
        ...


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
    names = names_for(videos, files, follow_links)
    twice = [name for name, count in Counter(clip_name(name) for name in names).items() if count > 1]
    if twice:
        raise UserError(f"two videos have the name {twice[0]} and different extensions; rename one of them")
    headers, reasons = {}, {}
    for name, video in zip(names, files, strict=True):
        try:
            headers[name] = header_of(video)
        except VideoError as error:
            reasons[name] = f"{name}: {error}"
    poses.survey(headers, lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True))
    clips: list[dict[str, Any] | str] = []
    with Progress(console, "annotating", len(files)) as progress:
        for name, video, label in zip(names, files, labels.labels, strict=True):
            try:
                header = headers.get(name)
                clips.append(annotation(name, label, poses.poses(name, video, header)) if header else reasons[name])
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


@dataclass
class FilePoses:
    """A source that reads skeletons from a folder of files (folder.py)."""

    folder: PoseFolder

    def survey(self, headers: dict[str, Header], say: Callable[[str], None]) -> None:
        """Read the files of all videos, and report their formats. Raises UserError."""
        self.folder.survey(headers, say)

    def poses(self, name: str, video: str, header: Header) -> Poses:
        """The skeletons of a video."""
        file, poses = self.folder.poses(name, header)
        check_rotation(file, header, poses, self.folder.rotation)
        return poses if file.suffix == ".npz" else with_square_pixels(poses, header)


def poses_from_files(folder: Path, max_people: int, rotation: Rotation = "shown") -> FilePoses:
    """A source that reads skeletons from files in `folder`. Raises UserError if there is no `folder`.

    rotation: whether the skeletons belong to frames as players show them or as the files store them.
    """
    return FilePoses(PoseFolder(folder, max_people, rotation))


def check_rotation(file: Path, header: Header, poses: Poses, rotation: Rotation) -> Poses:
    """Return the poses. Raises UserError if they clearly do not belong to frames with this rotation."""
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

    With this size, boxes and heatmaps show people in their true shape.
    """
    frames = header.frames_for(poses.image())
    if frames.pixel == 1:
        return poses
    width = round(poses.width * frames.pixel)
    scale = np.array([width / poses.width, 1, 1], np.float32)
    return replace(poses, joints=poses.joints * scale, width=width)


@dataclass
class EstimatedPoses:
    """A source that estimates skeletons and stores them in `folder`. Stored skeletons are not estimated again."""

    folder: Path
    max_people: int
    estimator: PoseEstimator

    def survey(self, headers: dict[str, Header], say: Callable[[str], None]) -> None:
        """Estimate nothing yet: `poses` does this. Only remove the temporary files that killed runs have left."""
        for place in {(self.folder / name).parent for name in headers}:
            remove_leftovers(place)

    def poses(self, name: str, video: str, header: Header) -> Poses:
        """The skeletons of a video, estimated now or earlier."""
        file = (self.folder / name).with_name(f"{Path(name).name}.npz")
        origin = f"{digest_of_video(video)[0]}, {self.estimator}"
        if file.exists() and origin_of(file) == origin:
            return read_npz(file, (header.height, header.width))
        poses = self.estimator.estimate(video, header, self.max_people, lambda: None)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_poses(file, poses, origin)
        return poses


def estimated_poses(
    folder: Path, max_people: int, options: EstimatorOptions, say: Callable[[str], None]
) -> EstimatedPoses:
    """A source that estimates skeletons (PoseEstimator). Raises UserError if the estimator cannot be used."""
    alternative = "give the folder of your skeletons with --poses"
    return EstimatedPoses(folder, max_people, PoseEstimator(JOINTS, alternative, options, say))


def write(
    out: Path, clips: list[dict[str, Any] | str], labels: Labels, rotation: Rotation = "shown", layout: str = ""
) -> dict[str, list[str]]:
    """Write the pickle `out`: annotations of usable videos, and what training must know about classes and joints.

    Returns the names of the clips in each split.

    layout: the name of the joint layout, or '' if it is not known.
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
    content |= {"coarse_map": list(labels.coarse_map), "rotation": rotation}
    if layout in SKELETONS:
        content["skeleton"] = layout
    class_names_of(out, content, max(labels.labels) + 1)
    try:
        write_whole(out, pickle.dumps(content, protocol=4))
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); name another file with --out") from None
    return splits
