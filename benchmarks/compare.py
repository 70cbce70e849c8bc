"""Two records side by side, and README's table of all committed ones: no number is typed by hand."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kernels.program import UserError

BEGIN, END = "<!-- measured: python -m benchmarks table -->", "<!-- end -->"

# (part, path in its results, what it is, unit), in the order of README's table
ROWS = (
    ("train", "ntu60_x3d.clips_per_s", "training `ntu60_x3d`, data included", "clips/s"),
    ("train", "ntu60.clips_per_s", "training `ntu60`, data included", "clips/s"),
    ("nets", "ntu60_x3d.clips_per_s", "step of `ntu60_x3d`, the guide's batch", "clips/s"),
    ("nets", "ntu60.clips_per_s", "step of `ntu60`, the guide's batch", "clips/s"),
    ("nets", "ma52.clips_per_s", "step of `ma52`, the guide's batch", "clips/s"),
    ("train", "ntu60_x3d_data_alone.clips_per_s", "data path of `ntu60_x3d` alone", "clips/s"),
    ("data", "ours_8_32.clips_per_s", "data path, 8 frames + 32 heatmaps, one core", "clips/s"),
    ("data", "ratio_8_32", "the same against MMAction2's, same run", "times"),
    ("data", "heatmap_8_32", "its heatmaps against MMAction2's, same run", "times"),
    ("data", "ratio_16_48", "16 frames + 48 heatmaps against MMAction2's", "times"),
    ("step", "speedup.folded_compiled/plain_5d_eager", "step, folded and compiled against plain 5-D", "times"),
    ("cpu_step", "ntu60_x3d.speedup", "step of `ntu60_x3d` on one CPU core, against plain 5-D", "times"),
    ("cpu_step", "ntu60_x3d.speedup_of_folding", "the same, folded and not compiled", "times"),
    ("cpu_step", "ma52.speedup", "step of `ma52` on one CPU core, against plain 5-D", "times"),
    ("cpu_step", "ma52.speedup_of_folding", "the same, folded and not compiled", "times"),
    ("snapshot", "snapshot.share_lost", "time a snapshot costs the loop, of the time it takes", "share"),
    ("resume", "resume.more_s", "resume at 90 % of an NTU-60 epoch, later than a fresh start", "s"),
)


class RecordError(UserError):
    """A record that cannot be read; the text names the file."""


def read_record(path: Path, key: str = "results") -> dict[str, Any]:
    """A record as `write_record` wrote it, with what it is read for under `key`. Raises RecordError."""
    try:
        record = json.loads(path.read_text())
    except OSError as error:
        raise RecordError(f"{path} cannot be read ({error.strerror}); records lie in benchmarks/records") from None
    except ValueError:
        record = None
    if not isinstance(record, dict) or key not in record:
        raise RecordError(f"{path} is no record of a benchmark; records lie in benchmarks/records")
    return record


def compare(before: Path, after: Path) -> Iterator[str]:
    """A line for each number that both records hold: before, after, their ratio; first a line for what differs."""
    old, new = read_record(before), read_record(after)
    yield from _differences(old.get("provenance", {}), new.get("provenance", {}))
    numbers, others = dict(_numbers(old["results"])), dict(_numbers(new["results"]))
    for key in (key for key in numbers if key in others):
        ratio = f" (x {others[key] / numbers[key]:.3f})" if numbers[key] else ""
        yield f"{key}: {numbers[key]:.4g} -> {others[key]:.4g}{ratio}"
    for key in sorted(numbers.keys() ^ others.keys()):
        yield f"{key}: only in {(before if key in numbers else after).name}"


def _differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    changed = [f"{key} {old.get(key)} -> {new.get(key)}" for key in new if old.get(key) != new.get(key)]
    if changed:
        yield f"taken under other conditions: {', '.join(changed)}"


def _numbers(values: Any, at: str = "") -> Iterator[tuple[str, float]]:
    """Leaves by their path; a spread counts as its median."""
    if isinstance(values, dict) and "median" in values:
        yield at, float(values["median"])
    elif isinstance(values, dict):
        for key, value in values.items():
            yield from _numbers(value, f"{at}.{key}" if at else key)
    elif isinstance(values, int | float) and not isinstance(values, bool):
        yield at, float(values)


def table(records: Path) -> str:
    """ROWS as Markdown, one line for each machine on which a row was measured; then what was counted without a card."""
    lines = []
    for part, path, what, unit in ROWS:
        for file in sorted(records.glob(f"{part}_*.json")):
            record = read_record(file)
            value = _at(record["results"], path)
            if value is None or record.get("toy") or record.get("part") != part:
                continue
            where = record["provenance"]
            lines.append(f"| {what} | {_shown(value)} {unit} | {where['device']} | {where['commit']} |")
    head = ["| what | median (quartiles, n) | machine | commit |", "|---|---|---|---|"]
    measured = [*head, *lines] if lines else ["No figure has been taken yet."]
    return "\n".join([*measured, *_counted(records / "bytes.json")]) + "\n"


def _counted(file: Path) -> list[str]:
    """A line for each experiment whose step was counted as the compiler plans it; none without the record."""
    if not file.exists():
        return []
    record = read_record(file, "compiled")
    head = "| counted, not measured: a step as compiled for an H200 | our kernels | all compiled | ideal | commit |"
    return ["", head, "|---|---|---|---|---|"] + [
        f"| `{name}` | {_planned(plans['through_kernels'])} | {_planned(plans['plain'])}"
        f" | {record['step'][name]['ideal_gb']:.2f} GB | {record['commit']} |"
        for name, plans in record["compiled"].items()
    ]


def _planned(plan: dict[str, dict[str, float]]) -> str:
    gigabytes, launches = (sum(count[key] for count in plan.values()) for key in ("gb", "launches"))
    return f"{gigabytes:.2f} GB a clip, {launches:.0f} launches"


def _at(results: dict[str, Any], path: str) -> Any:
    """The value at a dotted path; a key may hold dots and slashes after the first."""
    key, _, rest = path.partition(".")
    value = results.get(key)
    return value if not rest or value is None else value.get(rest)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['median']:.3g} ({value['p25']:.3g} to {value['p75']:.3g}, n {value['n']})"
    return f"{value:.3g}"


def renew(readme: Path, records: Path) -> bool:
    """Put the table between README's two marks; whether that changed the file. Raises RecordError without marks."""
    text = readme.read_text()
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise RecordError(f"{readme} has no '{BEGIN}' ... '{END}' to put the table between")
    new = f"{head}{BEGIN}\n{table(records)}{END}{tail}"
    if new != text:
        readme.write_text(new)
    return new != text
