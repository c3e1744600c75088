"""How well methods cover hard pictures: python benchmarks/cover_limits.py

Two numbers for what a method keeps: how far the loneliest token is from a kept one in GraphCover's
own distance D, and in the plane, in patches. The table of docs/methods/graph_cover.md is what it
prints; a test compares the two.
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
from gprune.ask.answers import quiet_transformers
from gprune.evaluation.runner import RANDOM_SEEDS
from gprune.tinyvlm import load, make_scene
from gprune.tinyvlm.scenes import TINTS

RESULTS = Path(__file__).parent / "results" / "cover_limits.json"
NAMES = ("graph_cover", "divprune", "gprune", "uniform_grid", "random")
KEEPS = (0.25, 0.1, 0.05)
COUNT = 6  # pictures of a kind, as many as there are tints


def pictures() -> dict[str, list[Image.Image]]:
    """Some pictures of every kind."""
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
    """One method, or random selection with three seeds."""
    if name == "random":
        return [RandomPruner(keep, seed) for seed in RANDOM_SEEDS]
    return [make(name, keep=keep)]


def measured(model: Any, kinds: dict[str, list[Image.Image]]) -> Iterable[dict[str, Any]]:
    """For every kind, budget and method the mean radius in D and the mean gap in patches."""
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
    """The rows in Markdown: radius in D, and the gap in patches."""
    lines = [f"| | keep | {' | '.join(NAMES)} |", "|---" * (2 + len(NAMES)) + "|"]
    cells = {(row["picture"], row["keep"], row["method"]): row for row in rows}
    for kind, keep in dict.fromkeys((row["picture"], row["keep"]) for row in rows):
        of = [cells[kind, keep, name] for name in NAMES]
        shown = [f"{one['radius']:.2f} · {one['gap']:.1f}" for one in of]
        lines.append(f"| {kind} | {keep} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    quiet_transformers()
    rows = list(measured(load()[0], pictures()))
    RESULTS.write_text(json.dumps(rows, indent=2) + "\n")
    print(table(rows), end="")


if __name__ == "__main__":
    main()
