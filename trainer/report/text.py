"""Draws text in pictures: in fonts that have its characters, without markup, and without matplotlib's warnings.

Matplotlib's own font has no Chinese, Japanese or Korean characters. The fonts that are installed on this machine are
searched for the characters that a picture needs.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from PIL import ImageDraw, ImageFont

from kernels.names import printable

# Parts of the names of fonts with Chinese characters, best first. Fonts with other names are searched last.
PREFERRED = (
    "notosanscjk",
    "notosanssc",
    "sourcehansans",
    "wqy",
    "wenquanyi",
    "droidsansfallback",
    "notoserifcjk",
    "arphic",
)
SMALLEST = 9  # smallest size of the type in a caption, in pixels


@cache
def fonts() -> tuple[Path, ...]:
    """The files of all fonts on this machine. The first is matplotlib's own DejaVu Sans, which is always there."""
    own = Path(font_manager.findfont("DejaVu Sans"))
    found = {Path(path) for path in font_manager.findSystemFonts(fontext="ttf")} - {own}

    def rank(path: Path) -> tuple[int, int, str]:
        name = path.name.lower().replace("-", "").replace("_", "")
        places = [place for place, part in enumerate(PREFERRED) if part in name]
        return (min(places, default=len(PREFERRED)), "bold" in name or "italic" in name or "oblique" in name, str(path))

    return own, *sorted(found, key=rank)


@cache
def characters(font: Path) -> frozenset[int]:
    """The characters that a font can draw at every size; none for a file that cannot be read."""
    try:
        face = FT2Font(str(font))
    except RuntimeError:
        return frozenset()
    return frozenset(face.get_charmap()) if face.scalable else frozenset()


def fonts_for(text: str) -> list[Path]:
    """Fonts that together have as many characters of the text as possible, DejaVu Sans first."""
    chosen, missing = [fonts()[0]], {ord(char) for char in text} - characters(fonts()[0])
    for font in fonts()[1:]:
        if not missing:
            break
        if missing & characters(font):
            chosen.append(font)
            missing -= characters(font)
    return chosen


def missing_in_fonts(text: str) -> str:
    """The characters of the text that no font on this machine can draw."""
    chosen = fonts_for(text)
    return "".join(dict.fromkeys(char for char in text if not any(ord(char) in characters(font) for font in chosen)))


def drawable(text: str) -> str:
    """The text with each character that no font can draw replaced by its code, such as U+559D."""
    text = printable(text)
    missing = set(missing_in_fonts(text))
    return "".join(f"U+{ord(char):04X} " if char in missing else char for char in text).rstrip()


def class_names_in_pictures(names: Sequence[str]) -> list[str]:
    """The names of classes as pictures show them. If a name cannot be drawn, the class's number takes its place."""
    names = [printable(name) for name in names]
    missing = set(missing_in_fonts("".join(names)))
    if missing:
        _say_missing("".join(sorted(missing)[:10]))
    return [f"class {number}" if missing & set(name) else name for number, name in enumerate(names)]


@cache
def _say_missing(examples: str) -> None:
    print(
        f"no font on this machine has the characters {examples} of the class names, so pictures show the numbers of "
        "these classes: install a font that has the characters, such as the package fonts-noto-cjk",
        file=sys.stderr,
    )


@contextlib.contextmanager
def plain_text(figure: Figure) -> Iterator[None]:
    """A context in which a figure is drawn with literal text, in fonts that have its characters, without warnings."""
    # drops matplotlib's warnings that a font has no light or bold variant
    log = logging.getLogger("matplotlib.font_manager")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        _prepare_text(figure)
        yield
    finally:
        log.setLevel(level)


def _prepare_text(figure: Figure) -> None:
    for axes in figure.axes:
        axes.get_xticklabels()  # creates the labels, so that findobj finds them with their text
        axes.get_yticklabels()
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    for text in texts:
        text.set_parse_math(False)
        text.set_text(drawable_lines(text.get_text()))
    families = []
    for font in fonts_for("".join(text.get_text() for text in texts)):
        if str(font) not in {entry.fname for entry in font_manager.fontManager.ttflist}:
            # adds a font that was installed after matplotlib made its list of fonts
            font_manager.fontManager.addfont(str(font))
        families.append(font_manager.FontProperties(fname=str(font)).get_name())
    for text in texts:
        text.set_fontfamily(families)


def drawable_lines(text: str) -> str:
    """Apply `drawable` to each line of a text."""
    return "\n".join(drawable(line) for line in text.split("\n"))


def draw_line(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, width: int, size: int, colour: str) -> None:
    """Draw one line of text at `place`, the left upper corner, in type of `size` pixels.

    If the line is wider than `width` pixels, it is drawn in smaller type, and characters that still do not fit are cut
    off.
    """
    text = drawable(text)
    runs = _runs(text)
    length = _length(runs, size)
    if length > width:
        size = max(SMALLEST, int(size * width / length))
    while len(text) > 1 and _length(runs, size) > width:
        text = text[:-2].rstrip() + "…"
        runs = _runs(text)
    x = place[0]
    for part, font in runs:
        face = ImageFont.truetype(str(font), size)
        draw.text((x, place[1]), part, colour, face)
        x += round(face.getlength(part))


def _runs(text: str) -> list[tuple[str, Path]]:
    """The text in parts, each with a font that can draw this part."""
    chosen, runs = fonts_for(text), []
    for char in text:
        font = next((font for font in chosen if ord(char) in characters(font)), chosen[0])
        if runs and runs[-1][1] == font:
            runs[-1] = (runs[-1][0] + char, font)
        else:
            runs.append((char, font))
    return runs


def _length(runs: Sequence[tuple[str, Path]], size: int) -> float:
    return sum(ImageFont.truetype(str(font), size).getlength(part) for part, font in runs)
