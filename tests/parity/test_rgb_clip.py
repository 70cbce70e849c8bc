"""DALI decodes training clips from a pack into the same pixels that the published steps make.

The steps are black padding, crop, bilinear resize to 256, crop, bilinear resize to 224, and mirror (docs/sources.md,
"Training samples"). The clips are made from a real NTU video, with boxes inside the image and beyond it.
"""

import pickle
import shutil
from pathlib import Path

import av
import av.filter
import numpy as np
import torch
from rich.console import Console

from pipelines.annotations.table import ClipTable, open_table
from pipelines.config import ClipConfig
from pipelines.geometry import RESIZED, compact_box
from pipelines.loader import Loader
from pipelines.packs.format import PackSettings
from pipelines.packs.source import PackFrames
from pipelines.plan import ClipPlan
from pipelines.prepare.make import prepare
from pipelines.skeleton import COCO_17

VIDEO, FRAMES, WIDTH, HEIGHT = "S001C001P001R001A001_rgb.avi", 103, 1920, 1080
CONFIG = ClipConfig(skeleton=COCO_17, rgb_frames=8, pose_frames=32, sigma=0.7)
# The box [left, top, right, bottom] of the joints in each case: "inside" is on the person of the video; "beyond" is at
# the right border, so the crop leaves the image; "small" is so small that the crop is enlarged; "tall" covers the whole
# height, so a crop of 1240 px leaves the image on three sides.
PLACES = {
    "inside": (900, 250, 1150, 750),
    "beyond": (1600, 300, 1800, 850),
    "small": (1000, 300, 1090, 450),
    "tall": (1500, 60, 1900, 1050),
}
LEAST = 36.0  # smallest allowed PSNR in dB
MOST = 1.5  # largest allowed mean difference, in grey levels
# The border between the image and the black padding is jagged in the published code, but smooth in a pack, whose frames
# are scaled down. Pixels closer than EDGE to this border are therefore measured separately.
EDGE = 3


def annotation(name: str, left: int, top: int, right: int, bottom: int) -> dict:
    rng = np.random.default_rng(0)
    joints = rng.uniform((left, top), (right, bottom), (1, 1, 17, 2)) + rng.normal(0, 3, (1, FRAMES, 17, 2))
    return {
        **{"frame_dir": name, "label": 0, "img_shape": (HEIGHT, WIDTH), "total_frames": FRAMES},
        **{"keypoint": joints.astype(np.float16), "keypoint_score": np.ones((1, FRAMES, 17), np.float16)},
    }


def training_clips(folder: Path, real_videos: Path, settings: PackSettings):
    """Return the table, the pack, and one (plan, batch) for each of three epochs."""
    (folder / "videos").mkdir(exist_ok=True)
    for name in PLACES:
        shutil.copy(real_videos / VIDEO, folder / "videos" / f"{name}.avi")
    (folder / "a.pkl").write_bytes(pickle.dumps([annotation(name, *place) for name, place in PLACES.items()]))
    table = open_table(folder / "a.pkl", folder / "cache")
    pack = prepare(table, folder / "videos", folder / "pack", settings, workers=1, console=Console(quiet=True))
    loader = Loader(
        **{"table": table, "frames": PackFrames(table, pack), "rows": np.arange(len(PLACES)), "config": CONFIG},
        **{"coarse_map": (0,), "train": True, "batch_size": len(PLACES), "device": torch.device("cpu"), "threads": 1},
    )
    return table, pack, [(loader.plan(epoch, 0), next(loader.epoch(epoch))) for epoch in range(3)]


def decoded(video: Path) -> list[np.ndarray]:
    """Decode RGB frames with FFmpeg's accurate rounding. FFmpeg's fast conversion would be wrong by 1.2 grey levels."""
    graph, frames = av.filter.Graph(), []
    with av.open(video) as container:
        source = graph.add_buffer(template=container.streams.video[0])
        scale = graph.add("scale", "flags=bilinear+accurate_rnd+full_chroma_int:in_color_matrix=bt601:in_range=limited")
        graph.link_nodes(source, scale, graph.add("format", "rgb24"), graph.add("buffersink")).configure()
        for frame in container.decode(video=0):
            frame.pts = None
            graph.push(frame)
            picture = graph.pull()
            assert isinstance(picture, av.VideoFrame)
            frames.append(picture.to_ndarray())
    return frames


def bilinear(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize [H, W, 3] as cv2.resize does by default: half-pixel centres, no antialiasing, rounded to whole levels."""
    planes = image.permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(planes, (height, width), mode="bilinear", align_corners=False)
    return resized[0].permute(1, 2, 0).round()


def published(picture: np.ndarray, box: tuple[int, int, int, int], crop: np.ndarray, flip: bool) -> torch.Tensor:
    """Apply MMCompact, Resize, RandomResizedCrop, Resize and Flip to a frame, with the given random numbers."""
    left, top, right, bottom = box
    padded = np.zeros((bottom - top, right - left, 3), np.uint8)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right, WIDTH), min(bottom, HEIGHT)
    padded[y0 - top : y1 - top, x0 - left : x1 - left] = picture[y0:y1, x0:x1]
    whole = bilinear(torch.from_numpy(padded), RESIZED, RESIZED)
    part = bilinear(whole[crop[1] : crop[3], crop[0] : crop[2]], CONFIG.rgb_size, CONFIG.rgb_size)
    return part.flip(1) if flip else part


def expected(table: ClipTable, plan: ClipPlan, clip: int, pictures: list[np.ndarray]) -> torch.Tensor:
    """Return the frames [T, 224, 224, 3] that the published code makes for one clip of a plan."""
    joints = table.clip_joints(int(plan.row[clip]))[:, plan.pose_frames[clip], :, :2]
    box = compact_box(joints, HEIGHT, WIDTH)
    scale = RESIZED / np.array([box[2] - box[0], box[3] - box[1]] * 2)
    crop = (plan.box[clip] - np.array(box[:2] * 2)) * scale
    assert abs(crop - np.rint(crop)).max() < 1e-6
    frames = [pictures[frame] for frame in plan.rgb_frames[clip]]
    return torch.stack([published(frame, box, np.rint(crop).astype(int), bool(plan.flip[clip])) for frame in frames])


def psnr(error: torch.Tensor) -> float:
    return float(10 * torch.log10(255**2 / error.square().mean()))


def near_edge(box: np.ndarray, flip: bool) -> torch.Tensor:
    """Return a bool mask [224, 224] of the pixels of a clip that are near the border of the image."""
    size, near = CONFIG.rgb_size, []
    for low, high, length in ((box[1], box[3], HEIGHT), (box[0], box[2], WIDTH)):
        scale = size / (high - low)
        centres = torch.arange(size) + 0.5
        near.append(torch.stack([(centres - (end - low) * scale).abs() < EDGE for end in (0, length)]).any(dim=0))
    rows, columns = near
    return rows[:, None] | (columns.flip(0) if flip else columns)


def test_a_training_clip_has_the_published_pixels(tmp_path, real_videos):
    table, _, batches = training_clips(tmp_path, real_videos, PackSettings.of(CONFIG))
    pictures, seen = decoded(real_videos / VIDEO), set()
    for plan, batch in batches:
        for clip, row in enumerate(plan.row.tolist()):
            error = batch.rgb[clip].float() - expected(table, plan, clip, pictures)
            name, box, flip = str(table.names[row]), plan.box[clip], bool(plan.flip[clip])
            kept = error[:, ~near_edge(box, flip)]
            shown = f"{name}: {kept.abs().mean():.2f} levels, {psnr(kept):.1f} dB"
            print(f"{shown}; with the image's edge {error.abs().mean():.2f} levels, {psnr(error):.1f} dB")
            assert kept.abs().mean() <= MOST, shown
            assert psnr(kept) >= LEAST, shown
            assert psnr(error) >= LEAST - 1, shown
            left, top, right, bottom = box
            leaves = bool(left < 0 or top < 0 or right > WIDTH or bottom > HEIGHT)
            assert leaves or torch.equal(kept, error.flatten(1, 2))
            seen |= {(name, leaves), flip}
    assert {("inside", False), ("small", False), ("beyond", True), ("tall", True), True, False} <= seen
