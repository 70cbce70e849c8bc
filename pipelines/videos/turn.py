"""How players turn and mirror the frames of a video, and whether the joints of an annotation belong to turned frames.

A phone stores frames as its sensor delivers them, and a display matrix says how to turn them: in the container (.mp4,
.mov, .mkv) or in the stream itself (H.264, HEVC). Players, OpenCV and ffmpeg follow the matrix.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Rotation = Literal["shown", "stored"]
Size = tuple[int, int]  # (width, height) in pixels

SAME_SHAPE = 0.02  # shapes are the same if their ratios of width to height differ by at most this fraction


@dataclass(frozen=True, slots=True)
class Turn:
    """How stored frames become shown frames: x and y are swapped, then columns or rows or both are reversed."""

    swap: bool = False  # x and y are swapped
    flip_x: bool = False  # then the order of the columns is reversed
    flip_y: bool = False  # then the order of the rows is reversed

    def __bool__(self) -> bool:
        """Whether shown frames differ from stored frames."""
        return self.swap or self.flip_x or self.flip_y

    @property
    def code(self) -> str:
        """The rotation as three digits, for manifests and caches; "" if frames are not rotated."""
        return f"{self.swap:d}{self.flip_x:d}{self.flip_y:d}" if self else ""

    @classmethod
    def of_code(cls, code: str) -> "Turn":
        """The rotation for which `code` stands."""
        return cls(*(digit == "1" for digit in code))

    def size(self, width: int, height: int) -> Size:
        """The size of shown frames, for stored frames of (width, height)."""
        return (height, width) if self.swap else (width, height)

    def filters(self) -> list[tuple[str, str]]:
        """FFmpeg filters that turn stored frames."""
        steps = (self.swap, ("transpose", "cclock_flip")), (self.flip_x, ("hflip", "")), (self.flip_y, ("vflip", ""))
        return [step for wanted, step in steps if wanted]

    def apply(self, picture: np.ndarray) -> np.ndarray:
        """Turn a stored picture [H, W, ...]; the result is a view of it."""
        picture = picture.swapaxes(0, 1) if self.swap else picture
        return picture[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]


NO_TURN = Turn()


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """The image to which an annotation's joints belong: its size in pixels, and its rotation.

    rotation: shown if the image is a frame as players show it, stored if it is a frame as the file stores it. It
        matters only if shown and stored frames have the same shape: if they are square, mirrored, or turned by 180
        degrees.
    """

    width: int
    height: int
    rotation: Rotation = "shown"


def same_shape(first: tuple[float, float], second: tuple[float, float]) -> bool:
    """Whether two sizes (width, height) have the same ratio of width to height, within SAME_SHAPE."""
    return abs(first[0] / first[1] / (second[0] / second[1]) - 1) <= SAME_SHAPE


def wanted_turn(turn: Turn, stored: Size, pixel: float, image: AnnotatedImage | None) -> tuple[Turn, bool]:
    """How to turn frames of the size `stored`, so that they match the joints of an annotation.

    turn: how players turn the frames. pixel: width of a stored pixel divided by its height.
    image: the annotated image; None stands for frames as players show them.
    Returns `turn` or NO_TURN, and whether `image.rotation` made this choice because the sizes allowed both.
    """
    if not turn or image is None:
        return turn, False
    annotated = (image.width, image.height)
    fits_shown = _fits(annotated, turn.size(*stored), 1 / pixel if turn.swap else pixel)
    fits_stored = _fits(annotated, stored, pixel)
    if fits_shown != fits_stored:
        return (turn if fits_shown > fits_stored else NO_TURN), False
    return (turn if image.rotation == "shown" else NO_TURN), True


def _fits(image: Size, frame: Size, pixel: float) -> int:
    """Return 2 if an image has the size of a frame, 1 if it has the same shape, and 0 if it has another shape.

    pixel: width of the frame's pixels divided by their height.
    """
    display = (round(frame[0] * pixel), frame[1])
    if image in (frame, display):
        return 2
    return int(same_shape(image, frame) or same_shape(image, display))
