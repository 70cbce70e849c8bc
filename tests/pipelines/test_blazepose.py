"""The built-in pose estimator computes what LiteRT computes from the published files, and needs no internet.

blazepose_litert.npz contains LiteRT's outputs for a picture of the demo. The function `write_litert`, which wrote this
file, needs the packages tflite and ai-edge-litert, and the npm package that convert.py names.
"""

import itertools
import json
import os
import socket
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.annotate.blazepose.estimator import (
    DETECTOR_SIDE,
    LANDMARKS_SIDE,
    LOOK_EVERY,
    BlazePose,
    Square,
    crop,
    run,
    session,
)
from pipelines.demo.classes import DemoConfig, clip_ids
from pipelines.demo.clip import film, stage
from pipelines.videos.decode import decode

EXPECTED = Path(__file__).with_name("blazepose_litert.npz")
CONFIG = DemoConfig(num_train=12, num_val=1, num_frames=(40, 90))
CLIP = clip_ids(CONFIG)[0]


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return film(CONFIG, CLIP)[0].convert("RGB")


def inputs(picture: Image.Image) -> dict[str, np.ndarray]:
    """Return the inputs of both networks. The input of the second network is a rotated part of the picture."""
    whole = Square(picture.width / 2, picture.height / 2, max(picture.size))
    part = Square(picture.width / 2, picture.height / 2, picture.height, 0.3)
    return {
        "detector": crop(picture, whole, DETECTOR_SIDE) * 2 - 1,
        "landmarks": crop(picture, part, LANDMARKS_SIDE),
    }


def excerpt(outputs: list[np.ndarray]) -> list[np.ndarray]:
    """Return the outputs of a network, but at most a tenth of the numbers of a large output, to keep the file small."""
    return [output if output.size < 5000 else output.ravel()[:: max(10, output.size // 5000)] for output in outputs]


def test_the_networks_compute_what_litert_computes(picture):
    expected = np.load(EXPECTED)
    for name, values in inputs(picture).items():
        for number, output in enumerate(excerpt(run(session(name), values))):
            reference = expected[f"{name}{number}"]
            assert np.abs(output - reference).max() <= 1e-3 * max(1, np.abs(reference).max())
            assert np.abs(reference).max() > 0.1


def test_joints_on_a_real_video_are_those_that_were_published_with_it():
    """The keypoints that were published with the videos were also made by BlazePose."""
    folder = Path(os.environ.get("DUET_REAL", "")) / "fight"
    if "DUET_REAL" not in os.environ or not folder.is_dir():
        pytest.skip("there are no real videos: $DUET_REAL names no folder that contains fight/")
    expected = json.loads((folder / "keypoints" / "nofi121.json").read_text())
    people = {entry["frame"]: np.array(entry["keypoints"]).reshape(17, 3) for entry in expected}
    estimator, errors = BlazePose(), []
    for number, frame in enumerate(itertools.islice(decode(str(folder / "videos" / "nofi121.mp4"), 1000), 6)):
        (person,) = estimator.people(frame.to_ndarray(format="rgb24"))
        diagonal = np.linalg.norm(np.ptp(people[number][:, :2], axis=0))
        errors.append(np.linalg.norm((person.joints - people[number])[:, :2], axis=1) / diagonal)
    assert np.median(errors) < 0.005


def test_a_person_is_followed_and_a_new_video_starts_afresh(picture):
    frame, estimator = np.asarray(picture), BlazePose()
    (person,) = estimator.people(frame)
    runs = count_runs(estimator)
    (again,) = estimator.people(frame)
    assert runs == {"detector": 0, "landmarks": 1}  # the estimator follows the person without running the detector
    diagonal = np.linalg.norm(np.ptp(person.joints[:, :2], axis=0))
    assert np.abs(again.joints - person.joints)[:, :2].max() < 0.03 * diagonal
    estimator.restart()
    assert np.array_equal(estimator.people(frame)[0].joints, person.joints)
    assert runs["detector"] == 1


def test_a_person_who_leaves_is_forgotten_and_one_who_comes_is_found(picture):
    frame, estimator = np.asarray(picture), BlazePose()
    grey = np.full_like(frame, 120)
    assert [len(estimator.people(image)) for image in (grey, frame, grey, frame)] == [0, 1, 0, 1]


def test_a_second_person_is_found_while_the_first_is_followed(picture):
    middle = round(stage(CONFIG, CLIP).points[0, 0, :, 0].mean())
    person = np.asarray(picture.crop((middle - 60, 0, middle + 60, picture.height)))
    one, two = (np.concatenate([person, other], axis=1) for other in (np.full_like(person, 120), person))
    estimator = BlazePose()
    counts = [len(estimator.people(image)) for image in [one, *[two] * LOOK_EVERY]]
    assert counts == [1] * LOOK_EVERY + [2]


def count_runs(estimator: BlazePose) -> dict[str, int]:
    """Count, from now on, how often each network of the estimator runs."""
    counts = {"detector": 0, "landmarks": 0}

    class Counted:
        def __init__(self, name: str):
            self.name, self.network = name, getattr(estimator, name)

        def run(self, *arguments):
            counts[self.name] += 1
            return self.network.run(*arguments)

        def get_inputs(self):
            return self.network.get_inputs()

    for name in counts:
        setattr(estimator, name, Counted(name))
    return counts


def write_litert(package: str) -> None:
    from ai_edge_litert.interpreter import Interpreter  # pyright: ignore[reportMissingImports]

    from pipelines.annotate.blazepose.convert import NETWORKS

    expected: dict[str, Any] = {}
    for name, values in inputs(film(CONFIG, CLIP)[0].convert("RGB")).items():
        member, names = NETWORKS[name]
        with tarfile.open(package) as archive:
            network = Interpreter(model_content=archive.extractfile(member).read())
        network.allocate_tensors()
        network.set_tensor(network.get_input_details()[0]["index"], values)
        network.invoke()
        places = {output["name"]: output["index"] for output in network.get_output_details()}
        outputs = excerpt([network.get_tensor(places[key]) for key in names])
        expected |= {f"{name}{number}": output for number, output in enumerate(outputs)}
    np.savez_compressed(EXPECTED, **expected)


@pytest.mark.parametrize("turned", [False, True], ids=["standing", "lying"])
def test_people_are_found_without_the_internet(picture, monkeypatch, turned):
    def refuse(*_):
        raise OSError("no network")

    monkeypatch.setattr(socket, "socket", refuse)
    points = stage(CONFIG, CLIP).points[0, 0]
    if turned:
        points = np.stack([points[:, 1], picture.width - points[:, 0]], axis=1)
        picture = picture.transpose(Image.Transpose.ROTATE_90)
    (person,) = BlazePose().people(np.asarray(picture))
    errors = np.linalg.norm(person.joints[:, :2] - points, axis=1) / np.linalg.norm(np.ptp(points, axis=0))
    assert np.median(errors) < 0.03


if __name__ == "__main__":
    write_litert(sys.argv[1])
