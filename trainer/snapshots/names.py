"""File names of snapshots. This module does not need torch."""

import re

ROLLING = re.compile(r"epoch_(\d+)_step_(\d+)\.pth")
BEST = re.compile(r"best_.+_epoch_(\d+)\.pth")
LATEST = "latest.pth"


def rolling_name(epoch: int, step: int) -> str:
    return f"epoch_{epoch}_step_{step}.pth"


def best_name(metric: str, epoch: int) -> str:
    """File name of the best snapshot in mmengine's style, such as best_acc_RGBPose_1:1_top1_epoch_78.pth."""
    return f"best_{metric.replace('/', '_')}_epoch_{epoch}.pth"


def is_snapshot_name(name: str) -> bool:
    return name == LATEST or any(pattern.fullmatch(name) for pattern in (ROLLING, BEST))
