"""Names of unknown origin send no control codes to a terminal, and never become file names that cannot be created."""

import os
from pathlib import Path

import pytest

from kernels.names import LONGEST, printable, safe_name, safe_stem
from kernels.whole_files import temporary


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("S001C001 (2).mp4", "S001C001 (2).mp4"),
        ("喝水 👩‍🚀 é", "喝水 👩‍🚀 é"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("txt.\u202e4pm", "txt.\\u202e4pm"),
        (os.fsdecode(b"\xff\xe9.mp4"), "\\xff\\xe9.mp4"),
    ],
)
def test_a_terminal_shows_the_name_and_nothing_else(text, expected):
    assert printable(text) == expected


def test_a_long_name_is_shortened_in_the_middle():
    assert printable("a" * 200 + "z.mp4", 60) == f"{'a' * 37}...{'a' * 15}z.mp4"
    assert printable("a" * 60, 60) == "a" * 60


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("S001C001P001R001A001", "S001C001P001R001A001"),
        ("a/b", "a/b"),
        ("a//b", "a/b"),
        ("10:30 'walk'", "10_30 _walk_"),
        ("-rf", "_rf"),
        ("a\nb", "a_b"),
        ("../../etc", "etc"),
        (os.fsdecode(b"\xff"), "_"),
        ("喝水" * 60, "喝水" * 20),
    ],
)
def test_new_files_have_safe_names(name, safe):
    assert safe_name(name) == safe


def test_files_beside_each_other_keep_apart_and_fit_into_the_file_system(tmp_path: Path):
    stems = [safe_stem(Path(f"{name}.mp4")) for name in ("a:b", "a*b", "x" * 248, "x" * 247 + "y", "plain")]
    assert len(set(stems)) == 5
    assert stems[-1] == "plain"
    assert max(map(len, stems)) <= LONGEST + 9
    temporary(tmp_path / ("x" * 250)).touch()
