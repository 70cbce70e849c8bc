"""Imports go one way: trainer -> {pipelines, models} -> kernels; DALI and Triton have one place each."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
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
FILES = sorted(path for package in ALLOWED for path in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Modules that a file imports anywhere, functions' bodies included."""
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
        assert "nvidia" not in modules or str(place) in ("pipelines/dali.py", "pipelines/videos/dali.py"), place
        assert "triton" not in modules or place in TRITON, place


def test_only_one_module_knows_of_the_kernels_of_blocks():
    importers = {
        path.relative_to(ROOT)
        for path in FILES
        if path.parent != BLOCKS and any(module.startswith("kernels.blocks") for module in imported(path))
    }
    assert importers == {Path("models/fused.py")}
    importers = {path.relative_to(ROOT) for path in FILES if "models.fused" in imported(path)}
    assert importers == {Path("trainer/run.py")}


def test_fused_networks_load_without_triton():
    code = "import sys; sys.modules['triton'] = None; import models.fused, kernels.heatmap, trainer.run"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_models_load_without_dali_and_triton():
    code = "import sys, models; print([m for m in ('nvidia.dali', 'pipelines', 'trainer') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_commands_start_without_the_compiler():
    """torch.compile's modules take a second; only what compiles or trains asks for them."""
    code = "import sys, trainer.commands; print([m for m in ('torch._dynamo', 'torch._inductor') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_every_package_is_a_real_package():
    assert all((ROOT / package / "__init__.py").exists() for package in OURS - {"tests"})
