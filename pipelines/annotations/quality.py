"""How good skeletons are: frames without a person, missing joints, and people who jump from frame to frame.

`python -m pipelines.annotate` and `python -m pipelines.verify` print this.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels.names import SHORT, printable
from pipelines.annotations.measures import MEASURES, measure
from pipelines.annotations.table import ClipTable

NAMED = 3  # number of clips that the line "worst skeletons" names


@dataclass(frozen=True, slots=True)
class SkeletonQuality:
    """The quality of the skeletons of N clips.

    names: [N]. nobody: [N], the share of a clip's frames without a person. missing: [N], the share of missing joints;
    only people with at least one joint in a frame count. jumps: [N], the share of the steps from frame to frame in
    which a person jumps (measures.py). frames, joints, steps: [N], the number of frames, joints and steps of each clip,
    to which these three shares refer.
    """

    names: Sequence[str]
    nobody: np.ndarray
    missing: np.ndarray
    jumps: np.ndarray
    frames: np.ndarray
    joints: np.ndarray
    steps: np.ndarray

    @staticmethod
    def of_table(table: ClipTable) -> "SkeletonQuality":
        return _quality(table.names.tolist(), table.measures, table.total_frames, table.num_joints)

    @staticmethod
    def of_clips(clips: Sequence[dict[str, Any]]) -> "SkeletonQuality":
        """The quality of annotations in the published form (docs/sources.md, "Annotation files")."""
        measures = np.zeros(len(clips), MEASURES)
        for number, clip in enumerate(clips):
            people, frames, num_joints, _ = clip["keypoint"].shape
            joints = np.concatenate([clip["keypoint"], clip["keypoint_score"][..., None]], axis=-1, dtype=np.float32)
            sizes = ([people * frames], *([side] for side in clip["img_shape"]), [0], [frames])
            measures[number] = measure(joints.reshape(-1, num_joints, 3), *map(np.array, sizes))[0]
        frames = np.array([clip["total_frames"] for clip in clips])
        return _quality([clip["frame_dir"] for clip in clips], measures, frames, clips[0]["keypoint"].shape[2])

    def worst(self, count: int) -> list[int]:
        """The numbers of the `count` worst clips, worst first. Clips without a fault are left out.

        The worst clip has the largest sum of its shares `nobody`, `missing` and `jumps`.
        """
        faults = self.nobody + self.missing + self.jumps
        return [int(clip) for clip in np.argsort(-faults, kind="stable")[:count] if faults[clip] > 0]

    def describe(self, clip: int) -> str:
        """The faults of one clip, such as `95% of frames without a person, 2% jumps`."""
        return _sentence(float(self.nobody[clip]), float(self.missing[clip]), float(self.jumps[clip])) or "no fault"

    def lines(self) -> list[tuple[str, str]]:
        """What users are told about the skeletons: a name and a text for each fact."""
        pairs = ((self.nobody, self.frames), (self.missing, self.joints), (self.jumps, self.steps))
        shares = [float((share * count).sum() / max(1, count.sum())) for share, count in pairs]
        lines = [("skeletons", _sentence(*shares) or "a person in every frame, no missing joint, no jump")]
        if worst := self.worst(NAMED):
            text = "; ".join(f"{printable(self.names[clip], SHORT)}: {self.describe(clip)}" for clip in worst)
            lines.append(("worst skeletons", text))
        return lines


def _sentence(nobody: float, missing: float, jumps: float) -> str:
    shares = {"of frames without a person": nobody, "of joints missing": missing, "jumps": jumps}
    return ", ".join(f"{percent(share)} {what}" for what, share in shares.items() if share > 0)


def percent(share: float) -> str:
    """A share in per cent, as text. A small share is never shown as 0%."""
    return "less than 0.1%" if 0 < share < 0.001 else f"{share:.{0 if share >= 0.1 or share == 0 else 1}%}"


def _quality(names: Sequence[str], measures: np.ndarray, frames: np.ndarray, num_joints: int) -> SkeletonQuality:
    joints = measures["people"] * num_joints
    return SkeletonQuality(
        names=names,
        nobody=measures["nobody"] / np.maximum(frames, 1),
        missing=(joints - measures["drawn"]) / np.maximum(joints, 1),
        jumps=measures["jumps"] / np.maximum(measures["steps"], 1),
        frames=frames,
        joints=joints,
        steps=measures["steps"],
    )
