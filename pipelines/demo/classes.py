"""What the demo data set contains: its classes, its settings, and the name of every clip. Data and arithmetic only."""

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
# Pairs whose people, clothes and places come from one distribution: only order or tempo of the joints differ.
MOTION_ONLY = ((0, 1), (3, 4))
# Pairs whose joints come from one distribution: only the look of the held object differs.
COLOUR_ONLY = ((6, 7), (9, 10))
NUM_TRAIN_SUBJECTS = 20
NUM_VAL_SUBJECTS = 10
TRAIN, VAL = "xsub_train", "xsub_val"


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoConfig:
    """The data set is a pure function of these values (and of GENERATOR in make.py)."""

    seed: Annotated[int, Range(0, 2**62)] = 0
    num_train: Count = 720
    num_val: Count = 240
    size: Annotated[tuple[int, int], Range(16, 8192)] = (320, 240)  # width, height; both even for 4:2:0 chroma
    num_frames: Annotated[tuple[int, int], Range(1, MANY)] = (40, 90)  # shortest and longest clip
    crf: Annotated[int, Range(0, 51)] = 23  # x264's constant rate factor
    # A control: a grey box, the same in all frames, hides everything that the people and their object reach.
    # What is left to see must not tell the two classes of a MOTION_ONLY pair apart.
    hide_people: bool = False

    def __post_init__(self) -> None:
        check_ranges(self, "data.demo")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipId:
    """The `take`-th clip of a class in a split. Its luck depends on (seed, split, take, label) and on nothing else."""

    split: str
    label: int
    take: int

    @property
    def name(self) -> str:
        """NTU's pattern SsssCcccPpppRrrrAaaa; train and validation share no subject P."""
        subjects = NUM_TRAIN_SUBJECTS if self.split == TRAIN else NUM_VAL_SUBJECTS
        first = 1 if self.split == TRAIN else 1 + NUM_TRAIN_SUBJECTS
        rest, subject = divmod(self.take, subjects)
        rest, camera = divmod(rest, 3)
        setup, replication = divmod(rest, 2)
        return f"S{setup + 1:03}C{camera + 1:03}P{first + subject:03}R{replication + 1:03}A{self.label + 1:03}"

    @property
    def number(self) -> int:
        """A whole number that no other clip has."""
        return (self.take * len(FINE_NAMES) + self.label) * 2 + (self.split == VAL)


def clip_ids(config: DemoConfig) -> list[ClipId]:
    """All clips, training first; the classes take turns: each has as many clips as any other, or one less."""
    counts = ((TRAIN, config.num_train), (VAL, config.num_val))
    num_classes = len(FINE_NAMES)
    return [ClipId(split=s, label=i % num_classes, take=i // num_classes) for s, count in counts for i in range(count)]


def missing_skeleton(config: DemoConfig) -> ClipId:
    """The one training clip in which no person was found: M = 1, all joints (0, 0) with score 0."""
    return clip_ids(config)[config.num_train // 3]


def corrupt_video(config: DemoConfig) -> ClipId:
    """The one training clip whose annotation is fine, but whose video is cut short: no decoder opens it."""
    return clip_ids(config)[2 * config.num_train // 3]
