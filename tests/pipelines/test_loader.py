"""Batches do not depend on ranks, prefetching or the first step. Streams share a crop. Damaged frames are replaced."""

import io
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.augment import ERASED_COLOR
from pipelines.config import ClipConfig
from pipelines.loader import Loader
from pipelines.packs.format import PackError
from pipelines.packs.source import PackFrames
from pipelines.skeleton import COCO_17
from pipelines.view import joints_in

pytestmark = pytest.mark.usefixtures("build_here")

CONFIG = ClipConfig(
    skeleton=COCO_17, rgb_frames=3, pose_frames=8, rgb_size=48, rgb_size_val=64, heatmap_size=16, heatmap_size_val=16
)
AUGMENTED = replace(CONFIG, color_jitter=0.4, erasing=0.7, joint_noise=1.0, joint_drop=0.3)
KINDS = [(True, CONFIG), (True, AUGMENTED), (False, AUGMENTED)]
COARSE = (1, 0, 1, 2)


@pytest.fixture(scope="module")
def shared(tmp_path_factory, scene_class):
    """Return seven clips in a pack: one clip has two people and one has none.

    Tests that damage a pack make their own pack.
    """
    work = scene_class(tmp_path_factory.mktemp("loader"), [8, 9, 10, 11, 12, 20, 5])
    for clip, people in ((work.clips[3], [0, 0]), (work.clips[4], [])):
        clip["keypoint"] = clip["keypoint"][people] + np.arange(len(people), dtype=np.float16).reshape(-1, 1, 1, 1) * 9
        clip["keypoint_score"] = clip["keypoint_score"][people]
    return work.table(), work.prepare(workers=2)[0]


def loader(table, pack, **changes) -> Loader:
    values = {"rows": np.arange(len(table)), "config": CONFIG, "coarse_map": COARSE, "train": True, "batch_size": 4}
    values |= {"frames": PackFrames(table, pack), "device": torch.device("cpu"), "threads": 1}
    return Loader(table=table, **values | changes)


def tensors(batch) -> list[torch.Tensor]:
    return [batch.rgb, batch.heatmap, batch.label, batch.coarse_label, batch.index, batch.valid]


def same(one, other) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(tensors(x), tensors(y), strict=True)
    )


@pytest.mark.parametrize(("train", "config"), KINDS)
def test_no_depth_thread_or_start_changes_a_batch(shared, train, config):
    kind = {"train": train, "config": config}
    plain = list(loader(*shared, **kind, prefetch=1).epoch(3))
    assert len(plain) == 2
    for changes in ({"prefetch": 2}, {"prefetch": 5}, {"threads": 3}):
        assert same(list(loader(*shared, **kind, **changes).epoch(3)), plain), changes
    assert same(list(loader(*shared, **kind).epoch(3, first=1)), plain[1:])
    assert list(loader(*shared, **kind).epoch(3, first=2)) == []


@pytest.mark.parametrize(("train", "config"), KINDS)
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_same_global_batches(shared, train, config, world):
    kind = {"train": train, "config": config}
    whole = list(loader(*shared, **kind).epoch(1))
    ranks = [list(loader(*shared, **kind, rank=r, world_size=world).epoch(1)) for r in range(world)]
    for step, batch in enumerate(whole):
        for rank in range(world):
            part = ranks[rank][step]
            for expected, found in zip(tensors(batch), tensors(part), strict=True):
                assert torch.equal(expected[rank::world], found)


def test_epochs_and_seeds_differ(shared):
    batches = [next(iter(loader(*shared, seed=seed).epoch(epoch))) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(batches[one].rgb, batches[other].rgb)


@pytest.mark.parametrize(("batch_size", "world"), [(4, 1), (4, 2), (8, 4), (7, 1), (6, 3), (1, 1)])
def test_evaluation_counts_every_clip_once(shared, batch_size, world):
    rows = np.array([6, 0, 3, 5, 2])
    seen = []
    for rank in range(world):
        work = loader(*shared, rows=rows, train=False, batch_size=batch_size, rank=rank, world_size=world)
        batches = list(work.epoch(0))
        assert len(batches) == work.num_batches == -(-5 // batch_size)
        seen += [index for batch in batches for index in batch.index[batch.valid].tolist()]
        assert all(len(batch.index) == batch_size // world for batch in batches)
    assert sorted(seen) == sorted(rows.tolist())


def test_augmentation_changes_training_and_nothing_else(shared):
    """AUGMENTED changes neither evaluation nor the plans of training. Each setting changes only one of the streams."""
    for train in (True, False):
        plain, augmented = (loader(*shared, train=train, config=config) for config in (CONFIG, AUGMENTED))
        boxes = [work.plan(0, 0).box for work in (plain, augmented)]
        assert np.array_equal(*boxes)
        assert same(list(plain.epoch(0)), list(augmented.epoch(0))) is not train
    (plain, *_) = loader(*shared).epoch(0)
    for setting, changes_frames in (("color_jitter", True), ("erasing", True), ("joint_noise", False)):
        (batch, *_) = loader(*shared, config=replace(CONFIG, **{setting: 1.0})).epoch(0)
        assert torch.equal(batch.rgb, plain.rgb) is not changes_frames
        assert torch.equal(batch.heatmap, plain.heatmap) is changes_frames


@pytest.mark.parametrize("train", [True, False])
def test_a_faded_background_is_grey_around_the_people_only(shared, train):
    """`fade_background` does not change the pixels at the joints, even in mirrored clips."""
    plain, other = (loader(*shared, train=train, config=replace(CONFIG, fade_background=share)) for share in (0.0, 1.0))
    (batch, *_), (faded, *_) = plain.epoch(0), other.epoch(0)
    assert torch.equal(batch.heatmap, faded.heatmap)
    plan, same_pixels = plain.plan(0, 0), 0
    for clip in range(len(plan.row)):
        joints = joints_in(plain, plan, clip, plan.rgb_frames[clip], batch.rgb.shape[2])
        for frame, people in enumerate(joints):
            x, y, score = people.reshape(-1, 3).T
            inside = (score > 0) & (np.minimum(x, y) > 0) & (np.maximum(x, y) < batch.rgb.shape[2])
            places = clip, frame, y[inside].astype(int), x[inside].astype(int)
            difference = faded.rgb[places].int() - batch.rgb[places].int()
            assert difference.numel() == 0 or difference.abs().max() <= 3
            same_pixels += inside.sum()
    assert same_pixels > 100
    assert (faded.rgb == torch.tensor(ERASED_COLOR)).all(dim=-1).float().mean() > 0.2
    assert plain.plan(0, 0).flip.any() == train


def test_limbs_can_have_channels_behind_those_of_the_joints_or_alone(shared):
    """The channels of the limbs are the same with and without channels of the joints, in mirrored clips, too."""
    both, alone = (replace(CONFIG, limbs=True, joints=joints) for joints in (True, False))
    assert (both.num_channels(), alone.num_channels()) == (17 + 16, 16)
    flips = set()
    for epoch in range(3):
        one, other = (next(iter(loader(*shared, config=config).epoch(epoch))) for config in (both, alone))
        assert torch.equal(one.heatmap[:, :, 17:], other.heatmap)
        assert other.heatmap.amax() > 0.3
        flips |= set(loader(*shared).plan(epoch, 0).flip.tolist())
    assert flips == {True, False}


def test_training_sees_every_clip_in_every_epoch(shared):
    batches = list(loader(*shared, batch_size=2).epoch(0))
    order = torch.cat([batch.index for batch in batches]).tolist()
    assert sorted(order[:7]) == list(range(7))
    assert order[7] == order[0]  # the first clips are repeated to fill up the last batch
    assert all(batch.valid.all() for batch in batches)


def test_each_clip_has_its_own_luck(shared):
    plans = [loader(*shared, batch_size=7).plan(epoch, 0) for epoch in range(20)]
    assert any(len(set(plan.flip.tolist())) == 2 for plan in plans)
    assert len({(int(row), bool(flip)) for plan in plans for row, flip in zip(plan.row, plan.flip, strict=True)}) == 14


def test_labels_follow_the_table(shared):
    for batch in loader(*shared).epoch(0):
        assert batch.label.tolist() == shared[0].label[batch.index.numpy()].tolist()
        assert batch.coarse_label.tolist() == [COARSE[label] for label in batch.label.tolist()]


def test_batches_stay_valid_while_held(shared):
    held = []
    for batch in loader(*shared, batch_size=1).epoch(0):
        held.append((batch.rgb, batch.rgb.clone()))
    assert all(torch.equal(frames, copy) for frames, copy in held)


def test_pixels_are_the_planned_box_resized(shared):
    """Compares the frames with torch's bilinear sampling of the decoded packets, including mirrored clips."""
    table, pack = shared
    work = loader(table, pack, config=replace(CONFIG, flip=0.5))
    flips = set()
    for epoch in range(3):
        for step, batch in enumerate(work.epoch(epoch)):
            plan = work.plan(epoch, step)
            flips |= set(plan.flip.tolist())
            for clip, row in enumerate(plan.row):
                packets, _ = pack.read_frames(row, plan.rgb_frames[clip].tolist())
                region = pack.region[row]
                scale = pack.frame_size[row] / (region[2:] - region[:2])
                left, top, right, bottom = (plan.box[clip] - np.tile(region[:2], 2)) * np.tile(scale, 2)
                expected = [resized(packet, (left, top, right, bottom), 48, plan.flip[clip]) for packet in packets]
                error = (batch.rgb[clip].float() - torch.stack(expected)).abs()
                assert error.mean() < 0.5
                assert error.max() <= 3
    assert flips == {True, False}


def resized(packet: bytes, box, size: int, flip: bool) -> torch.Tensor:
    """Resize a box of a JPEG frame to [size, size, 3], bilinearly and without antialiasing."""
    image = torch.from_numpy(np.array(Image.open(io.BytesIO(packet)).convert("RGB"))).float().permute(2, 0, 1)
    left, top, right, bottom = box
    centres = (torch.arange(size) + 0.5) / size
    x = (left + centres * (right - left)) / image.shape[2] * 2 - 1
    y = (top + centres * (bottom - top)) / image.shape[1] * 2 - 1
    y, x = torch.meshgrid(y, x.flip(0) if flip else x, indexing="ij")
    grid = torch.stack([x, y], dim=-1).float()[None]
    frames = torch.nn.functional.grid_sample(image[None], grid, padding_mode="border", align_corners=False)
    return frames[0].permute(1, 2, 0)


VIEWED = {"rgb_size_val": 112, "heatmap_size_val": 112}  # a crop of evaluation has 98 pixels a side
NOSE, LEFT, RIGHT = 0, 5, 6  # joints drawn as white, red and blue dots


@pytest.mark.parametrize(
    ("annotated", "changes"),
    [
        ((240, 180), {}),  # the annotations have the size of the video
        ((480, 270), {}),  # the annotations have another size than the video
        ((480, 270), {"color_jitter": 0.2, "erasing": 0.5, "joint_drop": 0.3}),
    ],
)
def test_both_streams_see_one_crop_and_one_flip(tmp_path, film, annotated, changes):
    """The dot that is drawn at each joint lies at the peak of the joint's heatmap.

    A flip exchanges the left and the right shoulder.
    """
    width, height, total = 240, 180, 8
    joints = film.person(total, width, height, seed=3)
    joints[0, :, NOSE, :2] += np.linspace(0, 30, total)[:, None]
    frames = [np.zeros((height, width, 3), np.uint8) for _ in range(total)]
    for frame, people in zip(frames, joints[0], strict=True):
        for joint, colour in ((LEFT, (255, 0, 0)), (RIGHT, (0, 0, 255)), (NOSE, (255, 255, 255))):
            x, y = np.rint(people[joint, :2]).astype(int)
            frame[max(0, y - 4) : y + 5, max(0, x - 4) : x + 5] = colour
    (tmp_path / "videos").mkdir()
    film.write(tmp_path / "videos" / "clip.mp4", frames, crf="5")
    joints[..., :2] *= np.array(annotated) / (width, height)
    table = film.table(tmp_path, [film.annotation("clip", joints, *annotated)])
    pack = film.prepare(table, tmp_path, count=total, box_pixels=200)
    config = replace(CONFIG, rgb_frames=total, pose_frames=total, rgb_size=96, heatmap_size=96, **VIEWED, **changes)
    training = loader(table, pack, config=config, batch_size=1)
    views = [
        replace(training, train=False, crop=crop, mirrored=flip) for crop in (None, 0, 2) for flip in (False, True)
    ]
    seen = {True: 0, False: 0}
    for work, epoch in [*((training, epoch) for epoch in range(12)), *((view, 0) for view in views)]:
        (batch,) = work.epoch(epoch)
        flip, side = bool(work.plan(epoch, 0).flip[0]), batch.heatmap.shape[-1]
        assert batch.rgb.shape[2:4] == (side, side)
        rgb, heatmap = batch.rgb[0].float(), batch.heatmap[0]
        white, red = rgb.amin(dim=-1), rgb[..., 0] - rgb[..., 1]
        blue = rgb[..., 2] - rgb[..., 1]
        erased = (batch.rgb[0] == torch.tensor(ERASED_COLOR)).all(dim=-1)
        for dots, joint in ((white, NOSE), (red, RIGHT if flip else LEFT), (blue, LEFT if flip else RIGHT)):
            for frame in range(total):
                mass = (dots[frame] > 128).nonzero().float()
                peak = heatmap[frame, joint]
                # Skip a dot that is cut off, and a joint that is dropped or at the edge of the crop.
                if len(mass) < 60 or peak.max() < 0.5:
                    continue
                y, x = divmod(int(peak.argmax()), side)
                if erased[frame, max(0, y - 12) : y + 13, max(0, x - 12) : x + 13].any():
                    continue
                distance = (mass.mean(dim=0) - torch.tensor([y, x])).abs().max()
                assert distance < 2.5, (epoch, flip, frame, joint)
                seen[flip] += 1
    assert min(seen.values()) > 30


@pytest.fixture
def damaged(scene):
    """Return the table and the pack of a scene, and a function that destroys a packet of the pack."""
    work = scene(10, 12)
    table, pack = work.table(), work.prepare()[0]

    def destroy(row: int, frame: int) -> None:
        path = pack.clip_file(row)
        content = bytearray(path.read_bytes())
        first = int(pack.first_packet[row])
        start = int(pack.columns["first"][row]) + int(pack.packets[first : first + frame, 0].sum())
        content[start : start + 50] = bytes(50)
        path.write_bytes(content)

    return table, pack, destroy


def test_damaged_packet_is_named_once_and_its_neighbour_takes_its_place(damaged):
    table, pack, destroy = damaged
    config = replace(CONFIG, rgb_frames=10)  # clip 0 has only 10 frames, so all of them are read
    whole = list(loader(table, pack, config=config, train=False, batch_size=2).epoch(0))
    destroy(0, 4)
    said, threads = [], set()

    def say(text: str) -> None:
        said.append(text)
        threads.add(threading.current_thread())

    work = loader(table, pack, config=config, train=False, batch_size=2, say=say)
    for _ in range(2):
        (batch,) = work.epoch(0)
        assert torch.equal(batch.rgb[1], whole[0].rgb[1])
        for frame in range(10):
            expected = whole[0].rgb[0, 3 if frame == 4 else frame]
            assert torch.equal(batch.rgb[0, frame], expected), frame
    assert said == [f"{pack.names[0]}: frame 4 in the pack is damaged, so the nearest good frame is used instead"]
    assert work.frames.damaged == {(str(pack.names[0]), 4)}
    # a journal can be used by one thread only, so the damage must be reported in this thread
    assert threads == {threading.current_thread()}


def test_clip_without_a_good_frame_stops_with_its_name(damaged):
    table, pack, destroy = damaged
    for frame in range(10):
        destroy(0, frame)
    work = loader(table, pack, train=False, batch_size=2, say=lambda text: None)
    with pytest.raises(PackError, match=rf"no frame of .*{pack.names[0]}\.\w+\.mov can be read; remove this file"):
        next(iter(work.epoch(0)))


def test_batch_must_divide_over_ranks(shared):
    with pytest.raises(ValueError, match="the global batch of 4 clips cannot be divided evenly among 3 ranks"):
        loader(*shared, world_size=3)
