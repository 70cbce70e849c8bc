"""Coarse maps and class names."""

from collections import Counter

import pytest

from models.classes import (
    COARSE_MAPS,
    MA52_COARSE_NAMES,
    MA52_NAMES,
    NTU60_NAMES,
    NTU60_SEMANTIC8_NAMES,
    check_coarse_map,
    read_coarse_map,
)


def sizes(name: str) -> list[int]:
    counts = Counter(COARSE_MAPS[name])
    return [counts[group] for group in range(len(counts))]


def test_maps_have_the_sizes_of_their_groups():
    assert sizes("ma52") == [5, 6, 13, 8, 6, 10, 4]
    assert sizes("semantic8") == [5, 8, 12, 5, 10, 9, 5, 6]
    assert sizes("guide_div8") == [8] * 7 + [4]
    assert sizes("guide_ranges") == [10] * 4 + [5] * 4


def test_semantic8_means_what_its_groups_are_called():
    named = {NTU60_NAMES[fine]: NTU60_SEMANTIC8_NAMES[group] for fine, group in enumerate(COARSE_MAPS["semantic8"])}
    assert named["wipe face"] == "eat and groom"
    assert named["take off a hat/cap"] == "dressing"
    assert named["typing on a keyboard"] == "object or device handling"
    assert named["hopping"] == "posture and leg motion"
    assert named["cheer up"] == named["shake head"] == "hand or head gestures"
    assert named["hugging"] == "mutual friendly or approach"
    assert named["touch other's pocket"] == "mutual forceful"


def test_names_are_one_per_class():
    for names, count in ((MA52_NAMES, 52), (MA52_COARSE_NAMES, 7), (NTU60_NAMES, 60), (NTU60_SEMANTIC8_NAMES, 8)):
        assert len(names) == len(set(names)) == count
    assert (NTU60_NAMES[0], NTU60_NAMES[26], NTU60_NAMES[42], NTU60_NAMES[59]) == (
        "drink water",
        "jump up",
        "falling",
        "walking apart",
    )
    groups = [MA52_COARSE_NAMES[group] for group in COARSE_MAPS["ma52"]]
    assert (groups[MA52_NAMES.index("rising up")], groups[MA52_NAMES.index("tiptoe")]) == ("body", "lower limb")
    assert groups[MA52_NAMES.index("rubbing eyes")] == "head-hand"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([0, 1, 1], "has 3 entries for 4 classes"),
        ([0, 1, 2, 1], "assigns class 2 to coarse class 2: use numbers from 0 to 1"),
        ([0, -1, 1, 1], "assigns class 1 to coarse class -1"),
        ([0, 0, 0, 0], "assigns no class to coarse class 1"),
    ],
)
def test_a_bad_map_is_refused_in_one_sentence(values, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        check_coarse_map(values, 4, 2)
    assert "\n" not in str(caught.value)


def test_a_map_is_read_by_name_or_from_a_file(tmp_path):
    assert read_coarse_map("guide_div8", 60) == COARSE_MAPS["guide_div8"]
    path = tmp_path / "map.txt"
    path.write_text("0, 0 1\n2")
    assert read_coarse_map(path, 4) == (0, 0, 1, 2)
    with pytest.raises(ValueError, match=r"map\.txt: the coarse map has 4 entries for 5 classes"):
        read_coarse_map(path, 5)
    with pytest.raises(ValueError, match="ma52: the coarse map has 52 entries for 60"):
        read_coarse_map("ma52", 60)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("0 one", "contains 'one'"), ("0 --1", "contains '--1'"), ("", "is empty"), (None, "No such file")],
)
def test_a_file_that_is_no_map_is_named(tmp_path, text, sentence):
    path = tmp_path / "map.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=sentence) as caught:
        read_coarse_map(path, 4)
    assert "map.txt" in str(caught.value)
