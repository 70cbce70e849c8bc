"""People found frame by frame -> the same people over the whole video, by greedy overlap of their boxes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

OVERLAP = 0.3  # intersection over union from which two boxes in neighbouring frames are one person's


@dataclass(frozen=True, slots=True)
class Person:
    """One person in one frame: joints [V, 3] (x, y, score) in pixels; `score` None stands for the joints' mean."""

    joints: np.ndarray
    score: float | None = None

    def weight(self) -> float:
        return float(self.joints[:, 2].mean()) if self.score is None else self.score

    def box(self) -> np.ndarray:
        """[4] (left, top, right, bottom) of the joints that were found; nothing where there are none."""
        seen = self.joints[self.joints[:, 2] > 0, :2]
        return np.concatenate([seen.min(axis=0), seen.max(axis=0)]) if len(seen) else np.zeros(4)


@dataclass(slots=True)
class Track:
    """One person's way through the video: frame -> person."""

    people: dict[int, Person] = field(default_factory=dict)
    box: np.ndarray = field(default_factory=lambda: np.zeros(4))

    def add(self, frame: int, person: Person) -> None:
        self.people[frame], self.box = person, person.box()

    def weight(self) -> float:
        return sum(person.weight() for person in self.people.values())


def follow(frames: Sequence[Sequence[Person]], most: int, num_joints: int) -> np.ndarray:
    """[M, T, V, 3] float32 with 1 <= M <= `most`: the people with the highest scores, summed over their frames.

    A person who is lost and found again elsewhere takes the place of one who is gone by then, so that a place holds
    several tracks when they share no frame. Frames in which a place has nobody are zeros, score included.
    """
    tracks: list[Track] = []
    for number, people in enumerate(frames):
        _match(tracks, number, people)
    places: list[dict[int, Person]] = []
    for track in sorted(tracks, key=Track.weight, reverse=True):
        free = next((place for place in places if not place.keys() & track.people.keys()), None)
        if free is None and len(places) < most:
            free = {}
            places.append(free)
        if free is not None:
            free |= track.people
    joints = np.zeros((max(1, len(places)), len(frames), num_joints, 3), np.float32)
    for row, place in enumerate(places):
        for number, person in place.items():
            joints[row, number] = person.joints
    return joints


def _match(tracks: list[Track], number: int, people: Sequence[Person]) -> None:
    """Give each person of a frame the track whose last box overlaps most, best pairs first; else a track of its own."""
    boxes = [person.box() for person in people]
    pairs = [(overlap(track.box, box), t, p) for t, track in enumerate(tracks) for p, box in enumerate(boxes)]
    taken: set[int] = set()
    for share, t, p in sorted(pairs, key=lambda pair: -pair[0]):
        if share >= OVERLAP and p not in taken and number not in tracks[t].people:
            tracks[t].add(number, people[p])
            taken.add(p)
    for p, person in enumerate(people):
        if p not in taken:
            tracks.append(Track())
            tracks[-1].add(number, person)


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two boxes [4]."""
    low, high = np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])
    shared = float((high - low).clip(0).prod())
    areas = [float((box[2:] - box[:2]).prod()) for box in (first, second)]
    return shared / max(sum(areas) - shared, 1e-9)
