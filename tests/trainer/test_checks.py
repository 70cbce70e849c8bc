"""A good data set is spoiled in one of many ways. `verify` names the fault, and training refuses the data or warns."""

import copy
import itertools
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from kernels.program import UserError
from pipelines.demo.body import Pose
from pipelines.verify.report import verify
from trainer.data import build_loaders
from trainer.experiments import EXPERIMENTS
from trainer.runtime.ranks import Ranks
from trainer.settings import override

SIZES = [(320, 240), (640, 480), (1920, 1080), (480, 640), (1080, 1296)]
ALONE = Ranks(0, 0, 1, torch.device("cpu"))
CLASSES, CLIPS = 4, 24


def good_data(rng: np.random.Generator) -> dict:
    """Return 24 clips of people who sway and walk a little, all with the same image size and the same number type."""
    width, height = SIZES[rng.integers(len(SIZES))]
    dtype = [np.float16, np.float32, np.float64][rng.integers(3)]
    clips = []
    for number in range(CLIPS):
        frames, people = int(rng.integers(8, 20)), 1 + int(rng.random() < 0.2)
        keypoint = np.zeros((people, frames, 17, 2))
        for person in keypoint:
            body = Pose.standing(np.linspace(0, 1, frames), rng).joints()[..., :2] * (1, -1) + (0, 1)
            scale = height * rng.uniform(0.35, 0.7)
            place = rng.uniform((0.25 * width, 0.25 * height), (0.65 * width, 0.29 * height))
            path = np.linspace(0, rng.uniform(-0.05, 0.05) * width, frames)[:, None, None] * (1, 0)
            person[:] = body * scale + place + path + rng.normal(0, 0.004 * scale, body.shape)
        keypoint[rng.random(keypoint.shape[:3]) < 0.02] = 0  # joints that the estimator did not find
        score = rng.uniform(0.3, 1, keypoint.shape[:3])
        clips.append(
            {
                "frame_dir": f"clip{number:02}",
                "label": number % CLASSES,
                "img_shape": (height, width),
                "original_shape": (height, width),
                "total_frames": frames,
                "keypoint": keypoint.astype(dtype),
                "keypoint_score": score.astype(dtype),
            }
        )
    names = [clip["frame_dir"] for clip in clips]
    return {"split": {"own_train": names[:16], "own_val": names[16:]}, "annotations": clips}


def each_clip(change: Callable[[dict, np.random.Generator], dict]) -> Callable[[dict, np.random.Generator], None]:
    """Return a function that spoils a data set by applying `change` to the fields of every clip."""

    def spoil(data: dict, rng: np.random.Generator) -> None:
        for clip in data["annotations"]:
            clip |= change(clip, rng)

    return spoil


def size_of(clip: dict) -> np.ndarray:
    return np.array(clip["img_shape"][::-1])


def moved(data: dict, rng: np.random.Generator) -> None:
    """Move most joints outside the image, as if the joints belonged to a larger picture."""
    for clip in data["annotations"]:
        clip["keypoint"] = clip["keypoint"].astype(np.float32) + size_of(clip) * rng.uniform(0.7, 1.2)


def never_trained(data: dict, rng: np.random.Generator) -> None:
    train = set(data["split"]["own_train"])
    lost = int(rng.integers(CLASSES))
    data["split"]["own_train"] = [
        clip["frame_dir"] for clip in data["annotations"] if clip["frame_dir"] in train and clip["label"] != lost
    ]


def overlapping(data: dict, rng: np.random.Generator) -> None:
    count = int(rng.integers(1, 9))
    data["split"]["own_val"] += data["split"]["own_train"][:count]


def twice_by_content(data: dict, rng: np.random.Generator) -> None:
    first, second = rng.choice(CLIPS, 2, replace=False)
    copied = {key: value for key, value in data["annotations"][first].items() if key != "frame_dir"}
    data["annotations"][second] |= copied


def twice_by_name(data: dict, rng: np.random.Generator) -> None:
    clip = data["annotations"][rng.integers(CLIPS)]
    other = copy.deepcopy(clip) | {"frame_dir": f"{clip['frame_dir']}{rng.choice(['.mp4', '_rgb', '_rgb.avi'])}"}
    other["keypoint"] = other["keypoint"] + 1
    data["annotations"].append(other)


def three_d(clip: dict, rng: np.random.Generator) -> dict:
    depth = rng.normal(3, 0.5, (*clip["keypoint"].shape[:3], 1))
    return {"keypoint": np.concatenate([clip["keypoint"], depth], axis=-1).astype(np.float32)}


def third_column(clip: dict, rng: np.random.Generator) -> dict:
    low, high = [(-1, 1), (0, 5), (0, 100), (2000, 4000)][rng.integers(4)]
    third = rng.uniform(low, high, (*clip["keypoint"].shape[:3], 1))
    third[0, 0, 0] = high
    keypoint = np.concatenate([clip["keypoint"], third], axis=-1).astype(np.float32)
    return {"keypoint": keypoint, "keypoint_score": None}


def as_float(clip: dict) -> np.ndarray:
    return clip["keypoint"].astype(np.float32)


def upwards(clip: dict) -> np.ndarray:
    keypoint = as_float(clip)
    return np.where(keypoint.any(axis=-1, keepdims=True), (size_of(clip) * (0, 1) - keypoint) * (-1, 1), 0)


def centred(clip: dict, rng: np.random.Generator) -> dict:
    keypoint = as_float(clip)
    # subtracts the mean of the whole clip, or the mean of each person in each frame
    axes = [(1, 2), (2,)][rng.integers(2)]
    return {"keypoint": keypoint - keypoint.mean(axis=axes, keepdims=True)}


def metres(clip: dict, rng: np.random.Generator) -> dict:
    keypoint = as_float(clip)
    return {"keypoint": (keypoint - keypoint.mean(axis=(1, 2), keepdims=True)) * 1.7 / (0.5 * clip["img_shape"][0])}


def constant(clip: dict, rng: np.random.Generator) -> dict:
    return {"keypoint": np.repeat(as_float(clip)[:, :1].clip(1), clip["total_frames"], axis=1)}


def one_point(clip: dict, rng: np.random.Generator) -> dict:
    return {"keypoint": np.full_like(as_float(clip), rng.uniform(5, 100))}


# Maps each way of spoiling to the function that spoils the data set, and to a word of the sentence that names the
# fault.
WAYS: dict[str, tuple[Callable[[dict, np.random.Generator], None], str]] = {
    "joints in 0..1": (each_clip(lambda clip, _: {"keypoint": as_float(clip) / size_of(clip)}), "between 0 and 1"),
    "metres": (each_clip(metres), "in metres"),
    "centred": (each_clip(centred), "centred at 0"),
    "times 100": (each_clip(lambda clip, _: {"keypoint": as_float(clip) * 100}), "scaled up"),
    "divided by 100": (each_clip(lambda clip, _: {"keypoint": as_float(clip) / 100}), "scaled down|between 0 and 1"),
    "no scores": (each_clip(lambda clip, _: {"keypoint_score": 0 * clip["keypoint_score"]}), "all scores are 0"),
    "scores below 0": (each_clip(lambda clip, _: {"keypoint_score": clip["keypoint_score"] - 1.5}), "below 0"),
    "some scores below 0": (
        each_clip(lambda clip, _: {"keypoint_score": clip["keypoint_score"].astype(np.float32) - 0.5}),
        "below 0",
    ),
    "scores in per cent": (each_clip(lambda clip, _: {"keypoint_score": clip["keypoint_score"] * 100}), "above 1"),
    "scores to 1.2": (each_clip(lambda clip, _: {"keypoint_score": clip["keypoint_score"] * 1.2}), "above 1"),
    "scores above 1 by rounding": (
        each_clip(lambda clip, _: {"keypoint_score": clip["keypoint_score"] * 0 + 1.001}),
        "above 1 by rounding",
    ),
    "third column": (each_clip(third_column), "is no score"),
    "outside": (moved, "outside the image"),
    "swapped axes": (each_clip(lambda clip, _: {"keypoint": clip["keypoint"][..., ::-1]}), "swapped"),
    "upwards": (
        each_clip(lambda clip, _: {"keypoint": upwards(clip)}),
        "counted upwards",
    ),
    "constant": (each_clip(constant), "constant"),
    "one point": (each_clip(one_point), "constant|same point"),
    "labels from 1": (each_clip(lambda clip, _: {"label": clip["label"] + 1}), "begin at 1|labels from 1"),
    "labels below 0": (each_clip(lambda clip, _: {"label": clip["label"] - 1}), "below 0|labels from -1"),
    "never trained": (never_trained, "never occur in train"),
    "overlap": (overlapping, "training clips too"),
    "twice by content": (twice_by_content, "twice"),
    "twice by name": (twice_by_name, "mean the same video"),
    "3-D": (each_clip(three_d), "three-dimensional"),
}  # fmt: skip


def told_by_verify(file: Path, cache: Path) -> str:
    """Return the warnings and the verdict of `verify`, or the sentence with which it refuses the file."""
    try:
        facts = verify(file, None, cache=cache, console=Console(quiet=True))
    except UserError as error:
        return str(error)
    return "\n".join([*(finding["text"] for finding in facts["findings"]), facts["verdict"]])


def told_by_training(file: Path, cache: Path) -> str:
    """Return what a run says about its data before it trains, or the sentence with which it refuses them."""
    said: list[str] = []
    experiment = override(
        EXPERIMENTS["ntu60_pose"],
        *(f"data.annotations={file}", f"data.cache={cache}", f"data.packs={cache}", "data.split=own"),
        *(f"data.num_classes={CLASSES}", "data.class_names=()", "data.coarse_map=()"),
        *("optim.batch_size=2", "val.batch_size=2"),
    )
    try:
        build_loaders(experiment, ALONE, said.append)
    except UserError as error:
        said.append(str(error))
    return "\n".join(said)


def spoiled(folder: Path, seed: int, way: str) -> tuple[str, str]:
    """Return what `verify` and training say about a data set that WAYS[way] has spoiled. If `way` is '', it is good.

    seed: the seed of the data set and of the fault.
    """
    rng = np.random.default_rng(seed)
    data = good_data(rng)
    if way:
        WAYS[way][0](data, rng)
    for clip in data["annotations"]:
        if clip["keypoint_score"] is None:
            del clip["keypoint_score"]
    file = folder / f"{seed}.pkl"
    file.write_bytes(pickle.dumps(data))
    return told_by_verify(file, folder / "cache"), told_by_training(file, folder / "cache")


def names_the_way(text: str, way: str) -> bool:
    return any(word in text for word in WAYS[way][1].split("|"))


@pytest.mark.parametrize("way", list(WAYS))
def test_a_spoiled_data_set_is_named_by_verify_and_by_training(tmp_path, way):
    seed = list(WAYS).index(way)
    for text in spoiled(tmp_path, seed, way):
        assert names_the_way(text, way), text
        if "labels" not in way:
            assert any(f"clip{number:02}" in text for number in range(CLIPS)), text


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_two_hundred_spoiled_data_sets(tmp_path):
    for seed, way in zip(range(200), itertools.cycle(np.random.default_rng(0).permutation(list(WAYS)))):
        for text in spoiled(tmp_path, 1000 + seed, str(way)):
            assert names_the_way(text, str(way)), (seed, way, text)


@pytest.mark.parametrize("seed", range(5))
def test_a_good_data_set_is_told_nothing(tmp_path, seed):
    assert spoiled(tmp_path, seed, "") == (
        "usable: 24 of 24 clips; no videos were checked, so only networks that read nothing but skeletons can use "
        "the data",
        "",
    )
