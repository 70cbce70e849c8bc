"""Draws docs/architecture.png from the import statements: packages as boxes, an arrow where one imports another."""

import ast
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "architecture.png"
KEY = "imports"  # of the PNG's text, which tells tests what is drawn
WIDTH, HEIGHT, INK = 0.34, 0.16, "#34568b"
BOXES = {  # place, and what the package is
    "trainer": ((0.5, 0.86), "experiments, loop, ranks, snapshots,\nevaluation, the command line"),
    "pipelines": ((0.2, 0.5), "files on disk -> Batch on the device:\npacks, plan, DALI, loader"),
    "models": ((0.8, 0.5), "networks, heads and losses,\nfolded to 2-D"),
    "kernels": ((0.5, 0.14), "tensors in, tensors out:\nreference.py and Triton"),
}


def imports_between() -> set[tuple[str, str]]:
    """(importing package, imported package)"""
    found = set()
    for package in BOXES:
        for path in (ROOT / package).rglob("*.py"):
            nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
            names = {str(node.module).partition(".")[0] for node in nodes}
            found |= {(package, name) for name in names & BOXES.keys() - {package}}
    return found


def told() -> str:
    """What the picture shows, as text."""
    return ", ".join(f"{start} -> {end}" for start, end in sorted(imports_between()))


def draw(path: Path) -> None:
    figure = Figure(figsize=(9, 6), dpi=110)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    for start, end in sorted(imports_between()):
        (x1, y1), (x2, y2) = BOXES[start][0], BOXES[end][0]
        points = (x2, y2 + HEIGHT / 2), (x1, y1 - HEIGHT / 2)  # from the lower edge to the upper one
        axes.annotate("", *points, arrowprops={"arrowstyle": "-|>", "color": INK})
    for package, ((x, y), purpose) in BOXES.items():
        axes.add_patch(Rectangle((x - WIDTH / 2, y - HEIGHT / 2), WIDTH, HEIGHT, facecolor="#eef3fb", edgecolor=INK))
        axes.text(x, y + HEIGHT / 4, package, ha="center", va="center", fontsize=14)
        axes.text(x, y - HEIGHT / 6, purpose, ha="center", va="center", fontsize=9)
    axes.text(0.02, 0.03, "arrows: imports", fontsize=9, color=INK)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    FigureCanvasAgg(figure).print_png(path, metadata={"Software": None, KEY: told()})


if __name__ == "__main__":
    draw(PICTURE)
