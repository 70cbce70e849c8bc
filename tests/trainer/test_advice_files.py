"""Messages about unusable files give advice that works: a file that is changed as the message says is accepted.

A row is a command, the file that the command reads, the wrong content of this file, a regular expression that finds the
advice in the message, and the content after following the advice. None means that the file does not exist. All other
files are those of `places`.
"""

import contextlib
import json
import os
import pickle
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from rich.console import Console
from safetensors.torch import save_file

from benchmarks.nsys_gaps import main as show_gaps
from benchmarks.records import read_record
from benchmarks.table import BEGIN, END, renew_table
from kernels.program import exit_code
from models.classes import read_coarse_map
from models.weights.files import load, read_file, save, write_file
from models.weights.layouts import read_weights
from models.weights.merging import merge
from models.weights.nets import shapes_of
from pipelines.annotate.cli import main as annotate
from pipelines.annotate.estimator import EstimatorOptions, choose_estimator
from pipelines.annotate.keypoints import header_of, read_poses
from pipelines.annotations.table import open_table
from pipelines.demo.classes import DemoConfig
from pipelines.demo.make import claim as claim_demo
from pipelines.prepare.elsewhere import note
from pipelines.prepare.locks import make_clips
from pipelines.skeleton import read_skeleton
from pipelines.verify.cli import main as verify
from pipelines.videos.decode import decode
from pipelines.videos.find import videos_in
from tests.pipelines.annotated import clip
from tests.trainer.test_profiler import TRACE
from trainer.cli import dispatch
from trainer.commands.predict import PredictOptions, check, check_live
from trainer.commands.submit import best_scores
from trainer.commands.view import ViewOptions, find_clip, settings_file
from trainer.data import check_place, open_sources, open_tables
from trainer.experiments import DEMO, EXPERIMENTS
from trainer.predict.skeletons import Skeletons
from trainer.resume import check_same
from trainer.scores.files import read_scores
from trainer.settings import SETTINGS, override
from trainer.snapshots.choice import CheckpointChoice, experiment_for, settings_in
from trainer.snapshots.writer import Snapshot
from trainer.stored import to_settings

ANNOTATE = "annotate {videos} {dir}/labels.csv --out {dir}/my.pkl --poses {dir}/poses"
LABELS = "a.mp4,0,train\nb.mp4,1,val\n"
PERSON = '[{{"frame": {}, "keypoints": [9, 9, 1]}}]'
TABLE = "table {dir}/x.pkl {dir}/cache"
FUSE = "trainer fuse {dir}/two.npz {dir}/s.npz --out {dir}/fused"
TWICE = "trainer fuse {dir}/two.npz {dir}/two.npz --out {dir}/fused"
MINE = "trainer fuse {dir}/mine.npz {dir}/mine.npz --out {dir}/fused --fit {dir}/v.npz {dir}/v.npz"
HIDDEN = "trainer fuse {dir}/hidden.npz {dir}/hidden.npz --out {dir}/fused"
TWO = {"split": {"s_train": ["a", "b"]}, "annotations": [clip("a", label=0), clip("b", label=1)]}
LONG = np.zeros((1, 30_000, 17, 2), np.float32)
SHARED = [clip(str(number), keypoint=LONG, keypoint_score=None, total_frames=30_000) for number in range(60)]
NAMED = TWO | {"class_names": ["x", "y"]}
WIDE = [clip(name, img_shape=(200, 900), keypoint=np.full((1, 6, 17, 2), (800.0, 100.0))) for name in "abc"]
TURNED = [each | {"img_shape": (900, 200)} for each in WIDE]


def arrays(**changes: Any) -> dict[str, Any]:
    """Return the arrays of a scores.npz of two videos of MA-52."""
    sizes = {"": 52, "_coarse": 7}
    scores = {f"{stream}{level}": np.ones((2, n)) for stream in ("rgb", "pose") for level, n in sizes.items()}
    return {key: value for key, value in ({"name": ["a", "b"]} | scores | changes).items() if value is not None}


def two_clips(**changes: Any) -> dict[str, Any]:
    """Return the arrays of a scores.npz of two clips and two classes."""
    return {"name": ["a", "b"], "label": [0, 1], "rgb": np.array([[0.7, 0.3], [0.4, 0.6]])} | changes


def mine(**changes: Any) -> dict[str, Any]:
    """Return the arrays of a scores.npz that `eval` wrote for two clips."""
    settings = json.dumps(to_settings(EXPERIMENTS["custom"]))
    return two_clips(settings=settings, checkpoint="best.pth", views='{"clips": 1}') | changes


def skeleton(**changes: Any) -> dict[str, Any]:
    return {"names": ["a", "b", "c"], "partners": [["a", "b"]], "limbs": [["a", "c"]]} | changes


TWELVE = TWO | {"class_names": list("abcdefghijkl")}
OWN = "from dataclasses import replace\nfrom trainer.experiments import DEMO\n"
SMALL = ("model.rgb.widths=(8,16)", "model.rgb.blocks=(1,1)", "model.pose.widths=(8,16)", "model.pose.blocks=(1,1)")
WEIGHTS = {"weight": torch.ones(2)}
TINY = torch.nn.Linear(2, 2)
ONE_CLIP = {"keypoint": np.full((1, 5, 17, 2), 9.0), "keypoint_score": np.ones((1, 5, 17))}


def native(path: Path) -> None:
    save_file(WEIGHTS, path)


def half(path: Path) -> None:
    torch.save(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:800])


def sealed(path: Path) -> None:
    save(path, {"state_dict": WEIGHTS})


def damaged(path: Path) -> None:
    sealed(path)
    content = path.read_bytes()
    path.write_bytes(content[:100] + b"x" + content[101:])


ROWS = [
    (ANNOTATE, "labels.csv", LABELS.encode("utf-16"), "save it as CSV in UTF-8$", LABELS),
    (ANNOTATE, "labels.csv", LABELS.replace("val", "test"), "write train or val$", LABELS),
    (ANNOTATE, "labels.csv", "a.mp4,0\nb.mp4,1\n", "add a third column with train or val$", LABELS),
    (ANNOTATE, "labels.csv", LABELS.replace("val", "train"), "write val into the column split of a line$", LABELS),
    (ANNOTATE, "labels.csv", f"{LABELS}{'x' * 200_000},0,val", "save it as CSV with commas$", LABELS),
    (ANNOTATE, "labels.csv", LABELS.replace("1", "walk"), "use only one kind$", LABELS),
    (ANNOTATE, "labels.csv", f"{LABELS}b.mp4,1,val\n", "leave one of them out$", LABELS),
    (ANNOTATE, "labels.csv", f"{LABELS}b,1,val\n", "leave one out$", LABELS),
    (ANNOTATE, "labels.csv", LABELS.replace("b.mp4", "broken.mp4"), "own_val; add videos to the labels$",
     f"{LABELS}broken.mp4,1,val\n"),
    (ANNOTATE, "poses/b.json", PERSON.format(9999), "give the file that was made from this video$", PERSON.format(3)),
    (TABLE, "x.pkl", b"\x80", "get the published skeleton pickle again$", TWO),
    (TABLE, "x.pkl", SHARED, "write the joints of each clip as arrays of its own$", TWO),
    (TABLE, "x.pkl", {"annotations": []}, '"Annotation files" in docs/data.md$', TWO),
    (TABLE, "x.pkl", TWO | {"split": {"s_train": 3}}, '"Annotation files" in docs/data.md$', TWO),
    (TABLE, "x.pkl", TWO | {"class_names": [1, 2]}, "write one name for each class$", NAMED),
    (TABLE, "x.pkl", TWO | {"class_names": ["x"]}, "write one name for each class$", NAMED),
    (TABLE, "x.pkl", TWO | {"class_names": ["x", ""]}, "write 1 to 200 printable characters$",
     NAMED),
    (TABLE, "x.pkl", TWO | {"class_names": ["x", "x"]}, "rename one of them$", NAMED),
    (TABLE, "x.pkl", TWO | {"coarse_map": ["x", 1]}, "write one number for each class$", TWO | {"coarse_map": [1, 0]}),
    (TABLE, "x.pkl", TWO | {"coarse_map": [0, 2]}, "write one number for each class, and use all numbers from 0 on$",
     TWO | {"coarse_map": [0, 1]}),
    (TABLE, "x.pkl", TWO | {"skeleton": "spider"}, "write one of coco17, .*, or leave it out$",
     TWO | {"skeleton": "coco17"}),
    (TABLE, "x.pkl", TWO | {"split": {"s_train": ["a", "a"]}}, "remove the duplicates$", TWO),
    (TABLE, "x.pkl", TWO | {"rotation": "left"}, "write 'shown' or 'stored', or leave it out$",
     TWO | {"rotation": "shown"}),
    (TABLE, "x.pkl", [clip("a"), clip("a")], "remove the duplicates$", [clip("a")]),
    (TABLE, "x.pkl", [clip("a"), clip("b", joints=25)], "use one file for each layout$", [clip("a")]),
    (TABLE, "x.pkl", [clip("a", keypoint=np.ones((6, 1, 17, 2)), keypoint_score=None)],
     r"write the axes of keypoint in the order \(people, frames, joints, 2\)$", [clip("a")]),
    (TABLE, "x.pkl", TURNED, r"are swapped: write img_shape as \(height, width\)$", WIDE),
    ("poses {dir}/one.npz {video} {dir}/cache", "one.npz", None, "give --pose an annotation pickle", ONE_CLIP),
    ("poses {dir}/one.npz {video} {dir}/cache", "one.npz", ONE_CLIP | {"img_shape": [1000, 300]},
     "give the original video, or the skeleton of this video as .npz$", ONE_CLIP),
    ("poses {dir}/one.npz {video} {dir}/cache", "one.npz", ONE_CLIP | {"keypoint": np.full((1, 5, 17, 2), 900.0)},
     r"or write img_shape \(height, width\) into the file$",
     ONE_CLIP | {"keypoint": np.full((1, 5, 17, 2), 900.0), "img_shape": [960, 1280]}),
    ("skeletons {video} --pose {dir}/one.npz", "one.npz", ONE_CLIP | {"keypoint": np.ones((1, 5, 25, 2)),
     "keypoint_score": np.ones((1, 5, 25))}, "name a file with 17 joints, or a checkpoint for 25$", ONE_CLIP),
    ("skeleton {dir}/s.json", "s.json", None, "name a readable .json file$", skeleton()),
    ("skeleton {dir}/s.json", "s.json", "{", "write it as {", skeleton()),
    ("skeleton {dir}/s.json", "s.json", skeleton(more=[]), "write it as {", skeleton()),
    ("skeleton {dir}/s.json", "s.json", skeleton(names=[1, 2, 3]), "write it as {", skeleton()),
    ("skeleton {dir}/s.json", "s.json", skeleton(limbs=["a"]), "write it as {", skeleton()),
    ("skeleton {dir}/s.json", "s.json", skeleton(limbs=[["a", "d"]]), "use one of its names, or a number", skeleton()),
    ("skeleton {dir}/s.json", "s.json", skeleton(limbs=[[0, 3]]), "are 0 to 2: correct the number$", skeleton()),
    ("skeleton {dir}/s.json", "s.json", skeleton(limbs=[[0, 0]]), "name two different joints$", skeleton()),
    ("skeleton {dir}/s.json", "s.json", skeleton(names=["a", "a", "c"], partners=[]), "name a: rename one", skeleton()),
    ("skeleton {dir}/s.json", "s.json", skeleton(partners=[[0, 1], [0, 2]]), "partners for a: leave one", skeleton()),
    ("skeleton {dir}/s.json", "s.json", skeleton(limbs=[[0, 1], [1, 0]]), "twice: leave one of them out$", skeleton()),
    ("skeleton {dir}/s.json", "s.json", {"names": [], "partners": [], "limbs": []}, "list at least one$", skeleton()),
    ("coarse {dir}/map.txt 4", "map.txt", None, "pass a readable file or one of", "0 0 1 1"),
    ("coarse {dir}/map.txt 4", "map.txt", "0 0 1 -1", "use numbers from 0 to 1$", "0 0 1 1"),
    ("coarse {dir}/map.txt 4", "map.txt", "0 0 1 x", "is a list of integers, one for each class$", "0 0 1 1"),
    ("weights {dir}/w.safetensors", "w.safetensors", b"damaged", "download or copy it again$", native),
    ("weights {dir}/w.pth", "w.pth", half, "download or copy it again$", WEIGHTS),
    ("weights {dir}/w.pth", "w.pth", {"model": TINY}, "save only the state_dict$", TINY.state_dict()),
    ("weights {dir}/w.pth", "w.pth", {"epoch": 1}, "pass a checkpoint with a state_dict$", WEIGHTS),
    ("weights {dir}/w.pth", "w.pth", os.mkfifo, "copy what it contains into a file, and name the file$", WEIGHTS),
    ("weights {dir}/w.pth", "w.pth", None, r"pass a checkpoint \(", WEIGHTS),
    ("weights {dir}/sealed.pth", "sealed.pth", damaged, "copy it again, or use another file$", sealed),
    ("scores {dir}/s.npz", "s.npz", arrays(rgb=np.full((2, 52), np.nan)), "evaluate an earlier snapshot$", arrays()),
    ("scores {dir}/s.npz", "s.npz", None, "name the scores.npz that python -m trainer eval wrote$", arrays()),
    ("scores {dir}/s.npz", "s.npz", b"PK\x03\x04", "write it again with python -m trainer eval$", arrays()),
    ("scores {dir}/s.npz", "s.npz", arrays(rgb_coarse=None, pose_coarse=None),
     "name the scores.npz of ma52 or ma52_pcan, or fuse scores$", arrays()),
    ("scores {dir}/s.npz", "s.npz", arrays(rgb=np.ones((2, 60)), pose=np.ones((2, 60))), "name the scores.npz of ma52",
     arrays()),
    ("scores {dir}/s.npz", "s.npz", arrays(name=["x/a", "y/a"]), "evaluate only the test videos, each of them once$",
     arrays(name=["x/a", "y/b"])),
    ("scores {dir}/s.npz", "s.npz", arrays(name=[1, 2]), "name the scores.npz that eval or fuse wrote$", arrays()),
    ("scores {dir}/s.npz", "s.npz", arrays(name=["a", "a"]), "the clip a: evaluate each clip once$", arrays()),
    (FUSE, "s.npz", two_clips(settings=json.dumps(to_settings(DEMO))), "write it again with python -m trainer eval$",
     two_clips()),
    (FUSE, "s.npz", two_clips(name=["a", "c"]), "such as c: evaluate all checkpoints on the same clips$", two_clips()),
    (FUSE, "s.npz", two_clips(label=[1, 0]), "evaluate both with the same annotation file$", two_clips()),
    (FUSE, "s.npz", two_clips(rgb=np.full((2, 3), 1 / 3)), "name networks of one data set$", two_clips()),
    (FUSE, "s.npz", two_clips(rgb=np.ones((2, 2))), "apply softmax to these scores before you fuse them$", two_clips()),
    (f"{TWICE} --fit {{dir}}/v.npz {{dir}}/v.npz", "v.npz", two_clips(name=["c", "d"], label=[0, 0]),
     "have no labels to fit weights: name other scores with --fit$", two_clips(name=["c", "d"])),
    (MINE, "v.npz", mine(name=["c", "d"], checkpoint="epoch_9.pth"), "evaluate the same snapshot on both splits",
     mine(name=["c", "d"])),
    ("trainer fuse {dir}/mine.npz {dir}/s.npz --out {dir}/fused", "s.npz", mine(views='{"clips": 10}'),
     "evaluate all checkpoints with the same --clips, --crops and --flip", mine()),
    ("video {dir}/v.mp4", "v.mp4", None, "check its path$", b"any"),
    (TABLE, "x.pkl", [{"frame_dir": "a", "label": 0, "total_frames": 6, "keypoint": np.ones((1, 6, 25, 3))}],
     r"3-D; use 2-D skeletons, for NTU those of ntu60_2d.pkl \(or ntu60_hrnet.pkl\)$", [clip("a")]),
    ("tables {dir}/twelve.pkl {dir}/val.pkl {dir}/cache", "val.pkl", TWELVE | {"class_names": list("abcdefghijkx")},
     "write the same class_names into both$", TWELVE),
    ("trainer config --exp {dir}/own.py:X", "own.py", f"{OWN}X = replace(DEMO, seed='no', name='x'", "; correct it$",
     f"{OWN}X = replace(DEMO, seed=1, name='x')"),
    ("trainer config --config {dir}/x.json", "x.json", {"name": "x"}, "has no default: add it$",
     to_settings(DEMO)),
    ("settings {dir}/s.pth", "s.pth", damaged, "copy it again, or name another file with --checkpoint$", sealed),
    ("record {dir}/r.json", "r.json", None, "choose a file of benchmarks/records$", {"results": {}}),
    ("record {dir}/r.json", "r.json", {}, "choose a file of benchmarks/records$", {"results": {}}),
    ("readme {dir}/r.md", "r.md", "text", "add the lines '<!-- measured", f"text\n{BEGIN}\n{END}\n"),
    ("gaps {dir}/t.csv", "t.csv", "text", "make it with benchmarks/nsys.sh$", TRACE),
    ("gaps {dir}/t.csv", "t.csv", "\n".join(TRACE.splitlines()[:2]), "run benchmarks/nsys.sh again, and let it", TRACE),
]  # fmt: skip

MERGE = "merge {weights}/rgb.pth {weights}/pose.pth"
# Each row is a command that is refused, a regular expression that finds the advice in its message, and the command that
# follows the advice. {0} is what the first group of the expression has matched.
COMMANDS = [
    ("trainer config --exp {dir}/no.py:X", "name an existing file, as in --exp", "trainer config --exp {dir}/own.py:X"),
    ("trainer config --exp ntu60 --set data.coarse_map=()", r"set (model.num_coarse=0) and (model.pcan=none), or",
     "{before} --set {0} --set {1}"),
    ("trainer config --exp ntu60 --set data.coarse_map=()", r"or give (--coarse-map) a text file with 60 numbers$",
     "{before} {0} {dir}/sixty.txt"),
    ("trainer config --exp ntu60 --set model.num_coarse=0", r"set (model.pcan=none)$",
     "{before} --set {0}"),
    ("live --live a.mp4 b.mp4", "are both named: leave one of them out$", "live --live a.mp4"),
    ("live --live a.mp4 --pose p.pkl", "are estimated: leave out --pose$", "live --live a.mp4"),
    ("live --live a.mp4 --max-delay 0", "choose a number of seconds above 0$", "live --live a.mp4 --max-delay 1"),
    ("folder {dir}", "name the folder in which the videos are$", "folder {videos}"),
    ("verify {dir}/x.pkl --num-classes 1 --cache {dir}/cache", r"correct the labels or (--num-classes)$",
     "verify {dir}/x.pkl {0} 2 --cache {dir}/cache"),
    ("verify {dir}/x.pkl --videos {dir}/some --cache {dir}/cache", r"repair or add the videos, or allow",
     "verify {dir}/x.pkl --videos {videos} --quick --cache {dir}/cache"),
    ("verify {dir}/x.pkl --videos {dir}/some --cache {dir}/cache --quick", r"or allow more with (--max-bad) \(in",
     "{before} {0} 0.5"),
    ("verify {dir}/x.pkl --json {dir}/no/x.json --cache {dir}/cache", r"name another file with (--json)$",
     "verify {dir}/x.pkl {0} {dir}/x.json --cache {dir}/cache"),
    ("annotate {videos} {dir}/labels.csv --out {dir}/my.pkl --poses {dir}/no", "give --poses a folder with NAME.json",
     ANNOTATE),
    ("annotate {videos} {dir}/labels.csv --out {dir}/my.pkl --rotation stored",
     r"add (--poses), or leave --rotation out$", "{before} {0} {dir}/poses"),
    ("annotate {videos} {dir}/labels.csv --out {dir}/my.pkl --poses {dir}/poses --every 2",
     "and --every are for estimated skeletons: leave them out, or leave out --poses", ANNOTATE),
    ("rtmlib --estimator rtmlib", "; use (--estimator blazepose), or install the pose", "rtmlib {0}"),
    ("options --every 0", "choose (1) for all frames", "options --every {0}"),
    ("options --estimator blazepose --weights {dir}", "leave it out, or use (--estimator rtmlib)$",
     "options {0} --weights {dir}"),
    ("video {videos}/a.mp4 {dir}/some/a.mp4", "predict them in separate commands, each", "video {videos}/a.mp4"),
    ("video {videos}/a.mp4 {videos}/b.mp4 --pose {dir}/one.npz", "predict them in separate commands$",
     "video {videos}/a.mp4 --pose {dir}/one.npz"),
    ("poses {dir}/labels.csv {video} {dir}/cache", "give --pose an annotation pickle", "poses {dir}/one.npz {video} _"),
    ("find {dir}/folders.pkl a", "means 2 clips, such as (x/a) and y/a: name its folder", "find {dir}/folders.pkl {0}"),
    ("view {dir}/some", "write, for example, python -m trainer view work_dirs", "view {dir}/run"),
    ("write {dir}/no/x.pth", "could not be written .*: choose another folder$", "write {dir}/x.pth"),
    ("trainer fuse {dir}/two.npz --out {dir}/fused", "more members: write, for example, python -m trainer fuse", TWICE),
    (f"{TWICE} --weights 1 2 --fit half", "leave out (--weights) or --fit$", f"{TWICE} {{0}} 1 2"),
    (f"{TWICE} --metric f1_mean", "use (--metric top1)$", f"{TWICE} {{0}}"),
    (f"{TWICE} --weights 1", "give (2) numbers, one for each member, that are 0 or more", f"{TWICE} --weights 1 {{0}}"),
    (f"{TWICE} --fit {{dir}}/two.npz", "name scores for each member, or use (--fit half)$", f"{TWICE} {{0}}"),
    (f"{TWICE} --fit {{dir}}/two.npz {{dir}}/two.npz", r"use --fit half, or (--fit same) to accept", f"{TWICE} {{0}}"),
    (f"{HIDDEN} --fit half", "give the weights with (--weights)$", f"{HIDDEN} {{0}} 1 2"),
    ("trainer fuse {dir}/two.npz {dir}/member --out {dir}/member", "name a folder of its own with (--out)$",
     "trainer fuse {dir}/two.npz {dir}/member {0} {dir}/fused"),
    ("trainer fuse {dir}/mine.npz {dir}/ten.npz --out {dir}/fused", "the difference with (--mixed-views)$",
     "{before} {0}"),
    ("trainer fuse {dir}/two.npz:pose {dir}/two.npz --out {dir}/fused", r"no scores of pose: name one of (\w+)$",
     "trainer fuse {dir}/two.npz:{0} {dir}/two.npz --out {dir}/fused"),
    ("trainer recipe demo_staged --dry-run --use rgb", r"write STAGE=PATH, where STAGE is one of (\w+)",
     "{before}={weights}/rgb.pth"),
    ("trainer recipe demo_staged --dry-run --use rgb=no", "name a file of weights or a run's folder$",
     "trainer recipe demo_staged --dry-run --use rgb={weights}/rgb.pth"),
    ("trainer recipe demo_staged --dry-run --set x:seed=1", r"no run 'x'; name one of (\w+),",
     "trainer recipe demo_staged --dry-run --set {0}:seed=1"),
    ("trainer compare {dir}/hidden.npz {dir}/hidden.npz", "name scores of a split with labels$",
     "trainer compare {dir}/two.npz {dir}/two.npz"),
    ("averaged {dir}/w.pth", "or leave out --averaged$", "weights {dir}/w.pth"),
    ("merge {weights}/pose.pth {weights}/rgb.pth", "pass the file of the RGB stream first, then that", MERGE),
    ("merge {weights}/rgb120.pth {weights}/pose.pth", "merge networks of one data set$", MERGE),
    ("note {dir}/w.pth/x {dir}/y", "cannot be written .*; choose another folder$", "note {dir}/p {dir}/y"),
    ("lock {dir}/w.pth/x", "cannot be written .*; choose another folder$", "lock {dir}/p"),
    ("demo {dir}/taken", "did not make; choose another folder, or move these files away$", "demo {dir}/new"),
    ("settings {dir}/run/epoch_1_step_1.pth", "so name a file of another run$", "settings {dir}/sealed.pth"),
    ("choose {weights}/tiny.pth", "name one with --exp and change it with --set",
     "choose {weights}/tiny.pth --exp demo {small}"),
    ("poses {dir}/own.pkl {video} {dir}/c", r"first clip in the file is (\w+); rename the video, or give its skeleton",
     "poses {dir}/own.pkl {videos}/{0}.mp4 {dir}/c"),
    ("place {dir}/some", r"start again after cd (\S+), or make this folder", "place {0}"),
    ("same {dir}/sealed.pth", "start a new run, with --init to use the weights", "weights {dir}/sealed.pth"),
    ("sources {dir}/own.pkl {videos} {dir} bad", "; change data.split, or set data.videos to the folder",
     "sources {dir}/own.pkl {videos} {dir} good"),
]  # fmt: skip


def put(file: Path, content: Any) -> None:
    """Write `content` in the format that the file's name asks for. The content None removes the file."""
    file.unlink(missing_ok=True)
    if callable(content):
        content(file)
    elif isinstance(content, bytes | str):
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    elif content is not None:
        writers: dict[str, Callable[[], object]] = {
            ".pkl": lambda: file.write_bytes(pickle.dumps(content)),
            ".json": lambda: file.write_text(json.dumps(content)),
            ".npz": lambda: np.savez(file, **content),
            ".pth": lambda: torch.save(content, file),
        }
        writers[file.suffix]()


@pytest.fixture(scope="module")
def video(tiny) -> Path:
    """Return the path of a small video that can be decoded."""
    (videos,) = (Path(word.partition("=")[2]) for word in tiny if word.startswith("data.videos="))
    return next(file for file in sorted(videos.iterdir()) if file.stat().st_size)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Make a folder with X3D streams for 60 classes and for 120 classes, and with the network of a small demo."""
    folder = tmp_path_factory.mktemp("weights")
    small = override(DEMO, *SMALL).model
    for name, model, part in (
        ("rgb", EXPERIMENTS["ntu60_x3d"].model, "rgb"),
        ("pose", EXPERIMENTS["ntu60_x3d"].model, "pose"),
        ("rgb120", EXPERIMENTS["ntu120_x3d"].model, "rgb"),
        ("tiny", small, ""),
    ):
        shapes = {key: shape for key, shape in shapes_of(model).items() if part in key}
        torch.save({"state_dict": {key: torch.zeros(shape) for key, shape in shapes.items()}}, folder / f"{name}.pth")
    return folder


@pytest.fixture
def places(video, weights, tmp_path) -> dict[str, str]:
    for name in ("videos", "poses"):
        (tmp_path / name).mkdir()
    for name in ("a", "b", "broken"):
        shutil.copy(video, tmp_path / "videos" / f"{name}.mp4")
        (tmp_path / "poses" / f"{name}.json").write_text(PERSON.format(3))
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"broken")
    (tmp_path / "labels.csv").write_text(LABELS)
    (tmp_path / "sixty.txt").write_text("0 1 " * 30)
    (tmp_path / "own.py").write_text(f"{OWN}X = replace(DEMO, seed=1, name='x')")
    for folder in ("some", "taken/videos", "run"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("some/a.mp4", "taken/videos/a.mp4"):
        shutil.copy(video, tmp_path / file)
    (tmp_path / "run" / SETTINGS).write_text("{}")
    put(tmp_path / "one.npz", ONE_CLIP)
    put(tmp_path / "w.pth", WEIGHTS)
    sealed(tmp_path / "sealed.pth")
    damaged(tmp_path / "run" / "epoch_1_step_1.pth")
    put(tmp_path / "two.npz", two_clips())
    put(tmp_path / "hidden.npz", two_clips(label=[0, 0]))
    put(tmp_path / "mine.npz", mine())
    (tmp_path / "member").mkdir()
    put(tmp_path / "member" / "scores.npz", two_clips())
    put(tmp_path / "ten.npz", mine(views='{"clips": 10}'))
    put(tmp_path / "x.pkl", TWO)
    put(tmp_path / "twelve.pkl", TWELVE)
    put(tmp_path / "folders.pkl", [clip("x/a"), clip("y/a")])
    people = {"img_shape": (120, 160), "keypoint": np.full((1, 6, 17, 2), 50.0), "label": 0}
    splits = {"good_train": ["a"], "good_val": ["b"], "bad_train": ["a"], "bad_val": ["broken"]}
    length = sum(1 for _ in decode(str(video), 1 << 20))
    people |= {"total_frames": length, "keypoint": np.full((1, length, 17, 2), 50.0), "keypoint_score": None}
    put(tmp_path / "own.pkl", {"split": splits, "annotations": [clip(n, **people) for n in ("a", "b", "broken")]})
    names = {"dir": tmp_path, "videos": tmp_path / "videos", "video": video, "weights": weights}
    small = " ".join(f"--set {setting}" for setting in SMALL)
    return {key: str(value) for key, value in names.items()} | {"small": small}


def choose(words: list[str]) -> None:
    options = tyro.cli(CheckpointChoice, args=words[1:])
    experiment_for(Path(words[0]), options, False)


def make_demo_folder(words: list[str]) -> None:
    claim_demo(Path(words[0]), DemoConfig())


def open_both(words: list[str]) -> None:
    files = (f"data.annotations={words[0]}", f"data.val_annotations={words[1]}", f"data.cache={words[2]}")
    open_tables(override(DEMO, *files, "data.demo=none", "data.class_names=()"))


def usable_rows(words: list[str]) -> None:
    file, videos, folder, split = words
    places = (
        f"data.annotations={file}",
        f"data.videos={videos}",
        f"data.cache={folder}/c",
        f"data.packs={folder}/packs",
    )
    experiment = override(DEMO, *places, "data.demo=none", "data.max_bad=1")
    train, _ = open_sources(experiment, Console(quiet=True))
    train.usable_rows(f"{split}_val")


def start_in(words: list[str]) -> None:
    with contextlib.chdir(words[0]):
        check_place(DEMO)


def lock(words: list[str]) -> None:
    with make_clips(Path(words[0]), "key", Console(quiet=True)):
        pass


def find_skeletons(words: list[str]) -> None:
    options = tyro.cli(PredictOptions, args=words)
    (path,) = options.videos
    skeletons, header = Skeletons(options.pose, options.people, DEMO, Console(quiet=True)), header_of(str(path))
    skeletons.survey({path: header})
    skeletons.of(path, header, path.parent)


def choose_without_rtmlib(words: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "rtmlib", None)
        choose_estimator(tyro.cli(EstimatorOptions, args=words), print)


PROGRAMS: dict[str, Callable[[list[str]], object]] = {
    "annotate": lambda words: tyro.cli(annotate, args=words),
    "table": lambda words: open_table(Path(words[0]), Path(words[1])),
    "poses": lambda words: read_poses(Path(words[0]), Path(words[1]), header_of(words[1]), Path(words[2])),
    "skeletons": find_skeletons,
    "rtmlib": choose_without_rtmlib,
    "options": lambda words: tyro.cli(EstimatorOptions, args=words).check(),
    "skeleton": lambda words: read_skeleton(words[0]),
    "coarse": lambda words: read_coarse_map(words[0], int(words[1])),
    "weights": lambda words: read_file(Path(words[0])),
    "scores": lambda words: best_scores(read_scores(Path(words[0]))),
    "video": lambda words: check(tyro.cli(PredictOptions, args=words), Path(words[0]).parent / "predict"),
    "live": lambda words: check_live(tyro.cli(PredictOptions, args=words)),
    "trainer": dispatch,
    "tables": open_both,
    "settings": lambda words: settings_in(Path(words[0])),
    "record": lambda words: read_record(Path(words[0])),
    "readme": lambda words: renew_table(Path(words[0]), Path(words[0]).parent),
    "gaps": lambda words: show_gaps(Path(words[0])),
    "folder": lambda words: videos_in(Path(words[0])),
    "verify": lambda words: tyro.cli(verify, args=words),
    "find": lambda words: find_clip([open_table(Path(words[0]), Path(words[0]).parent)], ViewOptions(clip=words[1])),
    "view": lambda words: settings_file(ViewOptions(run=Path(words[0]))),
    "write": lambda words: write_file(Path(words[0]), WEIGHTS),
    "averaged": lambda words: read_file(Path(words[0]), averaged=True),
    "merge": lambda words: merge(read_weights(Path(words[0])), read_weights(Path(words[1]))),
    "note": lambda words: note(Path(words[0]), Path(words[1])),
    "lock": lock,
    "place": start_in,
    "same": lambda words: check_same(Snapshot(Path(words[0]), load(Path(words[0]))), DEMO, print),
    "demo": make_demo_folder,
    "choose": choose,
    "sources": usable_rows,
}


def start(command: str) -> int:
    """Run a command of PROGRAMS, and return its exit code."""
    program, *words = shlex.split(command)

    def call() -> int:
        code = PROGRAMS[program](words)
        return code if program in ("trainer", "verify") and isinstance(code, int) else 0

    return exit_code(call)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[1]}: {row[3]}")
def test_the_mended_file_is_accepted(row, places, capsys):
    command, name, wrong, advice, right = row
    put(Path(places["dir"]) / name, wrong)
    assert start(command.format(**places)) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(advice, message), message
    put(Path(places["dir"]) / name, right)
    assert start(command.format(**places)) == 0, capsys.readouterr().err


@pytest.mark.parametrize("row", COMMANDS, ids=lambda row: row[0])
def test_the_changed_command_is_accepted(row, places, capsys):
    refused, advice, followed = row
    command = refused.format(**places)
    assert start(command) == 2
    message = "".join(capsys.readouterr())
    words = re.search(advice, message, re.MULTILINE)
    assert words, message
    assert start(followed.format(*words.groups(), before=command, **places)) == 0, capsys.readouterr().err
