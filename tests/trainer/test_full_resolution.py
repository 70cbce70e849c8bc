"""The guide's three experiments at full size on a CPU, as a user starts them: two training steps and a validation."""

import json
import math
import pickle
from pathlib import Path

import pytest

from pipelines.demo.classes import DemoConfig
from pipelines.demo.make import make_demo
from tests.programs import run

# The three tests take two minutes together on one core: frames of 224 px go through networks of up to 60 GMAC per clip.
pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]

OPENPOSE_FROM_COCO = [0, 6, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3, *([9] * 5), *([10] * 5)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """Return a demo with five clips for training and two for validation.

    Of the clips for training, one is corrupt and one has no skeleton.
    """
    root = tmp_path_factory.mktemp("demo")
    make_demo(root, DemoConfig(num_train=5, num_val=2))
    return root


def written(path: Path, content: object) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=4))
    return path


def annotations(demo: Path, folder: Path, name: str) -> list[str]:
    """Write the demo's clips as annotations of an experiment, with labels spread over its classes. Returns settings.

    The demo's annotations have the form of NTU-60's. MA-52's annotations have 28 joints, and one file per split with a
    plain list.
    """
    content = pickle.loads((demo / "annotations.pkl").read_bytes())
    for clip in content["annotations"]:
        clip["label"] *= 4
    if name != "ma52":
        return [f"data.annotations={written(folder / 'ntu60.pkl', content)}"]
    for clip in content["annotations"]:
        clip |= {part: clip[part][:, :, OPENPOSE_FROM_COCO] for part in ("keypoint", "keypoint_score")}
    files = [
        written(folder / f"MA52_{split}.pkl", [clip for clip in content["annotations"] if clip["frame_dir"] in names])
        for split, names in content["split"].items()
    ]
    return [f"data.annotations={files[0]}", f"data.val_annotations={files[1]}"]


@pytest.mark.parametrize("name", ["ma52", "ntu60", "ntu60_x3d"])
def test_two_steps_and_a_validation(demo, environment, tmp_path, name):
    settings = [
        *annotations(demo, tmp_path, name),
        *(f"data.videos={demo / 'videos'}", f"data.packs={tmp_path / 'packs'}", f"data.cache={tmp_path / 'cache'}"),
        *(
            "data.max_bad=0.2",
            "optim.batch_size=2",
            "val.batch_size=2",
            "optim.num_epochs=1",
            "optim.warmup_epochs=0",
            "log_every=1",
        ),
    ]
    command = ["-m", "trainer", "--exp", name, "--work-dir", tmp_path / "run"]
    command += [part for setting in settings for part in ("--set", setting)]
    # the two steps complete the epoch, so only the validation is left to do
    for more in (["--max-steps", "2"], ["--resume"]):
        done = run(*command, *more, environment=environment, timeout=None)
        assert done.returncode == 0, done.stdout + done.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    *steps, validation = (
        record for line in lines if "loss" in (record := json.loads(line)) or "acc/rgb_top1" in record
    )
    assert [step["step"] for step in steps] == [1, 2]
    for step in steps:
        losses = [value for key, value in step.items() if key.startswith("loss_")]
        assert len(losses) == 10
        assert sum(losses) == pytest.approx(step["loss"], rel=1e-5)
        assert 0 < step["grad_norm"] < math.inf
    assert "acc/RGBPose_1:1_top1" in validation
    assert len(list((tmp_path / "run").glob("best_acc_RGBPose_1:1_top1_epoch_1.pth"))) == 1
