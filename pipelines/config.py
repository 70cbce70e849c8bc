"""What a network is shown: which clips, how many frames, how large. Values live in trainer/experiments.py."""

from dataclasses import dataclass
from typing import Annotated, Literal

from kernels.limits import Count, Range, Share, check_ranges
from kernels.program import UserError
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
    num_classes: Count
    coarse_map: tuple[int, ...]
    class_names: tuple[str, ...] = ()
    val_annotations: str | None = None
    split: str | None = None
    packs: str = "data/packs"
    cache: str = "data/cache"
    source: Literal["packs", "video"] = "packs"  # video: whole files on the GPU's decoder at every step, no packs
    balance: Share = 0.0  # of classes in an epoch: 0 takes each clip once, 1 every class equally often
    max_bad: Share = 0.01  # share of videos that may be unusable
    demo: DemoConfig | None = None

    def __post_init__(self) -> None:
        check_ranges(self, "data")
        if len(self.class_names) not in (0, self.num_classes):
            raise UserError(
                f"data.class_names has {len(self.class_names)} names for data.num_classes={self.num_classes}: name "
                "each class, or none with --set data.class_names=()"
            )


Pixels = Annotated[int, Range(1, 8192)]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipConfig:
    """The sample of a clip: frames of both streams, sizes in pixels for training and validation, heatmap width."""

    skeleton: Skeleton
    rgb_frames: Count
    pose_frames: Count
    rgb_size: Pixels = 224
    rgb_size_val: Pixels = 256
    heatmap_size: Pixels = 56
    heatmap_size_val: Pixels = 64
    sigma: Annotated[float, Range(1e-3, 1e9)] = 0.6
    limbs: bool = False
    flip: Share = 0.5  # share of training clips that are mirrored
    crop: bool = True  # random resized crop in training; else the whole box
    aligned: bool = False  # RGB frames are pose frames; else both streams sample a clip on their own
    # Packs keep this many pixels of the smallest box that sampling asks for, at this JPEG quality (2 best, 31 worst).
    box_pixels: Pixels = 256
    quality: Annotated[int, Range(2, 31)] = 3

    def __post_init__(self) -> None:
        check_ranges(self, "clip")
        if self.aligned and self.pose_frames % self.rgb_frames:
            raise UserError(
                f"clip.aligned takes the RGB frames from the pose frames, and clip.pose_frames={self.pose_frames} is "
                f"no multiple of clip.rgb_frames={self.rgb_frames}: change one of them, or set clip.aligned=false"
            )

    def num_channels(self) -> int:
        """Heatmap channels: one a joint, and one a limb where limbs are drawn."""
        return self.skeleton.num_joints + len(self.skeleton.limbs) * self.limbs

    def sizes(self, train: bool) -> tuple[int, int]:
        """(frame side, heatmap side) in pixels."""
        return (self.rgb_size, self.heatmap_size) if train else (self.rgb_size_val, self.heatmap_size_val)
