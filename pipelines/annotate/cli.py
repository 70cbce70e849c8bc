"""The command line of `python -m pipelines.annotate`."""

from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from kernels.names import printable
from kernels.program import UserError
from pipelines.annotate.advice import training_advice, viewing_advice
from pipelines.annotate.copies import Copies, find_copies
from pipelines.annotate.estimator import DEFAULT, EstimatorOptions
from pipelines.annotate.labels import Labels, read_labels
from pipelines.annotate.make import FilePoses, annotate, estimated_poses, poses_from_files, write
from pipelines.annotate.splitting import split_labels
from pipelines.annotations.quality import SkeletonQuality
from pipelines.progress import Progress
from pipelines.videos.find import MissingVideo, find_videos
from pipelines.videos.turn import Rotation


def main(
    videos: Annotated[Path, tyro.conf.Positional],
    labels: Annotated[Path, tyro.conf.Positional],
    /,
    out: Path,
    poses: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    estimation: tyro.conf.OmitArgPrefixes[EstimatorOptions] = DEFAULT,
    people: int = 2,
    rotation: Rotation = "shown",
    copies: bool = True,
    follow_links: bool = False,
) -> None:
    """Make an annotation file for your own videos: python -m pipelines.annotate videos/ labels.csv --out my.pkl

    Args:
        videos: folder of the videos
        labels: CSV file with a line `video,label` or `video,label,split` per video, or with other columns that its
            first line names: group, subject, camera, source, coarse
        out: annotation file to write, a pickle
        poses: folder with the joints of each video (docs/custom_data.md; default: estimate the joints)
        people: maximum number of people per clip
        rotation: whether skeletons in --poses belong to frames as players show them or as the files store them
        copies: look for copies and mirror images of videos, so that the split keeps them together
        follow_links: follow links that lead out of the folder of the videos; only for a folder that you trust
    """
    console = Console(stderr=True)
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    if people < 1:
        raise UserError(f"--people {people}: the number must be 1 or more")
    if rotation != "shown" and poses is None:
        raise UserError(f"--rotation {rotation} is for skeletons from files: add --poses, or leave --rotation out")
    if poses is not None:
        estimation.refuse_beside("--poses")
    label_table = read_labels(labels)
    stored = out.with_name(f"{out.stem}_poses")
    source = poses_from_files(poses, people, rotation) if poses else estimated_poses(stored, people, estimation, say)
    names = label_table.class_names
    kind = f"{len(names)} words, such as {names[0]}" if names else f"numbers from 0 to {max(label_table.labels)}"
    say(f"labels: {kind}")
    pairs = copies_of(videos, label_table, console, follow_links) if copies and not label_table.groups else []
    label_table = split_labels(label_table, pairs, say)
    clips = annotate(videos, label_table, source, console, follow_links)
    layout = source.folder.layout if isinstance(source, FilePoses) else "coco17"
    splits = write(out, clips, label_table, rotation, layout)
    usable = [clip for clip in clips if isinstance(clip, dict)]
    empty = sum(not clip["keypoint_score"].any() for clip in usable)
    counts = ", ".join(f"{len(members)} in {name}" for name, members in splits.items())
    print(f"{printable(str(out))}: {counts}, {max(label_table.labels) + 1} classes; clips without a person: {empty}")
    quality = SkeletonQuality.of_clips(usable)
    for name, text in quality.lines():
        print(f"{name}: {text}")
    if quality.worst(1):
        print(viewing_advice(out, videos))
    for reason in clips:
        if isinstance(reason, str):
            print(f"left out: {printable(reason)}")
    print(training_advice(out, videos, len(splits["own_train"]), usable[0]["keypoint"].shape[2], layout))


def copies_of(videos: Path, labels: Labels, console: Console, follow_links: bool) -> Copies:
    """The copies among the videos of the labels; none if a video is missing, because `annotate` then stops anyway."""
    files = find_videos(videos, labels.videos, follow_links)
    if any(isinstance(file, MissingVideo) for file in files):
        return []
    with Progress(console, "looking for copies", len(files)) as progress:
        return find_copies(files, progress.advance)
