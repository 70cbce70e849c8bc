"""`python -m trainer --list`: prints a table that says for whom each experiment is, and advice on where to start."""

from rich.box import SIMPLE_HEAD
from rich.console import Console

from trainer.commands.tables import new_table
from trainer.experiments import EXPERIMENTS

WIDTH = 100  # maximum width of the table in characters
# For each experiment: what it is or what it is for, the published top-1 that it aims at, and the weights for --init.
# Scores on NTU are for the cross-subject split and one sample of each clip (docs/sources.md, "Training").
ABOUT = {
    "ma52": ("the guide's experiment 1: PCAN", "80-85 % (guide)", ""),
    "ma52_pcan": ("PCAN exactly as published", "66.7 % (PCAN)", "merged streams"),
    "ma52_best": ("PCAN and other teams' methods", "", "merged streams"),
    "ma52_pose_limb": ("limbs, to fuse with ma52", "", ""),
    "ntu60": ("the guide's experiment 2: PCAN", "85-87 % (guide)", ""),
    "ntu60_x3d": ("the guide's experiment 3: X3D", "90.4 % (guide)", ""),
    "ntu60_x3d_tuned": ("ntu60_x3d, other settings", "", ""),
    "ntu60_rgb": ("MMAction2's recipe: RGB alone", "94.9 % (MMAction2)", ""),
    "ntu60_pose": ("MMAction2's recipe: pose alone", "93.1 % (MMAction2)", ""),
    "ntu60_pose_limb": ("PoseC3D's limbs, to fuse", "93.4 % (MMAction2)", ""),
    "ntu60_rgbpose": ("MMAction2's recipe: both", "96.6 % (MMAction2)", "merged streams"),
    "ntu60_epam": ("EPAM-Net: pose guides RGB", "96.1 % (EPAM-Net)", "ntu60_x3d"),
    "ntu120": ("ntu60 for 120 classes", "", ""),
    "ntu120_x3d": ("ntu60_x3d for 120 classes", "", ""),
    "ntu120_rgb": ("ntu60_rgb for 120 classes", "", ""),
    "ntu120_pose": ("ntu60_pose for 120 classes", "", ""),
    "ntu120_pose_limb": ("ntu60_pose_limb, 120 classes", "", ""),
    "ntu120_rgbpose": ("ntu60_rgbpose for 120 classes", "", "merged streams"),
    "custom": ("your own videos, on a GPU", "", "ntu60_x3d"),
    "custom_small": ("30 to 500 videos, in minutes", "", ""),
    "demo": ("a first try: no data, no GPU", "91-99 % (ours)", ""),
}
START = (
    'Scores marked "guide" were not checked; those of ma52 may be for coarse classes, not fine ones.\n'
    "Where to start: demo if you have no data yet, ntu60_x3d for NTU RGB+D, ma52 for MA-52, custom_small for "
    "your own videos. `python -m trainer config --exp NAME` explains all settings of an experiment."
)
# For each experiment, the number of parameters (including PCAN's fine prototypes), and the multiply-adds of a forward
# pass of one clip at the frame size of training. tests/trainer/test_list.py compares these numbers with the networks.
SIZES = {
    "ma52": (39_144_886, 61_390_835_200),
    "ma52_pcan": (39_144_886, 61_390_835_200),
    "ma52_best": (40_410_156, 61_390_835_200),
    "ma52_pose_limb": (2_040_027, 12_906_100_224),
    "ntu60": (39_154_792, 59_659_986_944),
    "ntu60_x3d": (2_824_130, 7_617_758_112),
    "ntu60_x3d_tuned": (2_824_130, 7_617_758_112),
    "ntu60_rgb": (31_757_436, 41_740_132_352),
    "ntu60_pose": (2_024_860, 11_332_581_376),
    "ntu60_pose_limb": (2_024_860, 16_998_856_704),
    "ntu60_rgbpose": (36_147_928, 58_005_215_232),
    "ntu60_epam": (2_538_717, 7_617_829_872),
    "ntu120": (39_339_232, 59_660_140_544),
    "ntu120_x3d": (2_893_850, 7_617_796_992),
    "ntu120_rgb": (31_880_376, 41_740_255_232),
    "ntu120_pose": (2_055_640, 11_332_612_096),
    "ntu120_pose_limb": (2_055_640, 16_998_887_424),
    "ntu120_rgbpose": (36_301_648, 58_005_368_832),
    "custom": (2_500_910, 7_617_715_344),
    "custom_small": (135_940, 107_688_168),
    "demo": (140_504, 60_474_240),
}


def list_experiments(console: Console) -> None:
    """Print the table of all experiments, with a line between the data sets, and then advice on where to start."""
    console.width = min(WIDTH, console.width) if console.is_terminal else WIDTH
    headers = ("experiment", "for", "published top-1", "--init with", "params", "GMAC")
    table = new_table(*headers, box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
    table.columns[0].no_wrap = True
    annotations = [experiment.data.annotations for experiment in EXPERIMENTS.values()]
    for name, own, following in zip(EXPERIMENTS, annotations, [*annotations[1:], ""], strict=True):
        num_parameters, multiply_adds = SIZES[name]
        sizes = f"{num_parameters / 1e6:.1f} M", f"{multiply_adds / 1e9:.1f}"
        table.add_row(name, *ABOUT[name], *sizes, end_section=own != following)
    console.print(table)
    console.print(START, highlight=False)
