"""Makes the pictures of docs/training.md, "Random changes of the training clips", from a generated clip of the demo.

    python docs/augmentation_pictures.py docs/pictures

Each picture shows a frame or its heatmaps without the change, and then with the changes of five epochs.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines.demo.classes import DemoConfig
from pipelines.view import ClipView, view_clip
from trainer.commands.view import pack_clip
from trainer.data import loader_of, open_tables
from trainer.experiments import DEMO
from trainer.runtime.ranks import Ranks

CPU = Ranks(0, 0, 1, torch.device("cpu"))
ROW, FRAME = 3, 2  # row of the clip that is drawn, and position of the drawn frame among its RGB frames
EPOCHS = 5  # number of epochs whose random changes are drawn
SIDE, GAP = 112, 4  # side of a picture, and space between two pictures, in pixels
CHANGES = {"color_jitter": 0.4, "erasing": 1.0, "joint_noise": 1.0, "joint_drop": 0.3}


def tile(view: ClipView, name: str) -> Image.Image:
    """A picture of the frame or, for a change of joints, of the largest heatmap value at each pixel."""
    assert view.rgb is not None
    assert view.heatmap is not None
    if name.startswith("joint"):
        frame = view.moment(int(view.rgb_frames[FRAME]))
        picture = Image.fromarray((view.heatmap[frame].max(axis=0).clip(0, 1) * 255).astype(np.uint8))
    else:
        picture = Image.fromarray(view.rgb[FRAME])
    return picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        files = {"annotations": f"{place}/annotations.pkl", "videos": f"{place}/videos", "cache": f"{place}/cache"}
        data = replace(DEMO.data, **files, demo=DemoConfig(num_train=12, num_val=12))
        still = replace(DEMO, data=data, clip=replace(DEMO.clip, crop=False, flip=0.0))
        table = open_tables(still)[0]
        source = pack_clip(still, table, ROW, Path(place) / "pack")
        for name, value in CHANGES.items():
            changed = replace(still, clip=replace(still.clip, **{name: value}))
            views = []
            for experiment, epoch in [(still, 0), *((changed, epoch) for epoch in range(EPOCHS))]:
                loader = loader_of(
                    experiment, source, np.array([ROW]), True, Ranks(0, 0, 1, torch.device("cpu")), print
                )
                views.append(view_clip(loader, ROW, epoch))
            strip = Image.new("RGB", (len(views) * (SIDE + GAP) - GAP, SIDE), "white")
            for number, view in enumerate(views):
                strip.paste(tile(view, name), (number * (SIDE + GAP), 0))
            strip.save(folder / f"{name}.png", optimize=True)
            print(folder / f"{name}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
