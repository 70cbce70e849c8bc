"""Weights, EMA weights and momenta with NaN or infinity are refused by every command that reads them."""

import pytest

from models.weights.files import load, save, write_file
from trainer.cli import run_command

NAN, INFINITY = float("nan"), float("inf")
EMA = ("--set", "optim.ema=0.9", "--set", "optim.num_epochs=1")


@pytest.fixture(scope="module")
def state(tiny, tmp_path_factory):
    """Return the state of a run with EMA after two steps."""
    folder = tmp_path_factory.mktemp("finite") / "run"
    assert run_command([*tiny, *EMA, "--work-dir", str(folder), "--max-steps", "2"]) == 0
    return load(folder / "latest.pth")


def spoiled(state, part):
    """Return a copy of the state in which one number of `part` is NaN or infinite."""
    momenta = state["optimizer"]["state"]
    copy = {key: {**values} for key, values in {"model": state["model"], "averages": state["averages"]}.items()}
    if part == "momenta":
        momentum = {**momenta[0], "momentum_buffer": with_one(momenta[0]["momentum_buffer"], INFINITY)}
        return state | {"optimizer": {**state["optimizer"], "state": momenta | {0: momentum}}}
    name = next(name for name, tensor in copy[part].items() if tensor.is_floating_point())
    copy[part][name] = with_one(copy[part][name], NAN)
    return state | copy


def with_one(tensor, number):
    changed = tensor.clone()
    changed[(0,) * changed.ndim] = number
    return changed


@pytest.fixture(scope="module")
def files(state, tmp_path_factory):
    """Return a folder with checkpoints and snapshots that contain NaN or infinity."""
    folder = tmp_path_factory.mktemp("spoiled")
    for name in ("weights.pth", "weights.safetensors"):
        write_file(folder / name, spoiled(state, "model")["model"])
    for part in ("model", "averages", "momenta"):
        save(folder / f"{part}.pth", spoiled(state, part))
    return folder


WEIGHTS = ("weights.pth", "weights.safetensors", "model.pth")
ALL = (*WEIGHTS, "averages.pth", "momenta.pth")
READERS = {"--init": WEIGHTS, "eval": ALL, "predict": ALL, "export": ALL}  # --init reads only weights


@pytest.mark.parametrize(("command", "name"), [(command, name) for command, names in READERS.items() for name in names])
def test_commands_refuse_the_file_in_one_sentence(tiny, tmp_path, capsys, files, command, name):
    file = files / name
    videos = next(word.partition("=")[2] for word in tiny if word.startswith("data.videos="))
    words = {
        "--init": [*tiny, "--init", file, "--work-dir", tmp_path / "out"],
        "eval": ["eval", *tiny, *EMA, "--checkpoint", file, "--out", tmp_path / "out"],
        "predict": ["predict", *tiny, *EMA, "--checkpoint", file, videos, "--out", tmp_path / "out"],
        "export": ["export", *tiny, *EMA, "--checkpoint", file, "--format", "pt2", "--out", tmp_path / "out.pt2"],
    }[command]
    assert run_command(list(map(str, words))) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(file) in error
    assert "contain NaN or infinity" in error
    written = {path.suffix for path in tmp_path.rglob("*")}
    assert not written & {".pth", ".npz", ".pt2"}


@pytest.mark.parametrize("part", ["model", "averages", "momenta"])
def test_a_resume_passes_over_snapshots_that_are_not_finite(tiny, tmp_path, capsys, state, part):
    """The resume uses an older snapshot, and is refused if there is none."""
    save(tmp_path / "epoch_1_step_2.pth", spoiled(state, part))
    words = [*tiny, *EMA, "--work-dir", str(tmp_path), "--resume", "--max-steps", "3"]
    assert run_command(words) == 2
    assert "no snapshot of the run" in capsys.readouterr().err
    save(tmp_path / "epoch_1_step_1.pth", state)
    assert run_command(words) == 0
    told = capsys.readouterr().out
    assert "epoch_1_step_2.pth was saved after its training had diverged" in told
    assert "resuming from" in told
