"""`python -m trainer --list`: prints a table of all experiments.

The table shows their data, network, number of parameters, multiply-adds, batch size and schedule.
"""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from trainer.experiments import EXPERIMENTS

WIDE = 150  # width of the table in characters when the output is not a terminal, so that no number is cut off
# For each experiment, the number of parameters (including PCAN's fine prototypes), and the multiply-adds of a forward
# pass of one clip at the frame size of training. tests/trainer/test_list.py compares these numbers with the networks.
SIZES = {
    "ma52": (39_144_886, 61_390_835_200),
    "ma52_pcan": (39_144_886, 61_390_835_200),
    "ntu60": (39_154_792, 59_659_986_944),
    "ntu60_x3d": (2_824_130, 7_617_758_112),
    "ntu60_x3d_tuned": (2_824_130, 7_617_758_112),
    "ntu60_rgb": (31_757_436, 41_740_132_352),
    "ntu60_pose": (2_024_860, 11_332_581_376),
    "ntu60_rgbpose": (36_147_928, 58_005_215_232),
    "ntu60_epam": (2_538_717, 7_617_829_872),
    "ntu120": (39_339_232, 59_660_140_544),
    "ntu120_x3d": (2_893_850, 7_617_796_992),
    "ntu120_rgb": (31_880_376, 41_740_255_232),
    "ntu120_pose": (2_055_640, 11_332_612_096),
    "ntu120_rgbpose": (36_301_648, 58_005_368_832),
    "custom": (2_500_910, 7_617_715_344),
    "demo": (140_504, 107_692_704),
}


def list_experiments(console: Console) -> None:
    """Print the table of all experiments."""
    table = Table("experiment", "data", "classes", "net", "parameters", "GMAC", "RGB", "pose", "batch", "schedule")
    for name, experiment in EXPERIMENTS.items():
        num_parameters, multiply_adds = SIZES[name]
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
