"""Timing in rounds, spreads, and records that are whole or absent."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import harness, records
from benchmarks.harness import ratio, spread, time_rounds
from benchmarks.records import provenance, slug, write_record
from benchmarks.target import Target

CPU = torch.device("cpu")


def test_rounds_interleave_and_change_who_begins(monkeypatch):
    monkeypatch.setattr(harness, "SHORTEST", 0.0)
    calls = []
    candidates = {name: lambda name=name: calls.append(name) for name in "abc"}
    samples = time_rounds(candidates, Target(CPU, False, Path()), seconds=0, warmup=2)
    assert {name: len(values) for name, values in samples.items()} == {"a": 5, "b": 5, "c": 5}
    warm = 3 * (2 + 1)  # two calls and one that counts repeats, each
    rounds = ["".join(calls[first : first + 3]) for first in range(warm, len(calls), 3)]
    assert rounds == ["abc", "bca", "cab", "abc", "bca"]


def test_short_calls_are_repeated_and_divided(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(harness.time, "perf_counter", lambda: next(clock) * 0.5)
    monkeypatch.setattr(harness, "SHORTEST", 2.0)
    calls = []
    samples = time_rounds({"a": lambda: calls.append(1)}, Target(CPU, False, Path()), seconds=0, warmup=0)
    # A call seems to last half a second, so a sample of two seconds takes four.
    assert len(calls) == 1 + 4 * 5
    assert samples["a"].tolist() == [0.5 / 4] * 5


def test_spread_and_ratio():
    assert spread(np.array([4.0, 1.0, 3.0, 2.0, 5.0])) == {"median": 3.0, "p25": 2.0, "p75": 4.0, "n": 5}
    # Round by round: a slow moment that touches both leaves the ratio alone.
    assert ratio(np.array([1.0, 10.0, 2.0]), np.array([3.0, 30.0, 6.0])) == {
        "median": 3.0,
        "p25": 3.0,
        "p75": 3.0,
        "n": 3,
    }


def test_a_record_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "new" / "limits_cpu.json"
    write_record(path, {"a": 1})
    write_record(path, {"b": math.pi})
    assert json.loads(path.read_text()) == {"b": math.pi}
    with pytest.raises(TypeError):
        write_record(path, {"c": object()})
    assert json.loads(path.read_text()) == {"b": math.pi}
    assert [file.name for file in path.parent.iterdir()] == ["limits_cpu.json"]


def test_provenance_says_where_and_when():
    here = provenance(CPU)
    assert here["torch"] == torch.__version__
    assert here["device"].startswith("cpu ")
    assert here["utc"].endswith("+00:00")
    assert slug("NVIDIA H100 80GB HBM3") == "nvidia_h100_80gb_hbm3"


def test_a_copy_without_git_is_told_its_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "ROOT", tmp_path)
    monkeypatch.delenv("DUET_COMMIT", raising=False)
    assert records.commit() is None
    monkeypatch.setenv("DUET_COMMIT", "0123456789ab")
    assert records.commit() == "0123456789ab"
