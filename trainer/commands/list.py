"""All experiments as a table: data, nets, parameters, multiply-adds, batch, schedule."""

from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from models.config import SingleStreamConfig
from models.networks import build_model
from trainer.config import Experiment
from trainer.experiments import EXPERIMENTS

WIDE = 150  # columns off a terminal, so that no number is cut


def list_experiments(console: Console) -> None:
    """Print the table."""
    table = Table("experiment", "data", "classes", "net", "parameters", "GMAC", "RGB", "pose", "batch", "schedule")
    for name, experiment in EXPERIMENTS.items():
        num_parameters, multiply_adds = size_of(experiment)
        data, clip, optim = experiment.data, experiment.clip, experiment.optim
        stop = "" if experiment.val.patience is None else f", patience {experiment.val.patience}"
        table.add_row(
            name,
            Path(data.annotations).stem,
            f"{data.num_classes} + {len(set(data.coarse_map))}",
            type(experiment.model).__name__.removesuffix("Config"),
            f"{num_parameters:,}",
            f"{multiply_adds / 1e9:.2f}",
            f"{clip.rgb_frames}x{clip.rgb_size}",
            f"{clip.pose_frames}x{clip.heatmap_size}",
            str(optim.batch_size),
            f"{optim.schedule} {optim.lr:g}, {optim.num_epochs} epochs{stop}",
        )
    if not console.is_terminal:
        console.width = WIDE
    console.print(table)


def size_of(experiment: Experiment) -> tuple[int, int]:
    """Parameters and multiply-adds of a forward pass of one clip at the training size; nothing is computed.

    PCAN's fine prototypes count as parameters, which they are in the published nets; its projections of pooled
    features (under a million multiply-adds) and squeeze-excite's sums (200 thousand) are left out.
    """
    clip, model = experiment.clip, experiment.model
    with torch.device("meta"):
        network = build_model(model)
        has_pcan = not isinstance(model, SingleStreamConfig) and model.pcan is not None
        plain = (build_model(replace(model, pcan=None)) if has_pcan else network).eval()
        rgb = torch.empty(1, clip.rgb_frames, clip.rgb_size, clip.rgb_size, 3, dtype=torch.uint8)
        heatmap = torch.empty(1, clip.pose_frames, clip.num_channels(), clip.heatmap_size, clip.heatmap_size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            plain(rgb, heatmap)
    prototypes = ("contrast_rgb.prototypes", "contrast_pose.prototypes")
    fine = [buffer for name, buffer in network.named_buffers() if name.endswith(prototypes)]
    return sum(tensor.numel() for tensor in [*network.parameters(), *fine]), counter.get_total_flops() // 2
