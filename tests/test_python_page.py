"""Runs the command and the code of docs/python.md as they are written."""

import re
import shlex

import torch

from tests.programs import ROOT, run_forked


def test_the_code_of_the_page_runs_as_it_is_written(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "python.md").read_text()
    (command,) = re.findall(r"^```sh\npython (.+?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "data").mkdir()
    done = run_forked(*shlex.split(command.replace("\\\n", "")), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    blocks = re.findall(r"^```python\n(.+?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    assert "torch.cuda.is_available" not in page  # where torch sees no card, this would take the CPU without a word
    assert all(len(block.splitlines()) <= 30 for block in blocks)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    with torch.random.fork_rng([]):
        exec("".join(blocks), names)
    predicted = [line for line in capsys.readouterr().out.splitlines() if re.match(r"S\d{3}C\d{3}P\d{3}R\d{3}A", line)]
    assert len(predicted) == 12
    assert names["heatmap"].shape == (2, 32, 17, 56, 56)
    assert 0 < names["heatmap"].max() <= 1
