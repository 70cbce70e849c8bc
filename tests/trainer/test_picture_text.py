"""Pictures show class names legibly and literally, and libraries print no warnings about them.

An installed font draws the characters that it has. Up to 120 names fit without overlapping.
"""

import itertools
import logging
import warnings
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.image import imread
from PIL import Image

from models.classes import MA52, MA52_NAMES, NTU60_NAMES, NTU60_SEMANTIC8, coarse_names
from pipelines.videos.times import FrameTimes
from trainer.predict.panel import panel_of
from trainer.predict.result import Window
from trainer.report import text as report_text
from trainer.report.confusion import draw_confusion
from trainer.report.curves import write_png
from trainer.report.text import class_names_in_pictures, drawable, fonts, fonts_for, missing_in_fonts

CHINESE = ("喝水", "吃饭", "刷牙")
TIMES = FrameTimes(np.arange(5), Fraction(1, 30))
MARKUP = ("a$b$c", r"$\frac{1}{$", "x_{1}^2", "100 %", "<b>&amp;</b>", "[red]")


def panel(names: Sequence[str], width: int) -> Image.Image:
    """Return the panel, with a bar for each class, of an annotated video that is `width` pixels wide."""
    window = Window(0, 4, {"fused": torch.linspace(1, 0, len(names) + 1)[:-1]})
    return panel_of((width, width), [window], names, TIMES, [])


@pytest.fixture
def said(caplog):
    """Yield a function that returns what libraries would print: warnings and log lines."""
    with warnings.catch_warnings(record=True) as seen, caplog.at_level(logging.WARNING):
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", ResourceWarning)  # earlier tests may have left files open
        yield lambda: [str(warning.message) for warning in seen] + caplog.messages


@pytest.fixture(params=["with the fonts of this machine", "without Chinese fonts"])
def some_fonts(request, monkeypatch):
    if request.param == "without Chinese fonts":
        monkeypatch.setattr(report_text, "fonts", lambda: fonts()[:1])


@pytest.mark.parametrize("names", [CHINESE, MARKUP, ("один", "δύο", "três")], ids=["Chinese", "markup", "other"])
def test_no_name_makes_a_library_complain(tmp_path: Path, names, said, some_fonts) -> None:
    counts = np.eye(len(names)) + 1
    write_png(draw_confusion(counts, names, tuple(range(len(names)))), tmp_path / "a.png")
    panel(names, 200)
    assert said() == []


def test_names_that_no_font_has_become_class_numbers(monkeypatch, capsys) -> None:
    monkeypatch.setattr(report_text, "fonts", lambda: fonts()[:1])
    report_text._say_missing.cache_clear()  # the message appears only once per process
    assert class_names_in_pictures(("wave", *CHINESE)) == ["wave", "class 1", "class 2", "class 3"]
    assert "no font on this machine has the characters" in capsys.readouterr().err
    panels = [np.asarray(panel((name,), 300)) for name in CHINESE]
    assert not np.array_equal(panels[0], panels[1])
    assert drawable("喝水 90 %") == "U+559D U+6C34  90 %"


@pytest.fixture
def chinese_font(tmp_path: Path, monkeypatch) -> Path:
    """Return a font in which each Chinese character is a box of its own height. It replaces the user's fonts."""
    characters = sorted(set("".join(CHINESE)))
    glyphs = {".notdef": (0, 0)} | {f"box{number}": (100, 200 + 100 * number) for number in range(len(characters))}
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(list(glyphs))
    builder.setupCharacterMap({ord(char): f"box{number}" for number, char in enumerate(characters)})
    outlines = {}
    for name, (low, high) in glyphs.items():
        pen = TTGlyphPen(None)
        pen.moveTo((50, low))
        for corner in ((50, high), (950, high), (950, low)):
            pen.lineTo(corner)
        pen.closePath()
        outlines[name] = pen.glyph()
    builder.setupGlyf(outlines)
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 50)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Boxes", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "boxes.ttf")
    own = fonts()[0]
    monkeypatch.setattr(report_text, "fonts", lambda: (own, tmp_path / "boxes.ttf"))
    return tmp_path / "boxes.ttf"


def test_an_installed_font_draws_chinese(tmp_path: Path, chinese_font, said) -> None:
    assert not missing_in_fonts("喝水")
    assert class_names_in_pictures(CHINESE) == list(CHINESE)
    assert fonts_for("drink 喝水") == [fonts()[0], chinese_font]
    panels = [np.asarray(panel((name,), 300)) for name in CHINESE]
    assert not np.array_equal(panels[0], panels[1])
    pictures = []
    for names in (CHINESE, CHINESE[::-1]):
        write_png(draw_confusion(np.eye(3), names), tmp_path / "a.png")
        pictures.append(imread(tmp_path / "a.png"))
    assert pictures[0].shape != pictures[1].shape or not np.array_equal(*pictures)
    assert said() == []


def test_control_characters_in_names_are_shown_as_their_codes(capsys) -> None:
    assert class_names_in_pictures(("a\nb", "\x1b[2J")) == ["a\\nb", "\\x1b[2J"]
    assert capsys.readouterr().err == ""


def test_markup_is_drawn_as_it_is(tmp_path: Path) -> None:
    pictures = []
    for names in (("a$b$c", "d"), ("abc", "d")):
        write_png(draw_confusion(np.eye(2), names), tmp_path / "a.png")
        pictures.append(imread(tmp_path / "a.png"))
    assert pictures[0].shape != pictures[1].shape or not np.array_equal(*pictures)
    figure = draw_confusion(np.eye(2), ("a$b$c", "d"))
    write_png(figure, tmp_path / "a.png")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a$b$c", "d"]
    assert not any(label.get_parse_math() for label in figure.axes[0].get_yticklabels())


@pytest.mark.parametrize(
    ("names", "groups"), [(NTU60_NAMES, NTU60_SEMANTIC8), (MA52_NAMES, MA52)], ids=["NTU-60", "MA-52"]
)
def test_long_lists_of_names_do_not_overlap_and_groups_are_named(tmp_path: Path, names, groups) -> None:
    figure = draw_confusion(np.eye(len(names)), names, groups, coarse_names(groups))
    write_png(figure, tmp_path / "a.png")
    matrix = figure.axes[0]
    boxes = [label.get_window_extent() for label in matrix.get_yticklabels()]
    assert all(above.y0 >= below.y1 for above, below in itertools.pairwise(boxes))
    assert min(box.height for box in boxes) >= 9  # pixels
    assert min(box.x0 for box in boxes) > 0
    assert {text.get_text() for text in matrix.texts} == set(coarse_names(groups))
    right = max(text.get_window_extent().x1 for text in matrix.texts)
    assert right < figure.axes[1].get_window_extent().x0


def test_panels_of_a_video_have_the_same_size() -> None:
    assert len({panel((name, "b", "c"), 160).size for name in ("a", "long name " * 20, *CHINESE)}) == 1
