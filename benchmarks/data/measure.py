"""Measures our whole data path alone, or beside MMAction2's data path on the same clips and the same core.

Our path reads clip packs; MMAction2 reads the 960x540 H.264 files from which the packs were made. Both run with one
thread and take turns: in a round, our path runs a whole epoch and MMAction2's path runs once over all clips.

Needs DALI.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from timeit import timeit

import numpy as np
import torch

from benchmarks.data import videos
from benchmarks.data.parity import parity
from benchmarks.data.path import Pass, heatmaps, loader_of, run_epoch, sized, time_stages
from benchmarks.data.peer import CASES, MMACTION2, Peer, environment
from benchmarks.data.peer_mmaction2 import HEATMAP
from benchmarks.harness import Result, Target, ratio, spread
from pipelines.loader import Loader
from trainer.experiments import EXPERIMENTS
from trainer.runtime.allocator import keep_freed_memory

ROUNDS = 9
BATCH, BATCHES = 24, 16


def measure_alone(target: Target) -> Iterator[Result]:
    """Measure our data path alone, on one core or on a GPU that decodes frames and draws heatmaps."""
    yield from _measure(target, None)


def measure_beside_peer(target: Target) -> Iterator[Result]:
    """Measure our data path and MMAction2's, after checking that both make the same clips."""
    yield from _measure(target, environment(MMACTION2))


def _measure(target: Target, python: Path | None) -> Iterator[Result]:
    """Measure our data path, and MMAction2's if `python` is the interpreter of its environment and not None."""
    folder, sizes = target.scratch / "data", videos.TOY if target.toy else videos.Videos()
    files = videos.make_videos(sizes, folder)
    yield "videos", {"count": sizes.count, "size": sizes.size, "frames": sizes.frames, "kib": files.kib_per_video}
    configs = {case: sized(EXPERIMENTS[name].clip, target.toy) for case, name in CASES.items()}
    packs = {case: videos.pack(files, config, folder) for case, config in configs.items()}
    if target.device.type == "cpu":
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # later threads and processes stay on this core
        torch.set_num_threads(1)
        keep_freed_memory()  # as in training on a CPU
    for case, frames in packs.items():
        loader = loader_of(frames, configs[case], target.device, *((3, 2) if target.toy else (BATCH, BATCHES)))
        if python is None:
            passes = [run_epoch(loader, number) for number in range(_rounds(target))]
            yield f"ours_{case}", speeds(passes[1:])
        else:
            with Peer(MMACTION2, python, target.scratch / "peer.log") as peer:
                yield from _beside_peer(case, peer, files, loader, target)
        yield f"stages_{case}", time_stages(loader, frames, target)


def _rounds(target: Target) -> int:
    """Return the number of rounds, including the first one, which is a warm-up."""
    return 2 if target.toy else ROUNDS + 1


def _beside_peer(case: str, peer: Peer, files: videos.Files, loader: Loader, target: Target) -> Iterator[Result]:
    """Measure our path and MMAction2's alternately, after checking that both make the same clips."""
    config = loader.config
    clips = peer.ask(
        "open",
        annotations=str(files.annotations),
        videos=str(files.videos),
        split=videos.SPLIT,
        frames={"RGB": config.rgb_frames, "Pose": config.pose_frames},
        sigma=config.sigma,
        side=config.rgb_size,
    )["clips"]
    agreement = parity(peer, loader, [clips.index(name) for name in loader.table.names.tolist()], target.scratch)
    yield f"parity_{case}", agreement
    if not (agreement["ok"] or target.toy):  # toy images are mostly edges, where the two programs differ more
        raise RuntimeError(f"{case}: MMAction2 and Duet make different clips, see parity_{case}")
    draw, ours, theirs, drawing, stages = heatmaps(loader), [], [], [], []
    for number in range(_rounds(target)):
        ours.append(run_epoch(loader, number))
        drawing.append(timeit(draw, number=3) / 3 / loader.batch_size)
        answer = peer.ask("run", clips=list(range(len(clips))), seed=number)
        theirs.append(Pass(len(clips), answer["seconds"], answer["cpu_seconds"]))
        stages.append(answer["stages"])
    yield f"ours_{case}", speeds(ours[1:])
    per_clip = {stage: np.array([times[stage] for times in stages[1:]]) / len(clips) for stage in stages[0]}
    milliseconds = {f"{stage}_ms": spread(seconds * 1e3) for stage, seconds in per_clip.items()}
    yield f"mmaction2_{case}", speeds(theirs[1:]) | milliseconds
    (heatmap,) = (seconds for stage, seconds in per_clip.items() if stage.endswith(HEATMAP))
    yield f"heatmap_{case}", ratio(np.array(drawing[1:]), heatmap)
    for name, time in {"ratio_cpu_time": "cpu_seconds", "ratio": "seconds"}.items():
        yield (
            f"{name}_{case}",
            ratio(*(np.array([getattr(p, time) / p.clips for p in way[1:]]) for way in (ours, theirs))),
        )


def speeds(passes: list[Pass]) -> dict[str, dict]:
    """Return the clips per second of wall-clock time and of CPU time."""
    return {
        "clips_per_s": spread(np.array([p.clips / p.seconds for p in passes])),
        "clips_per_cpu_s": spread(np.array([p.clips / p.cpu_seconds for p in passes])),
    }
