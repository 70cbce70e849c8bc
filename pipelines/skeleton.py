"""The joint layouts of NTU-60 and MA-52, with left/right pairs and limbs (docs/sources.md, "Joint layouts")."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Skeleton:
    """A joint layout.

    pairs: the (left, right) joints that swap places when a clip is mirrored. limbs: the two joints of each limb.
    """

    num_joints: int
    pairs: tuple[tuple[int, int], ...]
    limbs: tuple[tuple[int, int], ...]

    def partner(self) -> np.ndarray:
        """The joint that each joint becomes in a mirrored clip: [V] int64. A joint in no pair is its own partner."""
        partner = np.arange(self.num_joints)
        for left, right in self.pairs:
            partner[left], partner[right] = right, left
        return partner


COCO_17 = Skeleton(
    num_joints=17,
    pairs=((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
    limbs=(
        *((0, 1), (0, 2), (1, 3), (2, 4), (0, 5), (0, 6), (5, 7), (7, 9), (6, 8), (8, 10)),
        *((5, 11), (6, 12), (11, 13), (13, 15), (12, 14), (14, 16)),
    ),
)

# 28 joints: OpenPose's 18 body joints, then five finger joints at wrist 7 (18-22) and five at wrist 4 (23-27).
_OPENPOSE_28_LIMBS = (
    *((4, 3), (3, 2), (7, 6), (6, 5), (13, 12), (12, 11), (10, 9), (9, 8), (11, 5), (8, 2), (5, 1), (2, 1)),
    *((0, 1), (15, 0), (14, 0), (17, 15), (16, 14)),
    *((finger, 4) for finger in range(23, 28)),
    *((finger, 7) for finger in range(18, 23)),
)
_OPENPOSE_28_PAIRS = ((2, 5), (3, 6), (4, 7), (8, 11), (9, 12), (10, 13), (14, 15), (16, 17))
OPENPOSE_28 = Skeleton(
    num_joints=28,
    pairs=_OPENPOSE_28_PAIRS + tuple((18 + finger, 23 + finger) for finger in range(5)),
    limbs=_OPENPOSE_28_LIMBS,
)
# The published PCAN does not swap the fingers when it mirrors a clip (docs/sources.md, "Joint layouts").
OPENPOSE_28_PUBLISHED = Skeleton(num_joints=28, pairs=_OPENPOSE_28_PAIRS, limbs=_OPENPOSE_28_LIMBS)
