"""Generates the data set of the demo, H.264 videos and skeletons (`python -m pipelines.demo --out DIR`).

The data set resembles NTU and has 12 classes in 4 groups. The classes of a MOTION_ONLY pair look the same in single
frames, and only the order or the tempo of the motion differs. The classes of a COLOUR_ONLY pair have the same joints,
and only the look of the object in the hands differs. One training video breaks off in the middle and cannot be
opened. One training clip has no skeleton: all joints of its one person are zero.
"""

import contextlib
import fcntl
import hashlib
import json
import multiprocessing
import os
import pickle
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from kernels.json_files import read_json
from kernels.program import UserError, die_with_parent
from kernels.whole_files import whole_file, write_whole
from pipelines.demo.classes import TRAIN, VAL, ClipId, DemoConfig, clip_ids
from pipelines.demo.clip import annotate, write_clip
from pipelines.progress import Progress

GENERATOR = 4  # raise this number when the same DemoConfig produces different data, so that old folders are replaced
RECORD, ANNOTATIONS, VIDEOS = "demo.json", "annotations.pkl", "videos"


def make_demo(root: Path, config: DemoConfig, workers: int = 1) -> Path:
    """Generate the data set in the folder `root`, and return the path of its annotations.

    The folder contains videos/<name>.mp4, annotations.pkl (docs/sources.md, "Annotation files") and demo.json. If some
    files for this `config` exist, only the missing ones are made. Files of a different `config` are replaced. The bytes
    of all files depend on `config` and on the versions of libraries, not on `workers`, the number of processes.

    Raises UserError if the folder cannot be written or contains files that the demo did not make.
    """
    try:
        with alone(root):
            claim(root, config)
            make_missing(root, config, workers)
    except OSError as error:
        raise UserError(
            f"the demo's data cannot be written to {root} ({error.strerror or error}); choose another folder"
        ) from error
    return root / ANNOTATIONS


def make_missing(root: Path, config: DemoConfig, workers: int) -> None:
    """Write those videos and annotations that are not in `root` yet."""
    clips, videos, annotations = clip_ids(config), root / VIDEOS, root / ANNOTATIONS
    missing = [clip for clip in clips if not (videos / f"{clip.name}.mp4").exists()]
    if missing:
        for part in videos.glob("*.tmp*"):  # left behind by a run that was killed
            part.unlink()
        write_videos(missing, config, videos, workers)
    if not annotations.exists():
        splits = {split: [clip.name for clip in clips if clip.split == split] for split in (TRAIN, VAL)}
        content = {"split": splits, "annotations": [annotate(config, clip) for clip in clips]}
        write_whole(annotations, pickle.dumps(content, protocol=4))


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """Let one process at a time work on a folder. The operating system releases the lock of a killed process."""
    root.mkdir(parents=True, exist_ok=True)
    folder = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def claim(root: Path, config: DemoConfig) -> None:
    """Prepare the folder `root`: remove the data of a different config, and record `config` in demo.json.

    Raises UserError if there are files that the demo did not make.
    """
    record, videos = root / RECORD, root / VIDEOS
    content = {"generator": GENERATOR, "config": asdict(config)}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    previous = recorded_digest(record)
    if previous == digest:
        return
    if previous is None and videos.exists() and any(videos.iterdir()):
        raise UserError(
            f"{videos} contains files that the demo did not make; choose another folder, or move these files away"
        )
    for file in (root / ANNOTATIONS, root / LABELS):
        if previous is None and file.exists():
            raise UserError(
                f"{file} was not made by the demo, which would replace it; choose another folder (to train on your own "
                "data, use --exp custom)"
            )
    videos.mkdir(parents=True, exist_ok=True)
    (root / ANNOTATIONS).unlink(missing_ok=True)
    for file in videos.glob("*.mp4"):
        file.unlink()
    write_whole(record, json.dumps({"digest": digest, **content}, indent=1).encode())


def recorded_digest(record: Path) -> str | None:
    """The digest in the file demo.json, or None if there is no file with a digest."""
    try:
        return str(read_json(record)["digest"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def write_videos(clips: list[ClipId], config: DemoConfig, videos: Path, workers: int) -> None:
    """Draw and encode the videos of `clips`, with a progress bar. If `workers` is 1, no other process is started."""
    job = partial(write_clip, config, folder=videos)
    if workers == 1:
        watch(map(job, clips), len(clips))
        return
    spawn = multiprocessing.get_context("spawn")
    # Workers of a killed run could otherwise disturb the next run.
    end_with_us = partial(die_with_parent, os.getpid())
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=end_with_us) as pool:
        watch(pool.map(job, clips), len(clips))


def watch(names: Iterable[str], total: int) -> None:
    """Show progress while `names` makes clips: this iterator makes each clip before it yields the clip's name.

    total: number of clips.
    """
    with Progress(Console(stderr=True), "demo videos", total) as progress:
        for _ in names:
            progress.advance()


LABELS, KEYPOINTS = "labels.csv", "keypoints"


def write_own(root: Path, config: DemoConfig) -> Path:
    """Write labels.csv and keypoints/NAME.npz beside the videos, and return the path of labels.csv.

    With these files, the demo's videos can be used like a user's own videos ("Your own videos" in docs/).
    """
    (root / KEYPOINTS).mkdir(parents=True, exist_ok=True)
    lines = ["video,label,split"]
    for clip in clip_ids(config):
        lines.append(f"{clip.name}.mp4,{clip.label},{'train' if clip.split == TRAIN else 'val'}")
        poses = annotate(config, clip)
        keypoint, score = np.asarray(poses["keypoint"]), np.asarray(poses["keypoint_score"])
        with whole_file(root / KEYPOINTS / f"{clip.name}.npz") as part, open(part, "wb") as file:
            np.savez(file, keypoint=keypoint, keypoint_score=score)
    write_whole(root / LABELS, "\n".join(lines) + "\n")
    return root / LABELS
