"""Records are JSON files that say what was measured, on which machine and with which versions.

Two records can be compared. The table in README is made from the committed records, so that no number is typed by hand.
"""

import hashlib
import json
import platform
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from kernels.program import UserError
from kernels.whole_files import write_whole
from trainer.journal.provenance import DALI, changes_in, commit_of, output, version_of

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benchmarks" / "records"
BEGIN, END = "<!-- measured: python -m benchmarks table -->", "<!-- end -->"

# (part, path in its results, description, unit) in the order of the table in README
ROWS = (
    *(
        row
        for name in ("demo", "ntu60_x3d", "ntu60", "ma52")
        for row in (
            (f"headspace_{name}", "headspace.loader_clips_per_s", f"training `{name}`", "clips a second"),
            (
                f"headspace_{name}",
                "headspace.share",
                f"speed of training `{name}`, relative to training on one batch in memory",
                "times",
            ),
        )
    ),
    ("data", "ours_8_32.clips_per_cpu_s", "reading clips of 8 frames and 32 heatmaps", "clips per second of one core"),
    (
        "data",
        "ratio_cpu_time_8_32",
        "reading clips of 8 frames and 32 heatmaps, relative to MMAction2",
        "times as fast",
    ),
    (
        "data",
        "ratio_cpu_time_16_48",
        "reading clips of 16 frames and 48 heatmaps, relative to MMAction2",
        "times as fast",
    ),
    ("data", "heatmap_8_32", "drawing 32 heatmaps, relative to MMAction2", "times as fast"),
    *(
        (
            f"data_{name}",
            f"ratio_cpu_time_{case}",
            f"reading clips of {count} frames, relative to {title}, which does not crop and draws no heatmaps",
            "times as fast",
        )
        for name, title in {"torchcodec": "TorchCodec", "spdl": "SPDL"}.items()
        for case, count in {"8_32": 8, "16_48": 16}.items()
    ),
    *(
        (
            "step",
            f"{name}.{key}",
            f"a training step of `{name}`{how}, relative to the published 3-D layers",
            "times as fast",
        )
        for name in ("ntu60_x3d", "ma52")
        for key, how in {"speedup": ", compiled", "speedup_of_folding": ""}.items()
    ),
    (
        "snapshot",
        "snapshot.share_lost",
        "training time lost while a snapshot is written, relative to the time of writing",
        "times",
    ),
    ("resume", "resume.more_s", "extra time to the first batch if a run resumes inside an epoch", "seconds"),
)


class RecordError(UserError):
    """A record cannot be read. The message names the file."""


def write_record(path: Path, record: dict) -> None:
    """Replace the file atomically: a reader sees the old record or the new record, never part of a record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(record, indent=1) + "\n")


def provenance(device: torch.device) -> dict:
    """Return device, driver, versions, commit (with '+' if there are uncommitted changes) and the time in UTC.

    `changes` is a digest of the uncommitted changes, or None if there are none.
    """
    changes = uncommitted()
    return {
        "device": device_name(device),
        "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")
        if device.type == "cuda"
        else None,
        "cpu_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "triton": version_of("triton"),
        "dali": next(filter(None, map(version_of, DALI)), None),
        "commit": commit(),
        "changes": hashlib.sha256(changes.encode()).hexdigest()[:12] if changes else None,
        "utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {platform.machine()}"


def slug(text: str) -> str:
    """Turn a text into a part of a file name: 'NVIDIA H200' becomes 'nvidia_h200'."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def commit() -> str | None:
    """Return the commit of the checkout, with '+' if there are uncommitted changes (see `commit_of`)."""
    head = commit_of(ROOT)
    return head and head + ("+" if uncommitted() else "")


def uncommitted() -> str | None:
    """Return the uncommitted changes of tracked files, except the records, because measuring changes the records."""
    return changes_in(ROOT, ":(exclude)benchmarks/records")


def read_record(path: Path, key: str = "results") -> dict[str, Any]:
    """Read a file written by `write_record`. Raises RecordError if it cannot be read or does not contain `key`."""
    try:
        record = json.loads(path.read_text())
    except OSError as error:
        raise RecordError(f"{path} cannot be read ({error.strerror}): choose a file of benchmarks/records") from None
    except ValueError:
        record = None
    if not isinstance(record, dict) or key not in record:
        raise RecordError(f"{path} is not a record of a benchmark: choose a file of benchmarks/records")
    return record


def is_done(path: Path, record: dict[str, Any]) -> bool:
    """Whether the record at `path` is complete and matches `record` in size, settings, device, versions and code."""
    try:
        earlier = read_record(path)
    except RecordError:
        return False
    old, new = (
        {**each.get("provenance", {}), "utc": None} | {key: each.get(key) for key in ("toy", "experiment", "set")}
        for each in (earlier, record)
    )
    return earlier.get("status") == "done" and old == new and new.get("commit") is not None


def compare_records(before: Path, after: Path) -> Iterator[str]:
    """Yield lines that compare two records.

    The first line lists the conditions that differ, if any do. A line with before, after and ratio follows for each
    number that both records have, then a line for each number that only one record has. Raises RecordError.
    """
    old, new = read_record(before), read_record(after)
    yield from _conditions(old.get("provenance", {}), new.get("provenance", {}))
    old_numbers, new_numbers = dict(_numbers(old["results"])), dict(_numbers(new["results"]))
    for key, number in old_numbers.items():
        if key in new_numbers:
            factor = f" (x {new_numbers[key] / number:.3f})" if number else ""
            yield f"{key}: {number:.4g} -> {new_numbers[key]:.4g}{factor}"
    for key in sorted(old_numbers.keys() ^ new_numbers.keys()):
        yield f"{key}: only in {(before if key in old_numbers else after).name}"


def _conditions(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """Yield one line that lists the conditions (device, versions, ...) that differ, or nothing if all are equal."""
    changed = [f"{key} {old.get(key)} -> {new.get(key)}" for key in new if old.get(key) != new.get(key)]
    if changed:
        yield f"the conditions differ: {', '.join(changed)}"


def _numbers(values: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number with its dotted path. Of the values that `spread` returned, only the median is yielded."""
    if isinstance(values, dict) and "median" in values:
        yield path, float(values["median"])
    elif isinstance(values, dict):
        for key, value in values.items():
            yield from _numbers(value, f"{path}.{key}" if path else key)
    elif isinstance(values, int | float) and not isinstance(values, bool):
        yield path, float(values)


def results_table(records: Path) -> str:
    """Return a Markdown table of the numbers in ROWS, with a line for each machine."""
    lines = []
    for part, path, what, unit in ROWS:
        for file in sorted(records.glob(f"{part}_*.json")):
            record = read_record(file)
            value = _value_at(record["results"], path)
            if value is None or record.get("toy") or record.get("part") != part:
                continue
            where = record["provenance"]
            machine = ", ".join([where["device"], *record.get("set", ())])
            lines.append(f"| {what} | {_cell(value, unit)} | {machine} | {where['commit']} |")
    head = ["| what was measured | median (quartiles; n repetitions) | machine | commit |", "|---|---|---|---|"]
    return "\n".join([*head, *lines] if lines else ["Nothing has been measured yet."]) + "\n"


def _value_at(results: dict[str, Any], path: str) -> Any:
    """Return the value at a dotted path of one or two keys, or None. The second key may contain dots and slashes."""
    key, _, rest = path.partition(".")
    value = results.get(key)
    return value if not rest or value is None else value.get(rest)


def _cell(value: Any, unit: str) -> str:
    if isinstance(value, dict):
        return f"{value['median']:.3g} {unit} ({value['p25']:.3g} to {value['p75']:.3g}; n {value['n']})"
    return f"{value:.3g} {unit}"


def renew_table(readme: Path, records: Path) -> bool:
    """Put the table between the two marks of a page, and return whether that changed the page.

    Raises RecordError if the page has no such marks.
    """
    text = readme.read_text(encoding="utf-8")
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise RecordError(f"{readme} has no marks for the table: add the lines '{BEGIN}' and '{END}'")
    renewed = f"{head}{BEGIN}\n{results_table(records)}{END}{tail}"
    if renewed != text:
        readme.write_text(renewed, encoding="utf-8")
    return renewed != text
