"""Recognises the format of pose files by their content, and reads the files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kernels.program import UserError
from pipelines.annotate.formats import coco, mediapipe, mmpose, ntu, openpose, yolo
from pipelines.annotate.formats.json_file import MAX_BYTES, load_json
from pipelines.annotate.formats.recording import Recording, frame_number

KNOWN = (
    "COCO keypoints, MMPose, OpenPose, AlphaPose, YOLO-pose labels, MediaPipe landmarks, NTU .skeleton or .npz "
    "(docs/custom_data.md)"
)
EXTENSIONS = (".json", ".txt", ".skeleton", ".npz")


def read_recording(files: Sequence[Path], video: str) -> Recording:
    """The poses of one video from its only file, or from one file for each frame. Raises UserError.

    If there are several files, the number at the end of a file's name is its frame number.
    """
    numbers = [frame_number(file.stem) for file in files] if len(files) > 1 else [None]
    parts = [read_file(file, number) for file, number in zip(files, numbers, strict=True)]
    with_people = [part for part in parts if part.detections] or parts[:1]
    formats = sorted({part.format for part in with_people})
    if len(formats) > 1:
        names = ", ".join(formats)
        raise UserError(
            f"the files of {video}, such as {files[0]}, have several formats ({names}); keep the files of one format"
        )
    whole = with_people[0]
    for part in parts:
        if part is not whole:
            whole.detections += part.detections
            whole.frames |= part.frames
    whole.file = str(files[0])
    counts = sorted(whole.num_joints())
    if len(counts) > 1:
        raise UserError(
            f"{files[0]} has people with {' and '.join(map(str, counts))} joints; all must have the same number"
        )
    return whole


def read_file(file: Path, number: int | None) -> Recording:
    """The poses in a file for frame number `number`, or for a whole video if `number` is None. Raises UserError."""
    try:
        recording = _read(file, number)
    except (UserError, KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        if reason.startswith(str(file)):
            raise
        raise UserError(f"{file}, {reason}; the file should be {KNOWN}") from None
    if recording is None:
        raise UserError(f"{file} is in no format that is known here; the file should be {KNOWN}")
    return recording


def _read(file: Path, number: int | None) -> Recording | None:
    if file.suffix == ".json":
        return read_json(load_json(file), number)
    if file.stat().st_size > MAX_BYTES:
        raise UserError(f"{file} is larger than {MAX_BYTES >> 30} GiB; split it into one file for each video")
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    return ntu.read(text) if file.suffix == ".skeleton" else yolo.read(text, number or 0)


def read_json(content: Any, number: int | None) -> Recording | None:
    """The poses in the content of a JSON file, or None if its format is not known. Raises UserError."""
    for reader in (openpose, mmpose, mediapipe, coco):
        recording = reader.read(content, number)
        if recording is not None:
            return recording
    return None
