"""Makes random batches for an experiment, and small versions of experiments for toy runs and tests."""

from dataclasses import replace

import torch
from torch import Tensor

from models.config import EpamConfig, RGBPoseConfig, X3DPairConfig, X3DStreamConfig
from tests.models.small import SMALL_PATHS
from trainer.config import Experiment
from trainer.experiments import NTU60_X3D
from trainer.runtime.precision import precision_of
from trainer.runtime.ranks import Ranks


def tiny(experiment: Experiment) -> Experiment:
    """Return the experiment with two small clips in a batch and, if its network has two streams, few layers."""
    clip = replace(experiment.clip, rgb_frames=2, pose_frames=3, rgb_size=16, heatmap_size=8)
    model = experiment.model
    if isinstance(model, RGBPoseConfig):
        clip = replace(clip, pose_frames=8, rgb_size=32)
        model = replace(model, rgb=SMALL_PATHS["rgb"], pose=SMALL_PATHS["pose"])
    elif isinstance(model, X3DPairConfig) and not isinstance(model, EpamConfig):
        rgb = X3DStreamConfig(widths=(8,), blocks=(1,), stem_stride=2, shift_divisor=8)
        model = replace(model, rgb=rgb, pose=replace(rgb, stem_stride=1, shift_divisor=4))
    return replace(experiment, clip=clip, model=model, optim=replace(experiment.optim, batch_size=2))


TOY = tiny(NTU60_X3D)


def random_batch(experiment: Experiment, device: torch.device) -> tuple[Tensor, ...]:
    """Return rgb, heatmap, label and coarse label with the shapes, types and memory layout of the loader's batches."""
    clip, count = experiment.clip, experiment.optim.batch_size
    # A batch of the usual size takes gigabytes, so it is drawn on the device and not copied to it.
    options: dict = {"device": device, "generator": torch.Generator(device).manual_seed(0)}
    side, small, channels = clip.rgb_size, clip.heatmap_size, clip.num_channels()
    rgb = torch.randint(0, 256, (count, clip.rgb_frames, side, side, 3), dtype=torch.uint8, **options)
    heatmap = torch.rand(count, clip.pose_frames, small, small, channels, **options)
    dtype = precision_of(experiment.optim.precision, Ranks(0, 0, 1, device)).dtype
    heatmap = heatmap.to(dtype).permute(0, 1, 4, 2, 3)
    label = torch.randint(0, experiment.model.num_classes, (count,), **options)
    coarse_map = experiment.data.coarse_map or (0,) * experiment.data.num_classes
    return rgb, heatmap, label, torch.tensor(coarse_map, device=device)[label]
