"""Code that several tests of `python -m trainer predict` use. Their shared fixtures are in conftest.py."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from models.networks import build_model
from trainer.cli import run_command
from trainer.config import Experiment
from trainer.experiments import EXPERIMENTS
from trainer.settings import override

VIDEO = "S001C001P021R001A001"


def save_weights(state: dict[str, torch.Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)


def rgb_network(folder: Path) -> tuple[list[str], Experiment]:
    """Write the weights of a small RGB network to net.safetensors in `folder`.

    Returns the words of a command line that describe the network, and the network's experiment.
    """
    settings = [
        *("data.num_classes=12", "data.class_names=()", f"data.coarse_map={(0,) * 12}"),
        *("clip.rgb_size_val=64", "clip.box_pixels=64"),
        *("model.path.base_channels=8", "model.path.blocks=(1,1,1,1)", f"data.cache={folder}/cache"),
    ]
    experiment = override(EXPERIMENTS["ntu60_rgb"], *settings)
    torch.manual_seed(0)
    save_weights(build_model(experiment.model).state_dict(), folder / "net.safetensors")
    return ["--exp", "ntu60_rgb", *(part for setting in settings for part in ("--set", setting))], experiment


def predicted(tiny, trained, out: Path, *words: object) -> dict[str, dict]:
    """Run `predict`, and return the content of each JSON file that it has written, by the name of the video."""
    assert run_command(["predict", *tiny, "--checkpoint", str(trained), "--out", str(out), *map(str, words)]) == 0
    return {file.stem: json.loads(file.read_text()) for file in out.glob("*.json")}
