"""The content of the demo's data set: its classes, its settings, and the names of its clips."""

from dataclasses import dataclass
from typing import Annotated

from kernels.limits import MANY, Count, Range, check_ranges

COARSE_NAMES = ("signal", "exercise", "carry", "meet")
FINE_NAMES = (
    *("raise an arm", "lower an arm", "wave"),
    *("squat slowly", "squat quickly", "kick"),
    *("lift a red ball", "lift a blue ball", "swing a ball"),
    *("give a plain box", "give a striped box", "push"),
)
COARSE_MAP = (0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3)
# Pairs of classes that look the same in single frames; only the order or the tempo of the movements differs.
MOTION_ONLY = ((0, 1), (3, 4))
# Pairs of classes with the same distribution of joints; only the look of the object in the hands differs.
COLOUR_ONLY = ((6, 7), (9, 10))
NUM_TRAIN_SUBJECTS = 20
NUM_VAL_SUBJECTS = 10
TRAIN, VAL = "xsub_train", "xsub_val"


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoConfig:
    """Settings of the demo's data set. The data depend only on these settings and on GENERATOR in make.py."""

    seed: Annotated[int, Range(0, 2**62)] = 0
    """Seed of all random choices in the videos and skeletons."""
    num_train: Count = 720
    """Number of training clips."""
    num_val: Count = 240
    """Number of validation clips."""
    size: Annotated[tuple[int, int], Range(16, 8192)] = (320, 240)
    """Width and height of the videos in pixels, both even."""
    num_frames: Annotated[tuple[int, int], Range(1, MANY)] = (20, 45)
    """Smallest and largest number of frames that a clip can have."""
    rate: Annotated[int, Range(1, 240)] = 15
    """Frames per second of the videos."""
    crf: Annotated[int, Range(0, 51)] = 23
    """x264's constant rate factor: 0 is lossless, 51 the smallest file."""
    hide_people: bool = False
    """For a control experiment: whether a fixed grey box covers the whole area in which people and objects move, so
    that the frames do not show any motion."""

    def __post_init__(self) -> None:
        check_ranges(self, "data.demo")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipId:
    """Identifies a clip by its split, its class `label`, and its number `take` within this class and split.

    The content of the clip depends on these three values and on the settings, not on other clips.
    """

    split: str
    label: int
    take: int

    @property
    def name(self) -> str:
        """The name of the clip, in NTU's pattern SsssCcccPpppRrrrAaaa. No subject (P) is in both splits."""
        subjects = NUM_TRAIN_SUBJECTS if self.split == TRAIN else NUM_VAL_SUBJECTS
        first = 1 if self.split == TRAIN else 1 + NUM_TRAIN_SUBJECTS
        rest, subject = divmod(self.take, subjects)
        rest, camera = divmod(rest, 3)
        setup, replication = divmod(rest, 2)
        return f"S{setup + 1:03}C{camera + 1:03}P{first + subject:03}R{replication + 1:03}A{self.label + 1:03}"

    @property
    def number(self) -> int:
        """A number that is different for each clip."""
        return (self.take * len(FINE_NAMES) + self.label) * 2 + (self.split == VAL)


def clip_ids(config: DemoConfig) -> list[ClipId]:
    """All clips, those for training first.

    Classes alternate, so in each split the clip counts of any two classes differ by at most one.
    """
    counts = ((TRAIN, config.num_train), (VAL, config.num_val))
    num_classes = len(FINE_NAMES)
    return [ClipId(split=s, label=i % num_classes, take=i // num_classes) for s, count in counts for i in range(count)]


def missing_skeleton(config: DemoConfig) -> ClipId:
    """The training clip without a skeleton: it has one person, whose joints are all (0, 0) with score 0."""
    return clip_ids(config)[config.num_train // 3]


def corrupt_video(config: DemoConfig) -> ClipId:
    """The training clip whose video file is cut off in the middle, so that no decoder can open the file."""
    return clip_ids(config)[2 * config.num_train // 3]
