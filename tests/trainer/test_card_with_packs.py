"""Compares the default path on a GPU with a CPU: frames that DALI decodes from packs, steps, and a resume.

The tests that need a GPU are marked `gpu`. They have not run yet, because no GPU was available. The same tests also run
on a CPU with the number formats of a GPU. tests/test_card.py has the tests that do not need DALI.
"""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from trainer.cli import run_command
from trainer.journal.lines import read_metrics
from trainer.step import train_step

gpu = pytest.mark.gpu
STEPS = 20


def batches(run):
    """Yield (epoch, batch) for four epochs of five steps."""
    for epoch in range(4):
        for batch in run.train_loader.epoch(epoch):
            yield epoch, batch


def losses(run, source):
    """Train on batches of the CPU run `source`, and return the loss of each step."""
    values = []
    for epoch, batch in batches(source):
        run.cursor.epoch, run.cursor.clips = epoch, len(values) % 5 * 8
        there = {field.name: getattr(batch, field.name).to(run.ranks.device) for field in dataclasses.fields(batch)}
        there["heatmap"] = there["heatmap"].to(run.precision.dtype)
        values.append(train_step(run, type(batch)(**there))["loss"])
    return torch.stack(values).cpu()


def differences(frames, others):
    """Return the mean difference of two batches in grey levels, and the share of values that differ by more than 32."""
    difference = (frames.cpu().int() - others.cpu().int()).abs()
    return SimpleNamespace(mean=float(difference.float().mean()), share=float((difference > 32).float().mean()))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])
def test_frames_are_those_that_the_cpu_decodes(build, device):
    here, there = build(), build(on=device)
    for one, other in zip(here.train_loader.epoch(0), there.train_loader.epoch(0), strict=True):
        assert torch.equal(one.index, other.index.cpu())
        difference = differences(one.rgb, other.rgb)
        assert difference.mean < 2
        assert difference.share < 0.01
        mirrored = differences(one.rgb, other.rgb.flip(3))  # stands for a wrong frame, which must differ more
        assert mirrored.mean > 2 or mirrored.share > 0.01


# Measured on a CPU, the losses differ from those of float32 by up to 5e-4 in bf16, by up to 8e-4 if the first weights
# are 0.1 % off, and by up to 9e-2 if the learning rate is 0.005 instead of 0.1.
@pytest.mark.parametrize(
    ("device", "precision", "bound"),
    [
        ("cpu", "bf16", 0.005),
        pytest.param("cuda", "fp32", 0.002, marks=gpu),
        pytest.param("cuda", "auto", 0.005, marks=gpu),
    ],
)
def test_twenty_steps_are_those_of_the_cpu(build, device, precision, bound):
    source = build("model.dropout=0.0")
    expected = losses(build("model.dropout=0.0"), source)
    run = build("model.dropout=0.0", f"optim.precision={precision}", on=device)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        values = losses(run, source)
    assert len(values) == STEPS
    torch.testing.assert_close(values[:1], expected[:1], rtol=bound / 10, atol=0)
    torch.testing.assert_close(values, expected, rtol=bound, atol=0)
    assert run.cursor.bad_steps.tolist() == [0, 0]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])
def test_the_precision_of_a_t4_by_setting(build, device):
    run = build("optim.precision=fp16", "model.dropout=0.0", on=device)
    assert next(run.train_loader.epoch(0)).heatmap.dtype is torch.float16
    values = losses(run, build("model.dropout=0.0"))
    assert values.isfinite().all()
    total, in_a_row = run.cursor.bad_steps.tolist()
    assert total < STEPS / 2  # the loss scale starts too high, and each overflow halves it
    assert in_a_row == 0
    assert all(parameter.isfinite().all() for parameter in run.network.parameters())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])
def test_a_run_from_packs_resumes(tiny, tmp_path, device, capsys):
    words = [*tiny, "--device", device, "--work-dir", str(tmp_path / "run")]
    assert run_command([*words, "--max-steps", "4"]) == 0
    assert run_command([*words, "--resume"]) == 0
    assert "resuming from" in capsys.readouterr().out
    records = list(read_metrics(tmp_path / "run" / "metrics.jsonl"))
    assert sum(record["kind"] == "val" for record in records) == 2
    assert all(torch.isfinite(torch.tensor(record["loss"])) for record in records if record["kind"] == "train")
