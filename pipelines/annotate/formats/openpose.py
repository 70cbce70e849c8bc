"""OpenPose's JSON, one file for each frame: `people` with `pose_keypoints_2d`. AlphaPose can write it too.

Source: docs/sources.md, "Formats of poses". BODY_25 has 25 joints. The 18 joints of the model COCO are converted to
COCO's 17 joints: the neck is left out, and the other joints are reordered.
"""

from typing import Any

from pipelines.annotate.formats.recording import OtherFormat, Recording, frame_number, layout_of, triples

# For each of COCO's 17 joints, its number among OpenPose's 18 joints.
FROM_18 = [0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10]
# Old versions of OpenPose write `pose_keypoints`, and AlphaPose's format cmu has `joints`.
KEYS = ("pose_keypoints_2d", "pose_keypoints", "joints")


def read(content: Any, number: int | None) -> Recording | None:
    """The poses in the content of a JSON file, or None if it has another format. See coco.py for `number`.

    A dict that maps names of images to such contents, as AlphaPose writes it, is read too.
    """
    if not isinstance(content, dict):
        return None
    if _people(content) is None:
        parts = {name: part for name, part in content.items() if isinstance(part, dict) and _people(part) is not None}
        if not parts or len(parts) < len(content):
            return None
        frames = [(frame_number(name), part) for name, part in parts.items()]
    else:
        frames = [(number or 0, content)]
    recording = Recording("OpenPose BODY_25", complete=len(frames) == 1)
    for frame, part in frames:
        recording.frames.add(frame)
        for person in _people(part) or []:
            _add(recording, frame, person)
    return recording


def _people(content: dict) -> list | None:
    people = content.get("people", content.get("bodies"))
    return people if isinstance(people, list) else None


def _add(recording: Recording, frame: int, person: Any) -> None:
    values = next((person[key] for key in KEYS if person.get(key)), None)
    if values is None:
        if person.get("pose_keypoints_3d"):
            raise OtherFormat("it has 3-D poses only; write the 2-D poses (pose_keypoints_2d)")
        return
    joints = triples(values)
    if len(joints) == 18:
        recording.format, joints = "OpenPose COCO (18 joints, of which the neck is left out)", joints[FROM_18]
    elif len(joints) == 17:
        recording.format = "AlphaPose in OpenPose's format"
    elif len(joints) != 25:
        raise OtherFormat(f"it has {len(joints)} joints, which is neither BODY_25 nor COCO; use --model_pose BODY_25")
    recording.layout = layout_of(len(joints), ("body25", "coco17"))
    track = person.get("person_id") or [-1]
    identity = track[0] if isinstance(track, list) else track
    recording.add(frame, joints, None, None if identity == -1 else str(identity))
