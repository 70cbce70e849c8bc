"""--profile writes a trace of the chosen steps, and benchmarks/nsys_gaps.py finds the gaps in a trace of nsys."""

import json

import pytest

from benchmarks.nsys_gaps import Gap, find_gaps, main, read_work
from trainer.cli import run_command
from trainer.commands.train import steps_of


def test_a_trace_of_two_steps(tiny, tmp_path, capsys):
    arguments = ["--work-dir", str(tmp_path / "run"), "--max-steps", "4", "--profile", "steps=2..3"]
    assert run_command([*tiny, *arguments]) == 0
    trace = json.loads((tmp_path / "run" / "trace_steps_2_3.json").read_text())
    updates = [event for event in trace["traceEvents"] if event.get("name") == "Optimizer.step#SGD.step"]
    assert len(updates) == 2
    assert "aten::" in (tmp_path / "run" / "trace_steps_2_3.txt").read_text()
    assert "ui.perfetto.dev" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["10..20", "steps=20..10", "steps=0..3", "steps=3"])
def test_wrong_steps_are_told(text):
    with pytest.raises(ValueError, match=r"write it as --profile steps=10\.\.20"):
        steps_of(text)


TRACE = """Processing [report.sqlite] with [cuda_gpu_trace.py]...
Start (ns),Duration (ns),CorrId,GrdX,Name
1000,500,1,1,conv
1200,600,2,1,side
2000,100,3,1,norm
2100,100,4,1,relu
5200,50,5,1,"copy, host to device"
"""


def test_gaps_between_kernels(tmp_path, capsys):
    (tmp_path / "trace.csv").write_text(TRACE)
    gaps = find_gaps(read_work(tmp_path / "trace.csv"))
    assert gaps == [Gap(200, "side", "norm"), Gap(3000, "relu", "copy, host to device")]
    main(tmp_path / "trace.csv")
    assert "5 kernels and copies in 0.00 ms; idle 0.00 ms (75.3%)" in capsys.readouterr().out


def test_another_file_is_told(tmp_path):
    (tmp_path / "trace.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"trace\.csv is not a CSV file of nsys's report"):
        read_work(tmp_path / "trace.csv")
