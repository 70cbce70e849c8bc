"""Builds the training and validation loaders of an experiment.

Clip packs or demo videos that are missing are made first.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from kernels.program import UserError
from models.classes import coarse_names
from pipelines.annotations.checks import absent_findings, label_findings, split_findings
from pipelines.annotations.joint_checks import joint_findings
from pipelines.annotations.schema import AnnotationError
from pipelines.annotations.splits import find_split
from pipelines.annotations.table import ClipTable, open_table
from pipelines.config import DataConfig
from pipelines.demo.classes import COARSE_MAP, COARSE_NAMES
from pipelines.demo.make import ANNOTATIONS, VIDEOS, make_demo
from pipelines.frame_source import FrameSource, NoFrames
from pipelines.loader import Loader
from pipelines.packs.format import PackSettings, read_index
from pipelines.packs.pack import Pack
from pipelines.packs.source import PackFrames
from pipelines.prepare.foresee import foresee
from pipelines.prepare.make import dry_run, open_again, prepare, prepare_shard
from pipelines.prepare.shard import Shard
from pipelines.prepare.survey import joints_digest
from pipelines.prepare.users import User, table_joints
from pipelines.skeleton import fitting
from pipelines.videos.source import VideoFrames, open_videos
from trainer.config import Experiment, no_coarse_heads
from trainer.runtime.precision import precision_of
from trainer.runtime.ranks import Ranks

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]  # the checkout


@dataclass(frozen=True, slots=True)
class Source:
    """The table of an annotation file, and what the frames of its clips are read from: a pack, videos or nothing."""

    table: ClipTable
    frames: FrameSource

    def usable_rows(self, split: str | None) -> np.ndarray:
        """The rows of all clips with a usable video, in one split or, if `split` is None, in the whole table.

        Raises AnnotationError if there is no such clip.
        """
        rows = self.table.rows_in_split(split)
        usable = rows[self.frames.has_frames()[rows]]
        if not len(usable):
            raise AnnotationError(
                f"split {split} has no clip with a usable video; change data.split, or set data.videos to the folder "
                "of the videos"
            )
        return usable


def open_sources(experiment: Experiment, console: Console, device: torch.device = CPU) -> tuple[Source, Source]:
    """The training and the validation source of an experiment. With one annotation file, both are the same object.

    Packs or demo videos that are missing are made first. With data.source=video there are no packs: `device`
    decodes the videos during training. If the network reads only skeletons, videos and packs are not needed.
    """
    tables = open_tables(experiment)
    if "rgb" not in experiment.streams:
        train, *val = [Source(table, NoFrames(len(table))) for table in tables]
    elif experiment.data.source == "video":
        train, *val = [_unpacked(experiment, table, device, console) for table in tables]
    else:
        files = annotation_files(experiment)
        train, *val = [_packed(experiment, table, file, console) for table, file in zip(tables, files, strict=True)]
    return train, val[0] if val else train


def open_tables(experiment: Experiment) -> list[ClipTable]:
    """The tables of the experiment's one or two annotation files. If the demo's data are missing, makes them first."""
    check_place(experiment)
    data = experiment.data
    if data.demo is not None:
        if Path(data.annotations).name != ANNOTATIONS:
            raise UserError(
                f"data.annotations={data.annotations}: {experiment.name} makes its own data, in a file that must be "
                f"named {ANNOTATIONS}; to train on your own data use --exp custom, or add --set data.demo=None"
            )
        if Path(data.videos).resolve() != (Path(data.annotations).parent / VIDEOS).resolve():
            raise UserError(
                f"data.videos={data.videos}: {experiment.name} makes its videos in the folder {VIDEOS} beside "
                f"data.annotations; to keep them in {data.videos}, use "
                f"--set data.annotations={data.videos}/{ANNOTATIONS} --set data.videos={data.videos}/{VIDEOS}, and if "
                "the demo's videos are there already, --set data.demo=None"
            )
        make_demo(Path(data.annotations).parent, data.demo, workers=len(os.sched_getaffinity(0)))
    tables = []
    for file in annotation_files(experiment):
        tables.append(open_table(file, Path(data.cache)))
        check_table(experiment, file, tables[-1])
    names = [table.class_names for table in tables if table.class_names]
    if len(set(names)) > 1:
        raise AnnotationError(
            f"{data.annotations} and {data.val_annotations} name their classes differently; write the same class_names "
            "into both"
        )
    return tables


def check_place(experiment: Experiment) -> None:
    """Raise UserError if the program would make a folder for data outside the checkout, probably by mistake."""
    file = Path(experiment.data.annotations)
    if not (file.is_absolute() or Path(file.parts[0]).exists() or Path.cwd() == ROOT):
        raise UserError(
            f"there is no folder {file.parts[0]} in {Path.cwd()}, which is not the checkout: start again after "
            f"cd {ROOT}, or make this folder for the data"
        )


def annotation_files(experiment: Experiment) -> list[Path]:
    """The experiment's one or two annotation files."""
    return [Path(file) for file in (experiment.data.annotations, experiment.data.val_annotations) if file is not None]


def make_shard(experiment: Experiment, shard: Shard, console: Console) -> None:
    """Make one shard of each pack of an experiment. If the demo's videos are missing, all of them are made first."""
    data, settings = experiment.data, PackSettings.of(experiment.clip, experiment.data.rotation)
    for table, file in zip(open_tables(experiment), annotation_files(experiment), strict=True):
        user, places = User(file, experiment.name), (Path(data.videos), Path(data.packs))
        prepare_shard(table, *places, settings, shard, **_limits(experiment, console), user=user)


def _limits(experiment: Experiment, console: Console) -> dict[str, Any]:
    """Arguments of `prepare` and `open_videos`: which videos are accepted, and which console shows messages."""
    data = experiment.data
    return {"max_bad": data.max_bad, "follow_links": data.follow_links, "console": console}


def num_packed(experiment: Experiment, table: ClipTable) -> int:
    """How many clips of a table are in the experiment's packs already."""
    data, clip = experiment.data, experiment.clip
    packs, digest = Path(data.packs), PackSettings.of(clip, data.rotation).digest()
    clips = read_index(packs).columns
    good = set(clips["joints"][(clips["settings"] == digest) & (clips["num_frames"] > 0)].tolist())
    return sum(joints in good for joints in table_joints(table, packs)) if good else 0


def open_packed(experiment: Experiment, table: ClipTable, rows: np.ndarray) -> Source:
    """The source of these `rows` of a table. No packs are made, so clips that are not packed yet have no frames."""
    data = experiment.data
    if "rgb" not in experiment.streams:
        return Source(table, NoFrames(len(table)))
    if data.source == "video":
        return _unpacked(experiment, table, CPU, Console(quiet=True))
    index, digest = read_index(Path(data.packs)), PackSettings.of(experiment.clip, data.rotation).digest()
    usable = (index.columns["settings"] == digest) & (index.columns["num_frames"] > 0)
    places = dict(zip(index.columns["joints"][usable].tolist(), np.flatnonzero(usable).tolist(), strict=True))
    in_index = np.full(len(table), -1)
    in_index[rows] = [places.get(joints_digest(table, row), -1) for row in rows.tolist()]
    return Source(table, PackFrames(table, Pack.of(Path(data.packs), index, in_index, table.names, {})))


def estimate_packs(experiment: Experiment, console: Console) -> None:
    """Say how many clips of an experiment have to be made, and the time and disk space that this takes."""
    data, settings = experiment.data, PackSettings.of(experiment.clip, experiment.data.rotation)
    for table in open_tables(experiment):
        dry_run(table, Path(data.videos), Path(data.packs), settings, **_limits(experiment, console))


def usable_before_packing(
    experiment: Experiment, table: ClipTable, rows: np.ndarray, known: np.ndarray, console: Console
) -> np.ndarray:
    """Which clips in `rows` of a table will be usable once packs are made: [rows of the table] bool.

    `known`, of the same shape, says which clips were usable before. If videos are decoded without packs, new clips are
    left out.
    """
    data = experiment.data
    if "rgb" not in experiment.streams:
        return np.ones(len(table), bool)
    if data.source == "video":
        return known
    joints, places = table_joints(table, Path(data.cache)), (Path(data.videos), Path(data.packs))
    settings = PackSettings.of(experiment.clip)
    return foresee(table, joints, rows.tolist(), known, *places, settings, console, data.follow_links)


def _packed(experiment: Experiment, table: ClipTable, file: Path, console: Console) -> Source:
    data, user = experiment.data, User(file, experiment.name)
    settings = PackSettings.of(experiment.clip, data.rotation)
    places = Path(data.videos), Path(data.packs)
    pack = prepare(table, *places, settings, **_limits(experiment, console), user=user)
    return Source(table, PackFrames(table, pack))


def _unpacked(experiment: Experiment, table: ClipTable, device: torch.device, console: Console) -> Source:
    data = experiment.data
    videos, cache = Path(data.videos), Path(data.cache)
    options = {"rotation": data.rotation, **_limits(experiment, console)}
    return Source(table, open_videos(table, videos, cache, device, **options))


def check_table(experiment: Experiment, annotations: Path, table: ClipTable) -> None:
    """Raise AnnotationError unless the labels, the names of classes and the number of joints fit the experiment."""
    joints, classes = experiment.clip.skeleton.num_joints, experiment.data.num_classes
    if table.num_joints != joints:
        raise AnnotationError(
            f"{annotations} has {table.num_joints} joints per person, but experiment {experiment.name} needs {joints} "
            f"({experiment.clip.skeleton}); set clip.skeleton to {fitting(table.num_joints)}, or choose another file "
            "with data.annotations"
        )
    if len(table.class_names) not in (0, classes):
        raise AnnotationError(
            f"{annotations} names {len(table.class_names)} classes, but experiment {experiment.name} has {classes}; "
            f"{setting_classes(experiment, len(table.class_names))}"
        )
    low, high = int(table.label.min()), int(table.label.max())
    if low < 0 or (low, high) == (1, classes):
        raise AnnotationError(f"{annotations} has labels from {low} on; number the classes from 0 in this file")
    if high >= classes:
        raise AnnotationError(
            f"{annotations} has labels {low} to {high}, but experiment {experiment.name} has classes 0 to "
            f"{classes - 1}; {setting_classes(experiment, high + 1)}"
        )

    for finding in joint_findings(table, experiment.clip.skeleton):
        if finding.fatal and "pose" in experiment.streams:
            raise AnnotationError(f"{annotations}: {finding.text}")


def split_of(experiment: Experiment, table: ClipTable, train: bool) -> str | None:
    """The split of `table` with the training or the validation clips. None means all clips of a file without splits."""
    data = experiment.data
    return None if data.val_annotations is not None and not table.splits else data.split_for(train)


def warn(experiment: Experiment, loaders: tuple[Loader, Loader], say: Callable[[str], None]) -> None:
    """Say what is suspicious about the clips of the training and of the validation loader.

    Raises AnnotationError if training would be useless, or if the share of a split's clips without
    an annotation exceeds data.max_absent.
    """
    data, tables = experiment.data, [loader.table for loader in loaders]
    findings = split_findings(tables[0], loaders[0].rows, tables[1], loaders[1].rows)
    splits = []
    for table, train in zip(tables, (True, False), strict=True):
        split = split_of(experiment, table, train)
        if split is not None and (name := find_split(table.splits, split)):
            splits.append((table, name))
        if split is None and data.split_for(train) is not None:
            kind = "training" if train else "validation"
            say(f"the file of the {kind} clips has no splits, so all of its {len(table)} clips are used")
    findings += absent_findings(splits, data.max_absent, "--set data.max_absent={0}")
    for table in tables[: 1 if tables[0] is tables[1] else 2]:
        findings += [*label_findings(table, data.num_classes), *joint_findings(table, experiment.clip.skeleton)]
    for finding in findings:
        if finding.fatal and finding.kind in ("absent", "never_trained"):
            raise AnnotationError(f"{data.annotations}: {finding.text}")
        say(f"warning: {finding.text}")


def validating_on(experiment: Experiment, split: str) -> Experiment:
    """The experiment with `split` as its validation split, taken from the annotation file that contains this split.

    If there are two files without splits, `train` means all clips of the first file, and `val` all clips of the second.
    Raises AnnotationError.
    """
    files, data = annotation_files(experiment), experiment.data
    tables = [open_table(file, Path(data.cache)) for file in files]
    for file, table in zip(reversed(files), reversed(tables), strict=True):
        if name := find_split(table.splits, split):
            val_annotations = str(file) if len(files) > 1 else None
            return replace(experiment, data=replace(data, val_split=name, val_annotations=val_annotations))
    if len(files) > 1 and split in ("train", "val"):
        file, table = (files[0], tables[0]) if split == "train" else (files[1], tables[1])
        if not table.splits:
            return replace(experiment, data=replace(data, val_annotations=str(file)))
    names = sorted({name for table in tables for name in table.splits})
    names = names or (["train", "val"] if len(files) > 1 else [])
    advice = f"name one of {', '.join(names)}" if names else "leave --split out, because the file is a plain list"
    raise AnnotationError(f"--split {split}: the annotations have no such split; {advice}")


def setting_classes(experiment: Experiment, count: int) -> str:
    """Advice on how to set the number of classes to `count`: all settings that have to change together."""
    data = experiment.data
    settings = [f"data.num_classes={count}", *(["data.class_names=()"] if data.class_names else [])]
    if not data.coarse_map:
        return f"set {' and '.join(settings)}"
    no_map = ["data.coarse_map=()", *no_coarse_heads(experiment.model)]
    return (
        f"set {' and '.join(settings)}, with a --coarse-map for {count} classes or without coarse classes: "
        f"{' and '.join(no_map)}"
    )


def coarse_names_of(data: DataConfig) -> tuple[str, ...]:
    """The names of an experiment's coarse classes, or an empty tuple if they have no names."""
    is_demo = data.demo is not None and data.coarse_map == COARSE_MAP
    return COARSE_NAMES if is_demo else coarse_names(data.coarse_map)


def with_class_names(experiment: Experiment, table: ClipTable, say: Callable[[str], None]) -> Experiment:
    """The experiment with the class names of its annotation file, unless it has class names already.

    If some of its class names differ from those in the file, `say` gets a sentence with the number of different names
    and the first of them.
    """
    data = experiment.data
    if not data.class_names:
        return replace(experiment, data=replace(data, class_names=table.class_names))
    pairs = enumerate(zip(data.class_names, table.class_names, strict=False))
    others = [(number, own, other) for number, (own, other) in pairs if own != other]
    if others:
        number, own, other = others[0]
        count = f"{len(others)} of {data.num_classes} classes have other names in {data.annotations}"
        first = f"class {number}: {other!r}, not {own!r}"
        say(f"{count} than in data.class_names, whose names are used; the first is {first}")
    return experiment


def build_loaders(experiment: Experiment, ranks: Ranks, say: Callable[[str], None]) -> tuple[Loader, Loader]:
    """The loaders of this rank for training and for validation. Both loaders use the same backends."""
    sources = None
    with ranks.in_turn():
        if ranks.local_rank == 0:
            sources = open_sources(experiment, Console(stderr=True, quiet=not ranks.leads), ranks.device)
    train, val = _shared(experiment, sources, ranks)
    loader = build_loader(experiment, train, True, ranks, say)
    val_loader = replace(build_loader(experiment, val, False, ranks, say), backends=loader.backends)
    warn(experiment, (loader, val_loader), say)
    return loader, val_loader


def _shared(experiment: Experiment, sources: tuple[Source, Source] | None, ranks: Ranks) -> tuple[Source, Source]:
    """The training and the validation source of an experiment. All ranks of a machine call this together.

    Only the machine's first rank has opened the sources and passes them as `sources`. It tells the other ranks which
    clips are usable, so that they need not look at all files, which takes seconds, or minutes on a network file system.
    """
    surveys = ranks.from_machine([_survey(source.frames) for source in sources or ()])
    if sources is not None:
        return sources
    tables, out = open_tables(experiment), Path(experiment.data.packs)
    train, *val = [
        Source(table, _surveyed(experiment, table, survey, out))
        for table, survey in zip(tables, surveys[: len(tables)], strict=True)
    ]
    return train, val[0] if val else train


def _survey(frames: FrameSource) -> tuple:
    """What the first rank of a machine tells the other ranks of the machine about the files of all clips."""
    if isinstance(frames, PackFrames):
        return frames.pack.clips, frames.pack.bad
    if isinstance(frames, VideoFrames):
        return frames.videos, frames.sizes, frames.lengths, frames.fault
    return ()


def _surveyed(experiment: Experiment, table: ClipTable, survey: tuple, packs: Path) -> FrameSource:
    """The frames of a table, for a rank that received `survey` from the first rank of its machine."""
    if "rgb" not in experiment.streams:
        return NoFrames(len(table))
    if experiment.data.source == "video":
        return VideoFrames(table, *survey)
    return PackFrames(table, open_again(table, packs, *survey))


def build_loader(
    experiment: Experiment, source: Source, train: bool, ranks: Ranks, say: Callable[[str], None]
) -> Loader:
    """A loader for the experiment's training or validation split."""
    rows = source.usable_rows(split_of(experiment, source.table, train))
    return loader_of(experiment, source, rows, train, ranks, say)


def loader_of(
    experiment: Experiment, source: Source, rows: np.ndarray, train: bool, ranks: Ranks, say: Callable[[str], None]
) -> Loader:
    """A loader of the clips in these `rows` of the source's table, with the settings of the experiment."""
    loader = Loader(
        table=source.table,
        frames=source.frames,
        rows=rows,
        config=experiment.clip,
        coarse_map=experiment.data.coarse_map or (0,) * experiment.data.num_classes,
        train=train,
        batch_size=(experiment.optim if train else experiment.val).batch_size,
        device=ranks.device,
        dtype=precision_of(experiment.optim.precision, ranks).dtype,
        rank=ranks.rank,
        world_size=ranks.world_size,
        seed=experiment.seed,
        balance=experiment.data.balance,
        streams=experiment.streams,
        prefetch=experiment.prefetch,
        say=say,
    )
    return loader if experiment.decode_threads is None else replace(loader, threads=experiment.decode_threads)
