"""Checks whether this machine can compile C, which Triton needs, and C++, which torch.compile needs on a CPU."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Literal

Language = Literal["C", "C++"]
# For each language, the environment variable that names the compiler, and the compilers that Triton or torch tries one
# after the other if the variable is not set.
COMPILERS: dict[Language, tuple[str, tuple[str, ...]]] = {"C": ("CC", ("gcc", "clang")), "C++": ("CXX", ("g++",))}
STUB = "#include <Python.h>\nPyMODINIT_FUNC PyInit_stub(void) { return NULL; }\n"


def why_no_compiler(language: Language) -> tuple[str, str] | None:
    """Find out why the compiler for `language` fails, by compiling a small extension module for Python.

    Returns the reason and what the user can do about it, or None if the compiler works.
    """
    variable, names = COMPILERS[language]
    compiler = os.environ.get(variable) or next(filter(None, map(shutil.which, names)), None)
    if compiler is None:
        return f"there is no {language} compiler", f"install {names[0]}"
    other = f"name another compiler in the environment variable {variable}"
    # Triton makes the same replacement, for Debian's Python.
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    include = sysconfig.get_paths(scheme)["include"]
    try:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "stub.c" if language == "C" else "stub.cpp")
            source.write_text(STUB)
            command = [compiler, source, "-shared", "-fPIC", f"-I{include}", "-o", Path(folder, "stub.so")]
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    except OSError as error:
        return f"the {language} compiler {compiler} cannot be run ({error.strerror or error})", other
    if done.returncode == 0:
        return None
    if "Python.h" in done.stderr:
        return f"{include} has no Python.h", "install python{}.{}-dev".format(*sys.version_info)
    errors = (
        [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["no message"]
    )
    return f"the {language} compiler {compiler} fails ({errors[0].strip()})", other


def why_kernel_failed(error: Exception) -> str:
    """Why a kernel failed on a GPU: what is wrong with the C compiler, or the first line of `error` if nothing is."""
    no_compiler = why_no_compiler("C")
    if no_compiler is not None:
        problem, way_out = no_compiler
        return f"{problem}; {way_out}"
    first, *_ = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {first}"[:200]
