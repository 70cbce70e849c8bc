"""Makes annotations in the published form, for tests."""

import pickle
from pathlib import Path

import numpy as np

from pipelines.annotations.table import ClipTable, open_table


def clip(name: str = "S001C001P001R001A001", persons: int = 1, frames: int = 6, joints: int = 17, **changes) -> dict:
    """Return an annotation with random keypoints and scores. `changes` replace fields; the value None removes a field.

    docs/sources.md, "Annotation files", describes the fields.
    """
    rng = np.random.default_rng([*name.encode(), persons, frames])
    whole = {
        "frame_dir": name,
        "label": 3,
        "img_shape": (1080, 1920),
        "original_shape": (1080, 1920),
        "total_frames": frames,
        "keypoint": rng.uniform(1, 1000, (persons, frames, joints, 2)).astype(np.float16),
        "keypoint_score": rng.uniform(0.1, 1, (persons, frames, joints)).astype(np.float16),
    }
    return {key: value for key, value in (whole | changes).items() if value is not None}


def table_of(folder: Path, content, protocol: int = 4) -> ClipTable:
    path = folder / "poses.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    return open_table(path, folder / "cache")
