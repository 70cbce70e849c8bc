"""Real surveillance clips go through all commands from labels to a report, with the built-in pose estimator."""

import csv
import json
import shutil
from pathlib import Path

import av
import pytest
from matplotlib.image import imread

from pipelines.annotations.table import open_table
from tests.programs import run_forked

FEW = ("fi031.mp4", "fi136.mp4", "nofi076.mp4", "nofi091.mp4")  # short clips, with 147 frames in all


@pytest.fixture
def fight(real_videos) -> Path:
    folder = real_videos / "fight"
    if not folder.is_dir():
        pytest.skip(f"the fight clips are not in {folder}")
    return folder


@pytest.mark.parametrize(
    "files", [FEW, pytest.param(None, marks=(pytest.mark.soak, pytest.mark.timeout(3600)))], ids=["few", "all"]
)
def test_from_labels_to_a_report(fight, files, tmp_path):
    def run(*words: object) -> str:
        done = run_forked("-m", *map(str, words), cwd=tmp_path)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    data = tmp_path / "data" / "custom"
    data.mkdir(parents=True)
    with open(fight / "labels.csv") as table:
        rows = [row for row in csv.DictReader(table) if files is None or row["video"] in files]
    columns = ["video", "label", "split"] if files is None else ["video", "label"]
    with open(data / "labels.csv", "w", newline="") as table:
        writer = csv.DictWriter(table, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    shutil.copytree(
        fight / "videos", data / "videos", ignore=lambda _, names: {*names} - {row["video"] for row in rows}
    )

    annotations = data / "annotations.pkl"
    every = ["--every", "2"] if files else []
    run("pipelines.annotate", data / "videos", data / "labels.csv", "--out", annotations, *every)
    table = open_table(annotations, tmp_path / "data" / "cache")
    assert (len(table), table.class_names) == (len(rows), ("fight", "noFight"))
    assert {len(members) for members in table.splits.values()} == ({2} if files else {16, 4})
    verified = run("pipelines.verify", annotations, "--videos", data / "videos")
    assert f"usable: {len(rows)} of {len(rows)} clips" in verified
    run("trainer", "view", "--exp", "custom_small", "--index", "0", "--out", tmp_path / "clip.png")
    assert imread(tmp_path / "clip.png").std() > 0.1
    run("trainer", "prepare", "--exp", "custom_small")
    short = ("optim.num_epochs=1", "optim.warmup_epochs=0", "optim.batch_size=4", "val.batch_size=4")
    run("trainer", "--exp", "custom_small", *(word for setting in short for word in ("--set", setting)))
    metrics = json.loads((tmp_path / "work_dirs/custom_small/metrics.jsonl").read_text().splitlines()[-1])
    assert 0 <= metrics["acc/RGBPose_1:1_top1"] <= 1
    run("trainer", "eval", "work_dirs/custom_small")
    video = data / "videos" / "fi136.mp4"
    run("trainer", "predict", video, "--checkpoint", "work_dirs/custom_small")
    out = tmp_path / "work_dirs/custom_small/predict/fi136.mp4"
    with av.open(out) as container, av.open(video) as original:
        assert len(list(container.decode(video=0))) == len(list(original.decode(video=0)))
    windows = json.loads(out.with_suffix(".json").read_text())["windows"]
    assert {entry["label"] for entry in windows[0]["fused"]} == {"fight", "noFight"}
    run("trainer", "report", "work_dirs/custom_small")
    assert "noFight" in (tmp_path / "work_dirs/custom_small/report.html").read_text()
