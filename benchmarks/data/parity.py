"""The same clips, with the same luck, through the peer and through us: frames drawn, pixels, heatmaps."""

from pathlib import Path
import numpy as np
import torch
from benchmarks.data.peer import Peer
from kernels.heatmap import render_heatmaps
from pipelines.batch import Batch
from pipelines.geometry import RESIZED, compact_box
from pipelines.loader import Loader
from pipelines.plan import ClipPlan
from tests.pipelines.oracles import train_frames


# Grey levels on average over all clips; dB of the worst clip. Drawn scenes are all edges, where JPEG errs most: NTU's
# footage is 1.0 to 1.3 levels apart and held to 1.5 (tests/parity/test_rgb_clip.py).
LEVELS, PSNR = 2.0, 36.0
SAME_JOINTS = 1e-6  # of two heatmaps of the same joints on the heatmap's grid
# Joints that came there by float32 on two ways are up to this far apart, and a Gaussian falls by .87 of it a pixel.
OWN_JOINTS = 1e-4
WINDOW = float(np.exp(-4.5)) * 1.01  # what a pixel may hold that is inside of one's window and outside of the other's
SEEDS = range(5)


def parity(peer: Peer, loader: Loader, order: list[int], scratch: Path) -> dict[str, float | bool]:
    """Differences over the first batch of an epoch; `order` [N]: the peer's number of each row of the table.

    `ok`: all frames drawn by RandomState(seed) are the same; RGB is 2 levels apart on average and 36 dB in every
    clip; heatmaps of the same joints are 1e-6 apart, and of the whole path 1e-4, where both windows reach.
    """
    plan, batch, file = loader.plan(0, 0), next(loader.epoch(0)), scratch / "clip.npz"
    clips = [_differences(peer, loader, plan, batch, clip, order, file) for clip in range(len(plan.row))]
    levels = {key: float(np.mean([clip[key] for clip in clips])) for key in ("rgb_levels", "rgb_levels_decord")}
    psnr = {f"{key}_worst": min(clip[key] for clip in clips) for key in ("rgb_psnr", "rgb_psnr_decord")}
    drawn = {key: max(clip[key] for clip in clips) for key in ("heatmap", "heatmap_edge", "heatmap_same_joints")}
    differ = _frames(peer, loader, order)
    ok = differ == 0 and levels["rgb_levels"] <= LEVELS and psnr["rgb_psnr_worst"] >= PSNR
    ok = ok and drawn["heatmap"] <= OWN_JOINTS and drawn["heatmap_edge"] <= WINDOW
    ok = ok and drawn["heatmap_same_joints"] <= SAME_JOINTS
    return {"frames_differ": differ, **levels, **psnr, **drawn, "clips": len(clips), "ok": ok}


def _differences(
    peer: Peer, loader: Loader, plan: ClipPlan, batch: Batch, clip: int, order: list[int], file: Path
) -> dict[str, float]:
    """Of one clip; `_decord`: with the peer's own decoder, whose RGB is 1.1 levels darker than the exact conversion."""
    found, theirs = {}, {}
    for name, whole in {"_decord": False, "": True}.items():
        theirs = _drawn_by_peer(peer, loader, plan, clip, order, file, whole)
        error = batch.rgb[clip].float() - torch.from_numpy(theirs["imgs"])[0].permute(1, 2, 3, 0)
        found[f"rgb_levels{name}"] = float(error.abs().mean())
        found[f"rgb_psnr{name}"] = float(10 * torch.log10(255**2 / error.square().mean()))
    heatmap = torch.from_numpy(theirs["heatmap"])[0].transpose(0, 1)  # [T, V, H, W]
    found["heatmap"], found["heatmap_edge"] = _apart(batch.heatmap[clip], heatmap)
    found["heatmap_same_joints"] = max(_apart(_heatmap_of(theirs, loader), heatmap))
    return found


def _frames(peer: Peer, loader: Loader, order: list[int]) -> int:
    """Clips and seeds for which another frame is drawn."""
    differ, config = 0, loader.config
    for row, clip in enumerate(order):
        for seed in SEEDS:
            rng, total = np.random.RandomState(seed), int(loader.table.total_frames[row])
            ours = {"RGB": train_frames(total, config.rgb_frames, rng).tolist()}
            ours["Pose"] = train_frames(total, config.pose_frames, rng).tolist()
            differ += ours != peer.ask("indices", clip=clip, seed=seed)
    return differ


def _drawn_by_peer(
    peer: Peer, loader: Loader, plan: ClipPlan, clip: int, order: list[int], file: Path, whole: bool
) -> dict:
    """What the peer makes of a clip of our plan: imgs [1, 3, T, H, W], heatmap [1, V, T', H', W'], and its joints."""
    table, row = loader.table, int(plan.row[clip])
    joints = table.clip_joints(row)[:, plan.pose_frames[clip], :, :2]
    around = np.array(compact_box(joints, int(table.height[row]), int(table.width[row])))
    scale = RESIZED / (around[2:] - around[:2])
    crop = np.rint((plan.box[clip] - np.tile(around[:2], 2)) * np.tile(scale, 2)).astype(int)
    frames = {"RGB": plan.rgb_frames[clip].tolist(), "Pose": plan.pose_frames[clip].tolist()}
    peer.ask(
        "draw",
        clip=order[row],
        frames=frames,
        crop=crop.tolist(),
        flip=bool(plan.flip[clip]),
        out=str(file),
        whole=whole,
    )
    with np.load(file) as arrays:
        return dict(arrays)


def _heatmap_of(theirs: dict, loader: Loader) -> torch.Tensor:
    """[T, V, H, W] drawn by us from the joints that the peer drew from, in pixels of its RGB."""
    side, config = loader.config.sizes(train=True)[1], loader.config
    joints = np.concatenate([theirs["keypoint"] * np.float32(0.25), theirs["keypoint_score"][..., None]], axis=-1)
    placed = torch.from_numpy(joints).transpose(0, 1)[None]  # [1, T, M, V, 3]
    return render_heatmaps(placed, (side, side), config.sigma)[0]


def _apart(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[float, float]:
    """Largest difference where both drew or none did, and largest value where only one did."""
    one = (ours == 0) != (theirs == 0)
    error = (ours - theirs).abs()
    return float(error[~one].max()), float(error[one].max()) if one.any() else 0.0
