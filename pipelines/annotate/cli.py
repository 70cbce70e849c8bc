"""The command line of `python -m pipelines.annotate`."""

from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from kernels.program import UserError
from pipelines.annotate.labels import read_labels
from pipelines.annotate.make import advice, annotate, estimates_in, files_of, write


def main(
    videos: Annotated[Path, tyro.conf.Positional],
    labels: Annotated[Path, tyro.conf.Positional],
    /,
    out: Path,
    poses: Path | None = None,
    people: int = 2,
) -> None:
    """Make an annotation pickle of your own videos: python -m pipelines.annotate videos/ labels.csv --out my.pkl

    Args:
        videos: folder of the videos
        labels: CSV file with a line `video,label` or `video,label,split` a clip, split being train or val
        out: the pickle to write
        poses: folder with a NAME.json or NAME.npz of keypoints a video (default: they are estimated, extra `pose`)
        people: people to keep of a clip at most
    """
    console = Console(stderr=True)
    if people < 1:
        raise UserError(f"--people {people}: at least one person is needed")
    listed = read_labels(labels)
    source = files_of(poses, people) if poses else estimates_in(out.with_name(f"{out.stem}_poses"), people)
    clips = annotate(videos, listed, source, console)
    splits = write(out, clips, listed)
    usable = [clip for clip in clips if isinstance(clip, dict)]
    empty = sum(not clip["keypoint_score"].any() for clip in usable)
    counts = ", ".join(f"{len(members)} in {name}" for name, members in splits.items())
    print(f"{out}: {counts}, {max(listed.labels) + 1} classes, {empty} clips without a person")
    for reason in clips:
        if isinstance(reason, str):
            print(f"left out: {reason}")
    print(advice(out, videos, listed, usable[0]["keypoint"].shape[2]))
