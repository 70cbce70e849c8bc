"""Splits: names in annotation files, settings that choose splits, lists without splits, and eval --split."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels.program import UserError
from tests.pipelines.annotated import clip
from trainer.cli import run_command
from trainer.config import Experiment
from trainer.data import build_loaders, open_tables, split_of, validating_on
from trainer.experiments import EXPERIMENTS
from trainer.runtime.ranks import Ranks
from trainer.settings import override

ALONE = Ranks(0, 0, 1, torch.device("cpu"))
NAMES = [f"clip{number}" for number in range(8)]


def write(path: Path, content) -> str:
    path.write_bytes(pickle.dumps(content))
    return str(path)


def clips(names: list[str], joints: int = 17, label: int = 0) -> list[dict]:
    return [clip(name, joints=joints, label=label) for name in names]


def loaded(experiment: Experiment) -> tuple[list[str], list[str], str]:
    """Return the names of the training clips, the names of the validation clips, and the messages about them."""
    said: list[str] = []
    train, val = build_loaders(experiment, ALONE, said.append)
    return *(loader.table.names[loader.rows].tolist() for loader in (train, val)), "\n".join(said)


def pose_only(folder: Path, file: str, *settings: str) -> Experiment:
    places = (f"data.annotations={file}", f"data.cache={folder}/cache", f"data.packs={folder}/packs")
    return override(EXPERIMENTS["ntu60_pose"], *places, "optim.batch_size=2", "val.batch_size=2", *settings)


def test_splits_are_named_by_pair_or_one_by_one(tmp_path):
    split = {"train1": NAMES[:3], "test1": NAMES[3:6], "test": NAMES[6:]}
    file = write(tmp_path / "a.pkl", {"split": split, "annotations": clips(NAMES)})
    for settings in (["data.split=1"], ["data.split=train1"], ["data.train_split=train1", "data.val_split=test1"]):
        assert loaded(pose_only(tmp_path, file, *settings)) == (NAMES[:3], NAMES[3:6], "")
    assert loaded(pose_only(tmp_path, file, "data.split=1", "data.val_split=test"))[1] == NAMES[6:]
    _, _, said = loaded(pose_only(tmp_path, file, "data.train_split=train1", "data.val_split=train1"))
    assert "3 of the 3 validation clips are training clips too, such as clip0" in said
    with pytest.raises(UserError, match=r"no split 'xsub_train', only .* set data.split=1, or"):
        loaded(pose_only(tmp_path, file))


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name != "demo"])
def test_two_plain_lists_train_in_every_experiment(tmp_path, name):
    joints = EXPERIMENTS[name].clip.skeleton.num_joints
    files = [
        write(tmp_path / f"{part}.pkl", clips(names, joints))
        for part, names in (("train", NAMES[:4]), ("val", NAMES[4:]))
    ]
    experiment = override(
        EXPERIMENTS[name],
        *(f"data.annotations={files[0]}", f"data.val_annotations={files[1]}", f"data.cache={tmp_path}/cache"),
    )
    tables = open_tables(experiment)
    rows = [
        table.rows_in_split(split_of(experiment, table, part))
        for table, part in zip(tables, (True, False), strict=True)
    ]
    assert [table.names[each].tolist() for table, each in zip(tables, rows, strict=True)] == [NAMES[:4], NAMES[4:]]


def test_two_plain_lists_are_told_and_compared(tmp_path):
    train = write(tmp_path / "train.pkl", clips(NAMES[:4]))
    val = write(tmp_path / "val.pkl", clips(NAMES[3:], label=2))
    assert loaded(
        pose_only(tmp_path, train, f"data.val_annotations={write(tmp_path / 'v.pkl', clips(NAMES[4:]))}")
    ) == (
        NAMES[:4],
        NAMES[4:],
        "the file of the training clips has no splits, so all of its 4 clips are used\n"
        "the file of the validation clips has no splits, so all of its 4 clips are used",
    )
    with pytest.raises(
        UserError, match="5 of the 5 validation clips, such as clip3, belong to classes that never occur"
    ):
        loaded(pose_only(tmp_path, train, f"data.val_annotations={val}"))


def test_a_filtered_file_trains_on_what_is_there_and_asks_above_a_limit(tmp_path):
    content = {"split": {"xsub_train": NAMES[:5], "xsub_val": NAMES[5:]}, "annotations": clips(NAMES[2:])}
    train, val, said = loaded(pose_only(tmp_path, write(tmp_path / "a.pkl", content)))
    assert (train, val) == (NAMES[2:5], NAMES[5:])
    assert "2 of the 5 clips that split xsub_train lists (40.0%), such as clip0, have no annotation" in said
    content["annotations"] = clips(NAMES[3:])
    file = write(tmp_path / "b.pkl", content)
    with pytest.raises(
        UserError, match=r"\(60.0%\).*at most 50% may lack one; .* allow it with --set data.max_absent=0.6$"
    ):
        loaded(pose_only(tmp_path, file))
    assert loaded(pose_only(tmp_path, file, "data.max_absent=0.6"))[0] == NAMES[3:5]


def test_any_split_can_be_scored(tmp_path):
    split = {"xsub_train": NAMES[:3], "xsub_val": NAMES[3:6], "test": NAMES[6:]}
    file = write(tmp_path / "a.pkl", {"split": split, "annotations": clips(NAMES)})
    experiment = pose_only(tmp_path, file)
    assert loaded(validating_on(experiment, "test"))[1] == NAMES[6:]
    assert loaded(validating_on(experiment, "xsub_train"))[1] == NAMES[:3]
    lists = pose_only(tmp_path, write(tmp_path / "t.pkl", clips(NAMES[:4])))
    lists = override(lists, f"data.val_annotations={write(tmp_path / 'v.pkl', clips(NAMES[4:]))}")
    assert [loaded(validating_on(lists, split))[1] for split in ("train", "val")] == [NAMES[:4], NAMES[4:]]
    with pytest.raises(UserError, match=r"--split other: .* name one of test, xsub_train, xsub_val$"):
        validating_on(experiment, "other")


def test_eval_scores_another_split(tiny, tmp_path):
    run = tmp_path / "run"
    assert run_command([*tiny, "--work-dir", str(run), "--max-steps", "1"]) == 0
    assert run_command(["eval", str(run), "--split", "xsub_train", "--out", str(tmp_path / "eval")]) == 0
    scores = np.load(tmp_path / "eval" / "scores.npz")
    assert len(scores["name"]) == 39  # one of the 40 training clips has a broken video
    assert json.loads(str(scores["settings"]))["data"]["val_split"] == "xsub_train"
