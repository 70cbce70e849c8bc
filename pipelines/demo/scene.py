"""Draws the scenes of the demo: a textured room, and people made of shaded capsules with objects in their hands.

Shapes are drawn at twice the size, and the image is then halved. Colours are rounded before they are converted and
drawn, and all later arithmetic is in integers, so that every machine produces the same pixels. Images have Pillow's
mode RGB, but their three channels are Y, Cb and Cr.
In array shapes, T is the number of frames and P the number of points.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

OVERSAMPLE = 2
LIGHT = np.array([-0.45, -0.55])  # direction to the light, in the image's axes
SKIN = ((236, 205, 180), (214, 170, 135), (170, 120, 85), (120, 80, 55), (90, 60, 45))
HAIR = ((30, 25, 22), (70, 45, 25), (120, 85, 45), (175, 145, 90), (120, 118, 115))
RED, BLUE, YELLOW, BLACK = (225, 25, 30), (25, 60, 225), (245, 205, 20), (25, 20, 20)
# Radii of limbs at their (near end, far end), and radii of objects. The unit is the height of the body.
ARM_R, FOREARM_R, THIGH_R, SHIN_R = (0.036, 0.029), (0.029, 0.021), (0.058, 0.042), (0.041, 0.027)
BALL_R, BOX_R = 0.085, 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """Colours (RGB) of one person."""

    skin: np.ndarray
    hair: np.ndarray
    shirt: np.ndarray
    trousers: np.ndarray
    shoes: np.ndarray
    long_sleeves: bool

    @staticmethod
    def draw(rng: np.random.Generator) -> "Look":
        """Choose random colours: a light shirt and dark trousers, less saturated than the objects in the hands.

        With these colours, limbs stand out against the room, so a small network learns the demo in a few hundred steps.
        """
        grey = rng.uniform([[170], [30], [60]], [[225], [75], [180]])
        shirt, trousers, shoes = (grey + 30 * rng.uniform(-1, 1, (3, 3))).clip(0, 255)
        skin, hair = (np.asarray(table[rng.integers(len(table))], float) for table in (SKIN, HAIR))
        long_sleeves = rng.random() < 0.85
        return Look(skin=skin, hair=hair, shirt=shirt, trousers=trousers, shoes=shoes * 0.5, long_sleeves=long_sleeves)


@dataclass(frozen=True, slots=True)
class Shape:
    """A filled polygon in each of T frames.

    corners: [T, P, 2] in pixels. depth: [T]; shapes with a larger depth are closer to the camera. colour: [3] RGB.
    """

    corners: np.ndarray
    depth: np.ndarray
    colour: np.ndarray


def to_ycbcr(rgb: np.ndarray) -> np.ndarray:
    """Convert RGB to Y, Cb, Cr, both [..., 3] from 0 to 255, in integer arithmetic.

    The conversion is BT.601 with limited range, which decoders assume for small videos without a tag for the colours.
    """
    levels = np.rint(rgb).astype(np.int32)
    weights = ((66, 129, 25), (-38, -74, 112), (112, -94, -18))
    sums = [sum(w * levels[..., i] for i, w in enumerate(row)) for row in weights]
    return np.stack([((s + 128) >> 8) + zero for s, zero in zip(sums, (16, 128, 128), strict=True)], -1).astype(
        np.uint8
    )


def capsule(a: np.ndarray, b: np.ndarray, radius_a: float, radius_b: float) -> np.ndarray:
    """The outline [T, 12, 2] of a round-ended limb from a to b, both [T, 2]. If a = b, the outline is a disc."""
    along = b - a
    along = along / np.linalg.norm(along, axis=-1, keepdims=True).clip(1e-3)
    along = np.where(np.abs(along).sum(axis=-1, keepdims=True) < 0.5, np.array([0.0, 1.0]), along)
    angle = np.linspace(-np.pi / 2, np.pi / 2, 6)[:, None]
    across = np.stack([-along[:, 1], along[:, 0]], axis=-1)
    cap = np.cos(angle) * along[:, None] + np.sin(angle) * across[:, None]  # [T, 6, 2]
    return np.concatenate([b[:, None] + radius_b * cap, a[:, None] - radius_a * cap], axis=1)


def shaded_capsule(
    a: np.ndarray, b: np.ndarray, radii: tuple[float, float], depth: np.ndarray, colour: np.ndarray
) -> list[Shape]:
    """A capsule with a dark side: a dark shape, and on it a lighter, thinner one that is shifted towards the light."""
    thick_a, thick_b = radii
    lit_a, lit_b = a + 0.25 * thick_a * LIGHT, b + 0.25 * thick_b * LIGHT
    return [
        Shape(capsule(a, b, thick_a, thick_b), depth, colour * 0.72),
        Shape(capsule(lit_a, lit_b, 0.74 * thick_a, 0.74 * thick_b), depth + 1e-4, colour),
    ]


def body_shapes(points: np.ndarray, depth: np.ndarray, scale: float, look: Look) -> list[Shape]:
    """The shapes of a dressed body around 17 COCO joints.

    points: [T, 17, 2] joints in pixels. depth: [T, 17]. scale: height of the body in pixels.
    """
    shapes: list[Shape] = []

    def limb(a: int, b: int, radii: tuple[float, float], colour: np.ndarray, lift: float = 0.0) -> None:
        near, far = radii
        deep = (depth[:, a] + depth[:, b]) / 2 + lift
        shapes.extend(shaded_capsule(points[:, a], points[:, b], (near * scale, far * scale), deep, colour))

    sleeve = look.shirt if look.long_sleeves else look.skin
    for side in (0, 1):
        shoulder, elbow, wrist, hip, knee, ankle = range(5 + side, 17, 2)
        limb(shoulder, elbow, ARM_R, look.shirt, 0.03)
        limb(elbow, wrist, FOREARM_R, sleeve, 0.05)
        limb(hip, knee, THIGH_R, look.trousers)
        limb(knee, ankle, SHIN_R, look.trousers)
        hand = points[:, wrist] + 0.25 * (points[:, wrist] - points[:, elbow])
        shapes += shaded_capsule(
            points[:, wrist], hand, (0.02 * scale, 0.024 * scale), depth[:, wrist] + 0.06, look.skin
        )
        toe = points[:, ankle] + scale * np.array([0.02 * (1 - 2 * side), 0.022])
        shapes += shaded_capsule(
            points[:, ankle], toe, (0.026 * scale, 0.03 * scale), depth[:, ankle] + 0.02, look.shoes
        )
        limb(shoulder, hip, (0.045, 0.045), look.shirt * 0.9)
    shapes += trunk_and_head(points, depth, scale, look)
    return shapes


def trunk_and_head(points: np.ndarray, depth: np.ndarray, scale: float, look: Look) -> list[Shape]:
    """The shapes of the trunk and the head of a body; the arguments are those of `body_shapes`."""
    chest, pelvis = points[:, 5:7].mean(axis=1), points[:, 11:13].mean(axis=1)
    trunk_depth = depth[:, [5, 6, 11, 12]].mean(axis=1)
    head, head_depth = points[:, 3:5].mean(axis=1), depth[:, 3:5].mean(axis=1)
    up = (head - chest) / np.linalg.norm(head - chest, axis=-1, keepdims=True).clip(1e-3)
    ahead = points[:, 0] - head
    crown, face = head + 0.022 * scale * up - 0.15 * ahead, head + 0.35 * ahead - 0.014 * scale * up
    low_chest = chest + 0.1 * (pelvis - chest)

    def pair(a: int, b: int, radius: float, lift: float, colour: np.ndarray) -> list[Shape]:
        return shaded_capsule(points[:, a], points[:, b], (radius * scale, radius * scale), trunk_depth + lift, colour)

    shapes = pair(11, 12, 0.062, -0.002, look.trousers) + pair(5, 6, 0.045, -0.001, look.shirt)
    shapes += shaded_capsule(low_chest, pelvis, (0.082 * scale, 0.075 * scale), trunk_depth + 0.003, look.shirt)
    shapes += shaded_capsule(chest, head, (0.034 * scale, 0.03 * scale), trunk_depth + 0.004, look.skin)
    shapes += shaded_capsule(crown, crown, (0.068 * scale, 0.068 * scale), head_depth + 0.01, look.hair)
    shapes += shaded_capsule(
        face, face - 0.012 * scale * up, (0.054 * scale, 0.048 * scale), head_depth + 0.02, look.skin
    )
    eye = 0.009 * scale
    for index in (1, 2):  # the face is closer to the camera, so it hides an eye on the far side
        eyes = points[:, index]
        shapes.append(Shape(capsule(eyes, eyes, eye, eye), depth[:, index] - 0.01, np.array([35.0, 25, 25])))
    return shapes


def object_shapes(name: str, path: np.ndarray, depth: np.ndarray, scale: float) -> list[Shape]:
    """The shapes of an object centred on `path` [T, 2] in pixels: a red or blue ball, or a plain or striped box."""
    colour = np.array(RED if name.startswith("red") else BLUE if name.startswith("blue") else YELLOW, float)
    if name.endswith("ball"):
        return shaded_capsule(path, path + 1e-3, (BALL_R * scale, BALL_R * scale), depth, colour)
    half = BOX_R * scale
    shapes = [Shape(bar(path, -half, half, half), depth, colour * 0.8)]
    shapes.append(Shape(bar(path, -half * 0.92, half * 0.92, half * 0.92), depth + 1e-4, colour))
    if name.startswith("striped"):
        for left in (-0.75, -0.175, 0.4):
            black = np.array(BLACK, float)
            shapes.append(Shape(bar(path, left * half, (left + 0.35) * half, half), depth + 2e-4, black))
    return shapes


def bar(centre: np.ndarray, left: float, right: float, half_height: float) -> np.ndarray:
    """The corners [T, 4, 2] of a slightly turned rectangle around `centre` [T, 2]; sizes are in pixels."""
    x, y = (
        np.array([left, right, right, left]),
        np.array([-half_height, -half_height, half_height, half_height]),
    )
    return centre[:, None] + np.stack([x - 0.12 * y, y + 0.12 * x], axis=-1)


def room(size: tuple[int, int], floor: float, rng: np.random.Generator) -> Image.Image:
    """Draw a dim wall with stains, grain and pictures on it, and below row `floor` a floor of another colour."""
    width, height = size
    image = np.zeros((height, width, 3))
    for cell, strength in ((80, 18), (24, 12), (5, 10)):
        grid = rng.uniform(-1, 1, (height // cell + 2, width // cell + 2, 3)) * 0.5
        grid += rng.uniform(-1, 1, (*grid.shape[:2], 1))
        levels = Image.fromarray((grid * 60 + 128).clip(0, 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
        image += (np.asarray(levels, float) - 128) / 60 * strength
    wall, ground = rng.uniform(85, 135, (2, 1)) + rng.uniform(-15, 15, (2, 3))
    for _ in range(rng.integers(2, 6)):
        x, y = rng.integers(0, width), rng.integers(0, max(1, int(floor) - 20))
        w, h = rng.integers(15, 70, 2)
        image[y : min(y + h, int(floor)), x : x + w] += rng.uniform(-35, 35) + rng.uniform(-15, 15, 3)
    image += np.where(np.arange(height)[:, None, None] < floor, wall, ground)
    return Image.fromarray(to_ycbcr(image.clip(0, 255)))


def paint(background: Image.Image, shapes: list[Shape]) -> list[Image.Image]:
    """Draw the shapes on the background, the farthest first. Returns T frames."""
    box = extent(shapes, background.size)
    canvas = background.crop(box)
    canvas = canvas.resize((canvas.width * OVERSAMPLE, canvas.height * OVERSAMPLE), Image.Resampling.NEAREST)
    order = np.argsort(np.stack([shape.depth for shape in shapes], axis=1), axis=1, kind="stable").tolist()
    # Rounding to 1/16 pixel removes the last bit of sines and cosines, which may differ between machines.
    local = [np.rint((shape.corners - box[:2]) * OVERSAMPLE * 16) / 16 for shape in shapes]
    outlines = [corners.reshape(len(order), -1).tolist() for corners in local]
    colours = [tuple(to_ycbcr(shape.colour.clip(0, 255)).tolist()) for shape in shapes]
    frames = []
    for time, indices in enumerate(order):
        people = canvas.copy()
        draw = ImageDraw.Draw(people)
        for index in indices:
            draw.polygon(outlines[index][time], fill=colours[index])
        frames.append(background.copy())
        frames[-1].paste(people.reduce(OVERSAMPLE), box)
    return frames


def extent(shapes: list[Shape], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) around all shapes in all frames, within an image of `size` (width, height)."""
    low = np.min([shape.corners.min(axis=(0, 1)) for shape in shapes], axis=0)
    high = np.max([shape.corners.max(axis=(0, 1)) for shape in shapes], axis=0)
    left, top = np.floor(low - 1).astype(int).clip(0, np.array(size) - 1).tolist()
    right, bottom = np.ceil(high + 2).astype(int).clip(1, size).tolist()
    return left, top, right, bottom
