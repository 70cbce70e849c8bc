"""Makes mutants of kernels (copies of a module, broken on purpose), and chooses which cases `make test` runs."""

import importlib.util
import itertools
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
from triton.runtime.errors import InterpreterError

_numbers = itertools.count()


def broken(fused: ModuleType, old: str, new: str, folder: Path) -> ModuleType:
    """Return a copy of the module with `old` replaced by `new` everywhere. Its operators get their own namespace."""
    source = Path(fused.__file__).read_text()
    assert old in source
    number = next(_numbers)
    path = folder / f"mutant_{number}.py"
    path.write_text(source.replace(old, new).replace('"duet::', f'"duet_mutant_{number}::'))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def broken_below(
    monkeypatch: pytest.MonkeyPatch,
    modules: tuple[ModuleType, ...],
    module: ModuleType,
    old: str,
    new: str,
    folder: Path,
) -> tuple[ModuleType, ModuleType]:
    """Break `module`. Returns the broken copy, and a copy of the last of `modules`, which uses the broken copy.

    Each module in `modules` imports the modules before it.
    """
    mutant = top = broken(module, old, new, folder)
    for below, above in itertools.pairwise(modules[modules.index(module) :]):
        monkeypatch.setitem(sys.modules, below.__name__, top)
        top = broken(above, "", "", folder)
    return mutant, top


def dies(checks: Iterable[Callable[[], list[str]]]) -> bool:
    """Return whether one of the checks reports a failure or accesses memory outside of the tensors."""
    for check in checks:
        try:
            if check():
                return True
        except InterpreterError as error:
            if "IndexError" in str(error):
                return True
            raise
    return False


def a_share(names: Iterable[str], every: int = 12, slow: Collection[str] = ()) -> list:
    """Return the names as parameters of a test.

    `make test` runs every n-th name (n is `every`) unless it is in `slow`. `make soak` runs the others.
    """
    return [
        name if i % every == 0 and name not in slow else pytest.param(name, marks=pytest.mark.soak)
        for i, name in enumerate(names)
    ]


def in_turn(cases: Iterable[str], dtypes: Sequence[torch.dtype]) -> list:
    """Return all pairs of a case and a dtype. `make test` runs each case in one dtype, `make soak` in the others."""
    return [
        pytest.param(case, dtype, marks=() if i % len(dtypes) == j else pytest.mark.soak)
        for i, case in enumerate(cases)
        for j, dtype in enumerate(dtypes)
    ]
