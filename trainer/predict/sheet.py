"""The sheet of `predict`, NAME.png: some windows as the networks see them, with skeletons and Grad-CAM maps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipelines.batch import Batch
from pipelines.plan import ClipPlan
from pipelines.skeleton import Skeleton
from pipelines.view import place_joints
from trainer.predict.result import Prediction, Window, seconds_of, top
from trainer.predict.video import Explanation
from trainer.report.contact_sheet import SIDE, contact_sheet
from trainer.report.grad_cam import COLOURS
from trainer.report.skeleton_drawing import draw_skeletons
from trainer.report.text import class_names_in_pictures


@dataclass(frozen=True, slots=True)
class SheetColumn:
    """A window in the sheet. batch: the window's inputs, on the CPU.

    joints: [M, T, V, 3], in pixels of the annotation.
    """

    window: Window
    batch: Batch
    plan: ClipPlan
    explanation: Explanation | None
    joints: np.ndarray


def write_sheet(path: Path, columns: Sequence[SheetColumn], prediction: Prediction, skeleton: Skeleton) -> None:
    """Write a PNG of the windows. Titles give the best class, and the frames of the window."""
    names = class_names_in_pictures(prediction.class_names)
    parts = [column.batch.tensors() for column in columns]
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    batch = replace(columns[0].batch, **joined | {"label": torch.arange(len(columns))})
    plans = {
        name: np.concatenate([getattr(column.plan, name) for column in columns]) for name in ("row", "box", "flip")
    }
    frames = {
        name: np.concatenate([column.window.start + getattr(column.plan, name) for column in columns])
        for name in ("rgb_frames", "pose_frames")
    }
    titles = [_title(column.window, names, prediction) for column in columns]
    explained = columns[0].explanation.maps if columns[0].explanation else ()
    drawn = torch.cat([_drawn(column, skeleton) for column in columns])
    legend = [(f"Grad-CAM, {stream}", COLOURS[stream]) for stream in explained]
    contact_sheet(path, batch, ClipPlan(**plans, **frames), titles, "window", legend, drawn)


def _title(window: Window, names: Sequence[str], prediction: Prediction) -> str:
    ((_, name, share),) = top(next(iter(window.probability.values())), names, 1)
    person = "" if window.person is None else f"person {window.person + 1}, "
    place = f"frames {window.start} to {window.end - 1} ({seconds_of(window, prediction.times)})"
    return f"{person}{name}  {share:.0%}, {place}"


def _drawn(column: SheetColumn, skeleton: Skeleton) -> Tensor:
    """The RGB frames of a window, [1, T, SIDE, SIDE, 3] uint8, with skeletons.

    If the batch has no RGB frames, the frames are black.
    """
    plan, rgb = column.plan, column.batch.rgb
    joints = column.joints[:, plan.rgb_frames[0]].swapaxes(0, 1).astype(np.float64)  # [T, M, V, 3]
    placed = place_joints(joints, plan.box[0], bool(plan.flip[0]), SIDE)
    pictures = []
    for moment, people in enumerate(placed):
        pixels = np.zeros((SIDE, SIDE, 3), np.uint8) if rgb is None else rgb[0, moment].numpy()
        picture = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        if column.explanation is not None:
            whole = replace(column.explanation, box=(0.0, 0.0, 1.0, 1.0))
            number = column.window.start + int(plan.rgb_frames[0, moment])
            picture = Image.fromarray(whole.draw(np.asarray(picture), number))
        draw_skeletons(picture, people, skeleton)
        pictures.append(np.asarray(picture))
    return torch.from_numpy(np.stack(pictures))[None]
