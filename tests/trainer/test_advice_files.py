"""Messages about a file that cannot be used name a way out that works: the file is mended as they say, and accepted.

A row is a command, the file that it reads, the wrong content of this file, a regular expression that finds the advice
in the message, and the content after following the advice. None stands for a file that is not there. All other files
are as in `places`.
"""

import json
import pickle
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from rich.console import Console
from safetensors.torch import save_file

from kernels.program import exit_code
from models.classes import read_coarse_map
from models.weights.files import read_file, save
from pipelines.annotate.cli import main as annotate
from pipelines.annotate.keypoints import header_of, read_poses
from pipelines.annotations.table import open_table
from pipelines.skeleton import read_skeleton
from tests.pipelines.annotated import clip
from trainer.commands.predict import PredictOptions, Skeletons, check
from trainer.commands.submit import read_scores
from trainer.experiments import DEMO

ANNOTATE = "annotate {videos} {dir}/labels.csv --out {dir}/my.pkl --poses {dir}/poses"
LABELS = "a.mp4,0,train\nb.mp4,1,val\n"
PERSON = '[{{"frame": {}, "keypoints": [9, 9, 1]}}]'
TABLE = "table {dir}/x.pkl {dir}/cache"
TWO = {"split": {"s_train": ["a"], "s_val": ["b"]}, "annotations": [clip("a", label=0), clip("b", label=1)]}
NAMED = TWO | {"class_names": ["x", "y"]}
WIDE = [clip(name, img_shape=(200, 900), keypoint=np.full((1, 6, 17, 2), (800.0, 100.0))) for name in "abc"]
TURNED = [each | {"img_shape": (900, 200)} for each in WIDE]


def arrays(**changes: Any) -> dict[str, Any]:
    """The arrays of a scores.npz of two videos of MA-52."""
    sizes = {"": 52, "_coarse": 7}
    scores = {f"{stream}{level}": np.ones((2, n)) for stream in ("rgb", "pose") for level, n in sizes.items()}
    return {key: value for key, value in ({"name": ["a", "b"]} | scores | changes).items() if value is not None}


def skeleton(**changes: Any) -> dict[str, Any]:
    return {"names": ["a", "b", "c"], "partners": [["a", "b"]], "limbs": [["a", "c"]]} | changes


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
    (ANNOTATE, "labels.csv", LABELS.replace("val", "train"), "write val into the third column of a line$", LABELS),
    (ANNOTATE, "labels.csv", f"{LABELS}{'x' * 200_000},0,val", "save it as CSV with commas$", LABELS),
    (ANNOTATE, "labels.csv", LABELS.replace("1", "walk"), "use only one kind$", LABELS),
    (ANNOTATE, "labels.csv", f"{LABELS}b.mp4,1,val\n", "leave one of them out$", LABELS),
    (ANNOTATE, "labels.csv", f"{LABELS}b,1,val\n", "leave one out$", LABELS),
    (ANNOTATE, "labels.csv", LABELS.replace("b.mp4", "broken.mp4"), "own_val; add videos to the labels$",
     f"{LABELS}broken.mp4,1,val\n"),
    (ANNOTATE, "poses/b.json", PERSON.format(9999), "give the file that was made from this video$", PERSON.format(3)),
    (TABLE, "x.pkl", b"\x80", "get the published skeleton pickle again$", TWO),
    (TABLE, "x.pkl", {"annotations": []}, '"Annotation files" in docs/data.md$', TWO),
    (TABLE, "x.pkl", TWO | {"split": {"s_train": 3}}, '"Annotation files" in docs/data.md$', TWO),
    (TABLE, "x.pkl", TWO | {"class_names": [1, 2]}, "write one name for each class$", NAMED),
    (TABLE, "x.pkl", TWO | {"class_names": ["x"]}, "write one name for each class$", NAMED),
    (TABLE, "x.pkl", TWO | {"class_names": ["x", ""]}, "write 1 to 200 printable characters$",
     NAMED),
    (TABLE, "x.pkl", TWO | {"class_names": ["x", "x"]}, "rename one of them$", NAMED),
    (TABLE, "x.pkl", TWO | {"split": {"s_train": ["a", "c"]}}, "remove them from the split, or get", TWO),
    (TABLE, "x.pkl", TWO | {"split": {"s_train": ["a", "a"]}}, "remove the duplicates$", TWO),
    (TABLE, "x.pkl", [clip("a"), clip("a")], "remove the duplicates$", [clip("a")]),
    (TABLE, "x.pkl", [clip("a"), clip("b", joints=25)], "use one file for each layout$", [clip("a")]),
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
    ("weights {dir}/w.pth", "w.pth", {"model": TINY}, "save only its state_dict$", TINY.state_dict()),
    ("weights {dir}/w.pth", "w.pth", {"epoch": 1}, "pass a checkpoint with a state_dict$", WEIGHTS),
    ("weights {dir}/w.pth", "w.pth", None, r"pass a checkpoint \(", WEIGHTS),
    ("weights {dir}/sealed.pth", "sealed.pth", damaged, "copy it again, or use another file$", sealed),
    ("scores {dir}/s.npz", "s.npz", None, "name the scores.npz that python -m trainer eval wrote$", arrays()),
    ("scores {dir}/s.npz", "s.npz", b"PK\x03\x04", "write it again with python -m trainer eval$", arrays()),
    ("scores {dir}/s.npz", "s.npz", arrays(rgb_coarse=None), "name the scores.npz of ma52 or ma52_pcan$", arrays()),
    ("scores {dir}/s.npz", "s.npz", arrays(rgb=np.ones((2, 60)), pose=np.ones((2, 60))), "name the scores.npz of ma52",
     arrays()),
    ("scores {dir}/s.npz", "s.npz", arrays(name=["x/a", "y/a"]), "evaluate only the test videos, each of them once$",
     arrays(name=["x/a", "y/b"])),
    ("video {dir}/v.mp4", "v.mp4", None, "check its path$", b"any"),
]  # fmt: skip


def put(file: Path, content: Any) -> None:
    """Write the content in the form that the file's name calls for. None removes the file."""
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
    """A small video that can be decoded."""
    (videos,) = (Path(word.partition("=")[2]) for word in tiny if word.startswith("data.videos="))
    return next(file for file in sorted(videos.iterdir()) if file.stat().st_size)


@pytest.fixture
def places(video, tmp_path) -> dict[str, str]:
    for name in ("videos", "poses"):
        (tmp_path / name).mkdir()
    for name in ("a", "b", "broken"):
        shutil.copy(video, tmp_path / "videos" / f"{name}.mp4")
        (tmp_path / "poses" / f"{name}.json").write_text(PERSON.format(3))
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"broken")
    (tmp_path / "labels.csv").write_text(LABELS)
    return {"dir": str(tmp_path), "videos": str(tmp_path / "videos"), "video": str(video)}


def find_skeletons(words: list[str]) -> None:
    options = tyro.cli(PredictOptions, args=words)
    (path,) = options.videos
    Skeletons(options, DEMO, Console(quiet=True)).of(path, header_of(str(path)), path.parent)


PROGRAMS: dict[str, Callable[[list[str]], object]] = {
    "annotate": lambda words: tyro.cli(annotate, args=words),
    "table": lambda words: open_table(Path(words[0]), Path(words[1])),
    "poses": lambda words: read_poses(Path(words[0]), Path(words[1]), header_of(words[1]), Path(words[2])),
    "skeletons": find_skeletons,
    "skeleton": lambda words: read_skeleton(words[0]),
    "coarse": lambda words: read_coarse_map(words[0], int(words[1])),
    "weights": lambda words: read_file(Path(words[0])),
    "scores": lambda words: read_scores(Path(words[0])),
    "video": lambda words: check(tyro.cli(PredictOptions, args=words), Path(words[0]).parent / "predict"),
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[1]}: {row[3]}")
def test_the_mended_file_is_accepted(row, places, capsys):
    command, name, wrong, advice, right = row
    program, *words = shlex.split(command.format(**places))

    def start() -> int:
        def call() -> int:
            PROGRAMS[program](words)
            return 0

        return exit_code(call)

    put(Path(places["dir"]) / name, wrong)
    assert start() == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(advice, message), message
    put(Path(places["dir"]) / name, right)
    assert start() == 0, capsys.readouterr().err
