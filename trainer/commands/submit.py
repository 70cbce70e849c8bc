"""`python -m trainer submit`: MA-52's prediction.csv, zipped as Codabench takes it.

Format (docs/sources.md, "MA-52"): a .zip that holds prediction.csv, not in a folder. Each line is a video: vid, the
five best of 52 actions, the five best of 7 body parts.
"""

import csv
import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

import numpy as np
import tyro

from kernels.program import UserError

TOP = 5
COLUMNS = ("vid", *(f"{level}_pred_{place}" for level in ("action", "body") for place in range(1, TOP + 1)))
CLASSES = {"action": 52, "body": 7}
MEMBER = "prediction.csv"


@dataclass(frozen=True, kw_only=True, slots=True)
class SubmitOptions:
    """Zip MA-52's predictions for Codabench: python -m trainer submit work_dirs/ma52/eval/scores.npz

    The scores are those of the test videos: python -m trainer eval --exp ma52 --checkpoint FILE
    --set data.val_annotations=data/ma52/MA-52_openpose_28kp/MA52_test.pkl
    """

    scores: tyro.conf.Positional[Path]
    """scores.npz of an evaluation."""
    out: Annotated[Path, tyro.conf.arg(metavar="ZIP")] = Path("submission.zip")
    """File to write."""


def submit(options: SubmitOptions) -> int:
    """Write the zip, read it back, and say what is in it. Raises UserError for scores that cannot be submitted."""
    names, action, body = read_scores(options.scores)
    lines = [
        [PurePosixPath(name).name, *map(int, a), *map(int, b)]
        for name, a, b in zip(names, best(action), best(body), strict=True)
    ]
    try:
        with zipfile.ZipFile(options.out, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(MEMBER, as_csv(lines))
    except OSError as error:
        raise UserError(f"{options.out} cannot be written ({error.strerror}); name another file with --out") from None
    check(options.out, len(lines))
    print(f"{options.out}: {MEMBER} with {len(lines)} videos, the first {lines[0][0]}; ready for Codabench")
    return 0


def read_scores(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names [N], and fused scores of actions [N, 52] and body parts [N, 7]: the means of both streams, as published."""
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in ("name", "rgb", "pose", "rgb_coarse", "pose_coarse")}
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}): take scores.npz of an evaluation"
        ) from None
    except (EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is damaged or cut short ({error}): evaluate again") from None
    except (KeyError, ValueError):
        raise UserError(f"{path} holds no fine and coarse scores of both streams: evaluate ma52 or ma52_pcan") from None
    action, body = (arrays[f"rgb{level}"] + arrays[f"pose{level}"] for level in ("", "_coarse"))
    if (action.shape[1], body.shape[1]) != tuple(CLASSES.values()):
        raise UserError(f"{path} has {action.shape[1]} classes and {body.shape[1]} coarse ones, MA-52 has 52 and 7")
    names = [str(name) for name in arrays["name"]]
    twice = len(names) - len({PurePosixPath(name).name for name in names})
    if twice:
        raise UserError(f"{path} names {twice} videos twice: Codabench knows them by their file names alone")
    return names, action / 2, body / 2


def best(scores: np.ndarray) -> np.ndarray:
    """The five best classes of each line, best first; of equals the lower number."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :TOP]


def as_csv(lines: list[list]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([list(COLUMNS), *lines])
    return text.getvalue()


def check(path: Path, count: int) -> None:
    """Read a submission as its judges do. Raises UserError for one that they would refuse."""
    with zipfile.ZipFile(path) as archive:
        if archive.namelist() != [MEMBER]:
            raise UserError(f"{path} holds {archive.namelist()}, not {MEMBER} alone")
        rows = list(csv.DictReader(io.StringIO(archive.read(MEMBER).decode())))
    if len(rows) != count or any(tuple(row) != COLUMNS for row in rows):
        raise UserError(f"{path}: {MEMBER} has not {count} lines of {', '.join(COLUMNS)}")
    for row in rows:
        for level, classes in CLASSES.items():
            chosen = [int(row[f"{level}_pred_{place}"]) for place in range(1, TOP + 1)]
            if len(set(chosen)) != TOP or not all(0 <= number < classes for number in chosen):
                raise UserError(f"{path}: video {row['vid']} has the {level} classes {chosen}")
