"""`python -m trainer submit`: writes predictions for MA-52 to a zip file that Codabench accepts.

The zip contains only prediction.csv, with one line for each video: its name, the five best of 52 actions and the five
best of 7 body parts (docs/sources.md, "MA-52").
"""

import csv
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

import numpy as np
import tyro

from kernels.names import SHORT, printable
from kernels.program import UserError
from kernels.whole_files import whole_file
from models.classes import MA52
from trainer.scores.files import COARSE, StoredScores, mean_of_streams, read_scores, scores_in
from trainer.settings import SETTINGS
from trainer.stored import changes_meaning, differences, from_json, shortened

TOP = 5
COLUMNS = ("vid", *(f"{level}_pred_{place}" for level in ("action", "body") for place in range(1, TOP + 1)))
CLASSES = {"action": 52, "body": 7}
MEMBER = "prediction.csv"


@dataclass(frozen=True, kw_only=True, slots=True)
class SubmitOptions:
    """Zip MA-52's predictions for Codabench: python -m trainer submit work_dirs/ma52

    First compute the scores of the test videos: python -m trainer eval work_dirs/ma52
    --set data.val_annotations=data/ma52/MA-52_openpose_28kp/MA52_test.pkl
    """

    scores: tyro.conf.Positional[Path]
    """A run's folder, a scores.npz that `python -m trainer eval` or `fuse` wrote, or the folder of this file."""
    out: Annotated[Path, tyro.conf.arg(metavar="ZIP")] = Path("submission.zip")
    """File to write."""


def submit(options: SubmitOptions) -> int:
    """Write the zip, read it back, and print a summary. Raises UserError for scores that cannot be submitted."""
    stored = read_scores(scores_in(options.scores))
    action, body = best_scores(stored)
    if (options.scores / SETTINGS).is_file():
        check_origin(options.scores, stored)
    lines = [
        [PurePosixPath(name).name, *map(int, a), *map(int, b)]
        for name, a, b in zip(stored.names, best(action), best(body), strict=True)
    ]
    try:
        with whole_file(options.out) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(MEMBER, as_csv(lines).encode(errors="surrogateescape"))
    except OSError as error:
        raise UserError(f"{options.out} cannot be written ({error.strerror}); name another file with --out") from None
    check(options.out, len(lines))
    first = printable(str(lines[0][0]), SHORT)
    print(f"scores of each video: {stored.views or 'the file does not say what they are'}")
    print(f"{options.out}: {MEMBER} with {len(lines)} videos, the first {first}; ready for Codabench")
    return 0


def best_scores(stored: StoredScores) -> tuple[np.ndarray, np.ndarray]:
    """The scores of actions [N, 52] and of body parts [N, 7]. Raises UserError for scores that cannot be submitted."""
    path, probability = stored.path, stored.scores.probability
    if not any(name.endswith(COARSE) for name in probability):
        raise UserError(
            f"{path} does not contain fine and coarse scores: name the scores.npz of ma52 or ma52_pcan, or fuse scores"
        )
    action, body = (mean_of_streams(stored.scores, coarse).numpy() for coarse in (False, True))
    if (action.shape[1], body.shape[1]) != tuple(CLASSES.values()):
        raise UserError(
            f"{path} has {action.shape[1]} classes and {body.shape[1]} coarse classes, but MA-52 has 52 and 7: name "
            "the scores.npz of ma52 or ma52_pcan"
        )
    if stored.experiment is not None and stored.experiment.data.coarse_map != MA52:
        raise UserError(
            f"{path} has scores of other coarse classes than MA-52's body parts: train with --coarse-map ma52"
        )
    num_duplicates = len(stored.names) - len({PurePosixPath(name).name for name in stored.names})
    if num_duplicates:
        raise UserError(
            f"{path}: {num_duplicates} videos have the same file name as another video, and Codabench ignores folders: "
            "evaluate only the test videos, each of them once"
        )
    return action, body


def check_origin(run: Path, stored: StoredScores) -> None:
    """Raise UserError if scores in a run's folder are not those of its own settings and its best snapshot.

    Scores that an older version wrote may lack their settings or the name of their snapshot. What is missing is not
    checked.
    """
    path, checkpoint = stored.path, stored.checkpoint
    way_out = f"run python -m trainer eval {run} without other options, or name {path} to submit its scores as they are"
    best_names = [path.name for path in run.glob("best_*.pth")]
    if checkpoint and best_names and checkpoint not in best_names:
        raise UserError(f"{path} has scores of {checkpoint}, not of the best snapshot {best_names[0]}: {way_out}")
    if stored.experiment is not None:
        own = from_json(run / SETTINGS, run / SETTINGS, print)
        for key, was, now in differences(own, stored.experiment):
            if changes_meaning(key):
                raise UserError(
                    f"{path} was computed with {key}={shortened(now)}, but the run has {shortened(was)}: {way_out}"
                )


def best(scores: np.ndarray) -> np.ndarray:
    """The five best classes [N, 5] of scores [N, K], best first. If scores are equal, the lower class comes first."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :TOP]


def as_csv(lines: list[list]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([list(COLUMNS), *lines])
    return text.getvalue()


def check(path: Path, count: int) -> None:
    """Read a submission as Codabench does. Raises UserError if Codabench would refuse it."""
    with zipfile.ZipFile(path) as archive:
        if archive.namelist() != [MEMBER]:
            raise UserError(f"{path} must contain only {MEMBER}, but contains {archive.namelist()}: zip only that file")
        rows = list(csv.DictReader(io.StringIO(archive.read(MEMBER).decode())))
    if len(rows) != count or any(tuple(row) != COLUMNS for row in rows):
        raise UserError(f"{path}: {MEMBER} must have {count} lines with the columns {', '.join(COLUMNS)}")
    for row in rows:
        for level, classes in CLASSES.items():
            guesses = [int(row[f"{level}_pred_{place}"]) for place in range(1, TOP + 1)]
            if len(set(guesses)) != TOP or not all(0 <= number < classes for number in guesses):
                raise UserError(
                    f"{path}: video {row['vid']} has the {level} classes {guesses}, which must be {TOP} different "
                    f"numbers from 0 to {classes - 1}"
                )
