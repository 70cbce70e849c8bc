"""YOLO-pose labels of Ultralytics, one .txt for each frame: class, box, joints, and perhaps confidence and track.

Source: docs/sources.md, "Formats of poses". All coordinates are fractions of the width and height of the image. A joint
is x, y and a visibility or score, or x and y alone. A line is read as 17 joints if possible, and otherwise as any
number of joints.
"""

import numpy as np

from kernels.program import UserError
from pipelines.annotate.formats.recording import OtherFormat, Recording, layout_of

BOX = 5  # how many numbers precede the joints: class, x and y of the centre, width, height
EXTRA = 2  # there are at most this many numbers after the joints: confidence and track
COCO = 17


def read(text: str, number: int) -> Recording | None:
    """The poses in the text of a file about frame `number`, or None if it has another format. Raises UserError."""
    recording = Recording("YOLO-pose labels", frames={number}, unit="shares", usual_first=1)
    for line in text.splitlines():
        try:
            values = [float(word) for word in line.split()]
        except ValueError:
            return None
        if values:
            joints, extra = _joints(values)
            # A confidence is below 1 and comes first; a track is a whole number from 1.
            score = extra[0] if extra and extra[0] < 1 else None
            track = str(int(extra[-1])) if extra and extra[-1] >= 1 else None
            recording.add(number, joints, score, track)
    recording.layout = layout_of(next(iter(recording.num_joints()), 0), ("coco17",))
    return recording


def _joints(values: list[float]) -> tuple[np.ndarray, list[float]]:
    """The joints [V, 3] of a line, and the numbers that follow them."""
    count = len(values) - BOX
    if count <= EXTRA:
        raise OtherFormat("its lines have a box and no joints, so these are labels of a detector; use a pose model")
    for width in (3, 2):
        for extra in range(EXTRA + 1):
            if count - extra == COCO * width:
                return _split(values, COCO, width)
    if count % 3 == 0:
        return _split(values, count // 3, 3)
    raise UserError(f"a line has {len(values)} numbers, but it needs {BOX} for the box and three for each joint")


def _split(values: list[float], num_joints: int, width: int) -> tuple[np.ndarray, list[float]]:
    end = BOX + num_joints * width
    joints = np.array(values[BOX:end]).reshape(num_joints, width)
    if width == 2:
        seen = np.any(joints, axis=1, keepdims=True)  # a joint that was not found is at (0, 0)
        joints = np.concatenate([joints, seen], axis=1)
    return joints, values[end:]
