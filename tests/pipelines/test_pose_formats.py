"""Pose files give the same skeletons in every format that estimators write. The tests make the files from descriptions.

Source of the descriptions: docs/sources.md, "Formats of poses".
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kernels.program import UserError
from pipelines.annotate.folder import PoseFolder, find_files
from pipelines.annotate.formats import yolo as yolo_format
from pipelines.annotate.formats.settle import likely_layout
from pipelines.skeleton import SKELETONS
from pipelines.videos.header import Header

WIDTH, HEIGHT, FRAMES = 640, 480, 12
HEADER = Header(width=WIDTH, height=HEIGHT, frames=FRAMES)
# The names of the 18 joints in OpenPose's COCO layout, in their order.
OPENPOSE_18 = [SKELETONS["openpose28"].names[joint] for joint in range(18)]
# a function of (folder, name of the video, joints by name [T, 2]), which writes the files
Write = Callable[[Path, str, dict], None]


def body(seed: int) -> dict[str, np.ndarray]:
    """Return the positions [T, 2] in pixels of every joint that any layout names, for a walking person."""
    rng = np.random.default_rng(seed)
    names = sorted({name for layout in SKELETONS.values() for name in layout.names})
    path = np.array([200, 160]) + np.arange(FRAMES)[:, None] * (8, 1)
    return {name: path + rng.uniform((0, 0), (150, 250)) for name in names}


def of_layout(joints: dict[str, np.ndarray], names, frame: int) -> np.ndarray:
    return np.array([joints[name][frame] for name in names])


def scored(points: np.ndarray, score: float = 0.9) -> list[float]:
    return np.c_[points, np.full(len(points), score)].ravel().tolist()


def put(file: Path, content) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))


COCO = SKELETONS["coco17"].names
# The frames that show the person: the last frame shows nobody, and in the second video the first frame shows nobody.
SEEN = {"walk0": range(FRAMES - 1), "walk1": range(1, FRAMES - 1)}


def coco_results(folder, name, joints, first=0):
    people = [
        {
            "image_id": f"{t + first:06}.jpg",
            "category_id": 1,
            "keypoints": scored(of_layout(joints, COCO, t)),
            "score": 0.8,
        }
        for t in SEEN[name]
    ]
    put(folder / f"{name}.json", people)


def coco_each_frame(folder, name, joints):
    for t in range(FRAMES):
        people = [{"keypoints": scored(of_layout(joints, COCO, t))}] if t in SEEN[name] else []
        put(folder / name / f"{t:06}.json", people)


def coco_data_set(folder, name, joints):
    """Add a video to the single file with all videos, with visibility flags instead of scores."""
    file = folder / "person_keypoints.json"
    whole = json.loads(file.read_text()) if file.exists() else {"images": [], "annotations": []}
    for t in range(FRAMES):
        image = {
            "id": len(whole["images"]) + 500,
            "file_name": f"{name}/{t + 1:05}.jpg",
            "width": WIDTH,
            "height": HEIGHT,
        }
        whole["images"].append(image)
        if t in SEEN[name]:
            keypoints = scored(of_layout(joints, COCO, t), 2)
            whole["annotations"].append({"image_id": image["id"], "category_id": 1, "keypoints": keypoints})
    put(file, whole)


def mmpose(folder, name, joints):
    frames = []
    for t in range(FRAMES):
        points = of_layout(joints, COCO, t)
        person = {
            "keypoints": points.tolist(),
            "keypoint_scores": [0.9] * 17,
            "bbox": [[0, 0, 9, 9]],
            "bbox_score": 0.9,
        }
        frames.append({"frame_id": t + 1, "instances": [person] if t in SEEN[name] else []})
    put(folder / f"{name}.json", {"meta_info": {"dataset_name": "coco"}, "instance_info": frames})


def mmpose_inferencer(folder, name, joints):
    frames = []
    for t in range(FRAMES):
        person = {"keypoints": of_layout(joints, COCO, t).tolist(), "keypoint_scores": [0.9] * 17}
        frames.append({"frame_id": t, "instances": [person] if t in SEEN[name] else []})
    put(folder / f"{name}.json", frames)


def openpose_of(names) -> Write:
    def write(folder, name, joints):
        for t in range(FRAMES):
            person = {
                "person_id": [-1],
                "pose_keypoints_2d": scored(of_layout(joints, names, t)),
                "face_keypoints_2d": [],
            }
            put(
                folder / f"{name}_{t:012}_keypoints.json",
                {"version": 1.3, "people": [person] if t in SEEN[name] else []},
            )

    return write


def alphapose(folder, name, joints):
    people = [
        {
            "image_id": f"{t}.jpg",
            "category_id": 1,
            "keypoints": scored(of_layout(joints, SKELETONS["halpe26"].names, t)),
            "score": 2.9,
            "box": [0, 0, 9, 9],
            "idx": 1,
        }
        for t in SEEN[name]
    ]
    put(folder / name / "alphapose-results.json", people)


def yolo(folder, name, joints):
    for t in SEEN[name]:
        shares = of_layout(joints, COCO, t) / (WIDTH, HEIGHT)
        put(
            folder / "labels" / f"{name}_{t + 1}.txt",
            " ".join(map(str, [0, 0.5, 0.5, 0.2, 0.4, *scored(shares), 0.8])) + "\n",
        )


def mediapipe(folder, name, joints):
    frames = []
    for t in range(FRAMES):
        shares = of_layout(joints, SKELETONS["mediapipe33"].names, t) / (WIDTH, HEIGHT)
        marks = [{"x": x, "y": y, "z": -0.2, "visibility": 0.9} for x, y in shares.tolist()]
        frames.append({"frame": t, "pose_landmarks": marks if t in SEEN[name] else []})
    put(folder / f"{name}.json", frames)


def ntu(folder, name, joints):
    """Write the joints in pixels of NTU RGB+D's colour images (1920x1080), 2.25 times as large as the test's video."""
    lines = [str(FRAMES)]
    for t in range(FRAMES):
        lines.append("1" if t in SEEN[name] else "0")
        if t in SEEN[name]:
            lines += ["72057594037931101 0 1 1 1 1 0 0.02 -0.1 2", "25"]
            for x, y in (of_layout(joints, SKELETONS["ntu25"].names, t) * 2.25).tolist():
                lines.append(f"0.2 0.1 3.7 280.3 210.1 {x} {y} 0.1 0.2 0.3 0.4 2")
    put(folder / f"{name}.skeleton", "\n".join(lines) + "\n")


def npz(folder, name, joints):
    keypoint = np.stack([of_layout(joints, COCO, t) * (t in SEEN[name]) for t in range(FRAMES)])[None]
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / f"{name}.npz", keypoint=keypoint, keypoint_score=np.full(keypoint.shape[:3], 0.9) * keypoint.any(-1)
    )


FORMATS: dict[str, tuple[Write, str, str]] = {
    "COCO results": (coco_results, "coco17", "COCO keypoints"),
    "COCO each frame": (coco_each_frame, "coco17", "COCO keypoints"),
    "COCO data set": (coco_data_set, "coco17", "COCO keypoints"),
    "MMPose": (mmpose, "coco17", "MMPose"),
    "MMPose inferencer": (mmpose_inferencer, "coco17", "MMPose"),
    "BODY_25": (openpose_of(SKELETONS["body25"].names), "body25", "OpenPose BODY_25"),
    "OpenPose COCO": (openpose_of(OPENPOSE_18), "coco17", "OpenPose COCO (18 joints, of which the neck is left out)"),
    "AlphaPose": (alphapose, "halpe26", "AlphaPose"),
    "YOLO-pose": (yolo, "coco17", "YOLO-pose labels"),
    "MediaPipe": (mediapipe, "mediapipe33", "MediaPipe landmarks"),
    "NTU": (ntu, "ntu25", "NTU .skeleton, colour coordinates"),
    "npz": (npz, "", ".npz"),
}


@pytest.mark.parametrize("kind", list(FORMATS))
def test_each_format_gives_the_same_skeleton_within_a_pixel(tmp_path, kind):
    write, layout, title = FORMATS[kind]
    header = Header(width=854, height=480, frames=FRAMES) if kind == "NTU" else HEADER
    bodies = {f"walk{number}": body(number) for number in range(2)}
    for name, joints in bodies.items():
        write(tmp_path / "poses", name, joints)
    said: list[str] = []
    folder = PoseFolder(tmp_path / "poses", 1)
    folder.survey(dict.fromkeys(bodies, header), said.append)
    assert f"poses: {title}, for 2 of 2 videos" in said
    assert folder.layout == layout
    for name, joints in bodies.items():
        _, poses = folder.poses(name, header)
        names = SKELETONS[layout or "coco17"].names
        assert poses.joints.shape == (1, FRAMES, len(names), 3)
        scale = np.array([header.width / poses.width, header.height / poses.height])
        for t in range(FRAMES):
            if t in SEEN[name]:
                found = poses.joints[0, t, :, :2] * scale
                assert np.abs(found - of_layout(joints, names, t)).max() < 1, t
                assert (poses.joints[0, t, :, 2] > 0.5).all()
            else:
                assert not poses.joints[0, t].any()
    if kind in ("MMPose", "COCO data set", "YOLO-pose"):
        assert any("are numbered from 1" in line for line in said), said


@pytest.mark.parametrize("kind", ["COCO results", "MMPose", "AlphaPose", "MediaPipe", "COCO data set", "npz"])
def test_a_single_file_has_the_skeletons_of_the_only_video(tmp_path, kind):
    FORMATS[kind][0](tmp_path / "poses", "walk0", body(0))
    (file,) = (path for path in (tmp_path / "poses").rglob("*") if path.is_file())
    file = file.rename(tmp_path / f"any name{file.suffix}")
    whole, single = PoseFolder(tmp_path / "poses", 1), PoseFolder(file, 1)
    FORMATS[kind][0](tmp_path / "poses", "walk0", body(0))
    for folder in (whole, single):
        folder.survey({"walk0": HEADER}, lambda _: None)
    np.testing.assert_array_equal(whole.poses("walk0", HEADER)[1].joints, single.poses("walk0", HEADER)[1].joints)


def test_a_single_data_set_has_the_skeletons_of_several_videos(tmp_path):
    for number in range(2):
        coco_data_set(tmp_path, f"walk{number}", body(number))
    file = tmp_path / "person_keypoints.json"
    for names in (["walk0", "walk1"], ["walk1"]):
        folder = PoseFolder(file, 1)
        folder.survey(dict.fromkeys(names, HEADER), lambda _: None)
        for name in names:
            found = folder.poses(name, HEADER)[1].joints[0, 3, :, :2]
            assert np.abs(found - of_layout(body(int(name[-1])), COCO, 3)).max() < 0.01


def test_numbers_of_frames_are_guessed_for_the_whole_folder(tmp_path):
    """Both files number the frames from 1, and b has nobody in its last frame.

    The numbers in b alone could also start at 0. The last frame in a shows that they start at 1.
    """
    joints = body(0)
    for name, last in (("a", FRAMES), ("b", FRAMES - 1)):
        people = [{"image_id": f"{t + 1}.jpg", "keypoints": scored(of_layout(joints, COCO, t))} for t in range(last)]
        put(tmp_path / f"{name}.json", people)
    said: list[str] = []
    folder = PoseFolder(tmp_path, 1)
    folder.survey({"a": HEADER, "b": HEADER}, said.append)
    reason = "the last frame of a has the number 12, and no video has a frame 0"
    assert any(f"numbered from 1: {reason}" in line for line in said)
    for name in "ab":
        found = folder.poses(name, HEADER)[1].joints[0, 3, :, :2]
        assert np.abs(found - of_layout(joints, COCO, 3)).max() < 0.01


def test_a_scale_of_scores_is_not_guessed_from_one_value(tmp_path):
    def said_for(*scores: float) -> tuple[str, np.ndarray]:
        people = [{"frame": t, "keypoints": [5.0, 5.0, score, 9.0, 9.0, 0.5]} for t, score in enumerate(scores)]
        put(tmp_path / "a.json", people)
        said: list[str] = []
        folder = PoseFolder(tmp_path, 1)
        folder.survey({"a": HEADER}, said.append)
        return "\n".join(said), folder.poses("a", HEADER)[1].joints[0, :2, :, 2]

    said, scores = said_for(1.0004, 0.25)
    assert "1 scores of COCO keypoints are not between 0 and 1" in said
    np.testing.assert_allclose(scores, [[1, 0.5], [0.25, 0.5]])
    with pytest.raises(UserError, match=r"a.json.*divide them by their largest possible value"):
        said_for(2.0, 0.25)


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("a.json", [{"image_id": 0, "bbox": [0, 0, 1, 1], "score": 1}], "boxes but no keypoints"),
        ("a.json", {"people": [{"pose_keypoints_3d": [1, 2, 3, 1]}]}, "it has 3-D poses only"),
        ("a.json", {"people": [{"pose_keypoints_2d": [1, 2, 1] * 15}]}, "15 joints, which is neither BODY_25 nor COCO"),
        ("a.json", {"pose_world_landmarks": [{"x": 0.1, "y": 0, "z": 0}] * 33}, "world landmarks only"),
        ("a.json", {"shapes": []}, "in no format that is known here"),
        ("a.txt", "0 0.5 0.5 0.2 0.4\n", "labels of a detector"),
        ("a.txt", "some text\n", "in no format that is known here"),
        ("a.skeleton", "2\n1\n72 0 1 1 1 1 0 0 0 2\n25\n0 0", "the file ends in the middle of a frame"),
        ("a.json", "[" * 70 + "]" * 70, "nested more than 64 deep"),
    ],
)
def test_other_content_is_refused_with_the_reason(tmp_path, file, content, sentence):
    put(tmp_path / file, content)
    with pytest.raises(UserError) as refused:
        PoseFolder(tmp_path, 1).survey({"a": HEADER}, lambda _: None)
    assert sentence in str(refused.value)
    assert str(tmp_path / file) in str(refused.value)


def test_two_videos_never_share_a_file(tmp_path):
    put(tmp_path / "a.json", [])
    with pytest.raises(UserError, match=r"a\.json would be the skeleton of two videos, x/a and y/a"):
        find_files(tmp_path, ["x/a", "y/a"])
    put(tmp_path / "y" / "a.json", [])
    assert find_files(tmp_path, ["y/a"]) == {"y/a": [tmp_path / "y/a.json"]}
    put(tmp_path / "a.txt", "")
    with pytest.raises(UserError, match=r"a\.json and .*a\.txt both have the name of the video a; keep one"):
        find_files(tmp_path, ["a"])


def test_the_order_of_joints_is_guessed_by_the_length_of_limbs(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("body25", "ntu25"):
        layout, place = SKELETONS[name], {}
        for first, second in sorted(
            layout.limbs,
        ):
            place.setdefault(first, place.get(second, np.zeros(2)) + rng.normal(0, 20, 2))
            place.setdefault(second, place[first] + rng.normal(0, 20, 2))
        points = np.array([place.get(joint, np.zeros(2)) for joint in range(25)])
        assert likely_layout(np.c_[points, np.ones(25)][None]) == name


def test_files_that_contradict_each_other_are_refused(tmp_path):
    joints = body(0)
    for name, first in (("a", 0), ("b", 1)):
        people = [{"frame": t + first, "keypoints": scored(of_layout(joints, COCO, t))} for t in range(FRAMES)]
        put(tmp_path / f"{name}.json", people)
    with pytest.raises(
        UserError, match=r"a\.json are numbered from 0, but those of .*b\.json from 1 to 12, .* in the same way"
    ):
        PoseFolder(tmp_path, 1).survey({"a": HEADER, "b": HEADER}, lambda _: None)
    openpose_of(SKELETONS["body25"].names)(tmp_path, "walk0", joints)
    put(tmp_path / "walk0_000000000003_keypoints.json", [{"keypoints": scored(of_layout(joints, COCO, 3))}])
    with pytest.raises(
        UserError, match=r"have several formats \(COCO keypoints, OpenPose BODY_25\); keep the files of one"
    ):
        PoseFolder(tmp_path, 1).survey({"walk0": HEADER}, lambda _: None)


def test_people_keep_the_tracks_of_the_estimator(tmp_path):
    """Two people exchange their places between two frames. Matching people by overlapping boxes would confuse them."""
    left, right = np.full((17, 2), 50.0) + np.arange(17)[:, None], np.full((17, 2), 90.0) + np.arange(17)[:, None]
    people = []
    for t in range(FRAMES):
        for track, points in ((1, left), (2, right)) if t < 6 else ((1, right), (2, left)):
            people.append({"frame": t, "track_id": track, "keypoints": scored(points), "score": 1.0 / track})
    put(tmp_path / "a.json", people)
    folder = PoseFolder(tmp_path, 2)
    folder.survey({"a": HEADER}, lambda _: None)
    joints = folder.poses("a", HEADER)[1].joints
    assert joints[0, :, 0, 0].tolist() == [50] * 6 + [90] * 6
    assert joints[1, :, 0, 0].tolist() == [90] * 6 + [50] * 6


def test_yolo_writes_the_confidence_the_track_both_or_neither():
    joints = " ".join(["0", *["0.5"] * 4, *["0.25", "0.5", "0.9"] * 17])
    kinds = {"": (None, None), " 0.8": (0.8, None), " 3": (None, "3"), " 0.8 3": (0.8, "3"), " 1 3": (None, "3")}
    for end, expected in kinds.items():
        recording = yolo_format.read(joints + end, 1)
        assert recording is not None
        assert [(person.score, person.track) for person in recording.detections] == [expected]
