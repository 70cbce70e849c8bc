"""Draws several clips of a batch in one picture, as the network sees them: RGB frames, and below them the heatmaps.

Each picture shows the number of the frame from which it was made.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image, ImageDraw
from torch import Tensor

from pipelines.batch import Batch
from pipelines.loader import Loader
from pipelines.plan import ClipPlan
from pipelines.view import joints_in
from trainer.report.curves import write_png
from trainer.report.skeleton_drawing import HEATMAP, LEGEND, draw_legend, draw_skeletons
from trainer.report.text import class_names_in_pictures

SIDE, GAP, TITLE, MARGIN, DPI = 128, 2, 22, 12, 100  # in pixels, except DPI, which is in pixels per inch
LEGEND_HEIGHT = 20  # height in pixels of the legend at the bottom
NUM_CLIPS, NUM_FRAMES = 6, 8  # maximum number of clips in a picture, and of frames of each clip
JOINT = torch.tensor([255.0, 214.0, 10.0])  # HEATMAP, the colour of the heatmap value 1, as red, green and blue
OUTLINE = withStroke(linewidth=2, foreground="black")  # colour of the edge around the white number of a frame


def contact_sheet(
    path: Path,
    batch: Batch,
    plan: ClipPlan,
    labels: Sequence[str] = (),
    what: str = "clip",
    legend: Sequence[tuple[str, str]] = (),
    drawn: Tensor | None = None,
) -> Path:
    """Write a PNG of up to six clips of `batch`, with up to eight frames each, and return its path.

    `plan` is the plan of the batch, from which the numbers of the frames are taken. `labels` are the names of the fine
    classes. `what` is the word before the clip's number in each title. `legend` has further entries of the legend: a
    text and its colour. `drawn` are frames with skeletons, [N, T, H, W, 3] uint8, of at least the first six clips; the
    upper strip shows them in place of the batch's frames.

    The upper strip of a clip shows RGB frames; the lower strip shows the same frames dimmed, overlaid with the maximum
    over all heatmap channels. The streams may sample the clip independently, so each RGB frame is overlaid with the
    heatmap of the nearest frame that the pose stream has sampled. The strip of a stream that the network does not read
    is left out. A legend at the bottom explains the colours. This function draws no skeletons: `with_skeletons` makes
    the frames for `drawn`. The lower strip has none, because a heatmap may be of another frame than the picture above.
    """
    labels = class_names_in_pictures(labels)
    clips = torch.nonzero(batch.valid).flatten()[:NUM_CLIPS]
    tensors = (batch.rgb if drawn is None else drawn, batch.rgb, batch.heatmap)
    rgb, plain, heatmap = (None if tensor is None else tensor[clips].cpu() for tensor in tensors)
    rgb_frames, pose_frames = (torch.from_numpy(frames)[clips] for frames in (plan.rgb_frames, plan.pose_frames))
    rgb_at, pose_at = _moments(None if rgb is None else rgb_frames, pose_frames)
    strips = _strips(rgb, plain, heatmap, rgb_at, pose_at)
    numbers = [] if rgb is None else [rgb_frames.gather(1, rgb_at)]
    numbers += [] if heatmap is None else [pose_frames.gather(1, pose_at)]
    num_clips, num_strips, height, width, _ = strips.shape
    block = TITLE + num_strips * (height + GAP) - GAP + MARGIN
    canvas = np.full((MARGIN + num_clips * block + LEGEND_HEIGHT, width + 2 * MARGIN, 3), 255, np.uint8)
    canvas[-LEGEND_HEIGHT:] = _legend(canvas.shape[1], rgb is not None, heatmap is not None, legend)
    figure = Figure(figsize=(canvas.shape[1] / DPI, canvas.shape[0] / DPI), dpi=DPI)
    for place, clip in enumerate(clips.tolist()):
        top = place * block + TITLE + MARGIN // 2
        for strip, frames in zip(strips[place], numbers, strict=True):
            canvas[top : top + height, MARGIN : MARGIN + width] = strip.numpy()
            for column, frame in enumerate(frames[place].tolist()):
                at = (MARGIN + column * (SIDE + GAP) + 4) / canvas.shape[1], 1 - (top + 4) / canvas.shape[0]
                figure.text(*at, f"frame {frame}", fontsize=7, va="top", color="white", path_effects=[OUTLINE])
            top += height + GAP
        title_at = 1 - (place * block + TITLE / 2 + MARGIN // 2) / canvas.shape[0]
        figure.text(MARGIN / canvas.shape[1], title_at, title_of(batch, clip, labels, what), va="center", fontsize=9)
    figure.figimage(canvas)
    return write_png(figure, path)


def with_skeletons(batch: Batch, plan: ClipPlan, loader: Loader) -> Tensor | None:
    """The RGB frames of the first clips of a batch, resized to SIDE, with the skeletons drawn on them.

    plan: the plan of the batch, made by `loader`. Returns [n, T, SIDE, SIDE, 3] uint8, or None if the batch has no RGB
    frames.
    """
    if batch.rgb is None:
        return None
    clips = []
    for place, frames in enumerate(batch.rgb[:NUM_CLIPS].cpu().numpy()):
        pictures = [Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.BILINEAR) for frame in frames]
        people = joints_in(loader, plan, place, plan.rgb_frames[place], SIDE)
        for picture, joints in zip(pictures, people, strict=True):
            draw_skeletons(picture, joints, loader.config.skeleton)
        clips.append(np.stack([np.asarray(picture) for picture in pictures]))
    return torch.from_numpy(np.stack(clips))


def _legend(width: int, has_rgb: bool, has_heatmap: bool, more: Sequence[tuple[str, str]]) -> np.ndarray:
    """A strip [LEGEND_HEIGHT, width, 3] uint8 that explains the colours."""
    strip = Image.new("RGB", (width, LEGEND_HEIGHT), "#ffffff")
    entries = (*(LEGEND if has_rgb else ()), *((("heatmap", HEATMAP),) if has_heatmap else ()), *more)
    draw_legend(ImageDraw.Draw(strip), (MARGIN, 0), 11 if width > 100 * len(entries) else 9, entries)
    return np.asarray(strip)


def title_of(batch: Batch, clip: int, labels: Sequence[str], what: str) -> str:
    label = int(batch.label[clip])
    return f"{what} {int(batch.index[clip])}: {labels[label] if labels else f'class {label}'}"


def _moments(rgb_frames: Tensor | None, pose_frames: Tensor) -> tuple[Tensor, Tensor]:
    """Choose up to NUM_FRAMES frames of each clip.

    Returns indices of RGB frames and indices of pose frames, each [n, t]. The RGB frames are spread evenly over the
    clip, and the pose frames are those with the nearest numbers. If the network reads no RGB frames, the pose frames
    are spread evenly.
    """
    frames = pose_frames if rgb_frames is None else rgb_frames
    count = min(NUM_FRAMES, frames.shape[1])
    spread = ((torch.arange(count) + 0.5) / count * frames.shape[1]).long().expand(len(frames), count)
    distance = (pose_frames[:, None] - frames.gather(1, spread)[..., None]).abs()
    return spread, distance.argmin(dim=2)


def _strips(
    rgb: Tensor | None, plain: Tensor | None, heatmap: Tensor | None, rgb_at: Tensor, pose_at: Tensor
) -> Tensor:
    """The strips of each clip, one strip for each stream: [n, 1 or 2, SIDE, width, 3] uint8.

    rgb: frames of the upper strip; plain: frames on which the heatmaps are laid; both [n, T, H, W, 3] uint8.
    heatmap: [n, T', C, H', W']. rgb_at, pose_at: indices of the frames and of the heatmaps to show, [n, t].
    """
    strips, dimmed, clip = [], torch.zeros(()), torch.arange(len(rgb_at))[:, None]
    if rgb is not None:
        strips = [_resized(rgb[clip, rgb_at].permute(0, 1, 4, 2, 3).float())]
    if plain is not None:
        dimmed = _resized(plain[clip, rgb_at].permute(0, 1, 4, 2, 3).float()).mean(dim=2, keepdim=True) * 0.45
    if heatmap is not None:
        joints = _resized(heatmap[clip, pose_at].float().amax(dim=2, keepdim=True)).clamp(0, 1)
        strips.append(dimmed * (1 - joints) + JOINT.view(3, 1, 1) * joints)
    padded = F.pad(torch.stack(strips, dim=1), (0, GAP), value=255)  # [n, 1 or 2, t, 3, SIDE, SIDE + GAP]
    strip = padded.permute(0, 1, 4, 2, 5, 3).flatten(3, 4)[:, :, :, :-GAP]
    return strip.round().clamp(0, 255).to(torch.uint8)


def _resized(frames: Tensor) -> Tensor:
    """Resize frames [n, t, c, H, W] to [n, t, c, SIDE, SIDE]."""
    size = (SIDE, SIDE)
    resized = F.interpolate(frames.flatten(0, 1), size, mode="bilinear", antialias=True, align_corners=False)
    return resized.unflatten(0, frames.shape[:2])
