"""A compiler is checked by compiling a file. `doctor` and a run print the same message about what is missing."""

import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kernels.compiler import why_no_compiler
from trainer.commands.doctor import Finding, compiler
from trainer.experiments import DEMO
from trainer.runtime.forward import Way
from trainer.runtime.wrap import compiled

LANGUAGES = ("C", "C++")


@pytest.fixture(autouse=True)
def no_compiler_is_named(monkeypatch):
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_compiler_that_works(language):
    assert why_no_compiler(language) is None


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_compiler(language, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    name = {"C": "gcc", "C++": "g++"}[language]
    assert why_no_compiler(language) == (f"there is no {language} compiler", f"install {name}")


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_header_of_python(language, monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_paths", lambda _: {"include": str(tmp_path)})
    problem, way_out = why_no_compiler(language)
    assert problem == f"{tmp_path} has no Python.h"
    assert way_out.startswith("install python3.")


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        (None, "cannot be run (No such file or directory)"),
        ("#!/bin/sh\nexit 1\n", "fails (no message)"),
        ("#!/bin/sh\necho In file:\necho 'ld: error: cannot find -lc' >&2\nexit 1\n", "fails (ld: error: cannot find"),
    ],
)
def test_a_compiler_that_is_named_and_does_not_work(script, problem, monkeypatch, tmp_path):
    named: Path = tmp_path / "cc"
    if script:
        named.write_text(script)
        named.chmod(0o755)
    monkeypatch.setenv("CC", str(named))
    said, way_out = why_no_compiler("C")
    assert f"the C compiler {named} {problem}" in said
    assert way_out == "name another compiler in the environment variable CC"


def test_the_doctor_and_a_run_say_the_same(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compiler(True) == Finding(
        "torch.compile", "note", "there is no C compiler, so networks run uncompiled and slower", "install gcc"
    )
    net, said = torch.nn.Linear(3, 2), []
    for device in ("cpu", "cuda"):
        forward = compiled(net, replace(DEMO, compile=True), torch.device(device), said.append, tmp_path / "report")
        assert forward.way is Way.DIRECT
    assert said == [
        "there is no C++ compiler, so the network runs uncompiled and slower (install g++ to use torch.compile)",
        "there is no C compiler, so the network runs uncompiled and slower (install gcc to use torch.compile)",
    ]
