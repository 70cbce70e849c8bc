"""Joint layouts: the named layouts of data sets and pose estimators, and a reader for the user's own layouts.

Sources: docs/sources.md, "Joint layouts".
"""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kernels.json_files import read_json
from kernels.program import UserError

Edges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Skeleton:
    """A joint layout."""

    num_joints: int
    """Number of joints of a person."""
    pairs: Edges
    """The (left, right) joints that swap places when a clip is mirrored."""
    limbs: Edges
    """The two joints of each limb."""
    names: tuple[str, ...] = ()
    """The name of each joint. Old snapshots contain no names. If this is empty, the names are those of the skeleton in
    SKELETONS that has the same partners and limbs, if there is one.
    """

    def __post_init__(self) -> None:
        if self.num_joints < 1:
            raise UserError(f"a skeleton has {self.num_joints} joints: list at least one")
        if len(self.names) not in (0, self.num_joints):
            raise UserError(f"a skeleton has {len(self.names)} names for {self.num_joints} joints: name each joint")
        if twice := [name for name, count in Counter(self.names).items() if count > 1]:
            raise UserError(f"a skeleton has two joints with the name {twice[0]}: rename one of them")
        for what, edges in (("partners", self.pairs), ("a limb", self.limbs)):
            for edge in edges:
                for joint in edge:
                    if not 0 <= joint < self.num_joints:
                        raise UserError(
                            f"a skeleton has {what} {edge[0]} and {edge[1]}, but its joints are 0 to "
                            f"{self.num_joints - 1}: correct the number"
                        )
                if edge[0] == edge[1]:
                    raise UserError(
                        f"a skeleton has {what} from {self.joint(edge[0])} to itself: name two different joints"
                    )
        for joint, count in Counter(joint for pair in self.pairs for joint in pair).items():
            if count > 1:
                raise UserError(f"a skeleton has two partners for {self.joint(joint)}: leave one of them out")
        for limb, count in Counter(frozenset(limb) for limb in self.limbs).items():
            if count > 1:
                ends = " to ".join(self.joint(joint) for joint in sorted(limb))
                raise UserError(f"a skeleton has the limb from {ends} twice: leave one of them out")
        for known in SKELETONS.values() if not self.names else ():
            same_limbs = (known.num_joints, known.limbs) == (self.num_joints, self.limbs)
            if same_limbs and np.array_equal(known.partner(), self.partner()):
                object.__setattr__(self, "names", known.names)
                object.__setattr__(self, "pairs", known.pairs)

    def __str__(self) -> str:
        """The name of the layout, or its number of joints if it has no name."""
        return next((name for name, known in SKELETONS.items() if known == self), f"{self.num_joints} joints")

    def joint(self, number: int) -> str:
        """The name of a joint, or `joint 5` if the joints have no names."""
        return self.names[number] if self.names else f"joint {number}"

    def partner(self) -> np.ndarray:
        """The joint that each joint becomes in a mirrored clip: [V] int64. A joint in no pair is its own partner."""
        partner = np.arange(self.num_joints)
        for left, right in self.pairs:
            partner[left], partner[right] = right, left
        return partner


def read_skeleton(text: str) -> Skeleton:
    """A layout of SKELETONS by its name, or the one in the JSON file `text` (docs/settings.md, "Skeletons").

    Raises UserError if there is no such layout or file, or if the file does not describe a layout. The message
    does not contain `text`, so the caller adds it.
    """
    if text in SKELETONS:
        return SKELETONS[text]
    path = Path(text)
    if path.suffix != ".json":
        raise UserError(f"there is no such skeleton: use one of {', '.join(SKELETONS)}, or name a .json file")
    try:
        content = read_json(path)
    except OSError as error:
        raise UserError(f"the file cannot be read ({error.strerror}): name a readable .json file") from None
    except UserError:  # raised by read_json if the path is a folder or a pipe
        raise
    except ValueError:
        raise UserError(f"the file is not JSON: {FORM}") from None
    return skeleton_of(content)


FORM = 'write it as {"names": ["nose", ...], "partners": [["left_eye", "right_eye"], ...], "limbs": [[0, 1], ...]}'


def skeleton_of(content: Any) -> Skeleton:
    """The layout that the content of a JSON file describes. Raises UserError."""
    if not isinstance(content, dict) or content.keys() != {"names", "partners", "limbs"}:
        raise UserError(f"a skeleton has names, partners and limbs: {FORM}")
    names = content["names"]
    if not isinstance(names, list) or not all(isinstance(name, str) and name.isprintable() for name in names):
        raise UserError(f"the names of a skeleton are a list of texts: {FORM}")
    place = {name: number for number, name in enumerate(names)}

    def number_of(joint: Any) -> int:
        if type(joint) is int:
            return joint
        if isinstance(joint, str) and joint in place:
            return place[joint]
        raise UserError(f"a skeleton has no joint {joint!r}: use one of its names, or a number from 0")

    edges = {}
    for key in ("partners", "limbs"):
        if not isinstance(content[key], list) or not all(isinstance(e, list) and len(e) == 2 for e in content[key]):
            raise UserError(f"the {key} of a skeleton are a list of pairs of joints: {FORM}")
        edges[key] = tuple((number_of(first), number_of(second)) for first, second in content[key])
    return Skeleton(num_joints=len(names), pairs=edges["partners"], limbs=edges["limbs"], names=tuple(names))


def fitting(num_joints: int) -> str:
    """What clip.skeleton can be for this number of joints, such as `body25 or ntu25`."""
    names = [name for name, known in SKELETONS.items() if known.num_joints == num_joints]
    return " or ".join(names) or f"a .json file that describes your {num_joints} joints (docs/settings.md)"


def layout(names: str, limbs: Edges, pairs: Edges = ()) -> Skeleton:
    """A layout from the names of its joints, separated by spaces. `left_X` and `right_X` are partners, and so are the
    two joints of each of the `pairs`.
    """
    joints = tuple(names.split())
    place = {name: number for number, name in enumerate(joints)}
    sides = tuple(
        (number, place[name.replace("left_", "right_")])
        for number, name in enumerate(joints)
        if name.startswith("left_")
    )
    return Skeleton(num_joints=len(joints), pairs=sides + pairs, limbs=limbs, names=joints)


_COCO_NAMES = (
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist "
    "right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle"
)
COCO_17 = layout(
    _COCO_NAMES,
    limbs=(
        *((0, 1), (0, 2), (1, 3), (2, 4), (0, 5), (0, 6), (5, 7), (7, 9), (6, 8), (8, 10)),
        *((5, 11), (6, 12), (11, 13), (13, 15), (12, 14), (14, 16)),
    ),
)

# The limbs of PoseC3D in their published order, which is the order of the channels in published weights. They are the
# limbs of COCO_17 and a limb from hip to hip. SKELETONS does not contain this layout, because an annotation file does
# not show which of the two layouts it has.
COCO_17_POSEC3D = replace(
    COCO_17,
    limbs=(
        *((0, 5), (0, 6), (5, 7), (7, 9), (6, 8), (8, 10), (5, 11), (11, 13), (13, 15), (6, 12), (12, 14), (14, 16)),
        *((0, 1), (0, 2), (1, 3), (2, 4), (11, 12)),
    ),
)
# 28 joints: OpenPose's 18 body joints, then five finger joints at the left wrist (7) and five at the right wrist (4).
OPENPOSE_28 = layout(
    "nose neck right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist right_hip right_knee "
    "right_ankle left_hip left_knee left_ankle right_eye left_eye right_ear left_ear "
    "left_finger1 left_finger2 left_finger3 left_finger4 left_finger5 "
    "right_finger1 right_finger2 right_finger3 right_finger4 right_finger5",
    limbs=(
        *((4, 3), (3, 2), (7, 6), (6, 5), (13, 12), (12, 11), (10, 9), (9, 8), (11, 5), (8, 2), (5, 1), (2, 1)),
        *((0, 1), (15, 0), (14, 0), (17, 15), (16, 14)),
        *((finger, 4) for finger in range(23, 28)),
        *((finger, 7) for finger in range(18, 23)),
    ),
)
# The published PCAN does not swap the fingers when it mirrors a clip (docs/sources.md, "Joint layouts").
OPENPOSE_28_PUBLISHED = replace(OPENPOSE_28, pairs=tuple(pair for pair in OPENPOSE_28.pairs if max(pair) < 18))

BODY_25 = layout(
    "nose neck right_shoulder right_elbow right_wrist left_shoulder left_elbow left_wrist mid_hip right_hip right_knee "
    "right_ankle left_hip left_knee left_ankle right_eye left_eye right_ear left_ear left_big_toe left_small_toe "
    "left_heel right_big_toe right_small_toe right_heel",
    limbs=(
        *((1, 8), (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (8, 9), (9, 10), (10, 11), (8, 12), (12, 13)),
        *((13, 14), (1, 0), (0, 15), (15, 17), (0, 16), (16, 18), (14, 19), (19, 20), (14, 21)),
        *((11, 22), (22, 23), (11, 24)),
    ),
)
HALPE_26 = layout(
    f"{_COCO_NAMES} head neck hip left_big_toe right_big_toe left_small_toe right_small_toe left_heel right_heel",
    limbs=(
        *((15, 13), (13, 11), (11, 19), (16, 14), (14, 12), (12, 19), (17, 18), (18, 19), (18, 5), (5, 7), (7, 9)),
        *((18, 6), (6, 8), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
        *((15, 20), (15, 22), (15, 24), (16, 21), (16, 23), (16, 25)),
    ),
)

# COCO-WholeBody: 17 body joints, 6 of the feet, 68 of the face (from 23), 21 of each hand (from 91 and 112).
_FINGERS = ("thumb", "forefinger", "middle_finger", "ring_finger", "pinky_finger")
_HANDS = " ".join(
    f"{side}_hand_root " + " ".join(f"{side}_{finger}{part}" for finger in _FINGERS for part in (1, 2, 3, 4))
    for side in ("left", "right")
)


def _mirrored(first: int, last: int) -> Edges:
    """The partners (left, right) among the points `first` to `last` of the face, which lie in a row from the person's
    right to the left.
    """
    return tuple((23 + last - i, 23 + first + i) for i in range((last - first + 1) // 2))


_FACE = (
    *(pair for first, last in ((0, 16), (17, 26), (31, 35)) for pair in _mirrored(first, last)),  # jaw, brows, nose
    *(pair for first, last in ((48, 54), (55, 59), (60, 64), (65, 67)) for pair in _mirrored(first, last)),  # lips
    *((23 + left, 23 + right) for left, right in ((45, 36), (44, 37), (43, 38), (42, 39), (47, 40), (46, 41))),  # eyes
)
COCO_133_BODY = layout(
    f"{_COCO_NAMES} left_big_toe left_small_toe left_heel right_big_toe right_small_toe right_heel "
    f"{' '.join(f'face{point}' for point in range(68))} {_HANDS}",
    limbs=(
        *((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9)),
        *((8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
        *((15, 17), (15, 18), (15, 19), (16, 20), (16, 21), (16, 22)),
        *(
            (wrist if part == 1 else root + 4 * finger + part - 1, root + 4 * finger + part)
            for wrist, root in ((9, 91), (10, 112))
            for finger in range(5)
            for part in (1, 2, 3, 4)
        ),
    ),
    pairs=_FACE,
)
MEDIAPIPE_33 = layout(
    "nose left_eye_inner left_eye left_eye_outer right_eye_inner right_eye right_eye_outer left_ear right_ear "
    "left_mouth right_mouth left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist left_pinky "
    "right_pinky left_index right_index left_thumb right_thumb left_hip right_hip left_knee right_knee left_ankle "
    "right_ankle left_heel right_heel left_foot_index right_foot_index",
    limbs=(
        *((0, 1), (1, 2), (2, 3), (3, 7), (0, 4), (4, 5), (5, 6), (6, 8), (9, 10), (11, 12), (11, 13), (13, 15)),
        *((15, 17), (15, 19), (15, 21), (17, 19), (12, 14), (14, 16), (16, 18), (16, 20), (16, 22), (18, 20)),
        *((11, 23), (12, 24), (23, 24), (23, 25), (24, 26), (25, 27), (26, 28), (27, 29), (28, 30), (29, 31)),
        *((30, 32), (27, 31), (28, 32)),
    ),
)
NTU_25 = layout(
    "spine_base spine_middle neck head left_shoulder left_elbow left_wrist left_hand right_shoulder right_elbow "
    "right_wrist right_hand left_hip left_knee left_ankle left_foot right_hip right_knee right_ankle right_foot spine "
    "left_hand_tip left_thumb right_hand_tip right_thumb",
    limbs=(
        *((0, 1), (1, 20), (2, 20), (3, 2), (4, 20), (5, 4), (6, 5), (7, 6), (8, 20), (9, 8), (10, 9), (11, 10)),
        *((12, 0), (13, 12), (14, 13), (15, 14), (16, 0), (17, 16), (18, 17), (19, 18)),
        *((21, 22), (22, 7), (23, 24), (24, 11)),
    ),
)
SKELETONS = {
    "coco17": COCO_17,
    "openpose28": OPENPOSE_28,
    "openpose28_published": OPENPOSE_28_PUBLISHED,
    "body25": BODY_25,
    "halpe26": HALPE_26,
    "coco133body": COCO_133_BODY,
    "mediapipe33": MEDIAPIPE_33,
    "ntu25": NTU_25,
}
