"""Settings of the data: which clips a network sees, how many frames of each, and at which size.

The values of each experiment are in trainer/experiments.py.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from kernels.limits import Count, Range, Share, check_ranges
from kernels.program import UserError
from pipelines.demo.classes import DemoConfig
from pipelines.skeleton import Edges, Skeleton
from pipelines.videos.turn import Rotation


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where the data are, and which classes they have."""

    annotations: str
    """Annotation file (a pickle) of all clips, or of the training clips alone."""
    videos: str
    """Folder of the videos. Its sub-folders are searched too."""
    num_classes: Count
    """Number of fine classes."""
    coarse_map: tuple[int, ...]
    """The coarse class of each fine class. (): there are no coarse classes, so model.num_coarse must be 0."""
    class_names: tuple[str, ...] = ()
    """The name of each fine class. Empty: the classes are numbered."""
    classes_from_file: bool = False
    """Whether num_classes, coarse_map, split and the skeleton are read from the annotation file, except for those that
    you set.
    """
    val_annotations: str | None = None
    """Annotation file of the validation clips, for data with one file per split. None: data.annotations has them."""
    split: str | None = None
    """The pair of splits to use: xsub means xsub_train and xsub_val (or xsub_test), train1 means train1 and test1.
    None: all clips of each file.
    """
    train_split: str | None = None
    """Name of the training split, if data.split does not name it. None: the training split of data.split."""
    val_split: str | None = None
    """Name of the validation split, if data.split does not name it. None: the validation split of data.split."""
    max_absent: Share = 0.5
    """Largest share of a split's clips that the annotation file may lack. If more are missing, a run stops."""
    follow_links: bool = False
    """Whether links that lead out of the folder of the videos are followed. Only for a folder that you trust."""
    packs: str = "data/packs"
    """Folder of the clip pack that all data sets share."""
    cache: str = "data/cache"
    """Folder of the tables that are made from annotation files."""
    rotation: Rotation = "shown"
    """Whether joints are in pixels of frames as players show them (rotated) or as files store them. This setting is
    used only if img_shape fits both.
    """
    source: Literal["packs", "video"] = "packs"
    """Where frames come from. video: there are no packs, and a GPU decodes the videos at every step."""
    balance: Share = 0.0
    """How much training balances the classes, from 0 (each clip once per epoch) to 1 (each class equally often)."""
    max_bad: Share = 0.01
    """Largest share of clips that may lack a usable video. If more clips lack one, preparing the data fails."""
    demo: DemoConfig | None = None
    """Settings of the demo's data, which are generated if they are missing. None: the data exist."""

    def __post_init__(self) -> None:
        check_ranges(self, "data")
        if len(self.class_names) not in (0, self.num_classes):
            raise UserError(
                f"data.class_names has {len(self.class_names)} entries for data.num_classes={self.num_classes}: name "
                "each class, or none with --set data.class_names=()"
            )
        lacking = "train_split" if self.train_split is None else "val_split"
        if self.split is self.val_annotations is None and (self.train_split is None) != (self.val_split is None):
            raise UserError(
                f"data.{lacking} is none, and neither data.split nor data.val_annotations says which clips are meant: "
                f"set data.{lacking} too"
            )

    def split_for(self, train: bool) -> str | None:
        """The name of the training or of the validation split, or None for all clips of the file."""
        name = self.train_split if train else self.val_split
        return name or (None if self.split is None else f"{self.split}_{'train' if train else 'val'}")


Pixels = Annotated[int, Range(1, 8192)]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipConfig:
    """What a network sees of a clip."""

    skeleton: Skeleton
    """The joints, which of them swap places when a clip is mirrored, and the limbs."""
    rgb_frames: Count
    """Frames in a sample of the RGB stream."""
    pose_frames: Count
    """Frames in a sample of the pose stream."""
    rgb_size: Pixels = 224
    """Side of the frames in training, in pixels."""
    rgb_size_val: Pixels = 256
    """Side of the frames in validation, in pixels."""
    heatmap_size: Pixels = 56
    """Side of the heatmaps in training, in pixels."""
    heatmap_size_val: Pixels = 64
    """Side of the heatmaps in validation, in pixels."""
    sigma: Annotated[float, Range(1e-3, 1e9)] = 0.6
    """Standard deviation of a heatmap's Gaussians, in heatmap pixels."""
    joints: bool = True
    """Whether the heatmaps have a channel for each joint."""
    limbs: bool = False
    """Whether the heatmaps have a channel for each limb, behind those of the joints."""
    flip: Share = 0.5
    """Probability that a training clip is mirrored."""
    crop: bool = True
    """Whether training crops the box around the people at random. false: it uses the whole box."""
    fade_background: Share = 0.0
    """How much grey is mixed into RGB pixels that are not near a skeleton, in training and when the network is used.
    1: only the people, and what is near them, can be seen.
    """
    color_jitter: Share = 0.0
    """How far training changes brightness, contrast and saturation of a clip at random. 0.4: by factors of 0.6 to 1.4.
    """
    erasing: Share = 0.0
    """Probability that training covers a random rectangle in all RGB frames of a clip."""
    joint_noise: Annotated[float, Range(0, 100)] = 0.0
    """Standard deviation of the noise that training adds to the position of each joint, in heatmap pixels."""
    joint_drop: Share = 0.0
    """Probability that training leaves out a joint of a person in all frames of a clip."""
    aligned: bool = False
    """Whether the RGB frames are every n-th pose frame. false: each stream draws its own frames."""
    box_pixels: Pixels = 256
    """Packs scale frames down as long as the box around the people in every sample of 32 pose frames keeps this many
    pixels a side.
    """
    quality: Annotated[int, Range(2, 31)] = 3
    """JPEG quality of the frames in packs: 2 is best, 31 worst."""

    def __post_init__(self) -> None:
        check_ranges(self, "clip")
        if self.aligned and self.pose_frames % self.rgb_frames:
            raise UserError(
                f"clip.aligned takes the RGB frames from the pose frames, but clip.pose_frames={self.pose_frames} is "
                f"not a multiple of clip.rgb_frames={self.rgb_frames}: change one of the two, or set clip.aligned=false"
            )

        if not self.num_channels():
            raise UserError(
                "clip.joints=false leaves the heatmaps without channels, because no limbs are drawn: set "
                "clip.limbs=true and a clip.skeleton that has limbs, or set clip.joints=true"
            )

    def drawn_limbs(self) -> Edges:
        """The limbs that have a heatmap channel."""
        return self.skeleton.limbs if self.limbs else ()

    def num_channels(self) -> int:
        """Number of heatmap channels: one for each joint with `joints`, and one for each limb with `limbs`."""
        return self.skeleton.num_joints * self.joints + len(self.drawn_limbs())

    def sizes(self, train: bool) -> tuple[int, int]:
        """Side of the RGB frames and side of the heatmaps in pixels, for training or for validation."""
        return (self.rgb_size, self.heatmap_size) if train else (self.rgb_size_val, self.heatmap_size_val)
