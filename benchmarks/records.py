"""Records are JSON files that say what was measured, on which machine and with which versions.

Two records can be compared.
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

from kernels.driver import version_of_driver
from kernels.program import UserError
from kernels.whole_files import write_whole
from trainer.journal.provenance import DALI, changes_in, commit_of, version_of

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benchmarks" / "records"


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
        "driver": version_of_driver() or None if device.type == "cuda" else None,
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
