"""Makes docs/demo.gif, the picture of README, from a finished run of the demo.

    python -m trainer eval work_dirs/demo
    python docs/demo_gif.py work_dirs/demo docs/demo.gif

For a few validation clips the picture shows, from left to right, the frames of the video with the skeleton, the
largest heatmap value of all joints, and the three classes with the highest scores of RGB and pose together.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kernels.heatmap.reference import render_heatmaps
from pipelines.annotations.table import ClipTable, open_table
from pipelines.skeleton import Skeleton
from pipelines.videos.decode import decode, in_rgb
from trainer.metrics import main_scores
from trainer.report.skeleton_drawing import draw_skeletons
from trainer.report.text import fonts
from trainer.scores.files import read_scores, scores_in

NUM_CLIPS, NUM_FRAMES = 4, 16  # number of clips in the picture, and of frames of each clip
SIDE, BARS, TITLE = 192, 210, 24  # pixels: height of a frame, width of the scores, height of the titles
MILLISECONDS = 110  # time for which a frame is shown
DARK, BRIGHT, RIGHT, WRONG = "#101418", "#f4f5f7", "#4cc9f0", "#ff8fab"


def heatmap_of(joints: np.ndarray, width: int, height: int) -> Image.Image:
    """The largest heatmap value at each pixel, drawn at a quarter of the frame's size. joints: [M, V, 3] in pixels."""
    placement = torch.tensor([[0.25, 0.0, 0.25, 0.0]])
    people = torch.from_numpy(joints[None, None].astype(np.float32))
    volume = render_heatmaps(people, (height // 4, width // 4), 1.0, placement=placement)
    colours = colormaps["inferno"](volume[0, 0].amax(0).numpy())[..., :3]
    return Image.fromarray((colours * 255).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)


def draw_scores(scores: np.ndarray, label: int, names: tuple[str, ...]) -> Image.Image:
    """Bars for the three highest scores [K]. The bar of the right class is blue, and all other bars are pink."""
    picture = Image.new("RGB", (BARS, SIDE), DARK)
    draw, face = ImageDraw.Draw(picture), ImageFont.truetype(str(fonts()[0]), 14)
    for place, fine in enumerate(scores.argsort()[::-1][:3].tolist()):
        top, colour = 12 + 58 * place, RIGHT if fine == label else WRONG
        draw.text((14, top), f"{names[fine]}  {scores[fine]:.0%}", BRIGHT, face)
        draw.rectangle((14, top + 24, BARS - 14, top + 38), "#2a323b")
        draw.rectangle((14, top + 24, 14 + (BARS - 28) * float(scores[fine]), top + 38), colour)
    return picture


def draw_clip(table: ClipTable, row: int, video: Path, skeleton: Skeleton, bars: Image.Image) -> list[Image.Image]:
    """The frames of one clip."""
    joints, total = table.clip_joints(row).astype(np.float64), int(table.total_frames[row])
    chosen, pictures = set(np.linspace(0, total - 1, NUM_FRAMES).astype(int).tolist()), []
    face = ImageFont.truetype(str(fonts()[0]), 14)
    for number, frame in enumerate(decode(str(video), total)):
        if number in chosen:
            person = Image.fromarray(in_rgb(frame))
            heatmap = heatmap_of(joints[:, number], *person.size)
            draw_skeletons(person, joints[:, number], skeleton)
            width = round(person.width * SIDE / person.height)
            picture = Image.new("RGB", (2 * width + BARS, SIDE + TITLE), DARK)
            for place, (part, title) in enumerate(((person, "video and skeleton"), (heatmap, "heatmap"))):
                picture.paste(part.resize((width, SIDE)), (place * width, TITLE))
                ImageDraw.Draw(picture).text((place * width + 8, 5), title, BRIGHT, face)
            picture.paste(bars, (2 * width, TITLE))
            ImageDraw.Draw(picture).text((2 * width + 14, 5), "prediction", BRIGHT, face)
            pictures.append(picture)
    return pictures


def main(run: Path, out: Path) -> None:
    stored = read_scores(scores_in(run))
    assert stored.experiment is not None
    data, scores = stored.experiment.data, main_scores(stored.scores)
    table = open_table(Path(data.annotations), Path(data.cache))
    rows = {str(name): row for row, name in enumerate(table.names)}
    shown: dict[int, int] = {}  # for each label, the number of its first clip, in the order of the scores
    for number, label in enumerate(stored.scores.label.tolist()):
        shown.setdefault(label, number)
    pictures = []
    for label, number in list(shown.items())[:: max(1, len(shown) // NUM_CLIPS)][:NUM_CLIPS]:
        share = scores[number] / scores[number].sum()  # the main scores are sums of two streams, so they add up to 2
        bars = draw_scores(share.numpy(), label, data.class_names)
        video = Path(data.videos) / f"{stored.names[number]}.mp4"
        skeleton = stored.experiment.clip.skeleton
        pictures += draw_clip(table, rows[stored.names[number]], video, skeleton, bars)
    palette = pictures[0].quantize(64)
    small = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    small[0].save(out, save_all=True, append_images=small[1:], duration=MILLISECONDS, loop=0, optimize=True)
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
