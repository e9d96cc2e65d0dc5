"""Draw docs/architecture.svg from the imports: python docs/architecture.py

A box is a folder of poclib with its rooms; an arrow points at what a folder imports, as thick as
there are imports.
"""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
# Where each folder is drawn (left, bottom) on a grid of 12 by 9, and how its rooms are set.
PLACES = {
    "cli": (3.6, 8.0, 4.8, 0.8),
    "engines": (0.2, 2.6, 2.3, 2.6),
    "providers": (2.7, 2.6, 2.3, 2.6),
    "measure": (0.2, 5.5, 4.8, 2.2),
    "simulate": (0.2, 8.0, 3.2, 0.8),
    "reading": (7.0, 2.6, 4.8, 2.6),
    "showing": (7.0, 5.5, 4.8, 2.2),
    "ground floor": (0.2, 0.2, 11.6, 1.9),
}
ON_TOP = {"cli", "suite", "__main__", "__init__"}


def folder_of(module: str) -> str:
    """The box that a module lies in."""
    head, _, rest = module.partition(".")
    if rest:
        return head
    return "cli" if head in ON_TOP else "ground floor"


def imports(path: Path, module: str, modules: set[str]) -> set[str]:
    """The modules of poclib that one file imports."""
    package = module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) + 1 - node.level] if node.level > 1 else package
            base = [*base, *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                for name in (".".join([*base, alias.name]), ".".join(base)):
                    if name in modules:
                        found.add(name)
                        break
    return found


def main() -> None:
    """Read every file, count imports between boxes, draw."""
    files = {
        ".".join(path.relative_to(ROOT / "poclib").with_suffix("").parts): path
        for path in (ROOT / "poclib").rglob("*.py")
        if path.name != "__init__.py"
    }
    rooms: dict[str, list[str]] = {place: [] for place in PLACES}
    arrows: Counter[tuple[str, str]] = Counter()
    for module, path in sorted(files.items()):
        rooms[folder_of(module)].append(module.rpartition(".")[2])
        for other in imports(path, module, set(files)):
            if folder_of(module) != folder_of(other):
                arrows[folder_of(module), folder_of(other)] += 1
    plt.rcParams["svg.hashsalt"] = "poclib"
    ax = plt.subplots(figsize=(11, 8))[1]
    for place, (left, bottom, width, height) in PLACES.items():
        ax.add_patch(plt.Rectangle((left, bottom), width, height, fc="#f3f5f7", ec="#222222"))
        ax.text(left + 0.12, bottom + height - 0.1, place, weight="bold", va="top", size=12)
        words, line = [], ""
        for room in rooms[place]:
            if len(line) + len(room) > 10 * width:
                words, line = [*words, line], ""
            line += room + "  "
        ax.text(left + 0.12, bottom + height - 0.5, "\n".join([*words, line]), va="top", size=9.5)
    for (source, target), count in arrows.items():
        if target == "ground floor" or source == "cli":
            continue  # all may ask the ground floor, and the command may ask all
        a, b = PLACES[source], PLACES[target]
        begin = (a[0] + a[2] / 2, a[1] + a[3] / 2)
        end = (b[0] + b[2] / 2, b[1] + b[3] / 2)
        ax.annotate(
            "", (end[0], b[1] + b[3]), (end[0] if a[2] > b[2] else begin[0], a[1]),
            arrowprops={"arrowstyle": "-|>", "lw": 0.8 + count / 5, "color": "#0072b2"},
        )  # fmt: skip
    ax.text(6, 3.9, "data/\nreports", ha="center", size=11)
    ax.annotate("", (5.5, 4.2), (5.0, 5.5), arrowprops={"arrowstyle": "-|>", "color": "#222222"})
    ax.annotate("", (7.0, 4.0), (6.5, 4.0), arrowprops={"arrowstyle": "-|>", "color": "#222222"})
    ax.text(0.2, 9.0, "measuring: talks to machines, writes facts", size=11)
    ax.text(7.0, 9.0, "reading: needs no machine", size=11)
    ax.set_xlim(0, 12)
    ax.set_ylim(0, 9.3)
    ax.axis("off")
    target = ROOT / "docs" / "architecture.svg"
    ax.figure.savefig(target, bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    main()
