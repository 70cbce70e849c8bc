"""Packs real NTU videos, and trains an epoch on them at full size.

The videos have wrong timestamps, so a pack must contain the frames in the order in which the decoder returns them.
There are no skeletons for these videos, so the tests generate skeletons of standing people near the real people.
"""

import io
import pickle
import re
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from pipelines.annotations.table import open_table
from pipelines.packs.format import PackSettings
from pipelines.packs.pack import Pack
from pipelines.prepare.make import prepare
from tests.programs import run
from trainer.experiments import EXPERIMENTS

FRAMES = {"S001C001P001R001A001": 103, "ntu_sample": 72}
WIDTH, HEIGHT = 1920, 1080
# Maps each video to its label and its people. For each person there are four numbers in pixels: x at the start, x at
# the end, y of the top of the head, and y of the soles.
PEOPLE = {
    "S001C001P001R001A001": (0, [(1050, 1055, 290, 740)]),  # drinks
    "ntu_sample": (54, [(1025, 990, 250, 865), (725, 850, 280, 905)]),  # hug
}
# The COCO joints of a body that faces the camera, in units of the body's height. x grows towards the left side of the
# body, and y grows downwards from the top of the head.
BODY = np.array(
    [(0, 0.07), (0.015, 0.055), (-0.015, 0.055), (0.03, 0.065), (-0.03, 0.065)]
    + [(side * x, y) for x, y in ((0.085, 0.18), (0.11, 0.33), (0.095, 0.46)) for side in (1, -1)]
    + [(side * x, y) for x, y in ((0.055, 0.51), (0.055, 0.74), (0.055, 0.95)) for side in (1, -1)]
)


def standing(frames: int, start: float, end: float, top: float, soles: float, seed: int) -> np.ndarray:
    """Return joints [frames, 17, 2] of a standing person who sways and moves the hands a little."""
    t, rng = np.linspace(0, 1, frames), np.random.default_rng(seed)
    joints = np.stack([start + (end - start) * t, np.full(frames, top)], axis=-1)[:, None] + BODY * (soles - top)
    joints[..., 0] += 6 * np.sin(4 * np.pi * t)[:, None] * (1 - BODY[:, 1])
    joints[:, 9:11, 1] -= 25 * np.sin(2 * np.pi * t)[:, None] ** 2
    return joints + rng.normal(0, 1.5, joints.shape)


def annotation(name: str, label: int, people: list) -> dict:
    keypoint = np.stack([standing(FRAMES[name], *person, seed) for seed, person in enumerate(people)])
    return {
        "frame_dir": name,
        "label": label,
        "img_shape": (HEIGHT, WIDTH),
        "original_shape": (HEIGHT, WIDTH),
        "total_frames": FRAMES[name],
        "keypoint": keypoint.astype(np.float16),
        "keypoint_score": np.full(keypoint.shape[:3], 0.9, np.float16),
    }


@pytest.fixture(scope="module")
def annotations(tmp_path_factory, real_videos) -> Path:
    clips = [annotation(name, *who) for name, who in PEOPLE.items()]
    path = tmp_path_factory.mktemp("real") / "ntu60_xsub.pkl"
    splits = {split: list(FRAMES) for split in ("xsub_train", "xsub_val")}
    path.write_bytes(pickle.dumps({"split": splits, "annotations": clips}))
    return path


@pytest.fixture(scope="module")
def pack(annotations, real_videos) -> Pack:
    """Make the pack in the folder where training looks for it."""
    settings = PackSettings.of(EXPERIMENTS["ntu60_x3d"].clip)
    table = open_table(annotations, annotations.parent / "cache")
    return prepare(table, real_videos, annotations.parent / "packs", settings, workers=1, console=Console(quiet=True))


def originals(video: Path, region: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Return the luma [T, H, W] (0 to 255) of a region, in the decoder's order. It is black outside the picture."""
    pictures = []
    with av.open(video) as container:
        for frame in container.decode(video=0):
            luma = np.frombuffer(frame.planes[0], np.uint8).reshape(frame.height, -1)[:, : frame.width]
            full = ((luma.astype(np.float32) - 16) * (255 / 219)).clip(0, 255)
            cut = Image.fromarray(full).crop(tuple(region.astype(int)))
            pictures.append(np.asarray(cut.resize(tuple(size), Image.Resampling.BICUBIC)))
    return np.stack(pictures)


@pytest.mark.parametrize("name", FRAMES)
def test_every_frame_in_the_decoders_order(pack, real_videos, name):
    row = pack.names.tolist().index(name)
    assert pack.num_frames[row] == FRAMES[name]
    packets, damaged = pack.read_frames(row, list(range(FRAMES[name])))
    assert not damaged
    packed = np.stack([np.asarray(Image.open(io.BytesIO(packet)).convert("L"), np.float32) for packet in packets])
    (video,) = real_videos.glob(f"{name}*")
    source = originals(video, pack.region[row], pack.frame_size[row])
    assert source.shape == packed.shape
    difference = np.abs(source - packed)
    # Both limits are in grey levels. The frames differ because JPEG loses details and because `prepare` resizes with
    # another filter.
    assert difference.mean(axis=(1, 2)).max() < 1.5
    assert np.quantile(difference, 0.999) < 16
    # In the middle of the picture, where people move, each packed frame resembles its own source frame more than any
    # other.
    height, width = packed.shape[1:]
    middle = np.s_[:, height // 4 : -height // 4, width // 4 : -width // 4]
    error = np.stack([np.abs(source[middle] - picture).mean(axis=(1, 2)) for picture in packed[middle]])
    error_of_others = error + np.diag(np.full(len(error), np.inf))
    assert (error.diagonal() < 0.99 * error_of_others.min(axis=1)).all()


@pytest.mark.soak
def test_an_epoch_at_full_size(pack, annotations, real_videos, tmp_path):
    """The unchanged network of ntu60_x3d trains on a CPU.

    RGB is 16x224 px (256 px in validation), and heatmaps are 48x56 px.
    """
    root = annotations.parent
    changes = (
        *(f"data.annotations={annotations}", f"data.videos={real_videos}"),
        *(f"data.packs={root / 'packs'}", f"data.cache={root / 'cache'}"),
        *("optim.batch_size=2", "optim.num_epochs=1", "optim.warmup_epochs=0", "val.batch_size=2", "log_every=1"),
    )
    settings = [part for change in changes for part in ("--set", change)]
    words = ("-m", "trainer", "--exp", "ntu60_x3d", "--device", "cpu", *settings, "--work-dir", tmp_path / "run")
    done = run(*words)  # a fork would draw no clips.png
    assert done.returncode == 0, done.stdout + done.stderr
    assert "packing" not in done.stderr  # nothing is packed, because training finds the pack of the fixture
    log = (tmp_path / "run" / "train.log").read_text()
    (line,) = [line for line in log.splitlines() if "Epoch(train)" in line]
    assert "[1][1/1]" in line
    losses = dict(re.findall(r"(loss\w*|grad_norm): (\S+)", line))
    assert {"loss", "loss_rgb", "loss_pose", "loss_rgb_coarse", "loss_pose_coarse", "grad_norm"} <= losses.keys()
    assert 2 < float(losses["loss_rgb"]) < 10  # guesses among 60 classes have the loss ln 60 = 4.1
    assert float(losses["grad_norm"]) > 0
    assert re.search(r"Epoch\(val\) \[1\]\[2/2\]  acc/\S+: [01]\.", log)
    assert "is saved to best_acc_RGBPose_1:1_top1_epoch_1.pth" in log
    with Image.open(tmp_path / "run" / "clips.png") as sheet:
        assert sheet.format == "PNG"
        assert min(sheet.size) > 400
