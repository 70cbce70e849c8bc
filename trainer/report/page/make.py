"""Writes report.html from runs, with the template, the styles and the scripts in this folder."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from kernels.names import printable
from kernels.program import UserError
from kernels.whole_files import write_whole
from trainer.report.grad_cam import COLOURS
from trainer.report.page.charts import FUSED, line
from trainer.report.page.contents import RunSection, section_of, value_text
from trainer.report.page.evaluation import Evaluation, class_names_of, levels_of
from trainer.report.past_run import PastRun, differing, names
from trainer.report.skeleton_drawing import HEATMAP, LEFT, RIGHT

PAGE = "report.html"
HERE = Path(__file__).parent
SCRIPTS = ("elements.js", "chart.js", "classes.js", "confusion.js", "gallery.js", "page.js")
# If there are several runs, the page shows these series, with a line for each run.
COMPARED = ("loss", "f1/mean", "lr", "clips_per_second")
COMPARED += tuple(f"acc/{name}_top1" for name in (FUSED, "rgb", "pose", "sum", "RGBPose_coarse_1:1"))
NUM_COLOURS = 10  # number of colours for lines, which page.css defines as c0 to c9


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """A run with what the page shows about it.

    missing: sentences about what the page does not show, and why. state: the state of a run that is just ending, and
    otherwise empty.
    """

    run: PastRun
    evaluation: Evaluation | None = None
    gallery: list[dict[str, Any]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    state: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class PageTable:
    """A table for the first part of a page about a recipe, with its title and sentences below it."""

    title: str
    head: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


def write_page(path: Path, shown: Sequence[Shown], tables: Sequence[PageTable] = ()) -> Path:
    """Write the page about one run or several runs, and return `path`. Raises OSError."""
    write_whole(path, render(shown, tables))
    return path


def render(shown: Sequence[Shown], tables: Sequence[PageTable] = ()) -> str:
    """The page as HTML. If there are `tables`, its first part is about the recipe to which the runs belong.

    All texts that come from runs are escaped: by Jinja in the page, and as JSON for the scripts.
    """
    short = names([each.run for each in shown]) if shown else []
    sections = [section_of(each.run, name, each.state, each.missing) for each, name in zip(shown, short, strict=True)]
    compared = comparison_of(shown, sections) if len(shown) > 1 else None
    data = {
        "runs": [data_of(each, section) for each, section in zip(shown, sections, strict=True)],
        "comparison": compared,
        "colours": {
            "limbs": {"left": LEFT, "right": RIGHT},
            "heatmap": {"": HEATMAP},
            **{f"{stream}_map": {"": colour} for stream, colour in COLOURS.items()},
        },
    }
    script = "".join((HERE / name).read_text() for name in SCRIPTS)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment.get_template("page.html").render(
        sections=sections,
        shown=shown,
        compared=compared,
        tables=tables,
        data=data,
        style=(HERE / "page.css").read_text(),
        script=script,
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def data_of(each: Shown, section: RunSection) -> dict[str, Any]:
    """The data about a run that the scripts of the page read."""
    evaluation = each.evaluation
    return {
        "name": section.name,
        "records": section.records,
        "charts": section.charts,
        "levels": levels_of(evaluation) if evaluation else [],
        "gallery": each.gallery,
        "classNames": class_names_of(evaluation.experiment) if evaluation else [],
    }


def comparison_of(shown: Sequence[Shown], sections: Sequence[RunSection]) -> dict[str, Any]:
    """What the page shows about several runs beside each other: a table, settings that differ, charts and classes."""
    labels = list(dict.fromkeys(label for section in sections for label, _ in section.facts))
    facts = [dict(section.facts) for section in sections]
    try:
        different = differing([each.run for each in shown])
    except UserError as error:
        different = [("cannot be compared", [str(error)])]
    return {
        "facts": [(label, [fact.get(label, "") for fact in facts]) for label in labels],
        "different": [(printable(name), [value_text(value) for value in values]) for name, values in different],
        "charts": compared_charts(sections),
        "levels": compared_levels(shown, sections),
    }


def compared_charts(sections: Sequence[RunSection]) -> list[dict[str, Any]]:
    """A chart for each of the COMPARED series that at least two of the runs have, with a line for each run."""
    charts: dict[str, dict[str, Any]] = {}
    for number, section in enumerate(sections):
        for chart in section.charts:
            for series in (series for series in chart["series"] if series["name"] in COMPARED):
                title = title_of(chart, series)
                compared = {"title": title, "axis": chart["axis"], "part": "curves", "series": [], "note": ""}
                lines = charts.setdefault(series["name"], compared)["series"]
                lines.append(line(series["kind"], series["name"], section.name, f"c{number % NUM_COLOURS}", run=number))
    return [chart for chart in charts.values() if len(chart["series"]) > 1]


def title_of(chart: Mapping[str, Any], series: Mapping[str, Any]) -> str:
    """The title of a chart of this series of several runs, such as `Top-1: fused`, `F1 mean` or `Training loss`."""
    title, label = chart["title"], series["label"]
    if len(chart["series"]) == 1 or title.endswith(label):
        return title
    return label if label.startswith(title) else f"{title}: {label}"


def compared_levels(shown: Sequence[Shown], sections: Sequence[RunSection]) -> list[dict[str, Any]]:
    """The level of the fine classes (`levels_of`) for all runs: in place of its streams, it has the runs by name.

    The confusions of a run are those of its fused scores, or of its only stream. Empty if the runs have different
    classes.
    """
    levels = [
        (section.name, levels_of(each.evaluation)[0])
        for each, section in zip(shown, sections, strict=True)
        if each.evaluation is not None
    ]
    if len(levels) < 2 or any(level["classes"] != levels[0][1]["classes"] for _, level in levels):
        return []
    return [levels[0][1] | {"streams": {name: next(iter(level["streams"].values())) for name, level in levels}}]
