"""Draws docs/architecture.png from the import statements: packages as boxes, imports as arrows with counts."""

import ast
from collections import Counter
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
PLACES = {"trainer": (0.5, 0.82), "pipelines": (0.25, 0.5), "models": (0.75, 0.5), "kernels": (0.5, 0.14)}


def imports_between() -> Counter[tuple[str, str]]:
    """(importing package, imported package) -> number of modules that do it."""
    found: Counter[tuple[str, str]] = Counter()
    for package in PLACES:
        for path in (ROOT / package).rglob("*.py"):
            nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
            names = {str(node.module).partition(".")[0] for node in nodes}
            found.update((package, name) for name in names & PLACES.keys() - {package})
    return found


def draw(path: Path) -> None:
    figure, axes = plt.subplots(figsize=(9, 6), dpi=110)
    axes.axis("off")
    box = {"boxstyle": "round,pad=0.7", "facecolor": "#eef3fb", "edgecolor": "#34568b"}
    for package, place in PLACES.items():
        modules = len(list((ROOT / package).rglob("*.py")))
        axes.text(*place, f"{package}\n{modules} modules", ha="center", va="center", fontsize=14, bbox=box)
    arrow = {"arrowstyle": "-|>", "color": "#555555", "shrinkA": 44, "shrinkB": 44}
    for (start, end), count in imports_between().items():
        (x1, y1), (x2, y2) = PLACES[start], PLACES[end]
        axes.annotate("", (x2, y2), (x1, y1), arrowprops=arrow)
        axes.text((x1 + x2) / 2 + 0.02, (y1 + y2) / 2, str(count), fontsize=11, color="#34568b")
    axes.set_title("who imports whom, and by how many modules", fontsize=12)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    figure.savefig(path, bbox_inches="tight")


if __name__ == "__main__":
    draw(ROOT / "docs" / "architecture.png")
