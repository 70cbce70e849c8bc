"""The folder of published outputs, case by case; facts that another folder lacks come from the default one."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import SHARED
from tests.parity.published import load_json


@pytest.fixture(scope="session")
def located(fixtures: Path) -> Callable[[str], Path]:
    """Finds a file that says how cases were made (shapes, labels, keys, inputs); skips where there is none."""

    def find(name: str) -> Path:
        for folder in (fixtures, SHARED / "fixtures"):
            if (folder / name).exists():
                return folder / name
        pytest.skip(f"no {name} in {fixtures}")

    return find


@pytest.fixture(scope="session")
def facts(located: Callable[[str], Path]) -> Callable[[str], dict]:
    """Reads such a file of JSON."""
    return lambda name: load_json(located(name))


@pytest.fixture(scope="session")
def cases(fixtures: Path) -> Callable[[str], list[Path]]:
    """All case files of a kind, by a pattern; skips where there is none."""

    def find(pattern: str) -> list[Path]:
        found = sorted(fixtures.glob(pattern))
        if not found:
            pytest.skip(f"no {pattern} in {fixtures}")
        return found

    return find
