"""Settings of the data: which clips a network sees, how many frames of each, and at which size.

The values of each experiment are in trainer/experiments.py.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from kernels.limits import Count, Range, Share, check_ranges
from kernels.program import UserError
from pipelines.demo.classes import DemoConfig
from pipelines.skeleton import Skeleton


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where the data are, and which classes they have.

    `split` stands for the two splits '<split>_train' and '<split>_val' of the annotation file. A data set with one
    annotation file per split (MA-52) sets `val_annotations` instead and leaves `split` None. `coarse_map` lists the
    coarse class of each fine class. If `demo` is set, missing data are generated.
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
    source: Literal["packs", "video"] = "packs"  # video: no packs; decode the videos on the GPU at every step
    balance: Share = 0.0  # 0: each clip once per epoch; 1: each class equally often; or a value between
    max_bad: Share = 0.01  # share of clips that may lack a usable video; if more do, preparing the data fails
    demo: DemoConfig | None = None

    def __post_init__(self) -> None:
        check_ranges(self, "data")
        if len(self.class_names) not in (0, self.num_classes):
            raise UserError(
                f"data.class_names has {len(self.class_names)} entries for data.num_classes={self.num_classes}: name "
                "each class, or none with --set data.class_names=()"
            )


Pixels = Annotated[int, Range(1, 8192)]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipConfig:
    """What a network sees of a clip.

    rgb_frames, pose_frames: number of frames in a sample of the RGB stream and of the pose stream.
    rgb_size, heatmap_size: side of the frames and of the heatmaps in training; `_val`: the same in validation.
    sigma: standard deviation of a heatmap's Gaussians, in heatmap pixels.
    """

    skeleton: Skeleton
    rgb_frames: Count
    pose_frames: Count
    rgb_size: Pixels = 224
    rgb_size_val: Pixels = 256
    heatmap_size: Pixels = 56
    heatmap_size_val: Pixels = 64
    sigma: Annotated[float, Range(1e-3, 1e9)] = 0.6
    limbs: bool = False  # add one heatmap channel per limb
    flip: Share = 0.5  # probability that a training clip is mirrored
    crop: bool = True  # True: random crop of the box in training; False: the whole box
    aligned: bool = False  # True: the RGB frames are every n-th pose frame; False: each stream draws its own frames
    # Packs store scaled-down frames: each side of the smallest box that a sample can have takes up this many pixels.
    # Frames are never enlarged.
    box_pixels: Pixels = 256
    quality: Annotated[int, Range(2, 31)] = 3  # JPEG quality of the frames in packs: 2 is best, 31 worst

    def __post_init__(self) -> None:
        check_ranges(self, "clip")
        if self.aligned and self.pose_frames % self.rgb_frames:
            raise UserError(
                f"clip.aligned takes the RGB frames from the pose frames, but clip.pose_frames={self.pose_frames} is "
                f"not a multiple of clip.rgb_frames={self.rgb_frames}: change one of the two, or set clip.aligned=false"
            )

    def num_channels(self) -> int:
        """Number of heatmap channels: one per joint and, with `limbs`, one per limb."""
        return self.skeleton.num_joints + len(self.skeleton.limbs) * self.limbs

    def sizes(self, train: bool) -> tuple[int, int]:
        """Side of the RGB frames and side of the heatmaps in pixels, for training or for validation."""
        return (self.rgb_size, self.heatmap_size) if train else (self.rgb_size_val, self.heatmap_size_val)
