"""The gallery of the page: clips with the worst predictions, and their frames, skeletons, heatmaps and top classes."""

import base64
import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageColor
from torch import Tensor

from kernels.names import SHORT, printable
from pipelines.batch import Batch
from pipelines.frame_source import NoFrames
from pipelines.loader import Loader
from pipelines.skeleton import Skeleton
from pipelines.view import ClipView, views_of
from trainer.report.grad_cam import COLOURS
from trainer.report.page.evaluation import Evaluation, most_wrong, top_classes
from trainer.report.skeleton_drawing import HEATMAP, coloured_limbs

NUM_CLIPS = 24  # number of clips in the gallery of a run
MOMENTS = 6  # number of frames of each clip
SIDE = 176  # side of a picture in pixels
OVERLAY = 56  # side in pixels of the pictures of heatmaps and of maps, which the browser enlarges smoothly
QUALITY = 80  # quality of the JPEG files
BATCH = 4  # number of clips that are read at once

Looked = Callable[[Batch, Tensor], dict[str, Tensor]]  # grad_cam.where_it_looked for a fixed network


def gallery_of(
    evaluation: Evaluation, loader: Loader, with_frames: bool, looked: Looked | None = None
) -> list[dict[str, Any]]:
    """The clips with the worst predictions, in the form that gallery.js reads.

    loader: a loader of the validation clips; its table contains the evaluation's clips. Without `with_frames` there are
    only skeletons, and no video is read. looked: computes where the network looked when it predicted a wrong class.
    """
    places = {str(name): row for row, name in enumerate(loader.table.names)}
    wrong = [clip for clip in most_wrong(evaluation.scores, NUM_CLIPS) if evaluation.names[clip.number] in places]
    rows = np.array([places[evaluation.names[clip.number]] for clip in wrong], np.int64)
    guesses = torch.tensor([clip.guess for clip in wrong])
    items = []
    for clip, (view, maps) in zip(wrong, views_in(loader, rows, guesses, with_frames, looked), strict=True):
        items.append(
            {
                "clip": printable(evaluation.names[clip.number], SHORT),
                "label": clip.label,
                "guess": clip.guess,
                "margin": round(clip.margin, 4),
                "tops": top_classes(evaluation.scores, clip.number),
                "side": view.side,
                "moments": moments_of(view, maps, loader.config.skeleton, with_frames),
            }
        )
    return items


def views_in(
    loader: Loader, rows: np.ndarray, classes: Tensor, with_frames: bool, looked: Looked | None
) -> Iterator[tuple[ClipView, dict[str, np.ndarray]]]:
    """The clips in these rows of the loader's table, as the networks see them in a validation.

    Each clip comes with a map [T, H, W] for each stream: how much each pixel contributes to the clip's class in
    `classes`.
    """
    batch_size = max(1, min(BATCH, len(rows)))
    single = replace(loader, rows=rows, batch_size=batch_size, rank=0, world_size=1, sample=0, num_samples=1)
    if not with_frames:
        single = replace(single, frames=NoFrames(len(loader.table)), streams=("pose",))
    for step, batch in enumerate(single.epoch(0) if len(rows) else ()):
        # the loader fills the last batch up by repeating the last clip
        numbers = (step * batch_size + torch.arange(batch_size)).clamp(max=len(rows) - 1)
        maps = looked(batch, classes[numbers]) if looked else {}
        for place, view in enumerate(views_of(single, batch, single.plan(0, step))):
            if batch.valid[place]:
                yield view, {stream: values[place].cpu().numpy() for stream, values in maps.items()}


def moments_of(
    view: ClipView, maps: dict[str, np.ndarray], skeleton: Skeleton, with_frames: bool
) -> list[dict[str, Any]]:
    """Up to MOMENTS frames of a clip, evenly spread, each as a dict with its number, its limbs and its overlays.

    The overlays are the maps of the streams in `maps`. With `with_frames`, the picture of the frame and the overlay of
    the heatmap are added. The heatmap and the map of the pose stream are those of the nearest pose frame. The values of
    the maps are squared, so that the frame stays visible where they are low.
    """
    count = min(MOMENTS, len(view.rgb_frames))
    moments = []
    for at in ((np.arange(count) + 0.5) * len(view.rgb_frames) / count).astype(int):
        frame = int(view.rgb_frames[at])
        nearest = view.moment(frame)
        moment: dict[str, Any] = {"frame": frame, "limbs": limbs_of(view.rgb_joints[at], skeleton)}
        if with_frames and view.rgb is not None:
            moment["picture"] = jpeg(view.rgb[at])
        if with_frames and view.heatmap is not None:
            moment["heatmap"] = overlay(view.heatmap[nearest].max(axis=0), HEATMAP)
        moment |= {
            f"{stream}_map": overlay(np.square(values[at if stream == "rgb" else nearest]), COLOURS[stream])
            for stream, values in maps.items()
        }
        moments.append(moment)
    return moments


def limbs_of(people: np.ndarray, skeleton: Skeleton) -> list[list[Any]]:
    """The limbs of people [M, V, 3] as (x1, y1, x2, y2, colour), in pixels of the RGB input."""
    return [
        [*(round(float(edge), 1) for edge in ends.ravel()), colour]
        for person in people
        for ends, colour in coloured_limbs(person, skeleton)
    ]


def jpeg(frame: np.ndarray) -> str:
    """A frame [S, S, 3] uint8 as a data URL, with at most SIDE pixels a side."""
    picture = Image.fromarray(frame)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    return data_url(picture, "jpeg", quality=QUALITY)


def overlay(values: np.ndarray, colour: str) -> str:
    """A map [H, W] of values from 0 to 1 as a data URL: a picture in one colour, opaque where the value is 1."""
    alpha = Image.fromarray((values.clip(0, 1) * 255).astype(np.uint8))
    alpha.thumbnail((OVERLAY, OVERLAY), Image.Resampling.BOX)
    picture = Image.new("RGB", alpha.size, ImageColor.getrgb(colour))
    picture.putalpha(alpha)
    return data_url(picture, "png")


def data_url(picture: Image.Image, kind: str, **options: Any) -> str:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
