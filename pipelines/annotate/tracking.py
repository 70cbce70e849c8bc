"""Follows people through a video: a person continues the track whose last box overlaps most with the person's box."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

OVERLAP = 0.3  # boxes of one person in neighbouring frames have at least this intersection over union
SHORTEST = 5  # `separate_people` leaves out people who are visible in fewer frames than this


@dataclass(frozen=True, slots=True)
class Person:
    """One person in one frame.

    joints: [V, 3] (x, y, score) in pixels.
    score: the score of the whole person; None stands for the mean of the scores of the joints.
    track: the name of the person, if the estimator followed people itself.
    """

    joints: np.ndarray
    score: float | None = None
    track: str | None = None

    def weight(self) -> float:
        """The confidence that there is a person: `score`, or the mean of the scores of the joints."""
        return float(self.joints[:, 2].mean()) if self.score is None else self.score

    def box(self) -> np.ndarray:
        """The box [4] (left, top, right, bottom) around the joints with a score above 0; all 0 without such joints."""
        points = self.joints[self.joints[:, 2] > 0, :2]
        return np.concatenate([points.min(axis=0), points.max(axis=0)]) if len(points) else np.zeros(4)


@dataclass(slots=True)
class Track:
    """One person over the frames of a video.

    people: the person in each frame, by frame number. box: the person's box in the last of these frames.
    name: the name of the person, if the estimator followed people itself.
    """

    name: str | None = None
    people: dict[int, Person] = field(default_factory=dict)
    box: np.ndarray = field(default_factory=lambda: np.zeros(4))

    def add(self, frame: int, person: Person) -> None:
        """Continue the track with a person in frame number `frame`."""
        self.people[frame], self.box = person, person.box()

    def weight(self) -> float:
        """The sum of the person's weights in all frames of the track, so longer tracks have larger weights."""
        return sum(person.weight() for person in self.people.values())


def follow(frames: Sequence[Sequence[Person]], max_people: int, num_joints: int) -> np.ndarray:
    """Follow people through the frames of a video: joints [M, T, V, 3] float32, where 1 <= M <= `max_people`.

    frames: the people in each of the T frames.

    The people with the highest scores, summed over frames, come first. A person who leaves and comes back elsewhere is
    followed as a new track. Tracks without a common frame may share an index along M. If an index belongs to nobody in
    a frame, its joints there are 0.
    """
    tracks: list[Track] = []
    for number, people in enumerate(frames):
        _match(tracks, number, people)
    slots: list[dict[int, Person]] = []
    for track in sorted(tracks, key=Track.weight, reverse=True):
        free_slot = next((slot for slot in slots if not slot.keys() & track.people.keys()), None)
        if free_slot is None and len(slots) < max_people:
            free_slot = {}
            slots.append(free_slot)
        if free_slot is not None:
            free_slot |= track.people
    joints = np.zeros((max(1, len(slots)), len(frames), num_joints, 3), np.float32)
    for row, slot in enumerate(slots):
        for number, person in slot.items():
            joints[row, number] = person.joints
    return joints


def separate_people(joints: np.ndarray) -> np.ndarray:
    """Give each person a separate index along M: [M, T, V, 3] -> [M', T, V, 3], with 0 where a person is missing.

    Two people who are not in the same frame may share an index (`follow`). They are told apart by their boxes, as in
    `follow`. People who are visible in fewer than SHORTEST frames are left out.
    """
    people = []
    located = joints * (joints[..., :2] != 0).any(axis=-1, keepdims=True)  # a joint at (0, 0) is missing
    for shared, body in zip(joints, located, strict=True):
        tracks: list[Track] = []
        for number in np.nonzero((body[..., 2] > 0).any(axis=1))[0].tolist():
            _match(tracks, number, [Person(body[number])])
        for track in tracks:
            if len(track.people) >= min(SHORTEST, len(shared)):
                own = np.zeros_like(shared)
                own[list(track.people)] = shared[list(track.people)]
                people.append(own)
    return np.stack(people) if people else np.zeros((0, *joints.shape[1:]), joints.dtype)


class StreamTracks:
    """Follows people through a stream without an end. People are numbered from 0 in the order in which they appear.

    A person who is not seen in any frame that is still remembered gets a new number when coming back.
    """

    def __init__(self) -> None:
        self.tracks: dict[int, Track] = {}
        self.num_people = 0

    def add(self, frame: int, people: Sequence[Person]) -> dict[int, np.ndarray]:
        """Follow the people into frame number `frame`. Returns the joints [V, 3] of each person, by number."""
        tracks = list(self.tracks.values())
        _match(tracks, frame, people)
        for track in tracks[len(self.tracks) :]:
            self.tracks[self.num_people] = track
            self.num_people += 1
        return {number: track.people[frame].joints for number, track in self.tracks.items() if frame in track.people}

    def forget(self, before: int) -> None:
        """Forget all frames with a smaller number than `before`, and the people who are in no other frame."""
        for number, track in list(self.tracks.items()):
            track.people = {frame: person for frame, person in track.people.items() if frame >= before}
            if not track.people:
                del self.tracks[number]

    def most_visible(self, frames: Sequence[int], share: float, max_people: int) -> dict[int, np.ndarray]:
        """The joints [T, V, 3] of up to `max_people` people in these T frames, by number; 0 where a person is missing.

        People who are visible in less than `share` of the T frames are left out. If too many people remain, those with
        the highest scores, summed over frames, are chosen.
        """
        present = {number: track for number, track in self.tracks.items() if len(track.people) >= share * len(frames)}
        ranked = sorted(present, key=lambda number: present[number].weight(), reverse=True)[:max_people]
        joints = {}
        for number in sorted(ranked):
            people = present[number].people
            shape = next(iter(people.values())).joints.shape
            missing = np.zeros(shape, np.float32)
            joints[number] = np.stack([people[f].joints if f in people else missing for f in frames])
        return joints


def _match(tracks: list[Track], number: int, people: Sequence[Person]) -> None:
    """Add each person in frame `number` to the track whose last box overlaps most with the person's box.

    Pairs of a track and a person are matched in order of overlap, largest first. A person without a match starts a new
    track. A person with a name continues the track of this name instead.
    """
    for person in (person for person in people if person.track is not None):
        track = next((t for t in tracks if t.name == person.track and number not in t.people), None)
        if track is None:
            track = Track(person.track)
            tracks.append(track)
        track.add(number, person)
    people = [person for person in people if person.track is None]
    shares = overlaps(np.array([track.box for track in tracks]), np.array([person.box() for person in people]))
    pairs = [(shares[t, p], t, p) for t, p in np.argwhere(shares >= OVERLAP).tolist()]
    matched_people: set[int] = set()
    for _, t, p in sorted(pairs, key=lambda pair: -pair[0]):
        if p not in matched_people and number not in tracks[t].people:
            tracks[t].add(number, people[p])
            matched_people.add(p)
    for p, person in enumerate(people):
        if p not in matched_people:
            tracks.append(Track())
            tracks[-1].add(number, person)


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union [A, B] of each of the boxes [A, 4] with each of the boxes [B, 4]."""
    first, second = first.reshape(-1, 1, 4), second.reshape(1, -1, 4)
    low, high = np.maximum(first[..., :2], second[..., :2]), np.minimum(first[..., 2:], second[..., 2:])
    intersection = (high - low).clip(0).prod(axis=-1)
    areas = (first[..., 2:] - first[..., :2]).prod(axis=-1) + (second[..., 2:] - second[..., :2]).prod(axis=-1)
    return intersection / np.maximum(areas - intersection, 1e-9)
