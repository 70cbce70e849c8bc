"""Trains the demo as `make demo` does, with three seeds, and tests its accuracy and its CPU time.

Two controls test that the pose network cannot tell colours apart, and that an RGB network cannot tell motions apart if
the people are hidden. The three runs and the run with hidden people take about 25 minutes on two cores.
"""

import json
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.weights.files import load
from pipelines.demo.classes import COLOUR_ONLY, MOTION_ONLY, DemoConfig
from tests.programs import run
from trainer.data import build_loaders
from trainer.experiments import DEMO
from trainer.journal.journal import Journal
from trainer.metrics import Scores
from trainer.resume import take_up
from trainer.run import build_run
from trainer.runtime.ranks import join
from trainer.runtime.signals import Interrupt
from trainer.scoring import score_split
from trainer.snapshots.writer import NoWriter

CORE_MINUTES = 6
SEEDS = (0, 1, 2)
# With 40 clips in each of two pairs, random guesses get more than two thirds right with a probability of 0.001.
CHANCE = 2 / 3

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]


def train(work_dir: Path, *arguments: str) -> float:
    """Train the demo into `work_dir`, and return the CPU minutes of the process and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run("-m", "trainer", "--exp", "demo", "--work-dir", work_dir, *arguments, timeout=None)
    assert done.returncode == 0, done.stdout + done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 60


def best(work_dir: Path) -> dict[str, float]:
    """Return the metrics of the validation whose snapshot is kept as the best one."""
    records = [json.loads(line) for line in (work_dir / "metrics.jsonl").read_text().splitlines()]
    return max((r for r in records if r["kind"] == "val"), key=lambda record: record["acc/RGBPose_1:1_top1"])


def lead(metrics: dict[str, float]) -> float:
    """Return by how many percentage points the fused accuracy exceeds the accuracy of the better stream."""
    return 100 * (metrics["acc/RGBPose_1:1_top1"] - max(metrics["acc/rgb_top1"], metrics["acc/pose_top1"]))


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """Return the work directories of the demo's runs, one for each seed."""
    prepared = run("-m", "trainer", "prepare", "--exp", "demo", timeout=None)
    assert prepared.returncode == 0, prepared.stdout + prepared.stderr
    folders = [tmp_path_factory.mktemp("demo") / f"seed{seed}" for seed in SEEDS]
    for seed, folder in zip(SEEDS, folders, strict=True):
        minutes = train(folder, "--set", f"seed={seed}")
        metrics = best(folder)
        streams = ", ".join(f"{name} {metrics[f'acc/{name}_top1']:.3f}" for name in ("RGBPose_1:1", "rgb", "pose"))
        print(f"seed {seed}: {streams}, {minutes:.1f} core-minutes")
        (folder / "minutes").write_text(str(minutes))
    return folders


def test_the_shipped_seed(runs):
    metrics, minutes = best(runs[0]), float((runs[0] / "minutes").read_text())
    assert metrics["acc/RGBPose_1:1_top1"] >= 0.9
    assert min(metrics["acc/rgb_top1"], metrics["acc/pose_top1"]) >= 0.6
    assert lead(metrics) >= 1
    assert minutes <= CORE_MINUTES


def test_three_seeds(runs):
    assert sum(lead(best(folder)) for folder in runs) / len(runs) >= 3


def test_the_pose_net_cannot_see_colours(runs):
    assert within_pairs(scores_of(runs[0], DEMO), "pose", COLOUR_ONLY) < CHANCE


def test_the_rgb_net_needs_the_person_for_motion(tmp_path):
    """A grey box hides the people, so frames do not show which of two classes that differ in motion a clip has."""
    data = replace(
        DEMO.data,
        annotations=str(tmp_path / "hidden" / "annotations.pkl"),
        videos=str(tmp_path / "hidden" / "videos"),
        packs=str(tmp_path / "packs"),
        cache=str(tmp_path / "cache"),
        demo=DemoConfig(hide_people=True),
    )
    settings = [f"data.{name}={getattr(data, name)}" for name in ("annotations", "videos", "packs", "cache")]
    overrides = [part for setting in [*settings, "data.demo.hide_people=True"] for part in ("--set", setting)]
    train(tmp_path / "run", *overrides)
    scores = scores_of(tmp_path / "run", replace(DEMO, data=data))
    assert within_pairs(scores, "rgb", MOTION_ONLY) < CHANCE
    assert within_pairs(scores, "pose", MOTION_ONLY) > 0.8


def scores_of(work_dir: Path, experiment) -> Scores:
    """Return the validation scores of a run's best snapshot."""
    with join("cpu") as ranks, Interrupt() as interrupt:
        journal = Journal(work_dir / "scores")
        run = build_run(experiment, ranks, build_loaders(experiment, ranks, print), journal, NoWriter(), interrupt)
        take_up(run, load(next(work_dir.glob("best_*.pth"))))
        return score_split(run)


def within_pairs(scores: Scores, stream: str, pairs) -> float:
    """Return the share of clips whose class has a higher score than the other class of its pair."""
    right = [
        (scores.probability[stream][of_pair][:, pair].argmax(dim=1) == (scores.label[of_pair] == pair[1])).float()
        for pair in map(list, pairs)
        for of_pair in [torch.isin(scores.label, torch.tensor(pair))]
    ]
    return torch.cat(right).mean().item()
