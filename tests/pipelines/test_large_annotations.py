"""Measures time and memory for a pickle as large as NTU-60's: at the first reading, later, and in four ranks."""

import json

import pytest

from tests.programs import start

MAKE = """
import pickle, sys
import numpy as np
count = int(sys.argv[2])
rng = np.random.default_rng(0)
clips = []
for number in range(count):
    frames, persons = int(rng.integers(30, 301)), 1 + int(rng.random() < 0.2)
    keypoint = (rng.random((persons, frames, 17, 2), np.float32) * 1000).astype(np.float16)
    score = rng.random((persons, frames, 17), np.float32).astype(np.float16)
    clips.append(dict(frame_dir=f"clip{number:05d}", label=number % 60, img_shape=(1080, 1920),
                      original_shape=(1080, 1920), total_frames=frames, keypoint=keypoint, keypoint_score=score))
names = [clip["frame_dir"] for clip in clips]
cuts = {"xsub": 40091 * count // 56578, "xview": 37646 * count // 56578}
split = {f"{name}_{part}": names[:cut] if part == "train" else names[cut:]
         for name, cut in cuts.items() for part in ("train", "val")}
with open(sys.argv[1], "wb") as file:
    pickle.dump({"split": split, "annotations": clips}, file, 4)
"""

OPEN = """
import json, resource, sys, time
from pathlib import Path
from pipelines.annotations.table import open_table
start = time.perf_counter()
table = open_table(Path(sys.argv[1]), Path(sys.argv[2]))
seconds = time.perf_counter() - start
sum(table.clip_joints(row).sum() for row in range(0, len(table), 100))
rollup = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
print(json.dumps({
    "seconds": seconds,
    "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    "private_gb": int(rollup["Private_Dirty"].split()[0]) / 1e6,
    "clips": len(table),
    "splits": {name: len(rows) for name, rows in table.splits.items()},
}))
"""


def python(script, *arguments):
    return start("-c", script, *arguments, stderr=None)


def answer(process):
    shown, _ = process.communicate(timeout=500)
    assert process.returncode == 0
    return json.loads(shown)


def read_twice_and_by_four(folder, count):
    assert python(MAKE, folder / "poses.pkl", count).wait() == 0
    arguments = (OPEN, folder / "poses.pkl", folder / "cache")
    first, second = answer(python(*arguments)), answer(python(*arguments))
    ranks = [answer(process) for process in [python(*arguments) for _ in range(4)]]
    print(f"{count} clips: first {first}, second {second}")
    assert {found["clips"] for found in (first, second, *ranks)} == {count}
    assert second["splits"]["xsub_train"] == 40091 * count // 56578
    return first, second, ranks


def test_a_small_one(tmp_path):
    first, second, _ = read_twice_and_by_four(tmp_path, 300)
    # A child process reads the pickle, so a later reading, from the cache, needs about as much memory as the first one.
    assert second["private_gb"] <= first["private_gb"] + 0.01


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_as_large_as_ntu60(tmp_path):
    first, second, ranks = read_twice_and_by_four(tmp_path, 56_578)
    assert first["seconds"] <= 90
    assert first["peak_gb"] <= 3
    assert second["seconds"] <= 3  # includes checking the CRC-32 of 1.1 GB of arrays
    for rank in ranks:
        assert rank["private_gb"] < 0.2  # all ranks share the memory of the table's 1.1 GB
