"""The motions of the demo's classes: the joints of one or two people, and the path of the object that they hold.

The unit of length is the height of the body, and the axes are those of body.py. `t` [T] runs from 0 to 1 over the clip.
In array shapes, T is the number of frames and M the number of people.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipelines.demo.body import SHOULDER, Pose

RED, BLUE, PLAIN, STRIPED = "red ball", "blue ball", "plain box", "striped box"


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """The people of a clip and the object that they hold.

    joints: [M, T, 17, 3]. object_name: what the people hold, or "". path: [T, 3] centre of the object, or None.
    """

    joints: np.ndarray
    object_name: str = ""
    path: np.ndarray | None = None


def act(label: int, num_frames: int, rng: np.random.Generator) -> Scene:
    """Return a scene in which people perform the motion of class `label` once. `rng` varies the motion."""
    return ACTS[label](np.linspace(0, 1, num_frames), rng)


def ramp(t: np.ndarray, start: float, end: float) -> np.ndarray:
    """A smooth step: 0 up to `start`, 1 from `end` on."""
    u = ((t - start) / (end - start)).clip(0, 1)
    return u * u * (3 - 2 * u)


def between(low: np.ndarray | list[float], high: np.ndarray | list[float], p: np.ndarray) -> np.ndarray:
    """A path [T, 3] that goes from `low` to `high` while p [T] goes from 0 to 1."""
    return np.asarray(low) + (np.asarray(high) - np.asarray(low)) * p[:, None]


def rotate(joints: np.ndarray, yaw: float | np.ndarray) -> np.ndarray:
    """Rotate points [T, ..., 3] by `yaw` radians about the vertical axis.

    A positive `yaw` turns a person who faces the camera towards the right of the image.
    """
    shape = (-1, *[1] * (joints.ndim - 2))
    c, s = np.cos(yaw).reshape(shape), np.sin(yaw).reshape(shape)
    x, y, z = joints[..., 0], joints[..., 1], joints[..., 2]
    return np.stack([x * c + z * s, y, z * c - x * s], axis=-1)


def both_hands(x: np.ndarray | float, y: np.ndarray, z: np.ndarray, grip: float) -> np.ndarray:
    """The positions [T, 2, 3] of two hands that hold an object, for `Pose.hands`.

    The hands are `grip` apart. Midway between them is the point (x, y, z), relative to the middle of the shoulders.
    """
    out = np.stack([x + grip / 2 - SHOULDER + 0 * y, grip / 2 - SHOULDER - x + 0 * y], axis=1)  # [T, 2]
    return np.stack([out, np.stack([y, y], axis=1), np.stack([z, z], axis=1)], axis=-1)


def alone(t: np.ndarray, pose: Pose, rng: np.random.Generator, object_name: str = "") -> Scene:
    """A scene with one person, turned away from the camera by at most 35 degrees, and mirrored at random.

    The object, if there is one, is between the hands.
    """
    joints = (pose.mirrored() if rng.random() < 0.5 else pose).joints()
    yaw = np.radians(rng.uniform(-30, 30) + rng.uniform(-5, 5) * np.sin(2 * np.pi * t + rng.uniform(0, 6)))
    joints = rotate(joints, yaw)
    return Scene(joints=joints[None], object_name=object_name, path=grasp(joints) if object_name else None)


def grasp(joints: np.ndarray) -> np.ndarray:
    """The centre [T, 3] of an object in both hands of a body [T, 17, 3], slightly beyond the wrists."""
    wrists, elbows = joints[:, 9:11], joints[:, 7:9]
    return (wrists + 0.2 * (wrists - elbows)).mean(axis=1)


def move_arm(t: np.ndarray, rng: np.random.Generator, *, lower: bool) -> Scene:
    """Raise an arm that hangs down; with `lower`, perform this motion backwards."""
    pose = Pose.standing(t, rng)
    p = ramp(1 - t if lower else t, rng.uniform(0.1, 0.3), rng.uniform(0.7, 0.9))
    angle = 0.15 + p * rng.uniform(2.3, 2.7)
    ahead, reach = rng.uniform(0.1, 0.9), rng.uniform(0.28, 0.32)
    outward, forward = np.sin(angle) * np.cos(ahead), np.sin(angle) * np.sin(ahead)
    pose.hands[:, 0] = reach * np.stack([outward, -np.cos(angle), forward], axis=1)
    return alone(t, pose, rng)


def wave(t: np.ndarray, rng: np.random.Generator) -> Scene:
    """Wave a raised hand from side to side."""
    pose = Pose.standing(t, rng)
    swing = np.sin(2 * np.pi * rng.uniform(2.2, 3.2) * t + rng.uniform(0, 2 * np.pi))
    pose.hands[:, 0] = between([0.10, 0.2, 0.08], [0.10 + rng.uniform(0.12, 0.16), 0.17, 0.08], swing)
    return alone(t, pose, rng)


def squat(t: np.ndarray, rng: np.random.Generator, *, cycles: tuple[float, float]) -> Scene:
    """Bend and stretch the knees `cycles` times. The arms move forward as the body goes down."""
    pose = Pose.standing(t, rng)
    down = 0.5 - 0.5 * np.cos(2 * np.pi * rng.uniform(*cycles) * t + rng.uniform(0, 2 * np.pi))
    pose.hips[:, 1] -= down * rng.uniform(0.13, 0.19)
    pose.lean += down * rng.uniform(0.15, 0.35)
    pose.hands += (np.array([-0.02, 0.27, 0.27]) * rng.uniform(0.8, 1)) * down[:, None, None]
    return alone(t, pose, rng)


def kick(t: np.ndarray, rng: np.random.Generator) -> Scene:
    """Kick with one foot."""
    pose = Pose.standing(t, rng)
    up = np.sin(np.pi * (rng.uniform(1.2, 2.0) * t + rng.uniform(0, 1))) ** 2
    pose.feet[:, 0] += np.array([rng.uniform(0.12, 0.25), rng.uniform(0.2, 0.3), rng.uniform(0.1, 0.25)]) * up[:, None]
    pose.lean -= 0.1 * up
    return alone(t, pose, rng)


def lift(t: np.ndarray, rng: np.random.Generator, *, object_name: str) -> Scene:
    """Lift a ball with both hands, from the belly to above the head."""
    pose = Pose.standing(t, rng)
    p = ramp(t, rng.uniform(0.05, 0.3), rng.uniform(0.6, 0.9))
    y = rng.uniform(-0.2, -0.12) + p * rng.uniform(0.36, 0.42)
    pose.hands = both_hands(0.0, y, 0.17 + 0.04 * np.sin(np.pi * p), grip=0.11)
    return alone(t, pose, rng, object_name)


def swing(t: np.ndarray, rng: np.random.Generator) -> Scene:
    """Swing a ball with both hands from side to side in front of the belly."""
    pose = Pose.standing(t, rng)
    x = rng.uniform(0.13, 0.17) * np.sin(2 * np.pi * rng.uniform(1.3, 2.2) * t + rng.uniform(0, 2 * np.pi))
    pose.hands = both_hands(x, rng.uniform(-0.2, -0.1) + 1.5 * x**2, 0.2 - 0.5 * np.abs(x), grip=0.11)
    return alone(t, pose, rng, object_name=RED if rng.random() < 0.5 else BLUE)


def face_to_face(
    one: Pose, two: Pose, gap: float | np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Joints of two people who face each other, with their hips `gap` apart. Who is on the left is random."""
    side = np.radians(90) * (1 if rng.random() < 0.5 else -1)
    scene = np.radians(rng.uniform(-25, 25))
    half = np.zeros((len(one.lean), 1, 3))
    half[..., 2] = np.broadcast_to(np.asarray(gap), len(one.lean))[:, None] / 2
    first, second = (pose.joints() - half for pose in (one, two))
    return rotate(first, side + scene), rotate(second, side + scene + np.pi)


def give(t: np.ndarray, rng: np.random.Generator, *, object_name: str) -> Scene:
    """One person hands a box to the other, who pulls it close."""
    one, two = Pose.standing(t, rng), Pose.standing(t, rng)
    when, gap = rng.uniform(0.4, 0.6), rng.uniform(0.58, 0.68)
    offer, take = ramp(t, when - 0.35, when - 0.05), ramp(t, when - 0.25, when - 0.02)
    leave, keep = ramp(t, when + 0.05, when + 0.3), ramp(t, when + 0.04, when + 0.35)
    height, near, far = rng.uniform(-0.2, -0.1), 0.15, gap / 2 - 0.05
    z_one, z_two = near + (far - near) * (offer - leave), near + (far - near) * (take - keep)
    one.hands = both_hands(0.0, height + 0.06 * (offer - leave) - 0.1 * leave, z_one, grip=0.12)
    two.hands = both_hands(0.0, height + 0.06 * (take - keep) - 0.1 * (1 - take), z_two, grip=0.12)
    joints = face_to_face(one, two, gap, rng)
    path = between_paths(grasp(joints[0]), grasp(joints[1]), ramp(t, when - 0.03, when + 0.03))
    return Scene(joints=np.stack(joints), object_name=object_name, path=path)


def between_paths(first: np.ndarray, second: np.ndarray, p: np.ndarray) -> np.ndarray:
    """A path [T, 3] that changes from `first` [T, 3] to `second` [T, 3] while p [T] goes from 0 to 1."""
    return first + (second - first) * p[:, None]


def push(t: np.ndarray, rng: np.random.Generator) -> Scene:
    """One person pushes the other's chest with both hands, and the other staggers back."""
    one, two = Pose.standing(t, rng), Pose.standing(t, rng)
    when, gap = rng.uniform(0.3, 0.6), rng.uniform(0.45, 0.52)
    reach = ramp(t, when - 0.15, when) - ramp(t, when + 0.15, when + 0.4)
    one.hands = one.hands + (both_hands(0.0, 0 * t - 0.06, 0 * t + 0.31, grip=0.2) - one.hands) * reach[:, None, None]
    one.lean += 0.15 * reach
    hit = ramp(t, when - 0.03, when + 0.12)
    two.lean -= rng.uniform(0.25, 0.4) * (hit - ramp(t, when + 0.15, when + 0.35))
    two.hands += np.array([0.1, 0.15, 0.1]) * (hit - ramp(t, when + 0.2, when + 0.4))[:, None, None]
    return Scene(joints=np.stack(face_to_face(one, two, gap + rng.uniform(0.12, 0.2) * hit, rng)))


# One entry per class, in the order of FINE_NAMES. The two classes of a COLOUR_ONLY pair differ only in the object.
ACTS: tuple[Callable[[np.ndarray, np.random.Generator], Scene], ...] = (
    lambda t, rng: move_arm(t, rng, lower=False),
    lambda t, rng: move_arm(t, rng, lower=True),
    wave,
    lambda t, rng: squat(t, rng, cycles=(1.0, 1.5)),
    lambda t, rng: squat(t, rng, cycles=(3.0, 4.0)),
    kick,
    lambda t, rng: lift(t, rng, object_name=RED),
    lambda t, rng: lift(t, rng, object_name=BLUE),
    swing,
    lambda t, rng: give(t, rng, object_name=PLAIN),
    lambda t, rng: give(t, rng, object_name=STRIPED),
    push,
)
