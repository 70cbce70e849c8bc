"""Checks the values, distributions and limits of colour jitter, random erasing, joint noise and joint drop."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from nvidia.dali import fn, pipeline_def
from torch._inductor import metrics

from pipelines.augment import (
    COLORS,
    DROPS,
    ERASED_COLOR,
    NOISE,
    RECTANGLES,
    augment_joints,
    change_frames,
    color_weights,
    compiled_change,
    frame_changes,
    random_colors,
    random_rectangles,
)
from pipelines.config import ClipConfig
from pipelines.plan import ClipPlan, uniforms
from pipelines.skeleton import COCO_17
from trainer.experiments import EXPERIMENTS

CONFIG = ClipConfig(skeleton=COCO_17, rgb_frames=2, pose_frames=4, heatmap_size=16)
ROWS = np.arange(2000)


def plan_of(rows: np.ndarray, box: tuple[float, ...] = (10, 20, 42, 52)) -> ClipPlan:
    frames = np.zeros((len(rows), 4), np.int64)
    return ClipPlan(rows, frames[:, :2], frames, np.tile(np.array(box, float), (len(rows), 1)), rows % 2 == 0)


@pytest.mark.parametrize("factors", [(1.3, 0.8, 0.6), (0.7, 1.4, 1.4), (1, 1, 1), (1, 1, 0), (1, 0, 1), (0, 1.2, 1)])
def test_colors_are_those_of_dali(factors):
    """The colours equal those of DALI to within one level, because DALI rounds intermediate values differently."""
    frames = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)

    options = {"batch_size": 1, "num_threads": 1, "device_id": None}

    @pipeline_def
    def graph():
        brightness, contrast, saturation = factors
        source = fn.external_source(source=lambda: [frames], batch=True)
        return fn.color_twist(source, brightness=brightness, contrast=contrast, saturation=saturation)

    expected = torch.from_dlpack(graph(**options).run()[0].as_tensor())[0].int()
    changes = np.concatenate([color_weights(np.array([factors])), np.zeros((1, 4), np.int32)], axis=1)
    changed = change_frames(torch.from_numpy(frames)[None, None], torch.from_numpy(changes))[0, 0]
    assert (changed.int() - expected).abs().max() <= (0 if factors == (1, 1, 1) else 1)


def test_factors_of_a_clip_lie_in_the_promised_range():
    colors = random_colors(ROWS, 0.4, 3, 5)
    assert 0.6 <= colors.min() < 0.61
    assert 1.39 < colors.max() < 1.4
    assert np.abs(np.corrcoef(colors.T) - np.eye(3)).max() < 0.1
    assert (random_colors(ROWS, 0.0, 3, 5) == 1).all()


def test_erased_rectangles_lie_in_the_frame_and_have_the_published_sizes():
    left, top, right, bottom = random_rectangles(ROWS, 224, 0.3, 3, 5).T
    assert min(left.min(), top.min()) == 0
    assert max(right.max(), bottom.max()) == 224
    width, height = right - left, bottom - top
    erased = width > 0
    assert abs(erased.mean() - 0.3) < 0.04
    assert (width[~erased] == 0).all()
    assert (height[~erased] == 0).all()
    area, aspect = (width * height)[erased] / 224**2, (height / width.clip(1))[erased]
    assert 0.018 < area.min() < 0.03
    assert 0.31 < area.max() < 0.332
    assert abs(np.median(area) - 0.175) < 0.02
    assert 0.29 < aspect.min() < 0.32
    assert abs(np.median(np.log(aspect))) < 0.1


def changed_frames(frames, rows, config):
    """Return the frames [N, T, S, S, 3] of the clips `rows` with the random changes of epoch 2."""
    changes = frame_changes(plan_of(rows), config, frames.shape[2], 1, 2)
    return change_frames(frames, torch.from_numpy(changes))


def test_a_clip_loses_one_rectangle_in_all_frames():
    frames = torch.randint(0, 100, (8, 2, 32, 32, 3), dtype=torch.uint8)
    changed = changed_frames(frames, ROWS[:8], replace(CONFIG, erasing=0.5))
    rectangles = random_rectangles(ROWS[:8], 32, 0.5, 1, 2)
    for clip, result, (left, top, right, bottom) in zip(frames, changed, rectangles.tolist(), strict=True):
        expected = clip.clone()
        expected[:, top:bottom, left:right] = torch.tensor(ERASED_COLOR, dtype=torch.uint8)
        assert torch.equal(result, expected)
    assert frame_changes(plan_of(ROWS[:8]), CONFIG, 32, 1, 2) is None
    means = (123.675, 116.28, 103.53)  # docs/sources.md, "Training samples"
    assert [round(mean) for mean in means] == list(ERASED_COLOR)


@pytest.mark.parametrize("jitter", [0.4, 1.0])
def test_a_batch_is_changed_like_its_clips_one_by_one(jitter):
    """A clip changes in a batch as it does alone. A loop over the clips computes the expected pixels in float64."""
    config = replace(CONFIG, color_jitter=jitter, erasing=0.5)
    frames = torch.randint(0, 256, (6, 2, 17, 17, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    frames[0], frames[1, 0] = 255, 0
    rows = np.array([9, 4, 7, 0, 12, 5])
    changed = changed_frames(frames, rows, config)
    for clip, row, result in zip(frames, rows, changed, strict=True):
        assert torch.equal(changed_frames(clip[None], np.array([row]), config)[0], result)
        (brightness, contrast, saturation), *_ = random_colors(np.array([row]), jitter, 1, 2)
        levels = clip.double()
        gray = (levels * torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)).sum(-1, keepdim=True)
        colored = saturation * levels + (1 - saturation) * gray
        colored = brightness * (contrast * colored + (1 - contrast) * 128)
        (left, top, right, bottom), *_ = random_rectangles(np.array([row]), 17, 0.5, 1, 2).tolist()
        colored[:, top:bottom, left:right] = torch.tensor(ERASED_COLOR, dtype=torch.float64)
        assert (result.double() - colored.clamp(0, 255)).abs().max() < 0.52


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler, so Inductor cannot be tested")
def test_the_changes_are_compiled_to_one_kernel_with_the_same_pixels():
    frames = torch.randint(0, 256, (3, 2, 17, 17, 3), dtype=torch.uint8)
    changes = torch.from_numpy(frame_changes(plan_of(ROWS[:3]), replace(CONFIG, color_jitter=1, erasing=1), 17, 1, 2))
    torch._dynamo.reset()
    metrics.reset()
    assert torch.equal(compiled_change()(frames, changes), change_frames(frames, changes))
    assert metrics.generated_kernel_count == 1


def test_noise_has_the_given_size_in_heatmap_pixels_and_leaves_missing_joints_alone():
    """The box of 32 pixels becomes a heatmap of 16 pixels, so a heatmap pixel is 2 pixels of the annotation."""
    joints = np.full((500, 4, 2, 17, 3), 30, np.float32)
    joints[..., 3, :2] = 0
    moved = augment_joints(joints, plan_of(np.arange(500)), replace(CONFIG, joint_noise=0.75), 1, 2)
    change = (moved - joints)[..., :2]
    assert (change[..., 3, :] == 0).all()
    noise = np.delete(change, 3, axis=3)
    assert abs(noise.std() - 1.5) < 0.02
    assert abs(noise.mean()) < 0.02
    assert np.abs(np.corrcoef(noise.reshape(-1, 2).T) - np.eye(2)).max() < 0.02
    assert len(np.unique(noise[0])) == noise[0].size  # each joint moves on its own in each frame
    assert np.array_equal(moved[..., 2], joints[..., 2])
    assert augment_joints(joints, plan_of(np.arange(500)), CONFIG, 1, 2) is joints


def test_a_dropped_joint_is_missing_in_all_frames_of_one_person():
    joints = np.full((500, 4, 2, 17, 3), 30, np.float32)
    left = augment_joints(joints, plan_of(np.arange(500)), replace(CONFIG, joint_drop=0.2), 1, 2)
    dropped = (left == 0).all(axis=-1)
    assert ((left == joints).all(axis=-1) | dropped).all()
    assert (dropped == dropped[:, :1]).all()
    assert abs(dropped.mean() - 0.2) < 0.02
    assert (dropped[:, :, 0] != dropped[:, :, 1]).any()


def test_the_change_of_a_person_does_not_depend_on_the_people_in_other_clips():
    """The joints of a batch are padded to the largest number of people in it, which differs between ranks."""
    config = replace(CONFIG, joint_noise=1.0, joint_drop=0.3)
    joints = np.random.default_rng(0).random((3, 4, 2, 17, 3), np.float32) + 30
    plan = plan_of(np.array([4, 7, 9]))
    padded = np.pad(joints, [(0, 0), (0, 0), (0, 3), (0, 0), (0, 0)])
    changed = augment_joints(joints, plan, config, 1, 2)
    assert np.array_equal(augment_joints(padded, plan, config, 1, 2)[:, :, :2], changed)
    assert np.array_equal(augment_joints(joints[1:2], plan_of(np.array([7])), config, 1, 2), changed[1:2])


def test_purposes_epochs_and_seeds_have_numbers_of_their_own():
    """The random numbers of purpose 0 draw the plans, and those of purposes 1 to 4 draw the random changes."""
    assert sorted((COLORS, RECTANGLES, DROPS, NOISE)) == [1, 2, 3, 4]
    draws = [uniforms(*where, ROWS, 3, purpose) for where in ((0, 0), (0, 1), (1, 0)) for purpose in range(5)]
    together = np.corrcoef(np.stack([draw.ravel() for draw in draws]))
    assert np.abs(together - np.eye(len(draws))).max() < 0.06


def test_published_experiments_do_not_augment():
    for name, experiment in EXPERIMENTS.items():
        clip = experiment.clip
        if not name.startswith(("custom", "demo", "ma52_best")):
            changes = (clip.color_jitter, clip.erasing, clip.joint_noise, clip.joint_drop, clip.fade_background)
            assert not any(changes), name
