"""A program ends with one sentence if a package that one of our packages needs is missing."""

import sys

import pytest

from kernels.program import exit_code


@pytest.mark.parametrize("missing", ["kiwisolver", "docstring_parser"])
def test_a_missing_package_of_a_package_is_one_sentence(missing, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, missing, None)  # makes the import fail as if the package were not installed
    assert exit_code(lambda: __import__(missing), needs=()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {missing} cannot be imported (")
    assert line.endswith(": run `make install` in the checkout, which installs it")


def test_an_import_of_our_own_that_fails_is_a_bug():
    with pytest.raises(ImportError):
        exit_code(lambda: __import__("pipelines.nothing"), needs=())
