"""What a network is shown: which clips, how many frames, how large. Values live in trainer/experiments.py."""

from dataclasses import dataclass
from typing import Literal

from pipelines.demo.classes import DemoConfig
from pipelines.skeleton import Skeleton


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where the data lies. `split` names the pair '<split>_train' and '<split>_val' of the annotation file.

    Data sets with one file a split (MA-52) set `val_annotations` and leave `split` None. `coarse_map` gives each fine
    class its coarse one. With `demo` the data are generated where they are missing.
    """

    annotations: str
    videos: str
    num_classes: int
    coarse_map: tuple[int, ...]
    class_names: tuple[str, ...] = ()
    val_annotations: str | None = None
    split: str | None = None
    packs: str = "data/packs"
    cache: str = "data/cache"
    source: Literal["packs", "video"] = "packs"  # video: whole files on the GPU's decoder at every step, no packs
    balance: float = 0.0  # of classes in an epoch: 0 takes each clip once, 1 every class equally often
    max_bad: float = 0.01  # share of videos that may be unusable
    demo: DemoConfig | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipConfig:
    """The sample of a clip: frames of both streams, sizes in pixels for training and validation, heatmap width."""

    skeleton: Skeleton
    rgb_frames: int
    pose_frames: int
    rgb_size: int = 224
    rgb_size_val: int = 256
    heatmap_size: int = 56
    heatmap_size_val: int = 64
    sigma: float = 0.6
    limbs: bool = False
    flip: float = 0.5  # share of training clips that are mirrored
    crop: bool = True  # random resized crop in training; else the whole box
    aligned: bool = False  # RGB frames are pose frames; else both streams sample a clip on their own
    # Packs keep this many pixels of the smallest box that sampling asks for, at this JPEG quality (2 best, 31 worst).
    box_pixels: int = 256
    quality: int = 3

    def num_channels(self) -> int:
        """Heatmap channels: one a joint, and one a limb where limbs are drawn."""
        return self.skeleton.num_joints + len(self.skeleton.limbs) * self.limbs

    def sizes(self, train: bool) -> tuple[int, int]:
        """(frame side, heatmap side) in pixels."""
        return (self.rgb_size, self.heatmap_size) if train else (self.rgb_size_val, self.heatmap_size_val)
