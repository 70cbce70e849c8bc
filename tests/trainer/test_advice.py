"""The advice in messages works: each row runs a command that is refused, and then follows the message's advice.

A row is a command line that is refused, and one or more steps: a regular expression that finds the advice in the
message, and the command line that follows it. `{0}` and `{1}` are the groups of the expression, `{before}` is the
previous command line, and the other names are keys of the fixture `places`. The last command must succeed. If the
advice is to change a file, the row names a function of CHANGES, which changes the file between the two commands.
"""

import contextlib
import io
import json
import pickle
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import tyro

from kernels.program import exit_code
from models.weights.cli import main as weights
from models.weights.nets import shapes_of
from pipelines.annotate.cli import main as annotate
from pipelines.prepare.cli import form_of
from pipelines.verify.cli import main as verify
from tests.pipelines.annotated import clip
from trainer.cli import dispatch, run_command
from trainer.experiments import EXPERIMENTS
from trainer.runtime.num_ranks import check_division
from trainer.runtime.ranks import Ranks
from trainer.settings import override
from trainer.snapshots.lock import locked
from trainer.snapshots.work_dir import claim
from trainer.stored import to_settings

CONFIG = "trainer config --exp demo"
POSE_DATA = "trainer view --exp ntu60_pose --device cpu --set clip.heatmap_size=12 --set clip.heatmap_size_val=14"
POSE_DATA += " --set data.cache={dir}/cache --out {dir}/clip.png --set data.annotations={files}"
DRY = "trainer prepare {tiny} --dry-run --set data.demo=none"
EXPORT = "trainer export --format safetensors --out {dir}/net.safetensors"
# Small images, but a network of full size, because the command compares the file with the network.
SIZES = "--set clip.rgb_size=32 --set clip.rgb_size_val=32 --set clip.heatmap_size=8 --set clip.heatmap_size_val=8"
VIEW = "trainer view {tiny} --device cpu --out {dir}/clip.png --set data.demo=none"
PREPARE = "prepare {annotations} --videos {videos} --packs {packs} --cache {cache} --max-bad 0.05 --box-pixels 56"
PREPARE += " --dry-run"
LABELS = "annotate {videos} {dir}/labels.csv --out {dir}/my.pkl --poses {files}/poses"

# Messages about settings of an experiment. Such settings are refused before any data are read.
SETTINGS = [
    ("trainer config --exp dmo", (r"did you mean (\w+)\?", "trainer config --exp {0}")),
    ("trainer config", (r"--exp is missing; the experiments are (\w+),", "trainer config --exp {0}")),
    (f"{CONFIG} --device cuda:1", (r"write (--device cuda)$", f"{CONFIG} {{0}}")),
    (f"{CONFIG} --device=1", (r"write (--device cuda)$", f"{CONFIG} {{0}}")),
    ("trainer confg --exp demo", (r"did you mean (\w+)\?", "trainer {0} --exp demo")),
    (f"{CONFIG} --set optim.lrr=1", (r"did you mean ([\w.]+)\?", f"{CONFIG} --set {{0}}=1")),
    (f"{CONFIG} --set lr=1", (r"did you mean ([\w.]+)\?", f"{CONFIG} --set {{0}}=1")),
    (f"{CONFIG} --set model.rgb.width=8,16,8", (r"did you mean ([\w.]+)\?", f"{CONFIG} --set {{0}}=8,16,8")),
    (f"{CONFIG} --set nonsense=1", (r"its fields are (\w+),", f"{CONFIG} --set {{0}}=mine")),
    (f"{CONFIG} --set optim.lr", (r"write it as (--set [\w.=]+)", f"{CONFIG} {{0}}")),
    (f"{CONFIG} --set optim.schedule=linear", (r"is not one of (\w+),", f"{CONFIG} --set optim.schedule={{0}}")),
    (f"{CONFIG} --set optim.milestones=x", (r"such as (\S+);", f"{CONFIG} --set optim.milestones={{0}}")),
    (f"{CONFIG} --set model.pcan.fine_width=9", (r"in this experiment; add (--set \S+)$", "{before} {0}")),
    (f"{CONFIG} --set clip.quality=99", (r"not between (\d+) and 31", f"{CONFIG} --set clip.quality={{0}}")),
    (f"{CONFIG} --set optim.warmup_epochs=100", (r"for example (--set \S+)$", "{before} {0}")),
    (f"{CONFIG} --set optim.schedule=multistep", (r"drops: (--set '\S+')$", "{before} {0}")),
    (
        f"{CONFIG} --set optim.kind=adamw --set optim.momentum=0.8",
        (r"set (optim.betas) instead, and (optim.momentum=\S+)$", "{before} --set {1} --set {0}=0.8,0.9"),
    ),
    (
        f"{CONFIG} --set optim.betas=0.8,0.9",
        (r"set (optim.momentum) instead, and (optim.betas=\S+)$", "{before} --set {1} --set {0}=0.8"),
    ),
    (f"{CONFIG} --set optim.kind=adamw --set optim.impl=apex", (r"set (optim.impl=\w+),", "{before} --set {0}")),
    (f"{CONFIG} --set optim.kind=adamw --set optim.impl=apex", (r"or (optim.kind=\w+)$", "{before} --set {0}")),
    (
        f"{CONFIG} --set clip.joints=false",
        (r"no limbs are drawn: set (clip.limbs=true) and", "{before} --set {0}"),
    ),
    (f"{CONFIG} --set clip.joints=false", (r"or set (clip.joints=true)$", f"{CONFIG} --set {{0}}")),
    (
        "trainer config --exp ntu60_pose --set clip.erasing=0.5",
        (r"turn it off with --set (clip.erasing=0)$", "{before} --set {0}"),
    ),
    (f"{CONFIG} --set cuda_graph=true --set optim.impl=apex", (r"set (optim.impl=\w+)$", "{before} --set {0}")),
    (f"{CONFIG} --set optim.accumulate=3", (r"(optim.batch_size)=16.*change one of", "{before} --set {0}=12")),
    (f"{CONFIG} --set optim.accumulate=3", (r"(optim.accumulate)=3 .*change one of", "{before} --set {0}=4")),
    (
        f"{CONFIG} --set optim.rollbacks=1 --set snapshot_every=33",
        (r"multiple of (log_every)=\d+.*change one of the two", "{before} --set {0}=11"),
    ),
    (f"{CONFIG} --set fused=bottlenecks", (r"only (\w+) and (\w+)$", f"{CONFIG} --set fused={{0}},{{1}}")),
    (f"{CONFIG} --set fused=heat", (r"names from (\w+),", f"{CONFIG} --set fused={{0}}")),
    (f"{CONFIG} --set val.metric=acc/RGBPose_top1", (r"mean (\S+)\?", f"{CONFIG} --set val.metric={{0}}")),
    ("trainer config --exp ntu60 --set clip.pose_frames=30", (r"(--set clip.pose_frames=\d+)$", "{before} {0}")),
    (
        "trainer config --exp ntu60_epam --set clip.pose_frames=8",
        (r"or set (clip.aligned=false)$", "{before} --set {0}"),
        (r"(--set clip.pose_frames=\d+)$", "{before} {0}"),
    ),
    (
        f"{CONFIG} --set model.rgb.widths=8,16 --set model.pose.widths=8,16",
        (r"widths=\S+ \S+ (blocks)=.*set all of them", "{before} --set model.rgb.{0}=1,1 --set model.pose.{0}=1,1"),
    ),
    (
        f"{CONFIG} --set data.split=none --set data.train_split=a",
        (r"says which clips are meant: set (data.val_split) too$", "{before} --set {0}=b"),
    ),
    (f"{CONFIG} --set data.class_names=a,b", (r"none with (--set \S+)$", "{before} {0}")),
    (
        f"{CONFIG} --set model.num_classes=5",
        (r"computed from (data), clip and --coarse-map: change these", f"{CONFIG} --set {{0}}.num_classes=5"),
        (r"none with (--set \S+)$", "{before} {0}"),
        (r"leave out coarse classes with (--set \S+)$", "{before} {0}"),
        (r"set (model.num_coarse=0),", "{before} --set {0}"),
    ),
    (
        "trainer config --exp ntu60_pose --set data.num_classes=5 --set data.class_names=()",
        (r"leave out coarse classes with (--set \S+)$", "{before} {0}"),
    ),
    (
        f"{CONFIG} --set data.num_classes=5 --set data.class_names=()",
        (r"(--coarse-map) a text file with 5 numbers", "{before} {0} {files}/five.txt"),
    ),
    ("trainer config --exp ntu60 --coarse-map ma52", (r"(--coarse-map \w+) or .* with 60 numbers", "{before} {0}")),
    ("trainer config --exp ntu60 --coarse-map none.txt", (r"(\w+) \(60 classes\)", "{before} --coarse-map {0}")),
    (
        f"{CONFIG} --coarse-map {{dir}}/gap.txt",
        (r"coarse class 1: (number coarse classes from 0, with no gap)$", "{before}", "close_the_gap"),
    ),
    (f"{CONFIG} --set clip.skeleton=coco", (r": use one of (\w+),", f"{CONFIG} --set clip.skeleton={{0}}")),
    (
        "division 3 demo val.batch_size=16",
        (r"(optim.batch_size)=16 .* ranks; change it, or --ranks$", "{before} {0}=24"),
        (r"(val.batch_size)=\d+ .* ranks; change it, or --ranks$", "{before} {0}=12"),
    ),
    ("division 2 demo optim.accumulate=16", (r"change (optim.accumulate),", "division 2 demo {0}=8")),
    ("trainer config --exp {files}/own.py", (r"write it as --exp my_experiments.py(:)MINE$", "{before}{0}MINE")),
    (
        "trainer config --exp {files}/own.py:X",
        (r"the experiments in it are: (\w+)", "trainer config --exp {files}/own.py:{0}"),
    ),
    (
        "trainer config --exp {dir}/shipped.py:X",
        (r'as in replace\(\.\.\., (name="x")\)$', "{before}", "give_it_a_name"),
    ),
    (
        "trainer config --exp demo --config {files}/demo.json",
        (r"(leave one of them out)$", "trainer config --config {files}/demo.json"),
    ),
    (
        "trainer config --config {dir}/no.json",
        (r"`(python -m trainer config --json)` has written", "{before}", "write_config"),
    ),
    (
        "trainer config --config {files}/damaged.json",
        (r"are not JSON: use (another file)$", "trainer config --config {files}/demo.json"),
    ),
]  # fmt: skip

# Messages about data: annotation files, splits, videos and packs.
DATA = [
    (f"{POSE_DATA}/none.pkl", (r"set (data.annotations) to the skeleton pickle$", f"{POSE_DATA}/body.pkl")),
    (
        f"{POSE_DATA}/ntu25.pkl",
        (r"set (clip.skeleton) to (\w+) or", "{before} --set {0}={1}"),
    ),
    (
        "trainer prepare {tiny} --dry-run --set data.demo=none --set data.num_classes=5 --set data.class_names=() "
        "--set model.num_coarse=0",
        (r"set (data.num_classes=12),", "{before} --set {0}"),
    ),
    (
        f"{DRY} --set data.annotations={{dir}}/from_1.pkl",
        (r"labels from 1 on; (number the classes from 0 in this file)$", "{before}", "number_from_0"),
    ),
    (
        f"{DRY} --set data.annotations={{files}}/from_2.pkl",
        (
            r"set (\S+=14) and (\S+), .*without coarse classes: (\S+) and (\S+)$",
            "{before} --set {0} --set {1} --set {2} --set {3}",
        ),
    ),
    (
        f"{DRY} --set data.annotations={{files}}/named.pkl",
        (
            r"set (\S+=13) and (\S+), with a (--coarse-map) for 13 classes",
            "{before} --set {0} --set {1} {2} {files}/thirteen.txt",
        ),
    ),
    (
        "verify {files}/part.pkl --cache {cache}",
        (r"allow it with (--max-absent \S+) \(in training: (--set \S+)\)$", "{before} {0}"),
    ),
    (f"{VIEW} --set data.videos={{dir}}/no", (r"\((data.videos), ", "{before} --set {0}={videos}")),
    (f"{DRY} --set data.videos={{files}}/links", (r"(data.follow_links=true)", "{before} --set {0}")),
    (f"{PREPARE} --videos {{files}}/links", (r"\((--follow-links)\)", "{before} {0}")),
    (f"{PREPARE} --videos {{dir}}/empty", (r"(--videos)\)$", "{before} {0} {videos}")),
    (f"{PREPARE} --cache {{files}}/own.py", (r"\((--cache)\) to another folder", "{before} {0} {cache}")),
    (f"{PREPARE} --shard 16", (r"is (--shard 0/16)$", "{before} {0}")),
    (f"{PREPARE} --shard 2/2", (r"choose one of (--shard \S+) to", "{before} {0}")),
    (f"{PREPARE} --max-bad 2", (r"(--max-bad) 2 is not between 0 and (\d+)", "{before} {0} {1}")),
    (
        "prepare --list --packs {dir}/none",
        (r"with (--packs) of python -m pipelines.prepare$", "prepare --list {0} {packs}"),
    ),
    (
        "prepare --drop --dry-run --packs {dir}/empty",
        (r"with (--packs) of python -m pipelines.prepare$", "prepare --drop --dry-run {0} {packs}"),
    ),
    (
        "verify {annotations} --videos {files}/links --quick --max-bad 0.05 --cache {cache}",
        (r"\((--follow-links)\)", "{before} {0}"),
    ),
    (
        "annotate {files}/links {dir}/labels.csv --out {dir}/my.pkl --poses {files}/poses",
        (r"(number the classes from 0 without a gap)$", "{before}", "labels_from_0"),
        (r"\((--follow-links)\)", "{before} {0}"),
    ),
    (
        "annotate {dir}/no {dir}/labels.csv --out {dir}/my.pkl --poses {files}/poses",
        (r"(number the classes from 0 without a gap)$", "{before}", "labels_from_0"),
        (r"name (the folder of the videos)", LABELS),
    ),
    (
        "trainer prepare {tiny} --dry-run --set data.annotations={files}/from_0.pkl",
        (r"add --set (data.demo=None)$", "{before} --set {0}"),
    ),
    (
        "trainer prepare {tiny} --dry-run --set data.videos={dir}/disk",
        (r"to keep them in \S+, use (--set \S+ --set \S+),", "{before} {0}"),
    ),
    (
        "trainer prepare {tiny} --dry-run --set data.follow_links=true --set data.videos={files}/links",
        (r"if the demo's videos are there already, (--set data.demo=None)$", "{before} {0}"),
    ),
    (f"{POSE_DATA}/body.pkl --clip nobody", (r"clip of the annotation file is (\w+)$", "{before} --clip {0}")),
    (f"{POSE_DATA}/body.pkl --index 999", (r"the clips 0 to (\d+)$", "{before} --index {0}")),
    (LABELS, (r"(number the classes from 0 without a gap)$", "{before}", "labels_from_0")),
    (f"{LABELS} --people 0", (r"(--people) 0: the number must be (1) or more", "{before} {0} {1}", "labels_from_0")),
]  # fmt: skip

BEGIN = "trainer {tiny} --work-dir {dir}/new"
WRONG = "--set data.source=video --set cuda_graph=true --init {dir}/none.pth"
SCORE = "trainer eval {run} --out {dir}/eval"
PREDICT = "trainer predict {video} --checkpoint {run} --pose {annotations} --out {dir}/predictions"

# Messages about runs, snapshots and files of weights.
RUNS = [
    (
        f"trainer train {{tiny}} --work-dir {{dir}}/new --max-steps -1 --profile 5 --device cuda --ranks 0 {WRONG}",
        ("(leave this word out), because", f"{BEGIN} --max-steps -1 --profile 5 --device cuda --ranks 0 {WRONG}"),
        (r"(--max-steps) -1: .* use (0) or more$", "{before} {0} {1}"),
        (r"write it as (--profile \S+),", "{before} {0}"),
        (r"use (--device cpu)", "{before} {0}"),
        (r"(--ranks) 0: at least (one) process is needed$", "{before} {0} 1"),
        (r"(data.source)=video .*: leave this setting out", "{before} --set {0}=packs"),
        (r"(cuda_graph)=True .*, leave this setting out$", "{before} --set {0}=false"),
        (r"pass a checkpoint \(\.pth, \.pt, \.pyth, (\.safetensors)\)$", "{before} --init {files}/net{0}"),
    ),
    (f"{EXPORT}", (r"add (--checkpoint) with a run's folder", "{before} {0} {run}")),
    (f"{EXPORT} {{run}} --checkpoint {{run}}", (r"(leave one of them out)$", f"{EXPORT} {{run}}")),
    (f"{EXPORT} {{dir}}/empty", (r"name (the folder of a run)", f"{EXPORT} {{run}}")),
    (f"{EXPORT} {{run}} --exp custom", (r"(leave out --exp)$", f"{EXPORT} {{run}}")),
    (
        f"{EXPORT} {{run}} --config {{files}}/demo.json",
        (r"(leave out --config), and change settings with (--set)$", f"{EXPORT} {{run}} {{1}} log_every=3"),
    ),
    (
        f"{EXPORT} {{files}}/x3d.pth {SIZES} --exp ntu60_pose",
        (r": use (--exp \w+)", f"{EXPORT} {{files}}/x3d.pth {SIZES} {{0}}"),
    ),
    (f"{EXPORT} {{run}} --out {{dir}}/net.onnx", (r"must end in (\.\w+)$", "{before} --out {dir}/net{0}")),
    (f"{EXPORT} {{run}} --out {{dir}}/no/net.safetensors", (r"with (--out)$", "{before} {0} {dir}/net.safetensors")),
    ("trainer test {run}", (r"`python -m (trainer eval)` scores", "{0} {run} --out {dir}/eval")),
    (f"{SCORE} --set data.split=b", (r"set (data.split=xsub),", "{before} --set {0}")),
    (
        f"{SCORE} --set data.split=b",
        (r"or (data.split=none) with (data.val_annotations),", "{before} --set {0} --set {1}={files}/val.pkl"),
    ),
    (f"{SCORE} --split test", (r"name one of (\w+),", f"{SCORE} --split {{0}}")),
    (
        f"{BEGIN} --max-steps 0 --set data.demo=none --set data.annotations={{files}}/part.pkl",
        (r"left clips out on purpose, allow it with (--set \S+)$", "{before} {0}"),
    ),
    (
        "trainer predict --pose {annotations} --out {dir}/predictions --window 16 --stride 20",
        (r"add (--checkpoint) with a run's folder", "{before} {0} {run}"),
        (r"write python -m (trainer predict) VIDEO.mp4 --checkpoint", f"{PREDICT} --window 16 --stride 20"),
        (r"1 <= (stride) <= (window)", f"{PREDICT} --{{0}} 16 --{{1}} 16"),
    ),
    ("trainer runs {dir}/empty", (r"name (the folder of your work directories)$", "trainer runs {run}/..")),
    ("trainer report --out {dir}/r.html", (r"for example, python -m (trainer report) work_dirs/ntu60$", "{0} {run}")),
    (
        "trainer compare {run} --out {dir}/c.png",
        (r"takes (2) to", "trainer compare {run} {dir}/empty --out {dir}/c.png"),
        (r"choose (the --work-dir of a run)$", "trainer compare {run} {copy} --out {dir}/c.png", "damage_settings"),
        (r"continue the run with (--resume),", "trainer compare {run} {copy} --out {dir}/c.png", "resume_copy"),
    ),
    (
        "trainer --resume --set model.dropout=0.1",
        (r"name it with (--work-dir),", "{before} {0} {run}"),
        (r"choose another (--work-dir)$", "{before} {0} {dir}/new"),
        (r"or start one with (--exp) and without --resume$", f"{BEGIN} --max-steps 0 --set model.dropout=0.1"),
    ),
    (
        "trainer --resume --work-dir {run} --max-steps 2 --set data.demo=none "
        "--set data.annotations={files}/shorter.pkl",
        (r"or go on with (--accept-changed-data)$", "{before} {0}"),
    ),
    ("claim {files}", (r"choose another (--work-dir) \(--init loads", "claim {dir}/new")),
    ("claim .", (r"choose (a folder that is only for the run)$", "claim {dir}/new")),
    ("claim {files}/own.py/run", (r"choose another (--work-dir)$", "claim {dir}/new")),
    ("claim {locked}", (r"choose another (--work-dir), or wait", "claim {dir}/new")),
    (
        "weights convert {files}/x3d.pth {dir}/x.bin",
        (r"give a name that ends in (\S+),", "weights convert {files}/x3d.pth {dir}/x{0}"),
    ),
    (
        "weights convert {files}/x3d.pth {files}/x3d.pth",
        (r"write to (another file)$", "weights convert {files}/x3d.pth {dir}/x.pth"),
    ),
    (
        "weights convert {files}/x3d.pth {dir}/x.pth --to torchvision",
        (r": choose (--to \w+)", "{before} {0}"),
    ),
]


def close_the_gap(folder: Path, _: str) -> None:
    (folder / "gap.txt").write_text("0 1 1 0 0 0 1 1 1 1 1 1")


def give_it_a_name(folder: Path, name: str) -> None:
    code = (folder / "shipped.py").read_text()
    (folder / "shipped.py").write_text(code.replace("seed=1", f"seed=1, {name}"))


def write_config(folder: Path, command: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as written:
        assert run_command([*command.split()[3:], "--exp", "demo"]) == 0
    (folder / "no.json").write_text(written.getvalue())


def number_from_0(folder: Path, _: str) -> None:
    change_labels(folder / "from_1.pkl", folder / "from_1.pkl", -1)


def labels_from_0(folder: Path, *_: str) -> None:
    (folder / "labels.csv").write_text((folder / "labels.csv").read_text().replace(",1", ",0").replace(",2", ",1"))


def damage_settings(folder: Path, _: str) -> None:
    (folder / "copy" / "experiment.json").write_text("{")


def resume_copy(folder: Path, resume: str) -> None:
    assert run_command([resume, "--work-dir", str(folder / "copy"), "--max-steps", "2"]) == 0


CHANGES = {
    change.__name__: change
    for change in (
        close_the_gap,
        give_it_a_name,
        write_config,
        number_from_0,
        labels_from_0,
        damage_settings,
        resume_copy,
    )
}


def change_labels(source: Path, out: Path, by: int) -> None:
    content = pickle.loads(source.read_bytes())
    for annotation in content["annotations"]:
        annotation["label"] += by
    content.pop("class_names", None)
    out.write_bytes(pickle.dumps(content))


OWN = """from dataclasses import replace
from trainer.experiments import DEMO
"""


@pytest.fixture(scope="module")
def shared(tiny, tmp_path_factory) -> dict[str, str]:
    """Return the paths of files that no row changes: the tiny demo, a short run on it, and files that do not fit it."""
    files = tmp_path_factory.mktemp("files")
    settings = dict(word.split("=", 1) for word in tiny if "=" in word)
    annotations, videos = Path(settings["data.annotations"]), Path(settings["data.videos"])
    run = files / "runs" / "run"
    assert run_command([*tiny, "--work-dir", str(run), "--max-steps", "2"]) == 0
    words = ["--format", "safetensors", "--out", str(files / "net.safetensors")]
    assert run_command(["export", str(run), *words]) == 0

    content = pickle.loads(annotations.read_bytes())
    clips = {each["frame_dir"]: each for each in content["annotations"]}
    (files / "val.pkl").write_bytes(pickle.dumps([clips[name] for name in content["split"]["xsub_val"]]))
    (files / "body.pkl").write_bytes(pickle.dumps([clip("a"), clip("b")]))
    (files / "ntu25.pkl").write_bytes(pickle.dumps([clip("a", joints=25)]))
    for by in range(3):
        change_labels(annotations, files / f"from_{by}.pkl", by)
    (files / "named.pkl").write_bytes(pickle.dumps(content | {"class_names": [f"class {i}" for i in range(13)]}))
    split = content["split"] | {"xsub_train": content["split"]["xsub_train"][:-1]}
    (files / "shorter.pkl").write_bytes(pickle.dumps(content | {"split": split}))

    part = [each for each in content["annotations"] if each["label"] < 5]
    (files / "part.pkl").write_bytes(pickle.dumps(content | {"annotations": part}))

    (files / "links").mkdir()
    for video in videos.iterdir():
        (files / "links" / video.name).symlink_to(video)
    (files / "poses").mkdir()
    two = sorted(videos.iterdir())[:2]
    for video in two:
        person = [{"frame": 0, "keypoints": [9.0, 9.0, 1.0] * 17}]
        (files / "poses" / f"{video.stem}.json").write_text(json.dumps(person))

    (files / "five.txt").write_text("0 0 1 1 2")
    (files / "thirteen.txt").write_text("0 1 " * 6 + "2")
    (files / "own.py").write_text(f"{OWN}MINE = replace(DEMO, name='mine')\n")
    (files / "demo.json").write_text(json.dumps(to_settings(EXPERIMENTS["demo"])))
    (files / "damaged.json").write_text("{")
    tensors = {name: torch.zeros(shape) for name, shape in shapes_of(EXPERIMENTS["ntu60_x3d"].model).items()}
    torch.save({"state_dict": tensors}, files / "x3d.pth")
    return {
        "tiny": shlex.join(tiny),
        "files": str(files),
        "run": str(run),
        "annotations": str(annotations),
        "videos": str(videos),
        "video": str(two[0]),
        "packs": settings["data.packs"],
        "cache": settings["data.cache"],
    }


@pytest.fixture
def places(shared, tmp_path) -> dict[str, str]:
    """Return the paths of `shared`, and those of a new folder whose files a row may change."""
    videos = sorted(Path(shared["videos"]).iterdir())[:2]
    lines = [
        f"{video.name},{number},{split}" for number, video, split in zip((1, 2), videos, ("train", "val"), strict=True)
    ]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    (tmp_path / "gap.txt").write_text("0 2 2 0 0 0 2 2 2 2 2 2")
    (tmp_path / "shipped.py").write_text(f"{OWN}X = replace(DEMO, seed=1)\n")
    shutil.copy(f"{shared['files']}/from_1.pkl", tmp_path)
    shutil.copytree(shared["run"], tmp_path / "copy", symlinks=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "locked").mkdir()
    return shared | {"dir": str(tmp_path), "copy": str(tmp_path / "copy"), "locked": str(tmp_path / "locked")}


def claim_folder(words: list[str]) -> None:
    with claim(Path(words[0]), False, Ranks(0, 0, 1, torch.device("cpu"))):
        pass


def divide(words: list[str]) -> None:
    ranks, name, *more = words
    check_division(override(EXPERIMENTS[name], *more), int(ranks))


PROGRAMS: dict[str, Callable[[list[str]], object]] = {
    "trainer": dispatch,
    "prepare": lambda words: tyro.cli(form_of(words), args=words),
    "annotate": lambda words: tyro.cli(annotate, args=words),
    "verify": lambda words: tyro.cli(verify, args=words),
    "weights": weights,
    "claim": claim_folder,
    "division": divide,
}


def start(command: str) -> int:
    """Run a command of PROGRAMS in this process, and return its exit code."""
    program, *words = shlex.split(command)
    return exit_code(lambda: int(PROGRAMS[program](words) or 0))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("row", [*SETTINGS, *DATA, *RUNS], ids=lambda row: row[0])
def test_the_advice_ends_the_refusal(row, places, capsys):
    refused, *steps = row
    folder = Path(places["dir"])
    command = refused.format(**places)
    with locked(Path(places["locked"])):
        for pattern, followed, *change in steps:
            assert start(command) == 2, command
            told = capsys.readouterr()
            message = (told.err.strip() or told.out.strip()).splitlines()[-1]
            advice = re.search(pattern, message)
            assert advice, message
            for name in change:
                CHANGES[name](folder, *advice.groups())
            command = followed.format(*advice.groups(), before=command, **places)
        code = start(command)
    assert code == 0, capsys.readouterr().err
