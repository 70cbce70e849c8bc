"""The demo's data set, made once, from nothing: real H.264 files and skeletons. `python -m pipelines.demo --out DIR`

An NTU-like set of 12 classes in 4 groups. In the pairs MOTION_ONLY every single frame of the two classes looks
alike and only the order or tempo of the joints tells them apart; in the pairs COLOUR_ONLY the joints are alike
and only the held object's look differs. One training video is cut in half and cannot be opened; one training
clip has no skeleton (M = 1, all zeros).
"""

import contextlib
import fcntl
import hashlib
import json
import multiprocessing
import os
import pickle
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from kernels.program import UserError
from pipelines.demo.classes import TRAIN, VAL, ClipId, DemoConfig, clip_ids
from pipelines.demo.clip import annotate, write_clip
from pipelines.progress import Progress

GENERATOR = 3  # raise it whenever the same DemoConfig yields other data, so that old folders are made anew
RECORD, ANNOTATIONS, VIDEOS = "demo.json", "annotations.pkl", "videos"


def make_demo(root: Path, config: DemoConfig, workers: int = 1) -> Path:
    """Make the data set under `root`, or what is missing of it, and return the path of its annotations.

    Layout: videos/<name>.mp4, annotations.pkl with splits (docs/sources.md, "Annotation files"), demo.json.
    Bytes depend on `config` and the versions of the libraries, not on `workers`. A complete folder of the same
    config is left as it is; one of another config is replaced; a folder with foreign videos is refused.
    """
    try:
        with alone(root):
            claim(root, config)
            make_missing(root, config, workers)
    except OSError as error:
        raise UserError(
            f"{root} cannot take the demo's data ({error.strerror or error}): name another folder"
        ) from error
    return root / ANNOTATIONS


def make_missing(root: Path, config: DemoConfig, workers: int) -> None:
    """Write the videos and annotations that `root` lacks."""
    clips, videos, annotations = clip_ids(config), root / VIDEOS, root / ANNOTATIONS
    missing = [clip for clip in clips if not (videos / f"{clip.name}.mp4").exists()]
    if missing:
        for part in videos.glob("*.tmp"):  # of a run that was killed
            part.unlink()
        write_videos(missing, config, videos, workers)
    if not annotations.exists():
        splits = {split: [clip.name for clip in clips if clip.split == split] for split in (TRAIN, VAL)}
        content = {"split": splits, "annotations": [annotate(config, clip) for clip in clips]}
        write_whole(annotations, pickle.dumps(content, protocol=4))


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """One process at a time works on a folder; the kernel frees the lock of a killed one."""
    root.mkdir(parents=True, exist_ok=True)
    folder = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def claim(root: Path, config: DemoConfig) -> None:
    """Leave `root` holding videos of this very config only, and a record that says so."""
    record, videos = root / RECORD, root / VIDEOS
    content = {"generator": GENERATOR, "config": asdict(config)}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    found = recorded(record)
    if found == digest:
        return
    if found is None and videos.exists() and any(videos.iterdir()):
        raise UserError(f"{videos} holds files that the demo did not make: name another folder, or move them away.")
    for file in (root / ANNOTATIONS, root / LABELS):
        if found is None and file.exists():
            raise UserError(
                f"{file} was not made by the demo, which would replace it: name another folder (your own data are "
                "trained with --exp custom)"
            )
    videos.mkdir(parents=True, exist_ok=True)
    (root / ANNOTATIONS).unlink(missing_ok=True)
    for file in videos.glob("*.mp4"):
        file.unlink()
    write_whole(record, json.dumps({"digest": digest, **content}, indent=1).encode())


def recorded(record: Path) -> str | None:
    """The digest in a demo.json; None where there is no such file of ours."""
    try:
        return str(json.loads(record.read_text())["digest"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def write_whole(file: Path, content: bytes) -> None:
    """A reader sees the old file or the new one, never a part."""
    part = file.with_suffix(".tmp")
    part.write_bytes(content)
    part.replace(file)


def write_videos(clips: list[ClipId], config: DemoConfig, videos: Path, workers: int) -> None:
    """Draw and encode `clips`, in `workers` processes where that is more than one, under a progress bar."""
    job = partial(write_clip, config, folder=videos)
    if workers == 1:
        watch(map(job, clips), len(clips))
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=die_with_parent) as pool:
        watch(pool.map(job, clips), len(clips))


def die_with_parent() -> None:
    """A killed run must not leave workers behind that write into the folder of the next."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def watch(done: Iterable[str], total: int) -> None:
    """Drain `done` under a progress bar."""
    with Progress(Console(stderr=True), "demo videos", total) as progress:
        for _ in done:
            progress.advance()


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
