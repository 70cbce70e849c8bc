"""Compares code that one process runs for a whole data set with simpler code that does the same.

The data set has as many clips as NTU-60, but no pictures. Each result has the milliseconds that our code takes and its
speed relative to the simple code. Tests check that both give equal results.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.harness import Result, Target, ratio, spread, time_rounds
from pipelines.annotations.table import ClipTable
from pipelines.geometry import USUAL, crop_region
from pipelines.packs.format import (
    PackSettings,
    clip_id,
    file_for,
    merge_parts,
    packets_text,
    read_manifest,
    write_index,
)
from pipelines.plan import plan_eval
from pipelines.prepare.content import stamp_of
from pipelines.prepare.make import open_again, prepare
from pipelines.prepare.users import table_joints
from tests.pipelines.oracles import eval_plan, least_extent
from trainer.experiments import NTU60_X3D
from trainer.journal.lines import read_metrics, read_progress


def measure(target: Target) -> Iterator[Result]:
    clips = 50 if target.toy else 56_880
    table = _table(clips)
    rows, config = np.arange(32) % clips, NTU60_X3D.clip
    yield _compared("plan_eval", lambda: plan_eval(table, rows, config), lambda: eval_plan(table, rows, config), target)
    joints = table.clip_joints(0)[..., :2]

    def region_by_frames() -> None:
        for axis in (0, 1):
            least_extent(joints[..., axis], USUAL)

    yield _compared("region", lambda: crop_region(joints, 1080, 1920), region_by_frames, target)
    log = target.scratch / "metrics.jsonl"
    log.write_text("".join(map(_record, range(20 if target.toy else 50_000))))
    yield _compared("read_log", lambda: read_progress(log), lambda: read_metrics(log), target)

    pack = target.scratch / "pack"
    _make_pack(table, target.scratch / "videos", pack)
    line = json.dumps(next(iter(read_manifest(pack).values()))) + "\n"

    def one_new_line(merge) -> None:
        (pack / "parts").mkdir(exist_ok=True)
        (pack / "parts" / "1.jsonl").write_text(line)
        merge(pack)

    yield _compared("merge", lambda: one_new_line(merge_parts), lambda: one_new_line(_merge_by_parsing), target)
    places = target.scratch / "videos", pack, PackSettings()
    word = prepare(table, *places, console=Console(quiet=True))
    yield _compared(
        "open_pack",
        lambda: open_again(table, pack, word.clips, word.bad),
        lambda: prepare(table, *places, console=Console(quiet=True)),
        target,
    )


def _compared(name: str, ours, plain, target: Target) -> Result:
    samples = time_rounds({"ours": ours, "plain": plain}, target, seconds=5, warmup=1)
    return name, {"ours_ms": spread(samples["ours"] * 1e3), "speedup": ratio(samples["ours"], samples["plain"])}


def _table(clips: int) -> ClipTable:
    """Return an annotation table with one person per clip, who moves as a whole to a random place in every frame."""
    rng = np.random.default_rng(0)
    total = rng.integers(50, 120, clips).astype(np.int32)
    first = np.cumsum(total, dtype=np.int64) - total
    joints = np.empty((int(total.sum()), 17, 3), np.float16)
    joints[..., :2] = rng.uniform((-120, -300), (120, 300), (17, 2)) + rng.uniform(400, 700, (len(joints), 1, 2))
    joints[..., 2] = 0.9
    ones = np.ones(clips, np.int32)
    names = np.array([f"C{number:06d}" for number in range(clips)])
    columns = {"label": ones, "total_frames": total, "height": ones * 1080, "width": ones * 1920, "num_persons": ones}
    return ClipTable(digest="0" * 16, names=names, first_row=first, joints=joints, splits={}, **columns)


def _record(number: int) -> str:
    kind = "val" if number % 1000 == 999 else "train"
    place = {"epoch": number // 1000 + 1, "step": number % 1000, "clips": number % 1000, "epoch_clips": 1000}
    values = {name: number / 7 for name in ("lr", "loss", "loss_rgb", "loss_pose", "grad_norm", "time", "data_time")}
    return json.dumps({"kind": kind} | place | values) + "\n"


def _make_pack(table: ClipTable, videos: Path, pack: Path) -> None:
    """Write the files that a complete run of `prepare` leaves behind, with clips and videos of a few bytes."""
    for folder in (videos, pack / "clips"):
        folder.mkdir(parents=True)
    settings, lines, rng = PackSettings().digest(), [], np.random.default_rng(0)
    for row, joints in enumerate(table_joints(table, pack)):
        name, frames = str(table.names[row]), int(table.total_frames[row])
        video = videos / f"{name}.avi"
        video.write_bytes(b"%d" % row)
        clip = clip_id(f"{row}", joints, settings)
        file = file_for(name, clip, 8)
        (pack / file).write_bytes(b"clip")
        numbers = rng.integers(0, 1 << 16, (2, frames)).tolist()
        lines.append(
            {
                **{"clip": clip, "name": name, "settings": settings, "joints": joints, "file": file, "bad": ""},
                **{"source": f"{row}", "stamps": stamp_of(str(video)).before([]), "rotation": ""},
                **{"source_size": [960, 540], "region": [0, 0, 960, 540], "frame_size": [416, 384], "fewest": 1},
                **{"clip_bytes": 4, "first": 0, "num_frames": frames, "packets": packets_text(*numbers)},
            }
        )
    write_index(pack, lines)


def _merge_by_parsing(pack: Path) -> None:
    write_index(pack, read_manifest(pack).values())
    os.unlink(pack / "parts" / "1.jsonl")
