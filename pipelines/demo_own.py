"""The demo's clips as a user's own videos, with labels and joints: the example of "Your own videos" in docs/."""

from pathlib import Path

import numpy as np

from pipelines.demo_classes import TRAIN, DemoConfig, clip_ids
from pipelines.demo_clip import annotate

LABELS, KEYPOINTS = "labels.csv", "keypoints"


def write_own(root: Path, config: DemoConfig) -> Path:
    """Write labels.csv (video,label,split) and keypoints/NAME.npz beside the videos; returns the former."""
    (root / KEYPOINTS).mkdir(parents=True, exist_ok=True)
    lines = ["video,label,split"]
    for clip in clip_ids(config):
        lines.append(f"{clip.name}.mp4,{clip.label},{'train' if clip.split == TRAIN else 'val'}")
        poses = annotate(config, clip)
        keypoint, score = np.asarray(poses["keypoint"]), np.asarray(poses["keypoint_score"])
        np.savez(root / KEYPOINTS / f"{clip.name}.npz", keypoint=keypoint, keypoint_score=score)
    (root / LABELS).write_text("\n".join(lines) + "\n")
    return root / LABELS
