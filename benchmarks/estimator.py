"""Measures the time and the errors of the built-in pose estimator, and the additional errors if frames are skipped.

An error is the distance between an estimated joint and the expected one, divided by the diagonal of the box around the
expected person. Each expected person is compared with the nearest person that was estimated in the same frame.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from benchmarks.harness import Result, spread
from benchmarks.records import device_name, provenance, slug, write_record
from pipelines.annotate.estimator import EstimatorOptions, PoseEstimator
from pipelines.annotate.folder import PoseFolder
from pipelines.annotate.keypoints import header_of
from pipelines.demo.classes import DemoConfig, clip_ids
from pipelines.demo.clip import film, stage
from pipelines.videos.find import videos_in

PEOPLE = 2  # the number of people that `annotate` looks for by default
EVERY = (2,)  # values of --every that are compared with estimating every frame


def measure_generated() -> Result:
    """Measure the errors on drawn people, with one frame of each class of the demo.

    The expected joints are those from which the frame was drawn.
    """
    config, errors = DemoConfig(num_train=12, num_val=1, num_frames=(40, 90), rate=30), []
    estimator = estimator_for(1).estimator
    for clip in clip_ids(config)[:12]:
        estimator.restart()
        people = estimator.people(np.asarray(film(config, clip)[0].convert("RGB")))
        estimated = np.array([person.joints for person in people]).reshape(-1, 17, 3)
        errors.append(errors_of(estimated, stage(config, clip).points[:, 0]))
    return "generated", {"error": spread(np.concatenate(errors))}


def measure_real(folder: Path) -> Iterator[Result]:
    """Measure the time per picture, and the errors on the videos in `folder`/videos.

    The expected joints are those in `folder`/keypoints.
    """
    headers = {path.stem: header_of(str(path)) for path in videos_in(folder / "videos")}
    expected = PoseFolder(folder / "keypoints", PEOPLE)
    expected.survey(headers, print)
    estimates: dict[int, list[np.ndarray]] = {every: [] for every in (1, *EVERY)}
    seconds: list[float] = []
    cpu_seconds = 0.0
    for path in videos_in(folder / "videos"):
        for every, joints in estimates.items():
            times = [time.perf_counter()]

            def stop(times: list[float] = times) -> None:
                times.append(time.perf_counter())

            estimator, before = estimator_for(every), time.process_time()
            joints.append(estimator.estimate(str(path), headers[path.stem], PEOPLE, stop).joints)
            if every == 1:
                seconds += np.diff(times).tolist()
                cpu_seconds += time.process_time() - before
    truth = [expected.poses(name, header)[1].joints for name, header in headers.items()]
    yield "picture", {"ms": spread(1000 * np.array(seconds)), "cpu_ms": 1000 * cpu_seconds / len(seconds)}
    yield "real", compared(estimates[1], truth)
    for every in EVERY:
        yield f"every_{every}", compared(estimates[every], estimates[1])


def estimator_for(every: int) -> PoseEstimator:
    options = EstimatorOptions(estimator="blazepose", every=every)
    return PoseEstimator(17, "", options, lambda text: None)


def compared(estimated: list[np.ndarray], expected: list[np.ndarray]) -> dict[str, object]:
    """Return the errors in frames with estimated and expected people, and count the frames with only one of them."""
    errors, both, lost, new = [], 0, 0, 0
    for ours, theirs in zip(estimated, expected, strict=True):
        for frame in range(theirs.shape[1]):
            here, there = (joints[joints[:, frame, :, 2].any(axis=-1), frame] for joints in (ours, theirs))
            both += bool(len(here) and len(there))
            lost += len(there) > 0 == len(here)
            new += len(here) > 0 == len(there)
            errors.append(errors_of(here, there[..., :2]))
    return {"error": spread(np.concatenate(errors)), "frames_of_both": both, "frames_lost": lost, "frames_new": new}


def errors_of(estimated: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return the error of each joint of the expected people [N, V, 2]: [N * V] float, empty if nobody was estimated."""
    if not len(estimated) or not len(expected):
        return np.zeros(0)
    distances = np.linalg.norm(estimated[None, :, :, :2] - expected[:, None], axis=-1)  # [expected, estimated, V]
    nearest = np.take_along_axis(distances, np.median(distances, axis=-1).argmin(axis=1)[:, None, None], axis=1)
    diagonal = np.linalg.norm(np.ptp(expected, axis=1), axis=-1)
    return (nearest[:, 0] / diagonal[:, None]).ravel()


def write_estimator(records: Path, folder: Path | None) -> None:
    """Measure, print each result, and write the record to the folder `records`."""
    results = dict([measure_generated()])
    for key, values in measure_real(folder) if folder else ():
        results[key] = values
    for key, values in results.items():
        Console().print(key, values)
    cpu = torch.device("cpu")
    record = {"part": "estimator", "toy": False, "status": "done", "results": results}
    write_record(records / f"estimator_{slug(device_name(cpu))}.json", record | {"provenance": provenance(cpu)})
