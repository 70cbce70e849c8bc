"""Reads and writes files with the joints of a video: .npz files and annotation pickles.

folder.py reads the files of pose estimators.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kernels.files import check_arrays
from kernels.whole_files import whole_file
from pipelines.annotations.schema import AnnotationError, parse_clip, rotation_of
from pipelines.annotations.table import open_table
from pipelines.packs.format import is_clip, original_name
from pipelines.videos.container import VideoError
from pipelines.videos.find import rows_of_video
from pipelines.videos.header import Header, read_header, shape_of
from pipelines.videos.turn import AnnotatedImage, Rotation

# A skeleton is refused if more than this share of its joints lies outside the image. The share is large because good
# skeletons may also have joints outside: if a person sits close to the camera, estimators place the legs below the
# image.
MAX_OUTSIDE = 0.5
NPZ_FORMAT = "an .npz with keypoint [M, T, V, 2] and keypoint_score [M, T, V]"
FORMATS = f"an annotation pickle (.pkl) or {NPZ_FORMAT}"


@dataclass(frozen=True, slots=True)
class Poses:
    """The skeletons of M people in a video; M may be 0.

    joints: [M, T, V, 3] (x, y, score); x and y are in pixels of an image of size (height, width).
    rotation: whether this image is a frame as players show it or as the file stores it (AnnotatedImage).
    """

    joints: np.ndarray
    height: int
    width: int
    rotation: Rotation = "shown"

    def image(self) -> AnnotatedImage:
        """The image to which the joints belong."""
        return AnnotatedImage(self.width, self.height, self.rotation)


def header_of(video: str) -> Header:
    """The header of a video. Raises VideoError if the header cannot be used or the video has no frames."""
    header = read_header(video)
    if header.reason or not header.frames:
        raise VideoError(header.reason or "the video has no frames")
    return header


def read_poses(file: Path, video: Path, header: Header, cache: Path, rotation: Rotation = "shown") -> Poses:
    """Read the skeleton of `video` from an .npz file, or from an annotation pickle that contains the video's name.

    If an .npz file contains no image size, its joints are taken to be in pixels of the video's frames.
    rotation: how the annotated images are turned (AnnotatedImage), if the file does not say it.
    cache: folder in which Duet keeps the table that it makes from an annotation pickle.
    Raises AnnotationError if the file cannot be used, or if its joints do not belong to the frames of this video.
    """
    poses = _read_poses(file, video, header, cache, rotation)
    check_place(file, poses, video, header)
    return poses


def _read_poses(file: Path, video: Path, header: Header, cache: Path, rotation: Rotation) -> Poses:
    if not file.exists():
        raise AnnotationError(f"there is no file {file}; give --pose {FORMATS}")
    if file.suffix == ".npz":
        width, height = (header.width, header.height) if rotation == "shown" else header.stored
        return read_npz(file, (height, width), rotation)
    if file.suffix not in (".pkl", ".pickle"):
        raise AnnotationError(f"{file} is not a skeleton file; give --pose {FORMATS}")
    table = open_table(file, cache)
    own = original_name(video)
    rows = rows_of_video(video.with_name(own), table.names.tolist())
    if len(rows) != 1:
        count = "no clip" if not rows else f"{len(rows)} clips"
        raise AnnotationError(
            f"{file} has {count} named {own}; the first clip in the file is {table.names[0]}; rename the "
            "video, or give its skeleton as .npz"
        )
    image = table.image(rows[0], rotation)
    return Poses(np.asarray(table.clip_joints(rows[0])), image.height, image.width, image.rotation)


def check_place(file: Path, poses: Poses, video: Path, header: Header) -> None:
    """Raise AnnotationError if the video is cropped, turned or distorted compared with the annotated image.

    The same error is raised if most joints lie outside the image.
    """
    shape, size = shape_of(header, poses.width, poses.height), f"{header.width}x{header.height}"
    if shape in ("turned", "other shape") or (shape == "scaled" and is_clip(video)):
        raise AnnotationError(
            f"{file}: the skeleton belongs to an image of {poses.width}x{poses.height} pixels, but {video} has {size} "
            "and shows a part of that image, or shows it turned or distorted; give the original video, or the skeleton "
            "of this video as .npz"
        )
    visible = poses.joints[(poses.joints[..., 2] > 0) & poses.joints[..., :2].any(axis=-1)][:, :2]
    outside = (visible < 0) | (visible > (poses.width, poses.height))
    if len(visible) and outside.any(axis=1).mean() > MAX_OUTSIDE:
        reach = "x".join(f"{side:.0f}" for side in visible.max(axis=0))
        raise AnnotationError(
            f"{file}: most joints lie outside the image of {poses.width}x{poses.height} pixels (they extend to "
            f"{reach}), and {video} has {size}; give the original video, or write img_shape (height, width) into the "
            "file"
        )


def read_npz(file: Path, size: tuple[int, int], rotation: Rotation = "shown") -> Poses:
    """Read an .npz file. Raises AnnotationError.

    `size` (height, width) is used if the file has no img_shape, and `rotation` if `write_poses` did not write the file.
    """
    check_arrays(file, AnnotationError)
    try:
        with np.load(file, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise AnnotationError(f"{file} cannot be read: {error}; it should be {NPZ_FORMAT}") from None
    keypoint = arrays.get("keypoint", np.zeros(0))
    frames = keypoint.shape[1] if keypoint.ndim > 1 else 0
    defaults = {"frame_dir": file.stem, "label": 0, "img_shape": size}
    try:
        clip = parse_clip(defaults | arrays | {"total_frames": frames})
    except (KeyError, TypeError, ValueError, IndexError) as error:
        reason = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else error
        raise AnnotationError(f"{file}: {reason}; the file should be {NPZ_FORMAT}") from None
    rotation = rotation_of(file, {"rotation": arrays["rotation"].item()} if "rotation" in arrays else {}) or rotation
    return Poses(clip["joints"], clip["height"], clip["width"], rotation)


def write_poses(file: Path, poses: Poses, origin: str = "") -> None:
    """Write poses as an .npz that `read_poses` and `read_npz` can read.

    origin: a text that says what the poses were made from. `origin_of` returns it, so that a later run can decide
    whether the poses have to be made again.
    """
    keypoint, score = poses.joints[..., :2], poses.joints[..., 2]
    image = {"img_shape": [poses.height, poses.width], "rotation": poses.rotation, "origin": origin}
    with whole_file(file) as part, open(part, "wb") as archive:
        np.savez_compressed(archive, keypoint=keypoint, keypoint_score=score, **image)


def origin_of(file: Path) -> str:
    """The `origin` with which `write_poses` wrote this file, or '' if the file does not contain it."""
    try:
        with np.load(file, allow_pickle=False) as content:
            return str(content["origin"]) if "origin" in content.files else ""
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return ""
