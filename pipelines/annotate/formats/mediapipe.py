"""MediaPipe's pose landmarks, dumped as JSON: for each frame 33 landmarks with x, y, z and visibility.

Source: docs/sources.md, "Formats of poses". x and y are fractions of the width and height of the image, and z is a
depth that is not used. There are files with a list of frames, and files with a dict of frames by frame number; a frame
is a list of 33 landmarks, a list of such lists (one for each person), or a dict that contains one of these.
"""

from typing import Any

import numpy as np

from pipelines.annotate.formats.recording import OtherFormat, Recording, frame_number, of_dicts

NUM = 33
KEYS = ("pose_landmarks", "poseLandmarks", "landmarks", "landmark")
WORLD = ("pose_world_landmarks", "poseWorldLandmarks", "world_landmarks")
FRAME_KEYS = ("frame", "frame_id", "frame_index", "frameIndex", "image_id")


def read(content: Any, number: int | None) -> Recording | None:
    """The poses in the content of a JSON file, or None if it has another format.

    number: the frame number of a frame that does not contain one. If it is None, the position in the list is used.
    """
    frames = content.get("frames") if isinstance(content, dict) else content
    if isinstance(content, dict) and frames is None:
        if any(key in content for key in (*KEYS, *WORLD)):
            frames = [content]
        elif content and all(str(name).isdecimal() for name in content):
            frames = [{"frame": int(name), "landmarks": value} for name, value in content.items()]
    if isinstance(frames, list) and of_dicts(frames, "x") and len(frames) == NUM:
        frames = [frames if number is None else {"frame": number, "landmarks": frames}]
    if not isinstance(frames, list) or not any(_people(frame) for frame in frames):
        return None
    recording = Recording("MediaPipe landmarks", "mediapipe33", complete=len(frames) > 1, unit="shares")
    for place, frame in enumerate(frames):
        numbers = [frame[key] for key in FRAME_KEYS if key in frame] if isinstance(frame, dict) else []
        default = place if number is None else number
        at = frame_number(numbers[0]) if numbers else default
        recording.frames.add(at)
        for person in _people(frame):
            recording.add(at, person)
    return recording


def _people(frame: Any) -> list[np.ndarray]:
    """The joints [33, 3] of each person in a frame. Raises OtherFormat if there are only landmarks in metres."""
    if isinstance(frame, dict):
        key = next((key for key in KEYS if frame.get(key)), None)
        if key is None:
            if any(frame.get(name) for name in WORLD):
                raise OtherFormat("it has world landmarks only, which are in metres; write pose_landmarks")
            return []
        return _people(frame[key])
    if of_dicts(frame, "x") and len(frame) == NUM:
        return [_person(frame)]
    people = [_people(part) for part in frame] if isinstance(frame, list) and not of_dicts(frame, "x") else []
    return [person[0] for person in people if len(person) == 1]


def _person(landmarks: list[dict]) -> np.ndarray:
    return np.array([[mark["x"], mark["y"], mark.get("visibility", 1.0)] for mark in landmarks], np.float64)
