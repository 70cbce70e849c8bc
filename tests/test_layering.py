"""Packages import only in the direction trainer -> {pipelines, models} -> kernels. Few files import DALI or Triton."""

import ast
import functools
from pathlib import Path

import pytest

from tests.programs import ROOT, run

ALLOWED = {
    "kernels": {"kernels"},
    "pipelines": {"pipelines", "kernels"},
    "models": {"models", "kernels"},
    "trainer": {"trainer", "pipelines", "models", "kernels"},
}
OURS = {*ALLOWED, "benchmarks", "tests"}
BLOCKS = ROOT / "kernels" / "blocks"
TRITON = {Path("kernels/heatmap/fused.py"), Path("kernels/blocks/rows.py")}
TRITON |= {
    reference.with_name(reference.name.replace("_reference", "")).relative_to(ROOT)
    for reference in BLOCKS.glob("*_reference.py")
}
NVIDIA = {Path("pipelines/dali.py"), Path("pipelines/videos/dali.py"), Path("pipelines/cpu_decoder.py")}
FILES = sorted(path for package in ALLOWED for path in (ROOT / package).rglob("*.py"))


@functools.cache
def imported(path: Path) -> set[str]:
    """Return the modules that a file imports anywhere, including imports inside functions."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules.add(node.module)
    return modules


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    ours = {module.partition(".")[0] for module in imported(path)} & OURS
    assert ours <= ALLOWED[package]


def test_dali_and_triton_have_one_place_each():
    for path in FILES:
        modules = {module.partition(".")[0] for module in imported(path)}
        place = path.relative_to(ROOT)
        assert "nvidia" not in modules or place in NVIDIA, place
        assert "triton" not in modules or place in TRITON, place


def test_only_one_module_knows_of_the_kernels_of_blocks():
    importers = {
        path.relative_to(ROOT)
        for path in FILES
        if path.parent != BLOCKS and any(module.startswith("kernels.blocks") for module in imported(path))
    }
    assert importers == {Path("models/fused.py")}
    importers = {path.relative_to(ROOT) for path in FILES if "models.fused" in imported(path)}
    assert importers == {Path("trainer/run.py"), Path("trainer/runtime/forward.py")}


def test_what_modules_do_not_import():
    """Networks (also fused ones) load without DALI and Triton. Commands start without the modules of torch.compile.

    Importing the modules of torch.compile takes a second, so only commands that compile or train import them.
    """
    code = """
import importlib, sys
import models.networks
print([m for m in ("nvidia.dali", "triton", "pipelines", "trainer") if m in sys.modules])
sys.modules["triton"] = None
import models.fused, kernels.heatmap, trainer.run
from trainer.cli import COMMANDS
for module, *_ in COMMANDS.values():
    importlib.import_module(module)
print([m for m in ("torch._dynamo", "torch._inductor") if m in sys.modules])"""
    process = run("-c", code)
    assert process.returncode == 0, process.stderr
    assert process.stdout == "[]\n[]\n"


def test_help_list_runs_and_mistakes_are_answered_without_torch(tmp_path):
    code = f"""
import contextlib, sys
from trainer.cli import run_command
for words in ("--list", "runs {tmp_path}", "evl", "--exp dmo", "--exp demo --set optim.lr=x"):
    run_command(words.split())
with contextlib.suppress(SystemExit):
    run_command(["--help"])
print([m for m in ("torch", "nvidia.dali", "matplotlib") if m in sys.modules])"""
    process = run("-c", code)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1] == "[]"


def modules_of(path: Path) -> set[str]:
    """Return our modules that a file imports at its top level. These imports run when the file is imported."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            names |= inside or {str(node.module)}
    return names & MODULES.keys()


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def test_no_file_imports_itself_through_others():
    imports = {name: modules_of(path) for name, path in MODULES.items()}
    while leaves := {name for name, others in imports.items() if not others}:
        imports = {name: others - leaves for name, others in imports.items() if name not in leaves}
    assert not imports, f"a circle of imports among {sorted(imports)}"


@pytest.mark.parametrize("package", ["trainer", "pipelines"])
def test_the_root_of_a_package_has_few_files(package):
    assert len(list((ROOT / package).glob("*.py"))) <= 18


def test_every_package_is_a_real_package():
    assert all((ROOT / package / "__init__.py").exists() for package in OURS - {"tests"})
