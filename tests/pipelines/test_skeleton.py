"""Joint layouts: layouts that Duet knows by name, and layouts that users describe in a file."""

import json

import numpy as np
import pytest

from kernels.program import UserError
from pipelines.skeleton import COCO_17_POSEC3D, OPENPOSE_28_PUBLISHED, SKELETONS, Skeleton, fitting, read_skeleton
from trainer.experiments import EXPERIMENTS
from trainer.settings import override

OF_THE_MIDDLE = {"nose", "neck", "head", "hip", "mid_hip", "spine_base", "spine_middle", "spine"}


@pytest.mark.parametrize("name", SKELETONS)
def test_left_and_right_swap_and_nothing_else_does(name):
    skeleton = SKELETONS[name]
    assert skeleton.num_joints == int("".join(filter(str.isdigit, name)))
    assert str(skeleton) == name
    partner = skeleton.partner()
    assert (partner[partner] == np.arange(skeleton.num_joints)).all()
    for number, other in enumerate(partner.tolist()):
        joint, mirrored = skeleton.joint(number), skeleton.joint(other)
        if joint.startswith(("left_", "right_")) and not (skeleton == OPENPOSE_28_PUBLISHED and "finger" in joint):
            assert {joint.partition("_")[0], mirrored.partition("_")[0]} == {"left", "right"}
            assert joint.partition("_")[2] == mirrored.partition("_")[2]
        elif not joint.startswith("face"):
            assert number == other
            assert joint in OF_THE_MIDDLE or "finger" in joint
    for left, _ in skeleton.pairs:
        assert skeleton.joint(left).startswith(("left_", "face"))


@pytest.mark.parametrize("name", SKELETONS)
def test_limbs_are_those_of_a_mirror_image_too(name):
    """A mirrored skeleton has the same limbs.

    The published layout with 28 joints is an exception, because a flip does not swap its fingers.
    """
    skeleton = SKELETONS[name]
    partner = skeleton.partner()
    limbs = {frozenset(limb) for limb in skeleton.limbs}
    mirrored = {frozenset(int(partner[joint]) for joint in limb) for limb in skeleton.limbs}
    assert (mirrored == limbs) == (skeleton != OPENPOSE_28_PUBLISHED)


@pytest.mark.parametrize("name", SKELETONS)
def test_a_layout_without_names_is_recognised(name):
    """In old snapshots, a layout has no names, but only the pairs of joints that a flip swaps.

    The old pairs of MA-52's body are in the order (right, left).
    """
    known = SKELETONS[name]
    pairs = tuple((right, left) for left, right in known.pairs)
    assert Skeleton(num_joints=known.num_joints, pairs=pairs, limbs=known.limbs) == known
    other = Skeleton(num_joints=known.num_joints, pairs=pairs[1:], limbs=known.limbs)
    assert (other.names, other.joint(0)) == ((), "joint 0")


# For each layout, the names of some joints by their index. The sources are in docs/sources.md, "Joint layouts".
SPOT_CHECKS = {
    "coco17": {0: "nose", 5: "left_shoulder", 10: "right_wrist", 16: "right_ankle"},
    "openpose28": {1: "neck", 4: "right_wrist", 7: "left_wrist", 14: "right_eye", 18: "left_finger1"},
    "body25": {8: "mid_hip", 11: "right_ankle", 14: "left_ankle", 18: "left_ear", 19: "left_big_toe", 24: "right_heel"},
    "halpe26": {16: "right_ankle", 17: "head", 18: "neck", 19: "hip", 21: "right_big_toe", 25: "right_heel"},
    "coco133body": {
        17: "left_big_toe",
        22: "right_heel",
        23: "face0",
        91: "left_hand_root",
        132: "right_pinky_finger4",
    },
    "mediapipe33": {1: "left_eye_inner", 7: "left_ear", 12: "right_shoulder", 21: "left_thumb", 32: "right_foot_index"},
    "ntu25": {3: "head", 7: "left_hand", 11: "right_hand", 19: "right_foot", 20: "spine", 24: "right_thumb"},
}


@pytest.mark.parametrize("name", SPOT_CHECKS)
def test_joints_are_where_the_sources_put_them(name):
    assert {number: SKELETONS[name].joint(number) for number in SPOT_CHECKS[name]} == SPOT_CHECKS[name]


def test_a_face_is_mirrored_about_its_middle():
    face = SKELETONS["coco133body"].partner()[23:91] - 23
    assert {0: 16, 8: 8, 17: 26, 27: 27, 33: 33, 36: 45, 40: 47, 51: 51, 62: 62, 65: 67}.items() <= dict(
        enumerate(face.tolist())
    ).items()


OWN = {
    "names": ["head", "left hand", "right hand"],
    "partners": [["left hand", 2]],
    "limbs": [[0, 1], [0, "right hand"]],
}


def test_a_file_describes_joints_by_name_or_number(tmp_path):
    (tmp_path / "own.json").write_text(json.dumps(OWN))
    own = read_skeleton(str(tmp_path / "own.json"))
    assert own == Skeleton(
        num_joints=3, pairs=((1, 2),), limbs=((0, 1), (0, 2)), names=("head", "left hand", "right hand")
    )
    assert str(own) == "3 joints"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"partners": [["left hand", "tail"]]}, "no joint 'tail'"),
        ({"partners": [[1, 3]]}, "partners 1 and 3, but its joints are 0 to 2"),
        ({"partners": [[1, 1]]}, "partners from left hand to itself"),
        ({"partners": [[1, 2], [0, 1]]}, "two partners for left hand"),
        ({"limbs": [[2, -1]]}, "a limb 2 and -1, but its joints are 0 to 2"),
        ({"limbs": [["head", "head"]]}, "a limb from head to itself"),
        ({"limbs": [[0, 1], [1, 0]]}, "the limb from head to left hand twice"),
        ({"limbs": [[0, True]]}, "no joint True"),
        ({"limbs": [[0, 1, 2]]}, "the limbs of a skeleton are a list of pairs"),
        ({"names": []}, "a skeleton has 0 joints"),
        ({"names": ["a", "a", "b"], "partners": [], "limbs": []}, "two joints with the name a"),
        ({"names": ["a", 1, "b"]}, "the names of a skeleton are a list of texts"),
        ({"names": "abc"}, "the names of a skeleton are a list of texts"),
        ({"num_joints": 3}, "a skeleton has names, partners and limbs"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path, change, sentence):
    content = {"names": OWN["names"], "partners": [], "limbs": []} | change
    (tmp_path / "own.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        override(EXPERIMENTS["ntu60"], f"clip.skeleton={tmp_path}/own.json")
    assert str(error.value).startswith(f"--set clip.skeleton={tmp_path}/own.json: ")
    assert str(error.value).count("own.json") == 1
    assert ";" not in str(error.value)  # the message leaves out the meaning of the setting
    assert sentence in str(error.value)


def test_a_file_that_is_missing_or_no_json_is_told(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    for text, sentence in (
        (f"{tmp_path}/none.json", "cannot be read"),
        (f"{tmp_path}/deep.json", "is not JSON"),
        ("body24", "there is no such skeleton: use one of coco17"),
    ):
        with pytest.raises(UserError, match=sentence):
            read_skeleton(text)


def test_a_layout_is_proposed_by_its_number_of_joints():
    assert fitting(25) == "body25 or ntu25"
    assert fitting(3) == "a .json file that describes your 3 joints (docs/settings.md)"


def test_the_limbs_of_posec3d_are_the_published_and_fit_mirrored_clips():
    """The mirror image of each limb must be one of the limbs, because it is drawn into the channel of that limb."""
    partner = COCO_17_POSEC3D.partner()
    limbs = {frozenset(limb) for limb in COCO_17_POSEC3D.limbs}
    assert {frozenset(int(partner[joint]) for joint in limb) for limb in limbs} == limbs
    assert limbs - {frozenset(limb) for limb in SKELETONS["coco17"].limbs} == {frozenset((11, 12))}
    # The published indices of left and right limbs (docs/sources.md, "Limb streams").
    sides = [COCO_17_POSEC3D.limbs[number] for number in (0, 2, 3, 6, 7, 8, 12, 14)]
    others = [COCO_17_POSEC3D.limbs[number] for number in (1, 4, 5, 9, 10, 11, 13, 15)]
    assert [tuple(partner[list(limb)]) for limb in sides] == others
