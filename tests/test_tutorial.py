"""Runs the commands of the tutorial in docs/custom_data.md as they are written, on generated videos."""

import json
import shlex

import av

from tests.programs import ROOT, run_forked

HEADING = "## Try it on generated videos"


def test_the_tutorial_runs_as_it_is_written(tmp_path):
    text = (ROOT / "docs" / "custom_data.md").read_text().partition(HEADING)[2]
    lines = [shlex.split(line) for line in text.splitlines() if line.startswith("    python ")]
    assert len(lines) == 5
    outputs = []
    for _, *words in lines:
        done = run_forked(*words, cwd=tmp_path)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
        outputs.append(done.stdout)
    _, annotated, verified, trained, predicted = outputs
    assert "23 in own_train, 12 in own_val, 12 classes; clips without a person: 1" in annotated
    assert annotated.count("left out: S001C001P002R001A00") == 1
    assert "usable: 35 of 35 clips" in verified
    assert "stopped: 1 steps are done" in trained
    assert "all windows" in predicted
    name, out = "S001C001P021R001A010", tmp_path / "work_dirs" / "custom" / "predict"
    assert len(json.loads((out / f"{name}.json").read_text())["windows"][0]["fused"]) == 5
    with av.open(out / f"{name}.mp4") as container:
        assert container.streams.video[0].codec_context.name == "h264"
