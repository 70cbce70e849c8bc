"""BlazePose (full), the built-in pose estimator. It downloads nothing, because its weights lie beside this file.

Source: docs/sources.md, "BlazePose". A detector finds people in the whole picture. A second network finds 33 landmarks
in a square around each person, which is turned so that the person stands upright. Both work best for one person who
fills a good part of the picture.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipelines.annotate.tracking import Person, overlaps
from pipelines.skeleton import COCO_17, MEDIAPIPE_33

DETECTOR_SIDE, LANDMARKS_SIDE = 224, 256  # sides of the networks' square inputs in pixels
GRIDS = ((28, 2), (14, 2), (7, 6))  # the detector's grids: cells per side, and boxes per cell
LEAST = 0.5  # a box, a set of landmarks or a heatmap is used only if its probability is at least this
SAME_PERSON = 0.3  # boxes with at least this intersection over union belong to the same person
NEAR = 0.15  # two squares show the same person if their centres are closer than this share of their side
MARGIN = 1.25  # the side of the landmarks' square, divided by the diameter of the circle around the person
WINDOW = 3  # heatmap cells on each side of a landmark's cell that are averaged to refine its position
LOOK_EVERY = 5  # the detector runs on one picture in this many, and on each picture after one without people
# The numbers of the landmarks that are used: the COCO joints, the middle of the hips, and a point on the rim of the
# circle around the person.
USED = [*(MEDIAPIPE_33.names.index(name) for name in COCO_17.names), 33, 34]


@dataclass(frozen=True, slots=True)
class Square:
    """A part of a picture: its centre and side in pixels, and the angle in radians by which it is turned clockwise."""

    x: float
    y: float
    side: float
    angle: float = 0.0

    def is_near(self, other: "Square") -> bool:
        """Whether both squares show the same person."""
        return bool(np.hypot(self.x - other.x, self.y - other.y) < NEAR * max(self.side, other.side))

    def to_picture(self, points: np.ndarray) -> np.ndarray:
        """Convert points [..., 2] from shares of the width and height of this square to pixels of the picture."""
        cos, sin = self.side * np.cos(self.angle), self.side * np.sin(self.angle)
        return (points - 0.5) @ np.array([[cos, sin], [-sin, cos]]) + (self.x, self.y)


class BlazePose:
    """Finds the people in the pictures of a video.

    The people of the last picture are expected near the same place. From time to time, the whole picture is searched
    for new people.
    """

    name = "blazepose"

    def __init__(self) -> None:
        self.detector, self.landmarks = session("detector"), session("landmarks")
        self.anchors = anchors()
        self.restart()

    def restart(self) -> None:
        """Forget the last picture, because the next one belongs to another video."""
        self.squares: list[Square] = []  # where the people of the last picture are expected in the next one
        self.pictures = 0

    def people(self, picture: np.ndarray) -> list[Person]:
        """The people in a picture [H, W, 3] uint8 RGB, with 17 COCO joints."""
        image = Image.fromarray(picture)
        squares, self.squares = self.squares, []
        if not squares or self.pictures % LOOK_EVERY == 0:
            detected = [square for square in self._detect(image) if not any(square.is_near(s) for s in squares)]
            squares = squares + detected
        self.pictures += 1
        people: list[Person] = []
        for square in squares:
            person, next_square = self._person(image, square)
            boxes = np.array([other.box() for other in people])
            if person is not None and not (overlaps(person.box(), boxes) >= SAME_PERSON).any():
                people.append(person)
                self.squares.append(next_square)
        return people

    def _detect(self, image: Image.Image) -> Iterator[Square]:
        """The square around each person that the detector finds in the whole picture."""
        whole = Square(image.width / 2, image.height / 2, max(image.size))
        boxes, logits = run(self.detector, crop(image, whole, DETECTOR_SIDE) * 2 - 1)
        score = sigmoid(logits[0, :, 0])
        chosen = np.flatnonzero(score >= LEAST)
        score = score[chosen]
        # The centre and the size of the box, the middle of the hips, a point on the rim, and two points that are not
        # used.
        points = boxes[0, chosen].reshape(-1, 6, 2) / DETECTOR_SIDE
        points[:, [0, 2, 3]] += self.anchors[chosen, None]
        corners = np.concatenate([points[:, 0] - points[:, 1] / 2, points[:, 0] + points[:, 1] / 2], axis=1)
        for members in groups(corners, score):
            yield around(*whole.to_picture(np.average(points[members, 2:4], axis=0, weights=score[members])))

    def _person(self, image: Image.Image, square: Square) -> tuple[Person | None, Square]:
        """The person in the square, or None if there is nobody, and the square to look at in the next picture."""
        values, presence, heatmaps = run(self.landmarks, crop(image, square, LANDMARKS_SIDE))
        if presence[0, 0] < LEAST:
            return None, square
        landmarks = values.reshape(-1, 5)[USED]  # x, y, depth, visibility and presence
        points = refined(landmarks[:, :2] / LANDMARKS_SIDE, sigmoid(heatmaps[0][..., USED]))
        xy, score = square.to_picture(points), sigmoid(landmarks[:, 3:4])
        return Person(np.concatenate([xy, score], axis=1)[:-2].astype(np.float32)), around(*xy[-2:])


def providers() -> list[str]:
    """The names of onnxruntime's backends: a GPU if the package for GPUs is installed and finds one, and the CPU."""
    import onnxruntime

    available = onnxruntime.get_available_providers()
    return [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]


def session(name: str) -> Any:
    """One of the networks in this folder, as a session of onnxruntime."""
    import onnxruntime

    return onnxruntime.InferenceSession(Path(__file__).with_name(f"{name}.onnx"), providers=providers())


def run(network: Any, picture: np.ndarray) -> list[np.ndarray]:
    """Run a network, whose only input is a picture [1, H, W, 3], and return its outputs."""
    return network.run(None, {network.get_inputs()[0].name: picture})


def anchors() -> np.ndarray:
    """For each of the detector's 2254 boxes, the point to which the box is relative: [2254, 2], from 0 to 1."""
    places = []
    for cells, boxes in GRIDS:
        y, x = np.divmod(np.arange(cells * cells), cells)
        places.append(np.repeat((np.stack([x, y], axis=1) + 0.5) / cells, boxes, axis=0))
    return np.concatenate(places)


def crop(image: Image.Image, square: Square, side: int) -> np.ndarray:
    """The part of the picture in the square: [1, side, side, 3] float32 from 0 to 1. Black outside the picture."""
    corner, right, below = square.to_picture(np.array([[0, 0], [1, 0], [0, 1]]))
    (a, d), (b, e) = (right - corner) / side, (below - corner) / side
    part = image.transform(
        (side, side), Image.Transform.AFFINE, (a, b, corner[0], d, e, corner[1]), Image.Resampling.BILINEAR
    )
    return np.asarray(part, np.float32)[None] / 255


def groups(boxes: np.ndarray, score: np.ndarray) -> Iterator[np.ndarray]:
    """Group overlapping boxes [N, 4]. Yields the indices of the boxes of each person, the most certain person first."""
    left = np.argsort(-score, kind="stable")
    while len(left):
        same = overlaps(boxes[left[:1]], boxes[left])[0] >= SAME_PERSON
        same[0] = True
        yield left[same]
        left = left[~same]


def around(hips: np.ndarray, rim: np.ndarray) -> Square:
    """The square around a person.

    hips: the middle of the hips. rim: the point above the hips on the circle around the person.
    """
    x, y = rim - hips
    return Square(hips[0], hips[1], 2 * MARGIN * np.hypot(x, y), np.pi / 2 - np.arctan2(-y, x))


def refined(points: np.ndarray, heatmaps: np.ndarray) -> np.ndarray:
    """Move each of V points [V, 2] to the mean position of its heatmap [H, W, V] in a window around the point.

    A point stays where it is if no value in the window reaches LEAST.
    """
    height, width, _ = heatmaps.shape
    result = points.copy()
    for number, (x, y) in enumerate(points):
        column, row = int(x * width), int(y * height)
        if not (0 <= column < width and 0 <= row < height):
            continue
        top, first = max(0, row - WINDOW), max(0, column - WINDOW)
        part = heatmaps[top : row + WINDOW + 1, first : column + WINDOW + 1, number]
        if part.max() >= LEAST:
            rows, columns = np.indices(part.shape)
            result[number] = (
                (first + (part * columns).sum() / part.sum()) / width,
                (top + (part * rows).sum() / part.sum()) / height,
            )
    return result


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values.clip(-80, 80)))
