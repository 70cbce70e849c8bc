"""Reads MMPose's predictions: a list of frames, each with its people in `instances`.

The list is the whole content of the file, or the value of `instance_info` beside `meta_info`.

Source: docs/sources.md, "Formats of poses". The demo scripts count frames from 1 and the inferencer from 0, so
settle.py infers from the numbers which of the two was used. For a single image, the content is the list of people.
"""

from typing import Any

from pipelines.annotate.formats.recording import Recording, frame_number, layout_of, of_dicts, pairs_with_scores

LAYOUTS = ("coco17", "halpe26", "coco133body", "openpose28")


def read(content: Any, number: int | None) -> Recording | None:
    """The poses in the content of a JSON file, or None if it has another format.

    number: the frame number for frames without `frame_id`.
    """
    frames = content.get("instance_info") if isinstance(content, dict) else content
    if of_dicts(frames, "keypoint_scores"):
        frames = [{"frame_id": number, "instances": frames}]
    if not isinstance(frames, list) or not of_dicts(frames, "instances"):
        return None
    recording = Recording("MMPose", complete=True)
    for frame in frames:
        place = frame_number(frame.get("frame_id", number))
        recording.frames.add(place)
        for person in frame["instances"]:
            joints = pairs_with_scores(person["keypoints"], person.get("keypoint_scores"))
            score, track = person.get("bbox_score"), person.get("track_id")
            recording.add(place, joints, score if isinstance(score, float) else None, str(track) if track else None)
    recording.layout = layout_of(next(iter(recording.num_joints()), 0), LAYOUTS)
    return recording
