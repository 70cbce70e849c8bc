"""`python -m benchmarks data` at toy size. Only `make soak` compares with MMAction2, which must be installed."""

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
