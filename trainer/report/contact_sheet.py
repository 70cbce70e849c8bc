"""Draws several clips of a batch in one picture, as the network sees them: RGB frames, and below them the heatmaps."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from pipelines.batch import Batch
from trainer.report.curves import write_png
from trainer.report.text import class_names_in_pictures

SIDE, GAP, TITLE, MARGIN, DPI = 128, 2, 22, 12, 100  # all in pixels, except DPI in pixels per inch
NUM_CLIPS, NUM_FRAMES = 6, 8  # the maximum numbers of clips in a picture, and of frames per clip
JOINT = torch.tensor([255.0, 214.0, 10.0])  # colour of the heatmap value 1


def contact_sheet(path: Path, batch: Batch, labels: Sequence[str] = (), what: str = "clip") -> Path:
    """Write a PNG of up to six clips of `batch`, with up to eight frames each, and return its path.

    `labels` are the names of the fine classes. `what` is the word before the clip's number in each title.

    The upper strip of a clip shows RGB frames; the lower strip shows the same frames dimmed, overlaid with the maximum
    over all heatmap channels. The streams may sample the clip independently, so a heatmap can belong to a moment a
    few frames before or after the RGB frame that it overlays. A difference in box or flip between the streams is
    still easy to see. The strip of a stream that the network does not read is left out.
    """
    labels = class_names_in_pictures(labels)
    clips = torch.nonzero(batch.valid).flatten()[:NUM_CLIPS]
    rgb, heatmap = (None if tensor is None else tensor[clips].cpu() for tensor in (batch.rgb, batch.heatmap))
    strips = _strips(rgb, heatmap)
    num_clips, num_strips, height, width, _ = strips.shape
    block = TITLE + num_strips * (height + GAP) - GAP + MARGIN
    canvas = np.full((MARGIN + num_clips * block, width + 2 * MARGIN, 3), 255, np.uint8)
    figure = Figure(figsize=(canvas.shape[1] / DPI, canvas.shape[0] / DPI), dpi=DPI)
    for place, clip in enumerate(clips.tolist()):
        top = place * block + TITLE + MARGIN // 2
        for strip in strips[place]:
            canvas[top : top + height, MARGIN : MARGIN + width] = strip.numpy()
            top += height + GAP
        title_at = 1 - (place * block + TITLE / 2 + MARGIN // 2) / canvas.shape[0]
        figure.text(MARGIN / canvas.shape[1], title_at, title_of(batch, clip, labels, what), va="center", fontsize=9)
    figure.figimage(canvas)
    return write_png(figure, path)


def title_of(batch: Batch, clip: int, labels: Sequence[str], what: str) -> str:
    label = int(batch.label[clip])
    return f"{what} {int(batch.index[clip])}: {labels[label] if labels else f'class {label}'}"


def _strips(rgb: Tensor | None, heatmap: Tensor | None) -> Tensor:
    """The strips of each clip, one for each input: rgb [n, T, H, W, 3] uint8, heatmap [n, T', C, H', W'] ->
    [n, 1 or 2, SIDE, width, 3] uint8.
    """
    lengths = [tensor.shape[1] for tensor in (rgb, heatmap) if tensor is not None]
    num_frames, strips, dimmed = min(NUM_FRAMES, lengths[0]), [], torch.zeros(())
    moments = (torch.arange(num_frames) + 0.5) / num_frames
    if rgb is not None:
        frames = _resized(rgb[:, (moments * rgb.shape[1]).long()].permute(0, 1, 4, 2, 3).float())
        strips, dimmed = [frames], frames.mean(dim=2, keepdim=True) * 0.45
    if heatmap is not None:
        joints = _resized(heatmap[:, (moments * heatmap.shape[1]).long()].float().amax(dim=2, keepdim=True)).clamp(0, 1)
        strips.append(dimmed * (1 - joints) + JOINT.view(3, 1, 1) * joints)
    padded = F.pad(torch.stack(strips, dim=1), (0, GAP), value=255)  # [n, 1 or 2, t, 3, SIDE, SIDE + GAP]
    strip = padded.permute(0, 1, 4, 2, 5, 3).flatten(3, 4)[:, :, :, :-GAP]
    return strip.round().clamp(0, 255).to(torch.uint8)


def _resized(frames: Tensor) -> Tensor:
    """Resize frames [n, t, c, H, W] to [n, t, c, SIDE, SIDE]."""
    size = (SIDE, SIDE)
    resized = F.interpolate(frames.flatten(0, 1), size, mode="bilinear", antialias=True, align_corners=False)
    return resized.unflatten(0, frames.shape[:2])
