"""Runs the commands for own videos in docs/custom_data.md exactly as they are printed, on ten generated videos.

Then a second run starts from the weights of the first.
"""

import json
import shlex

import av

from pipelines.demo.classes import FINE_NAMES, DemoConfig, clip_ids
from pipelines.demo.clip import write_clip
from tests.programs import ROOT, run_forked

CONFIG = DemoConfig(num_train=24, num_val=5, size=(160, 120), num_frames=(8, 10))
LABELS = (0, 2, 3, 5, 6)


def test_the_commands_run_as_they_are_printed(tmp_path):
    videos = tmp_path / "data" / "custom" / "videos"
    videos.mkdir(parents=True)
    lines = []
    for number, clip in enumerate(clip for clip in clip_ids(CONFIG) if clip.label in LABELS):
        write_clip(CONFIG, clip, videos)
        name = f"{FINE_NAMES[clip.label]} {number}.mp4" if number < 10 else "new.mp4"
        (videos / f"{clip.name}.mp4").rename(videos / name)
        if number < 10:
            lines.append(f"{name},{FINE_NAMES[clip.label]}\n")
    (videos / "new.mp4").rename(tmp_path / "new.mp4")
    (videos.parent / "labels.csv").write_text("".join(lines))

    text = (ROOT / "docs" / "custom_data.md").read_text().partition("Then run these commands")[2]
    block = text.partition("`annotate` estimates")[0]
    commands = [shlex.split(line) for line in block.splitlines() if line.startswith("    python ")]
    assert len(commands) == 6
    outputs = []
    for _, *words in commands:
        few_steps = ["--max-steps", "2"] if words == ["-m", "trainer", "--exp", "custom_small"] else []
        done = run_forked(*words, *few_steps, cwd=tmp_path)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
        outputs.append(done.stdout)
    annotated, verified, _, trained, _, predicted = outputs
    assert "5 in own_train, 5 in own_val, 5 classes" in annotated
    assert "train with: python -m trainer --exp custom_small (" in annotated
    assert "usable: 10 of 10 clips" in verified
    assert "stopped: 2 steps are done" in trained
    assert any(name in predicted for name in (FINE_NAMES[label] for label in LABELS))
    out = tmp_path / "work_dirs" / "custom_small" / "predict"
    assert len(json.loads((out / "new.json").read_text())["windows"][0]["fused"]) == 5
    with av.open(out / "new.mp4") as container:
        assert container.streams.video[0].codec_context.name == "h264"

    again = ["--exp", "custom_small", "--init", "work_dirs/custom_small", "--work-dir", "work_dirs/second"]
    done = run_forked("-m", "trainer", *again, "--max-steps", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "random" not in done.stdout
    assert "stopped: 1 steps are done" in done.stdout
