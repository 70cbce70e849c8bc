"""Results of an evaluation as files: metrics as JSON, scores as .npz, a line a class as CSV."""

import csv
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.metrics import Scores, confusion_matrix, main_scores


def make_folder(out: Path) -> None:
    """The folder of --out. Raises ValueError where it cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise ValueError(f"{out} cannot be written ({error.strerror}); name another folder with --out") from None


def write_metrics(path: Path, metrics: Mapping[str, float]) -> None:
    path.write_text(json.dumps(dict(metrics), indent=1) + "\n")


def write_scores(path: Path, scores: Scores, names: Sequence[str]) -> None:
    """name [N] text, label and coarse_label [N] int64, and the probabilities [N, K] float32 of each stream."""
    arrays: dict[str, Any] = {stream: probability.numpy() for stream, probability in scores.probability.items()}
    arrays |= {"label": scores.label.numpy(), "coarse_label": scores.coarse_label.numpy()}
    np.savez_compressed(path, name=np.array(names), **arrays)


def write_class_table(path: Path, scores: Scores, class_names: Sequence[str], coarse_map: Sequence[int]) -> None:
    """A line a class: clips, recall of every stream and of the fused scores, precision and F1 of the fused ones."""
    num_classes = main_scores(scores).shape[1]
    fused = confusion_matrix(main_scores(scores), scores.label)
    streams = [name for name in ("rgb", "pose") if name in scores.probability]
    counts = {name: confusion_matrix(scores.probability[name], scores.label) for name in streams}
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["class", "name", "coarse_class", "clips", "recall", "precision", "f1", *(f"recall_{s}" for s in streams)]
        )
        for number in range(num_classes):
            clips, predicted, right = fused[number].sum(), fused[:, number].sum(), fused[number, number]
            shares = [right / clips.clamp(min=1), right / predicted.clamp(min=1)]
            shares.append(2 * right / (clips + predicted).clamp(min=1))
            shares += [counts[stream][number, number] / clips.clamp(min=1) for stream in streams]
            name = class_names[number] if class_names else ""
            coarse = coarse_map[number] if coarse_map else ""
            writer.writerow([number, name, coarse, int(clips), *(f"{float(share):.4f}" for share in shares)])
