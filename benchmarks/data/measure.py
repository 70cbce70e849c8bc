"""The whole data path on one core, alone or beside MMAction2's, in the same run and on the same clips.

Ours reads clip packs, theirs the 960x540 H.264 files that these were made of. Both are pinned to the same core, with
one thread each, and take turns: a round is a whole epoch of ours and one way through all clips of theirs.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from timeit import timeit
from typing import TYPE_CHECKING
import numpy as np
import torch
from benchmarks.harness import ratio, spread
from benchmarks.data.peer import Peer, environment
from benchmarks.data.peer_mmaction2 import HEATMAP
from benchmarks.records import device_name, slug
from benchmarks.target import Part, Result, Skipped, Target


if TYPE_CHECKING:
    from benchmarks.data.videos import Files
    from benchmarks.data.path import Pass
    from pipelines.loader import Loader


ROUNDS = 9
CASES = {"8_32": "ntu60", "16_48": "ntu60_x3d"}  # RGB frames, heatmap frames; sigma is the experiment's
BATCH, BATCHES = 24, 16


def alone(target: Target) -> Iterator[Result]:
    """Our path by itself."""
    yield from _measure(target, None)


def beside_mmaction2(target: Target) -> Iterator[Result]:
    """Both paths, once their results are seen to agree."""
    yield from _measure(target, environment())


PARTS = {None: Part("data_alone", 900, alone), "mmaction2": Part("data", 1500, beside_mmaction2)}


def _measure(target: Target, python: Path | None) -> Iterator[Result]:
    try:
        from benchmarks.data import videos as data_clips, path as data_path
    except ImportError as error:
        raise Skipped(f"DALI cannot be imported here ({error})") from None
    from trainer.experiments import EXPERIMENTS
    from trainer.runtime.allocator import keep_freed_memory

    folder, videos = target.scratch / "data", data_clips.TOY if target.toy else data_clips.Videos()
    files = data_clips.make_videos(videos, folder)
    yield "videos", {"count": videos.count, "size": videos.size, "frames": videos.frames, "kib": files.kib_per_video}
    configs = {case: data_path.sized(EXPERIMENTS[name].clip, target.toy) for case, name in CASES.items()}
    packs = {case: data_clips.pack(files, config, folder) for case, config in configs.items()}
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # and so all threads and processes begun from here on
    torch.set_num_threads(1)
    keep_freed_memory()  # as training on a CPU does
    for case, frames in packs.items():
        loader = data_path.loader_of(frames, configs[case], *((3, 2) if target.toy else (BATCH, BATCHES)))
        if python is None:
            passes = [data_path.epoch(loader, number) for number in range(_rounds(target))]
            yield f"ours_{case}", _speeds(passes[1:])
        else:
            with Peer(python, target.scratch / "peer.log") as peer:
                yield from _beside(case, peer, files, loader, target)
        yield f"stages_{case}", data_path.stages(loader, frames, target)


def _rounds(target: Target) -> int:
    """The first one warms up."""
    return 2 if target.toy else ROUNDS + 1


def _beside(case: str, peer: Peer, files: "Files", loader: "Loader", target: Target) -> Iterator[Result]:
    """Rounds of ours and theirs; nothing is timed before both have shown the same."""
    from benchmarks.data.videos import SPLIT
    from benchmarks.data.parity import parity
    from benchmarks.data.path import Pass, epoch, heatmaps

    config = loader.config
    clips = peer.ask(
        "open",
        **{"annotations": str(files.annotations), "videos": str(files.videos), "split": SPLIT},
        **{"frames": {"RGB": config.rgb_frames, "Pose": config.pose_frames}},
        **{"sigma": config.sigma, "side": config.rgb_size},
    )["clips"]
    found = parity(peer, loader, [clips.index(name) for name in loader.table.names.tolist()], target.scratch)
    yield f"parity_{case}", found
    if not (found["ok"] or target.toy):  # small pictures are all edges
        raise RuntimeError(f"{case}: the peer and we make different clips, see parity_{case}")
    draw, ours, theirs, drawn, stages = heatmaps(loader), [], [], [], []
    for number in range(_rounds(target)):
        ours.append(epoch(loader, number))
        drawn.append(timeit(draw, number=3) / 3 / loader.batch_size)
        answer = peer.ask("run", clips=list(range(len(clips))), seed=number)
        theirs.append(Pass(len(clips), answer["seconds"], answer["cpu_seconds"]))
        stages.append(answer["stages"])
    yield f"ours_{case}", _speeds(ours[1:])
    a_clip = {stage: np.array([times[stage] for times in stages[1:]]) / len(clips) for stage in stages[0]}
    shown = {f"{stage}_ms": spread(seconds * 1e3) for stage, seconds in a_clip.items()}
    yield f"mmaction2_{case}", _speeds(theirs[1:]) | shown
    (heatmap,) = (seconds for stage, seconds in a_clip.items() if stage.endswith(HEATMAP))
    yield f"heatmap_{case}", ratio(np.array(drawn[1:]), heatmap)
    for name, time in {"ratio_cpu_time": "cpu_seconds", "ratio": "seconds"}.items():
        a_clip_of = [np.array([getattr(p, time) / p.clips for p in way[1:]]) for way in (ours, theirs)]
        yield f"{name}_{case}", ratio(*a_clip_of)


def _speeds(passes: "list[Pass]") -> dict[str, dict]:
    """Clips a second of the clock, and of the CPU's time."""
    return {
        "clips_per_s": spread(np.array([p.clips / p.seconds for p in passes])),
        "clips_per_cpu_s": spread(np.array([p.clips / p.cpu_seconds for p in passes])),
    }


def verdict(records: Path) -> str:
    """The last line: how many times faster we are at 8 frames and 32 heatmaps, and whether both make the same."""
    record = json.loads((records / f"data_{slug(device_name(torch.device('cpu')))}.json").read_text())
    results = record["results"]
    green = all(results.get(f"parity_{case}", {}).get("ok") for case in CASES)
    value = results.get("ratio_8_32", {}).get("median")
    return f"ratio {'none' if value is None else f'{value:.2f}'} parity {'ok' if green else 'red'}"
