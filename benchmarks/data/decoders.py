"""Compares our whole data path on one core with a peer, a library that reads single frames of videos by their numbers.

The libraries do less than we do: they scale whole frames to one size, do not crop or mirror them, and draw no heatmaps.
They read the videos from which our packs were made.

Our path and the library take turns. Needs DALI.
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch

from benchmarks.data import videos
from benchmarks.data.measure import BATCH, BATCHES, ROUNDS, speeds
from benchmarks.data.path import Pass, loader_of, run_epoch, sized
from benchmarks.data.peer import CASES, DECODERS, Peer, environment
from benchmarks.harness import Result, Target, ratio
from tests.pipelines.oracles import train_frames
from trainer.experiments import EXPERIMENTS
from trainer.runtime.allocator import keep_freed_memory


def measure(library: str, target: Target) -> Iterator[Result]:
    """Measure our data path and a library ("torchcodec" or "spdl"), and count wrong frames that the library returns."""
    folder, sizes = target.scratch / "data", videos.TOY if target.toy else videos.Videos()
    files = videos.make_videos(sizes, folder)
    configs = {case: sized(EXPERIMENTS[name].clip, target.toy) for case, name in CASES.items()}
    packs = {case: videos.pack(files, config, folder) for case, config in configs.items()}
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    keep_freed_memory()
    for case, frames in packs.items():
        config = configs[case]
        loader = loader_of(frames, config, target.device, *((3, 2) if target.toy else (BATCH, BATCHES)))
        paths = [files.videos / f"{name}.mp4" for name in loader.table.names.tolist()]
        ours, theirs = [], []
        with Peer(DECODERS[library], environment(DECODERS[library]), target.scratch / "peer.log") as peer:
            peer.ask("open", library=library, videos=list(map(str, paths)), side=config.rgb_size)
            yield f"frames_{case}", _agreement(peer, paths, config.rgb_size, target.scratch / "frames.npy")
            for number in range(2 if target.toy else ROUNDS + 1):
                ours.append(run_epoch(loader, number))
                rng = np.random.RandomState(number)
                drawn = [train_frames(sizes.frames, config.rgb_frames, rng).tolist() for _ in paths]
                answer = peer.ask("run", frames=drawn)
                theirs.append(Pass(len(paths), answer["seconds"], answer["cpu_seconds"]))
        yield f"ours_{case}", speeds(ours[1:])
        yield f"{library}_{case}", speeds(theirs[1:])
        seconds = (np.array([each.cpu_seconds / each.clips for each in way[1:]]) for way in (ours, theirs))
        yield f"ratio_cpu_time_{case}", ratio(*seconds)


measure_torchcodec, measure_spdl = partial(measure, "torchcodec"), partial(measure, "spdl")


def _agreement(peer: Peer, paths: list[Path], side: int, file: Path) -> dict[str, float]:
    """Compare every third frame that the peer reads from the first three videos with the same frame from PyAV.

    torch resizes PyAV's frames, with antialiasing.
    `wrong` is the number of frames that are more similar to another frame of the video than to the requested one.
    """
    wrong, levels = 0, []
    for number, path in enumerate(paths[:3]):
        with av.open(path) as container:
            pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        planes = torch.from_numpy(pictures).permute(0, 3, 1, 2)
        scaled = torch.nn.functional.interpolate(planes, (side, side), mode="bilinear", antialias=True)
        expected = scaled.permute(0, 2, 3, 1).float()
        chosen = range(0, len(expected), 3)
        peer.ask("draw", video=number, numbers=list(chosen), out=str(file))
        for place, frame in zip(chosen, torch.from_numpy(np.load(file)).float(), strict=True):
            distances = (expected - frame).abs().mean(dim=(1, 2, 3))
            wrong += int(distances.argmin()) != place
            levels.append(float(distances[place]))
    return {"compared": len(levels), "wrong": wrong, "levels": float(np.mean(levels))}
