"""A digest of the code that decides how fast a training step runs. Results of `tune` are valid for one digest."""

import functools
import hashlib
from pathlib import Path
from types import CodeType

from trainer.journal.provenance import ROOT

# what computes a step, and what reads and decodes its clips
FOLDERS = ("kernels", "kernels/heatmap", "kernels/blocks", "models", "pipelines", "pipelines/packs", "pipelines/videos")
RUNTIME = ("allocator", "cuda_graph", "forward", "precision", "ranks", "threads", "wrap")
FILES = ("trainer/step.py", "trainer/optim.py", "trainer/run.py", *(f"trainer/runtime/{name}.py" for name in RUNTIME))


@functools.cache
def digest_of_own_code() -> str:
    """The digest of the checkout from which this process runs. It takes half a second, so it is computed only once."""
    return digest_of_code(ROOT)


def digest_of_code(checkout: Path) -> str:
    """A digest of these files as Python compiles them, so comments, docstrings and the layout of lines do not count."""
    files = [*(file for folder in FOLDERS for file in (checkout / folder).glob("*.py")), *map(checkout.joinpath, FILES)]
    digest = hashlib.sha256()
    for file in sorted(files):
        code = compile(file.read_bytes(), "", "exec", dont_inherit=True, optimize=2)
        digest.update(f"{file.relative_to(checkout)} {parts_of(code)}\n".encode())
    return digest.hexdigest()[:16]


def parts_of(code: CodeType) -> list[object]:
    """The instructions, names and constants of compiled code, without line numbers. Functions in it are constants."""
    constants = []
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            constants.append(parts_of(constant))
        else:  # a set of strings has a different order in each process
            constants.append(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant)
    return [code.co_code, code.co_names, code.co_varnames, code.co_freevars, constants]
