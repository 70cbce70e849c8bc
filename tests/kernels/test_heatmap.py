"""Compares the heatmaps of the reference and of the kernel with those of nested loops.

tests/parity compares them with those of the published code.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from triton.runtime.errors import InterpreterError

from kernels import heatmap
from kernels.heatmap import fused, reference
from tests.kernels.variants import a_share, broken

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LIMBS = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (1, 0), (3, 10), (11, 12), (13, 14))
# The float32 tolerance covers errors of exp, and of positions on limbs that end far outside the map. The bfloat16
# tolerance is the distance between neighbouring bfloat16 values just below 1.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-8}

CASES = {
    # name: (people, joints, size, sigma, options)
    "flipped limbs": (2, 17, (7, 13), 0.7, {"limbs": LIMBS, "placed": True, "flipped": True}),
    "plain": (1, 17, (7, 13), 0.6, {}),
    "crowd": (3, 17, (13, 17), 0.7, {}),
    "placed": (2, 28, (7, 13), 0.6, {"placed": True}),
    "flipped": (2, 17, (13, 17), 0.6, {"placed": True, "flipped": True}),
    "flipped in heatmap pixels": (1, 17, (7, 13), 2.0, {"flipped": True}),
    "joints and limbs": (2, 17, (13, 17), 0.6, {"limbs": LIMBS}),
    "limbs only": (3, 28, (13, 9), 0.5, {"limbs": LIMBS, "joint_channels": False}),
    "bfloat16": (2, 17, (13, 17), 0.6, {"limbs": LIMBS, "placed": True, "dtype": torch.bfloat16}),
}


def make_case(num_people, num_joints, size, sigma, *, placed=False, flipped=False, **options):
    """Return joints that exercise every rule in the reference's docstring, and the matching keyword arguments."""
    generator = torch.Generator().manual_seed(num_people * 100 + num_joints)
    shape = (2, 3, num_people, num_joints)
    x = torch.rand(shape, generator=generator) * (size[1] + 12) - 6
    y = torch.rand(shape, generator=generator) * (size[0] + 12) - 6
    joints = torch.stack([x, y, torch.rand(shape, generator=generator)], -1)
    joints[1, 1:, 1:, :, :2] = joints[1, 1:, :1, :, :2] + 0.3  # people who overlap
    joints[0, :, :, 1] = joints[0, :, :, 0] + torch.tensor([0.5, 0.4, 0.0])  # a limb that is shorter than a pixel
    joints[0, :, :, 1, 2] *= 0.5  # the start of this limb now has the higher score, and the higher score is used
    joints[1, :, :, 3] = joints[1, :, :, 2]  # a limb of length 0
    joints[0, 0, :, 5] = joints[0, 0, :, 4] + torch.tensor([1.0, 0.0, 0.0])  # a limb that is one pixel long
    joints[0, 1, :, 6, :2] = torch.tensor([3.0, 3.0])
    joints[0, 1, :, 7, :2] = torch.tensor([30.0, 4.0])  # a limb that ends outside the map
    for joint, score in enumerate((0.0, 0.9e-4, 1.1e-4, 1e-4, -1.0, float("nan")), start=8):
        joints[1, 0, :, joint, 2] = score
    joints[0, 2, 0, :6, 0] = torch.tensor([float("nan"), math.inf, -math.inf, 2e6, -2e6, 1.0])
    joints[0, 2, 0, 6, 1] = float("nan")
    edge = 3 * sigma  # puts the edges of windows just below and just above an integer
    joints[1, 2, 0, :6, 0] = torch.tensor([edge, -edge, -edge - 0.99, 1 + edge, 4 - edge, size[1] + edge])
    joints[1, 2, 0, :6, 1] = size[0] / 2
    if flipped:
        swap = [v + 1 if v % 2 else v - 1 for v in range(1, num_joints - 1)]
        options["partner"] = torch.tensor([0, *swap[: (num_joints - 1) // 2 * 2], num_joints - 1][:num_joints])
        options["flip"] = torch.tensor([True, False])
    if placed:
        options["placement"] = torch.tensor([[0.25, -1.0, 0.5, 2.0], [0.3, 0.7, 0.2, -0.4]])
        a, b = options["placement"][:, None, None, None, 0::2], options["placement"][:, None, None, None, 1::2]
        joints[..., :2] = (joints[..., :2] - b) / a
        joints[:, 1, 0, 11:13, :2] = 0.0  # joints at (0, 0) are missing, even if they have a score
        joints[:, 1, 0, 12, 0] = 0.5 if num_people > 1 else 0.0  # a joint with 0 on one axis only is not missing
    return joints, {"size": size, "sigma": sigma, **options}


def oracle(joints, size, sigma, placement=None, flip=None, partner=None, limbs=(), joint_channels=True, dtype=None):
    """Draw the heatmaps with loops over clips, frames, people, channels and the pixels of a window."""
    num_clips, num_frames, num_people, num_joints, _ = joints.shape
    pairs = [(v, v) for v in range(num_joints) if joint_channels] + list(limbs)
    volume = np.zeros((num_clips, num_frames, len(pairs), *size))

    def place(n, x, y, score):
        x, y = np.float32(x), np.float32(y)
        if not score >= 1e-4 or (placement is not None and x == 0 and y == 0):
            return None
        if placement is not None:
            ax, bx, ay, by = placement[n].numpy()
            x, y = ax * x + bx, ay * y + by
        if flip is not None and flip[n]:
            x = np.float32(size[1]) - x
        return (float(x), float(y), score) if abs(x) < 1e6 and abs(y) < 1e6 else None

    for n, t, m in np.ndindex(num_clips, num_frames, num_people):
        body = [place(n, *joint) for joint in joints[n, t, m].tolist()]
        if flip is not None and flip[n]:
            body = [body[v] for v in partner.tolist()]
        for c, (a, b) in enumerate(pairs):
            if body[a] is not None and body[b] is not None:
                draw_stroke(volume[n, t, c], body[a], body[b], sigma)
    return torch.from_numpy(volume).to(dtype or torch.float32)


def draw_stroke(image, start, end, sigma):
    score = min(start[2], end[2])
    if (start[0] - end[0]) ** 2 + (start[1] - end[1]) ** 2 < 1:
        end, score = start, start[2]
    a, b = np.array(start[:2]), np.array(end[:2])
    for row in range(*window(a[1], b[1], sigma, image.shape[0])):
        for column in range(*window(a[0], b[0], sigma, image.shape[1])):
            pixel = np.array([column, row])
            share = (pixel - a) @ (b - a) / max((b - a) @ (b - a), 1e-12)
            squared = np.square(pixel - a - min(max(share, 0), 1) * (b - a)).sum()
            image[row, column] = max(image[row, column], score * math.exp(-squared / (2 * sigma**2)))


def window(a, b, sigma, limit):
    return max(int(min(a, b) - 3 * sigma), 0), min(int(max(a, b) + 3 * sigma) + 1, limit)


def draw_fused(module, joints, options) -> Tensor:
    on_device = {k: v.to(DEVICE) if isinstance(v, Tensor) else v for k, v in options.items()}
    return module.render_heatmaps(joints.to(DEVICE), **on_device).cpu()


@pytest.fixture
def poisoned(monkeypatch):
    """Fill new memory with NaN, so that the test notices an element that the kernel does not write."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **options: empty(*size, **options).fill_(math.nan))


@pytest.mark.parametrize("case", CASES)
def test_reference_follows_the_contract(case):
    *arguments, extra = CASES[case]
    joints, options = make_case(*arguments, **extra)
    expected, drawn = oracle(joints, **options), reference.render_heatmaps(joints, **options)
    tolerance = TOLERANCE[drawn.dtype]
    torch.testing.assert_close(drawn, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_kernel_follows_the_contract(case, poisoned, monkeypatch):
    # several programs per frame, but only a few, because the interpreter is slow
    monkeypatch.setattr(fused, "TILE", 1 << 12)
    *arguments, extra = CASES[case]
    joints, options = make_case(*arguments, **extra)
    expected, drawn = oracle(joints, **options), draw_fused(fused, joints, options)
    tolerance = TOLERANCE[drawn.dtype]
    torch.testing.assert_close(drawn, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("module", [reference, fused])
def test_layout_strides_and_input_dtype(module, poisoned):
    joints, options = make_case(2, 17, (7, 13), 0.6, limbs=LIMBS)
    expected = oracle(joints, **options)
    backwards = joints.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
    drawn = draw_fused(module, backwards, options)
    assert drawn.permute(0, 1, 3, 4, 2).is_contiguous()
    torch.testing.assert_close(drawn, expected, atol=1e-5, rtol=0)
    half = joints.half()
    expected = oracle(half.float(), **options)
    torch.testing.assert_close(draw_fused(module, half, options), expected, atol=1e-5, rtol=0)
    joints, options = make_case(2, 17, (7, 13), 0.6, flipped=True, placed=True)
    expected = oracle(joints, **options)
    for name in ("flip", "partner", "placement"):
        options[name] = options[name].repeat_interleave(2, 0)[::2]
        assert not options[name].is_contiguous()
    torch.testing.assert_close(draw_fused(module, joints, options), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("module", [reference, fused])
def test_check_value_of_the_published_rule(module):
    joints = torch.tensor([10.3, 5.6, 0.9]).view(1, 1, 1, 1, 3)
    drawn = draw_fused(module, joints, {"size": (16, 16), "sigma": 0.7})[0, 0, 0]
    assert drawn[6, 10] == pytest.approx(0.69735, abs=1e-5)
    assert drawn.nonzero().aminmax(dim=0).min.tolist() == [3, 8]
    assert drawn.nonzero().aminmax(dim=0).max.tolist() == [7, 12]


@pytest.mark.parametrize("module", [reference, fused])
@pytest.mark.parametrize("shape", [(0, 2, 1, 17, 3), (2, 0, 1, 17, 3), (1, 1, 0, 17, 3)])
def test_nothing_to_draw(module, shape):
    drawn = draw_fused(module, torch.ones(shape), {"size": (4, 5), "sigma": 0.6})
    assert drawn.shape == (*shape[:2], 17, 4, 5)
    assert not drawn.any()
    assert draw_fused(module, torch.ones(1, 1, 1, 17, 3), {"size": (0, 0), "sigma": 0.6}).numel() == 0
    nobody = draw_fused(module, torch.ones(1, 1, 0, 17, 3), {"size": (4, 5), "sigma": 0.6, "limbs": LIMBS})
    assert nobody.shape == (1, 1, 17 + len(LIMBS), 4, 5)
    assert not nobody.any()


def test_dispatch_takes_the_reference_on_a_cpu(monkeypatch):
    joints, options = make_case(1, 17, (7, 13), 0.6)
    monkeypatch.setattr(fused, "render_heatmaps", None)
    torch.testing.assert_close(heatmap.render_heatmaps(joints, **options), reference.render_heatmaps(joints, **options))


MUTANTS = {
    "adds people instead of taking the largest value": (
        "tl.maximum(brightest, tl.where(in_window, value, 0.0))",
        "brightest + tl.where(in_window, value, 0.0)",
    ),
    "draws only the last person": (
        "tl.maximum(brightest, tl.where(in_window, value, 0.0))",
        "tl.where(in_window, value, 0.0)",
    ),
    "draws outside the window": ("tl.where(in_window, value, 0.0)", "value"),
    "the window's edges are rounded down": (".to(tl.int32)", ".to(tl.int32) - 1"),
    "the window's edges are computed in float32": ("tl.float64) - REACH", "tl.float32) - (REACH + 1e-5)"),
    "x and y are exchanged": (
        "(pixel % W)[:, None], (pixel // W)[:, None]",
        "(pixel // W)[:, None], (pixel % W)[:, None]",
    ),
    "the result is channels-first": (") * C + channel[None, :]", ") + channel[None, :] * (H * W)"),
    "does not write the last pixel": ("(pixel < H * W)", "(pixel < H * W - 1)"),
    "the mirrored position is off by one": ("W - x", "W - 1 - x"),
    "mirroring ignores the partners of joints": ("tl.load(partner + start)", "start"),
    "mirroring ignores the partner of a limb's end": ("tl.load(partner + end)", "end"),
    "draws missing joints": ("(x != 0) | (y != 0)", "score > 0"),
    "a joint with one coordinate 0 counts as missing": ("(x != 0) | (y != 0)", "(x != 0) & (y != 0)"),
    "a limb has the score of its first joint": ("tl.where(is_point & (lower_score > 0), score, lower_score)", "score"),
    "a short limb has the lower score": ("tl.where(is_point & (lower_score > 0), score, lower_score)", "lower_score"),
    "a limb of one pixel counts as short": ("(ay - by) < 1", "(ay - by) <= 1"),
    "limbs extend past their end": ("tl.minimum(tl.maximum(position, 0.0), 1.0)", "tl.maximum(position, 0.0)"),
    "ignores the score": (") * score[None, :]", ")"),
    "draws joints with tiny scores": ("- MIN_SCORE >= 0", "> 0"),
    "draws joints that are very far away": ("(tl.abs(x) < FAR) & ", ""),
    "every clip uses the placement of the first clip": ("placement + clip * 4)", "placement)"),
}


@pytest.mark.parametrize("name", a_share(MUTANTS, every=4))
def test_mutants_die(name, tmp_path, poisoned):
    mutant = broken(fused, *MUTANTS[name], tmp_path)
    mutant.TILE = 1 << 12
    for *arguments, extra in CASES.values():
        joints, options = make_case(*arguments, **extra)
        expected = reference.render_heatmaps(joints, **options)
        try:
            drawn = draw_fused(mutant, joints, options)
        except InterpreterError:  # a cast of NaN to an integer: NumPy warns, and pytest makes this an error
            return
        if not torch.allclose(drawn, expected, atol=TOLERANCE[expected.dtype], rtol=0):
            return
    pytest.fail("this mutant passes every case")


@pytest.mark.gpu
def test_kernel_on_a_gpu_at_training_size():
    joints = torch.rand(16, 48, 2, 17, 3, generator=torch.Generator().manual_seed(0)) * 60
    joints[..., 2] /= 60
    for limbs in ((), LIMBS):
        expected = reference.render_heatmaps(joints, (56, 56), 0.6, limbs=limbs)
        drawn = heatmap.render_heatmaps(joints.cuda(), (56, 56), 0.6, limbs=limbs).cpu()
        torch.testing.assert_close(drawn, expected, atol=1e-5, rtol=0)
