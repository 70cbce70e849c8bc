"""The sizes that `python -m trainer --list` prints are the real sizes of the networks."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.config import SingleStreamConfig
from models.networks import build_model
from trainer.commands.list import SIZES
from trainer.config import Experiment
from trainer.experiments import EXPERIMENTS


def counted(experiment: Experiment) -> tuple[int, int]:
    """Return the parameters of a network, and the multiply-adds of a forward pass of one clip at the training size.

    PCAN's fine prototypes are counted as parameters, because they are parameters in the published networks. The count
    leaves out PCAN's projections of pooled features (under a million multiply-adds) and squeeze-excite's sums (200
    thousand).
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


# the networks of NTU-60 with larger heads, which only the soak tests count
SOAK = ("ntu120_x3d", "ntu120_rgb", "ntu120_pose", "ntu120_pose_limb", "ntu120_rgbpose")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.soak) if name in SOAK else name for name in EXPERIMENTS]
)
def test_sizes_are_those_of_the_networks(name):
    assert SIZES[name] == counted(EXPERIMENTS[name])
