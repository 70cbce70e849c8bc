"""Checks the coarse maps, which assign each class to a coarse class, and the names of classes."""

from collections import Counter

import pytest

from models.classes import (
    COARSE_MAPS,
    MA52_COARSE_NAMES,
    MA52_NAMES,
    NTU60_NAMES,
    NTU120_NAMES,
    SEMANTIC8_NAMES,
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
    named = {NTU60_NAMES[fine]: SEMANTIC8_NAMES[group] for fine, group in enumerate(COARSE_MAPS["semantic8"])}
    assert named["wipe face"] == "eat and groom"
    assert named["take off a hat/cap"] == "dressing"
    assert named["typing on a keyboard"] == "object or device handling"
    assert named["hopping"] == "posture and leg motion"
    assert named["cheer up"] == named["shake head"] == "hand or head gestures"
    assert named["hugging"] == "mutual friendly or approach"
    assert named["touch other's pocket"] == "mutual forceful"


def test_semantic8_of_ntu120_keeps_the_official_division():
    """Checks the division of Liu et al. into three kinds of actions.

    Daily actions are A1-40 and A61-102, medical ones A41-49 and A103-105, mutual ones A50-60 and A106-120.
    """
    groups = COARSE_MAPS["semantic8_ntu120"]
    assert groups[:60] == COARSE_MAPS["semantic8"]
    assert sizes("semantic8_ntu120") == [9, 12, 29, 10, 22, 12, 11, 15]
    for action, group in enumerate(groups, 1):
        medical = 41 <= action <= 49 or 103 <= action <= 105
        mutual = 50 <= action <= 60 or action >= 106
        assert (group == 5, group in (6, 7)) == (medical, mutual)
    named = {NTU120_NAMES[fine]: SEMANTIC8_NAMES[group] for fine, group in enumerate(groups)}
    assert named["cutting nails"] == named["flick hair"] == "eat and groom"
    assert named["put on headphone"] == named["take off bag"] == "dressing"
    assert named["throw up cap/hat"] == named["tennis bat swing"] == "object or device handling"
    assert named["side kick"] == named["squat down"] == "posture and leg motion"
    assert named["hush"] == named["arm circles"] == named["cross arms"] == "hand or head gestures"
    assert named["step on foot"] == "mutual forceful"
    assert named["finger-guessing game"] == "mutual friendly or approach"


def test_names_are_one_per_class():
    for names, count in (
        (MA52_NAMES, 52),
        (MA52_COARSE_NAMES, 7),
        (NTU60_NAMES, 60),
        (NTU120_NAMES, 120),
        (SEMANTIC8_NAMES, 8),
    ):
        assert len(names) == len(set(names)) == count
    assert (NTU60_NAMES[0], NTU60_NAMES[26], NTU60_NAMES[42], NTU60_NAMES[59]) == (
        "drink water",
        "jump up",
        "falling",
        "walking apart",
    )
    assert (NTU120_NAMES[60], NTU120_NAMES[99], NTU120_NAMES[119]) == (
        "put on headphone",
        "butt kicks",
        "finger-guessing game",
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
