"""Fixtures that find published outputs. Files that describe cases are also looked up in shared/fixtures."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import SHARED
from tests.parity.published import load_json


@pytest.fixture(scope="session")
def located(fixtures: Path) -> Callable[[str], Path]:
    """Return a function that finds a file by its name. It skips the test if the file is missing.

    Such a file describes cases: their shapes, labels, keys and inputs.
    """

    def find(name: str) -> Path:
        for folder in (fixtures, SHARED / "fixtures"):
            if (folder / name).exists():
                return folder / name
        pytest.skip(f"no {name} in {fixtures}")

    return find


@pytest.fixture(scope="session")
def facts(located: Callable[[str], Path]) -> Callable[[str], dict]:
    """Return a function that reads a JSON file of inputs and of the published code's outputs."""
    return lambda name: load_json(located(name))


@pytest.fixture(scope="session")
def cases(fixtures: Path) -> Callable[[str], list[Path]]:
    """Return a function that lists all case files that match a pattern. It skips the test if there are none."""

    def find(pattern: str) -> list[Path]:
        found = sorted(fixtures.glob(pattern))
        if not found:
            pytest.skip(f"no {pattern} in {fixtures}")
        return found

    return find
