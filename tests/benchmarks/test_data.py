"""Runs `python -m benchmarks data` at toy size. Only `make soak` compares with MMAction2, which must be installed."""

import json

import pytest
import torch

from benchmarks.cli import main
from benchmarks.data.peer import CASES, verdict
from benchmarks.records import device_name, slug

STAGES = {"read_cold", "read_warm", "decode", "resize", "plan", "joints", "heatmap", "hand_over"}


def measure(folder, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["benchmarks", "data", "--toy", "--records", str(folder), *arguments])
    code = main()
    (record,) = (json.loads(path.read_text()) for path in folder.iterdir())
    assert record["toy"]
    return code, record


def test_our_path_alone(tmp_path, monkeypatch):
    code, record = measure(tmp_path, monkeypatch)
    assert (code, record["part"], record["status"]) == (0, "data_alone", "done"), record
    for case in CASES:
        assert record["results"][f"ours_{case}"]["clips_per_s"]["median"] > 0
        assert record["results"][f"stages_{case}"].keys() == {f"{stage}_ms" for stage in STAGES}


def test_work_for_a_whole_data_set(tmp_path, monkeypatch):
    code, record = measure(tmp_path, monkeypatch, "--host")
    assert (code, record["part"], record["status"]) == (0, "host", "done"), record
    assert record["results"].keys() == {"plan_eval", "region", "read_log", "merge", "open_pack"}
    assert all(result["speedup"]["median"] > 0 for result in record["results"].values())


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("library", ["torchcodec", "spdl"])
def test_beside_a_library_that_reads_frames(tmp_path, monkeypatch, library):
    code, record = measure(tmp_path, monkeypatch, "--peer", library)
    assert (code, record["part"], record["status"]) == (0, f"data_{library}", "done"), record
    for case in CASES:
        assert record["results"][f"frames_{case}"]["wrong"] == 0
        assert record["results"][f"ratio_cpu_time_{case}"]["n"] >= 1


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_beside_mmaction2(tmp_path, monkeypatch, capfd):
    code, record = measure(tmp_path, monkeypatch, "--peer", "mmaction2")
    assert (code, record["part"], record["status"]) == (0, "data", "done"), record
    for case in CASES:
        found = record["results"][f"parity_{case}"]
        assert found["frames_differ"] == 0
        assert found["heatmap_same_joints"] <= 1e-6
        assert record["results"][f"ratio_{case}"]["n"] >= 1
        assert record["results"][f"heatmap_{case}"]["median"] > 0
    assert capfd.readouterr().out.splitlines()[-1].startswith("ratio ")


@pytest.mark.parametrize(
    ("agree", "ratio", "line"),
    [
        ([], None, "ratio none parity red"),
        ([True], 12.345, "ratio 12.35 parity red"),
        ([True, True], 9, "ratio 9.00 parity ok"),
        ([False, True], 9, "ratio 9.00 parity red"),
    ],
)
def test_the_last_line_is_red_unless_both_cases_agree(agree, ratio, line, tmp_path):
    results = {f"parity_{case}": {"ok": ok} for case, ok in zip(CASES, agree, strict=False)}
    results |= {} if ratio is None else {"ratio_cpu_time_8_32": {"median": ratio}}
    name = slug(device_name(torch.device("cpu")))
    (tmp_path / f"data_{name}.json").write_text(json.dumps({"results": results}))
    assert verdict(tmp_path) == line
