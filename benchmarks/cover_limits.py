"""Measures how well methods cover hard pictures: python benchmarks/cover_limits.py

Two covering radii of the kept tokens: the largest distance from a token to the nearest kept one in
GraphCover's distance D, and in the plane, in patches. Prints the table of
docs/methods/graph_cover.md; a test compares the two.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import hard_pictures
import numpy as np
from PIL import Image

from gprune import GraphCover, Pruner, RandomPruner, make
from gprune.ask.loading import quiet_transformers
from gprune.evaluation.runs import RANDOM_SEEDS
from gprune.tinyvlm import load, make_scene
from gprune.tinyvlm.contents import TINTS

RESULTS = Path(__file__).parent / "results" / "cover_limits.json"
NAMES = ("graph_cover", "divprune", "gprune", "uniform_grid", "random")
KEEPS = (0.25, 0.1, 0.05)
COUNT = 6  # pictures of each kind, because there are six tints


def pictures() -> dict[str, list[Image.Image]]:
    """Returns `COUNT` pictures of every kind."""
    kinds: dict[str, list[Image.Image]] = {
        "blank": [hard_pictures.blank(x) for x in TINTS.values()]
    }
    for name, draw in (
        ("noise", hard_pictures.noise),
        ("1/f noise", hard_pictures.one_over_f),
        ("page of signs", hard_pictures.page),
    ):
        kinds[name] = [draw(seed) for seed in range(COUNT)]
    for name, crowded in (("crowded scene", True), ("scene", False)):
        drawn = (make_scene("validation", 0, index, crowded) for index in range(COUNT))
        kinds[name] = [scene.draw() for scene in drawn]
    return kinds


def pruners(name: str, keep: float) -> list[Pruner]:
    """Returns one pruner, or for random selection one per seed."""
    if name == "random":
        return [RandomPruner(keep, seed) for seed in RANDOM_SEEDS]
    return [make(name, keep=keep)]


def measured(model: Any, kinds: dict[str, list[Image.Image]]) -> Iterable[dict[str, Any]]:
    """Yields mean radius in D and mean gap in patches for every kind, budget and method."""
    for kind, drawn in kinds.items():
        found: dict[tuple[float, str], list[tuple[float, float]]] = defaultdict(list)
        for picture in drawn:
            tokens = hard_pictures.tokens_of(model, picture)
            distance = GraphCover(1.0).distance(tokens)
            for keep in KEEPS:
                for name in NAMES:
                    for pruner in pruners(name, keep):
                        kept = pruner.select(tokens)
                        radius = float(distance[kept].amin(0).max()) ** 0.5
                        found[keep, name].append((radius, hard_pictures.gap(kept, tokens)))
        for (keep, name), values in found.items():
            radius, gap = np.mean(values, 0).tolist()
            yield {"picture": kind, "keep": keep, "method": name, "radius": radius, "gap": gap}


def table(rows: list[dict[str, Any]]) -> str:
    """Formats rows as Markdown: radius in D, and gap in patches."""
    lines = [f"| | keep | {' | '.join(NAMES)} |", "|---" * (2 + len(NAMES)) + "|"]
    cells = {(row["picture"], row["keep"], row["method"]): row for row in rows}
    for kind, keep in dict.fromkeys((row["picture"], row["keep"]) for row in rows):
        results = [cells[kind, keep, name] for name in NAMES]
        texts = [f"{row['radius']:.2f} · {row['gap']:.1f}" for row in results]
        lines.append(f"| {kind} | {keep} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, stores the numbers and prints the table."""
    quiet_transformers()
    rows = list(measured(load()[0], pictures()))
    RESULTS.write_text(json.dumps(rows, indent=2) + "\n")
    print(table(rows), end="")


if __name__ == "__main__":
    main()
