"""The body of a person in the demo: computes 17 COCO joints in three dimensions from hands, feet and hips.

The unit of length is the height of the body. x points to the person's left (to the viewer's right, if the person faces
the camera), y points up, and z points to the camera. `Pose` gives the positions of hands, feet and hips; the positions
of elbows and knees follow from the lengths of arms and legs (two-bone inverse kinematics). In shapes, T is the number
of frames.
"""

from dataclasses import dataclass

import numpy as np

UPPER_ARM, FOREARM, THIGH, SHIN = 0.17, 0.16, 0.245, 0.235
SHOULDER, HIP = (0.105, 0.065)  # half widths
TORSO, NECK = (0.30, 0.075)  # heights
ANKLE = 0.035  # height of the ankle above the floor
STAND = ANKLE + (THIGH + SHIN) * 0.995  # height of the hips of a person who stands
SIDES = np.array([1.0, -1.0])  # left, then right; the axis of length 2 of arrays [..., 2, 3] has the same order
# Positions of nose, eyes and ears relative to the centre of the head, left before right.
FACE = np.array([[0, -0.005, 0.06], [0.022, 0.014, 0.05], [-0.022, 0.014, 0.05], [0.045, 0, 0], [-0.045, 0, 0]])


@dataclass(kw_only=True, slots=True)
class Pose:
    """The position of a body over T frames, in coordinates of the person."""

    hands: np.ndarray  # [T, 2, 3], relative to the shoulder of the same side; x points outward
    feet: np.ndarray  # [T, 2, 3], ankles, relative to the point on the floor between them; x points outward
    hips: np.ndarray  # [T, 3]
    lean: np.ndarray  # [T], how far the torso leans forward, in radians

    @staticmethod
    def standing(t: np.ndarray, rng: np.random.Generator) -> "Pose":
        """A person who stands with hanging arms and sways a little. `t` [T] runs from 0 to 1 over the clip."""
        hang = np.array([0.05, -0.315, 0.03]) + rng.normal(0, 0.012, (1, 2, 3))
        phase, pace = rng.uniform(0, 2 * np.pi, 3), rng.uniform(0.6, 1.6, 3)
        sway = np.sin(phase + 2 * np.pi * pace * t[:, None])  # [T, 3]
        hips = np.array([0, STAND - 0.004, 0]) + sway * np.array([0.012, 0.003, 0.006])
        feet = np.array([HIP + rng.uniform(0, 0.05), ANKLE, 0]) + np.zeros((len(t), 2, 1))
        hands = hang + 0.01 * sway[:, None, :]
        return Pose(hands=hands, feet=feet, hips=hips, lean=rng.normal(0.03, 0.02) + 0.01 * sway[:, 0])

    def mirrored(self) -> "Pose":
        """The same pose with left and right swapped."""
        hips = self.hips * np.array([-1, 1, 1])
        return Pose(hands=self.hands[:, ::-1], feet=self.feet[:, ::-1], hips=hips, lean=self.lean)

    def joints(self) -> np.ndarray:
        """The 17 COCO joints of the pose: [T, 17, 3]."""
        outward = np.stack([SIDES, np.ones(2), np.ones(2)], axis=1)  # [2, 3]
        c, s = np.cos(self.lean), np.sin(self.lean)
        zero, one = np.zeros_like(c), np.ones_like(c)
        bend = np.stack([one, zero, zero, zero, c, -s, zero, s, c], axis=1).reshape(-1, 3, 3)  # [T, 3, 3]

        def upper(points: np.ndarray) -> np.ndarray:
            """Rotate points [..., k, 3] of the upper body by the lean of the torso in each frame: [T, k, 3]."""
            return np.einsum("tij,tkj->tki", bend, np.broadcast_to(points, (len(c), *points.shape[-2:])))

        hip = self.hips[:, None] + np.array([HIP, 0, 0]) * outward
        shoulder = self.hips[:, None] + upper(np.array([SHOULDER, TORSO, 0]) * outward)
        face = self.hips[:, None] + upper(FACE + np.array([0, TORSO + NECK + 0.06, 0.015]))
        hand = upper(self.hands * outward)
        elbow, wrist = bend_limb(shoulder, hand, UPPER_ARM, FOREARM, upper(np.array([0.5, -0.8, -0.35]) * outward))
        foot = self.feet * outward
        knee, ankle = bend_limb(hip, foot - hip, THIGH, SHIN, np.array([0.35, 0.1, 1.0]) * outward)
        pairs = np.stack([shoulder, elbow, wrist, hip, knee, ankle], axis=1)  # [T, 6, 2, 3]
        return np.concatenate([face, pairs.reshape(len(c), 12, 3)], axis=1)


def bend_limb(
    root: np.ndarray, reach: np.ndarray, near: float, far: float, pole: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The middle joint and the end of a limb of two bones, both [T, 2, 3].

    root: [T, 2, 3], where the limb starts. near, far: lengths of the two bones.
    reach: [T, 2, 3], the vector from the start of the limb to its end; a vector longer than the limb is shortened.
    pole: direction in which the middle joint points.
    """
    length = np.linalg.norm(reach, axis=-1, keepdims=True).clip(1e-6)
    axis = reach / length
    length = length.clip(abs(near - far) + 1e-3, (near + far) * 0.998)
    along = (near**2 - far**2 + length**2) / (2 * length)
    side = pole - axis * (pole * axis).sum(axis=-1, keepdims=True)
    side = side / np.linalg.norm(side, axis=-1, keepdims=True).clip(1e-6)
    middle = root + axis * along + side * np.sqrt((near**2 - along**2).clip(0))
    return middle, root + axis * length
