"""What is drawn over an annotated video: bars with the best classes, a timeline of windows, and labels of people."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from trainer.predict.result import Times, Window, seconds_of, top
from trainer.report.grad_cam import COLOURS as LOOKED
from trainer.report.text import draw_line

BARS = 3  # number of classes that get a bar, if the picture has room
ROOM = 0.4  # largest share of the picture's height that the panel may cover
MOST_PEOPLE = 4  # the panel and the timeline show at most this many people
DARK, TEXT, FAINT, TRACK = "#14213d", "#ffffff", "#b8c4d6", "#3d4a66"
OPACITY = 190  # opacity of the panel, from 0 to 255
CLASS_COLOURS = ("#fca311", "#2a9d8f", "#e76f51", "#9b5de5", "#00bbf9", "#90be6d", "#f15bb5", "#c9ada7")


def class_colour(label: int) -> str:
    """The colour that stands for a class in the bars, in the timeline and in the labels of people."""
    return CLASS_COLOURS[label % len(CLASS_COLOURS)]


@dataclass(frozen=True, slots=True)
class Span:
    """The windows whose classes an annotated video shows from `begin` to `end`, in seconds.

    There is one window for all people, or one window for each person.
    """

    begin: float
    end: float
    windows: list[Window]


def panel_of(
    size: tuple[int, int], windows: Sequence[Window], names: Sequence[str], times: Times, explained: Sequence[str]
) -> Image.Image:
    """A half transparent panel with the best classes of the windows, for a picture of `size` (width, height).

    explained: the streams whose Grad-CAM maps are drawn in the video, and whose colours the panel names.
    """
    width, height = size
    line = max(11, height // 26)
    room = max(1, int(ROOM * height / line))  # number of lines in the panel
    panel_width = min(width, max(110, round(0.42 * width)))
    window = windows[0]
    rows = (_person_rows(windows, names) if window.person is not None else _class_rows(window, names))[:room]
    notes = [f"{stream}: {name} {share:.0%}" for stream, name, share in _other_streams(window, names)]
    notes = [] if window.person is not None else notes
    notes.append(f"frames {window.start} to {window.end - 1} ({seconds_of(window, times)})")
    looked = [(f"where {stream} looked", LOOKED[stream]) for stream in explained]
    small = (looked + [(note, FAINT) for note in notes])[: room - len(rows)]
    panel = Image.new("RGBA", (panel_width, (len(rows) + len(small)) * line + 6), (*_rgb(DARK), OPACITY))
    draw, y = ImageDraw.Draw(panel), 3
    for text, share, colour in rows:
        right = 3 + round((panel_width - 6) * share)
        draw.rectangle((3, y, panel_width - 4, y + line - 3), TRACK)
        draw.rectangle((3, y, max(3, right - 1), y + line - 3), colour)
        draw_line(draw, (6, y), f"{share:4.0%} {text}", panel_width - 12, round(0.74 * line), TEXT)
        y += line
    for text, colour in small:
        draw_line(draw, (6, y), text, panel_width - 12, round(0.66 * line), colour)
        y += line
    return panel


def _class_rows(window: Window, names: Sequence[str]) -> list[tuple[str, float, str]]:
    """The best classes by the main score: (name, probability, colour)."""
    best = top(next(iter(window.probability.values())), names, BARS)
    return [(name, share, class_colour(label)) for label, name, share in best]


def _person_rows(windows: Sequence[Window], names: Sequence[str]) -> list[tuple[str, float, str]]:
    """The best class of each person: (text, probability, colour)."""
    return [(f"{number}: {name}", share, class_colour(label)) for number, label, name, share in best_of(windows, names)]


def best_of(windows: Sequence[Window], names: Sequence[str]) -> list[tuple[int, int, str, float]]:
    """The best class of each person, for the first MOST_PEOPLE: (number from 1, class, name, probability)."""
    rows = []
    for window in windows[:MOST_PEOPLE]:
        ((label, name, share),) = top(next(iter(window.probability.values())), names, 1)
        rows.append(((window.person or 0) + 1, label, name, share))
    return rows


def _other_streams(window: Window, names: Sequence[str]) -> list[tuple[str, str, float]]:
    """The best class by each score except the main score: (stream, name, probability)."""
    streams = list(window.probability.items())[1:]
    return [(stream, *top(score, names, 1)[0][1:]) for stream, score in streams]


def timeline(width: int, height: int, spans: Sequence[Span], now: float, reach: tuple[float, float]) -> Image.Image:
    """A strip of `width` x `height` pixels: colours show the best class of each span, and a mark shows the time `now`.

    reach: the times, in seconds, at the left and at the right end of the strip. Each person has a line in the strip.
    """
    strip = Image.new("RGB", (width, height), DARK)
    draw, (left, right) = ImageDraw.Draw(strip), reach
    scale = width / max(right - left, 1e-6)
    people = sorted({window.person for span in spans for window in span.windows}, key=lambda person: person or 0)
    rows = {person: row for row, person in enumerate(people[:MOST_PEOPLE])}
    for span in spans:
        for window in span.windows:
            if window.person in rows:
                label = int(next(iter(window.probability.values())).argmax())
                top_edge, bottom = (round(height * (rows[window.person] + i) / len(rows)) for i in (0, 1))
                x = round((span.begin - left) * scale), round((span.end - left) * scale) - 2
                draw.rectangle((x[0], top_edge + 1, max(x), bottom - 1), class_colour(label))
    place = round((now - left) * scale)
    draw.rectangle((place - 1, 0, place, height), TEXT)
    return strip


def draw_tag(picture: Image.Image, place: tuple[float, float], text: str, colour: str) -> None:
    """Draw the label of a person. The middle of its lower edge is at `place` (x, y), if the picture has room."""
    size = max(10, picture.height // 32)
    width, height = min(picture.width, round(0.62 * size * len(text)) + 8), size + 6
    x = round(min(max(place[0] - width / 2, 0), picture.width - width))
    y = round(min(max(place[1] - height, 0), picture.height - height))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((x, y, x + width, y + height), DARK)
    draw.rectangle((x, y, x + 3, y + height), colour)
    draw_line(draw, (x + 6, y + 2), text, width - 8, size, TEXT)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:], 16)
