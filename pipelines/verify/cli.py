"""The command line of `python -m pipelines.verify`."""

import json
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from kernels.names import printable
from kernels.program import UserError
from kernels.whole_files import write_whole
from pipelines.annotate.advice import training_advice
from pipelines.verify.report import PLAIN, show, verify
from pipelines.videos.turn import Rotation


def main(
    annotations: Annotated[Path, tyro.conf.Positional],
    /,
    videos: Path | None = None,
    num_classes: int | None = None,
    json: Path | None = None,
    quick: bool = False,
    max_bad: float = 0.01,
    max_absent: float = 0.5,
    follow_links: bool = False,
    rotation: Rotation = "shown",
    cache: Path = Path("data/cache"),
) -> int:
    """Check whether a data set can be used for training: python -m pipelines.verify my.pkl --videos videos/

    Args:
        annotations: annotation file, a pickle with skeletons
        videos: folder of the videos (not needed for networks that read only skeletons, such as ntu60_pose)
        num_classes: expected number of classes (default: that of class_names, or the largest label plus 1)
        json: also write all results, with the names of all affected clips, to this file
        quick: do not open videos, only check that there is one for each clip
        max_bad: maximum share of clips without a usable video; if it is exceeded, the check fails
        max_absent: maximum share of a split's clips without an annotation; if it is exceeded, the check fails
        follow_links: follow links that lead out of the folder of the videos; only for a folder that you trust
        rotation: whether skeletons belong to frames as players show them or as files store them, if neither the
            annotation file nor img_shape decides it (data.rotation)
        cache: folder in which tables of annotation files are stored
    """
    console = Console()
    options = {
        "num_classes": num_classes,
        "max_bad": max_bad,
        "max_absent": max_absent,
        "quick": quick,
        "follow_links": follow_links,
        "rotation": rotation,
    }
    facts = verify(annotations, videos, **options, cache=cache)
    if json:
        write_json(json, facts)
    show(facts, console)
    console.print(printable(facts["verdict"]), **PLAIN)
    own = next((split for split in facts["splits"] if split["split"] == "own_train"), None)
    if facts["usable"] and videos is not None and own is not None:
        advice = training_advice(annotations, videos, own["clips"], facts["joints_a_person"], facts["skeleton"])
        console.print(printable(advice), **PLAIN)
    return 0 if facts["usable"] else 2


def write_json(path: Path, facts: dict[str, Any]) -> None:
    try:
        write_whole(path, json.dumps(facts, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); name another file with --json") from None
