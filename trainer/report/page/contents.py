"""What the page says about a run, from the files in its folder: scores, settings, provenance, decisions and speed."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kernels.meanings import as_text
from kernels.names import printable
from kernels.program import UserError
from trainer.experiments import EXPERIMENTS
from trainer.journal import provenance
from trainer.journal.lines import LOG, METRICS
from trainer.report.page.charts import charts_of, is_main, label_of, series_of
from trainer.report.past_run import PastRun
from trainer.settings import SETTINGS, flattened
from trainer.stored import differences, from_settings

DECISIONS = ("first look: ", "tuned on ", "not tuned for ")  # lines of train.log about decisions begin with these
LOG_BYTES = 64 << 20  # only this many bytes at the start of train.log are searched
LONGEST_VALUE = 400  # longer values of settings are cut after this many characters
# If the host waited for data during at least this share of the time, the data limited the speed (first number) or
# slowed the run a little (second number).
LIMITING, SLOWING = 0.2, 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSection:
    """The part of the page about one run.

    facts: name and value of each number at the top. missing: sentences about what is not in the run's folder. changed:
    (setting, value in the preset, value in the run). preset: the preset that the settings are compared with.
    head, validations: the column titles and the rows of the table of all validations. records, charts: the values of
    all records, and which of them chart.js draws (charts.py).
    """

    name: str
    folder: str
    state: str
    facts: list[tuple[str, str]]
    missing: list[str]
    preset: str = ""
    changed: list[tuple[str, str, str]] = field(default_factory=list)
    settings: list[tuple[str, str]] = field(default_factory=list)
    starts: list[tuple[str, list[str]]] = field(default_factory=list)
    decisions: list[str] = field(default_factory=list)
    head: list[str] = field(default_factory=list)
    validations: list[list[str]] = field(default_factory=list)
    speed: list[str] = field(default_factory=list)
    records: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)
    charts: list[dict[str, Any]] = field(default_factory=list)


def section_of(run: PastRun, name: str, state: str = "", missing: Iterable[str] = ()) -> RunSection:
    """The part of the page about `run`, under the short `name`.

    state: the state of a run that is just ending; for other runs, its files tell the state. missing: sentences about
    what other parts of the page lack. They come before the sentences about what this part lacks.
    """
    missing = list(missing)
    preset, changed = changed_settings(run, missing)
    records = series_of(run)
    if not run.records:
        missing.append(f"{METRICS} has no records yet, so there are no curves")
    head, validations = validation_table(run)
    return RunSection(
        name=printable(name),
        folder=printable(str(run.folder)),
        state=state or run.state(),
        facts=facts_of(run),
        missing=missing,
        preset=preset,
        changed=changed,
        settings=[(printable(key), value_text(value)) for key, value in sorted(flattened(run.settings).items())],
        starts=starts_of(run),
        decisions=decisions_of(run.folder / LOG),
        head=head,
        validations=validations,
        speed=speed_of(run),
        records=records,
        charts=charts_of(records, run.metric),
    )


def value_text(value: Any) -> str:
    return printable(as_text(tuple(value) if isinstance(value, list) else value), LONGEST_VALUE)


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


def facts_of(run: PastRun) -> list[tuple[str, str]]:
    """The numbers at the top of the page: the best validation, progress, and speed."""
    facts, best = [], run.best()
    if best:
        facts.append((f"best {label_of(run.metric)}", percent(best[run.metric])))
        facts.append(("after epoch", str(best["epoch"])))
        facts += [
            (f"{stream} top-1 after this epoch", percent(best[name]))
            for stream in ("rgb", "pose")
            if (name := f"acc/{stream}_top1") != run.metric and best.get(name) is not None
        ]
    facts.append(("epochs", f"{run.epochs():.3g} of {run.num_epochs}"))
    if speeds := values_of(run, "clips_per_second"):
        facts.append(("clips/s (median)", f"{np.median(speeds):.1f}"))
    return facts


def changed_settings(run: PastRun, missing: list[str]) -> tuple[str, list[tuple[str, str, str]]]:
    """The preset's name, and the settings that differ from it.

    The name is empty if the run's experiment is not a preset. If the settings cannot be read, a sentence is added to
    `missing`.
    """
    preset = EXPERIMENTS.get(run.name)
    if preset is None:
        return "", []
    try:
        experiment = from_settings(run.settings, SETTINGS, missing.append)
    except UserError as error:
        missing.append(str(error))
        return "", []
    return run.name, [(key, value_text(was), value_text(now)) for key, was, now in differences(preset, experiment)]


def starts_of(run: PastRun) -> list[tuple[str, list[str]]]:
    """For each start of the run, its time, and sentences about its command, code, versions and machine.

    The time of a start that was killed or still runs has no end.
    """
    return [
        (
            printable(f"{start['start']} to {start['end']}" if start["end"] else start["start"]),
            [printable(sentence) for sentence in provenance.sentences(start)],
        )
        for start in run.starts
    ]


def decisions_of(log: Path) -> list[str]:
    """The lines of a train.log that say what the first look and `tune` decided, without repetitions."""
    if not log.is_file():
        return []
    with open(log, "rb") as file:
        lines = file.read(LOG_BYTES).decode(errors="replace").splitlines()
    texts = [line.split(" - INFO - ", 1)[-1] for line in lines]
    return list(dict.fromkeys(printable(text) for text in texts if text.startswith(DECISIONS)))


def validation_table(run: PastRun) -> tuple[list[str], list[list[str]]]:
    """Column titles and rows of a table of all validations: top-1, top-5, mean class accuracy, F1 if there is any."""
    vals = [record for record in run.records if record["kind"] == "val"]
    names = [name for name in dict.fromkeys(name for val in vals for name in val) if is_main(name)]
    rows = [[str(val["epoch"]), *(percent(val.get(name)) for name in names)] for val in vals]
    return ["epoch", *map(label_of, names)], rows


def values_of(run: PastRun, name: str) -> list[float]:
    """The values of a metric in all records about training."""
    return [record[name] for record in run.records if record["kind"] == "train" and record.get(name) is not None]


def speed_of(run: PastRun) -> list[str]:
    """Sentences about the speed of the run, and about what limited it."""
    speeds, waits, memory = (values_of(run, name) for name in ("clips_per_second", "data_share", "memory"))
    sentences = []
    if speeds:
        slow, middle, fast = np.quantile(speeds, (0.05, 0.5, 0.95))
        sentences.append(
            f"The median speed was {middle:.1f} clips/s; 90 % of the recorded speeds are {slow:.1f} to {fast:.1f}."
        )
    if waits:
        share = float(np.median(waits))
        if share >= LIMITING:
            what = "so reading and decoding the data limited the speed"
        elif share >= SLOWING:
            what = "so the data slowed the run a little; mostly the network limited the speed"
        else:
            what = "so the network limited the speed, and not the data"
        sentences.append(f"The host waited for data during {share:.0%} of the time, {what}.")
    if memory:
        sentences.append(f"The run used at most {max(memory) / 1024:.1f} GiB of the GPU's memory.")
    return sentences
