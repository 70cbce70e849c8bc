"""Determines what pose files do not say, from all videos together: the number of the first frame, and what scores mean.

One video alone is not enough: if nobody is in its first frame, numbers from 0 look like numbers from 1.
"""

from collections import defaultdict
from collections.abc import Callable

import numpy as np

from kernels.program import UserError
from pipelines.annotate.formats.recording import Recording
from pipelines.skeleton import SKELETONS, Skeleton

SLACK = 2  # poses and video may differ in length by this many frames
SLIGHT = 1.1  # scores between 1 and this value come from rounding or interpolation


def settle(recordings: dict[str, Recording], num_frames: dict[str, int], say: Callable[[str], None]) -> None:
    """Number the frames of all recordings from 0, and convert their scores to the range from 0 to 1.

    recordings, num_frames: the poses and the number of frames of each video, by its name. `say` is called with a
    sentence about each guess. Raises UserError.
    """
    groups: dict[str, dict[str, Recording]] = defaultdict(dict)
    for name, recording in recordings.items():
        groups[recording.format][name] = recording
    for kind, group in groups.items():
        say(f"poses: {kind}, for {len(group)} of {len(num_frames)} videos")
        first, reason = first_number(group, num_frames)
        if reason:
            say(f"frames of {kind} are numbered from {first}: {reason}")
        for name, recording in group.items():
            _renumber(recording, first, num_frames[name])
        settle_scores(kind, group, say)


def first_number(group: dict[str, Recording], num_frames: dict[str, int]) -> tuple[int, str]:
    """The number of the first frame, 0 or 1, and why. Raises UserError if files contradict each other."""
    from_0 = [name for name, recording in group.items() if 0 in recording.frames]
    to_last = [name for name, recording in group.items() if max(recording.frames, default=0) == num_frames[name]]
    from_1 = [name for name, recording in group.items() if min(recording.frames, default=0) == 1]
    other = [name for name in to_last if name not in from_0]
    if from_0 and other:
        raise UserError(
            f"the frames of {group[from_0[0]].file} are numbered from 0, but those of {group[other[0]].file} from 1 to "
            f"{num_frames[other[0]]}, the length of the video; write the poses of all videos in the same way"
        )
    if from_0:
        return 0, ""
    if to_last:
        return 1, f"the last frame of {to_last[0]} has the number {num_frames[to_last[0]]}, and no video has a frame 0"
    if len(from_1) > 1 and 2 * len(from_1) > len(group):
        return 1, f"{len(from_1)} of {len(group)} videos begin with frame 1, and none with frame 0"
    usual = next(iter(group.values())).usual_first
    return usual, "no file lists frame 0 or the last frame of its video, so this is a guess" if from_1 or usual else ""


def _renumber(recording: Recording, first: int, num_frames: int) -> None:
    for number in sorted(recording.frames):
        if not first <= number < first + num_frames + (SLACK if recording.complete else 0):
            raise UserError(
                f"{recording.file} has people in frame {number}, but its video has {num_frames} frames; give the file "
                "that was made from this video"
            )
    length = max(recording.frames, default=first) + 1 - first
    if recording.complete and abs(length - num_frames) > SLACK:
        raise UserError(
            f"{recording.file} has {length} frames, but its video has {num_frames}; give the file that was made "
            "from this video, at its own frame rate"
        )
    for detection in recording.detections:
        detection.frame -= first
    recording.detections = [detection for detection in recording.detections if detection.frame < num_frames]
    recording.frames = {number - first for number in recording.frames}


def settle_scores(kind: str, group: dict[str, Recording], say: Callable[[str], None]) -> None:
    """Convert COCO's flags to scores, and clip scores slightly outside 0 to 1. Raises UserError for other scales."""
    people = [detection for recording in group.values() for detection in recording.detections]
    for detection in people:
        detection.joints = np.nan_to_num(detection.joints, nan=0.0, posinf=0.0, neginf=0.0)
    if not people:
        return
    scores = np.concatenate([detection.joints[:, 2] for detection in people])
    low, high = float(scores.min()), float(scores.max())
    if high == 2 and set(np.unique(scores).tolist()) <= {0.0, 1.0, 2.0}:
        say(f"the third number of a joint is COCO's flag in {kind}: 1 and 2 become score 1")
        for detection in people:
            detection.joints[:, 2] = detection.joints[:, 2] > 0
        return
    usual = next(iter(group.values())).clip_scores
    if low < 1 - SLIGHT or (high > SLIGHT and not usual):
        file = next(iter(group.values())).file
        raise UserError(
            f"the scores of {kind} are {low:.4g} to {high:.4g} (for example in {file}), but must be between 0 and 1; "
            "divide them by their largest possible value"
        )
    if low < 0 or high > 1:
        count = int(((scores < 0) | (scores > 1)).sum())
        say(f"{count} scores of {kind} are not between 0 and 1 ({low:.5g} to {high:.5g}) and are clipped")
        for detection in people:
            detection.joints[:, 2] = detection.joints[:, 2].clip(0, 1)


def likely_layout(joints: np.ndarray) -> str:
    """The layout with as many joints as people [N, V, 3] have, or '' if there is none.

    If several layouts have V joints, the one in which the limbs of the people are shortest.
    """
    candidates = {name: known for name, known in SKELETONS.items() if known.num_joints == joints.shape[1]}
    if len(candidates) < 2:
        return next(iter(candidates), "")
    return min(candidates, key=lambda name: _limb_length(joints, candidates[name]))


def _limb_length(joints: np.ndarray, layout: Skeleton) -> float:
    """The mean length of a limb, over the limbs whose two joints have a score above 0."""
    first, second = joints[:, [a for a, _ in layout.limbs]], joints[:, [b for _, b in layout.limbs]]
    seen = (first[..., 2] > 0) & (second[..., 2] > 0)
    lengths = np.linalg.norm(first[..., :2] - second[..., :2], axis=-1)
    return float(lengths[seen].mean()) if seen.any() else np.inf
