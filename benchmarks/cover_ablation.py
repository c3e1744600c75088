"""Ablation of GraphCover on validation pictures: python benchmarks/cover_ablation.py

Varies the weight of positions, merging, proportional attention (a merged token counts for its
members), and an image-dependent budget that is calibrated on other pictures. Uses the validation
split of the tiny VLM's scenes and of easy-VQA; the test split is left to `tiny_accuracy.py`.
Variants with stored results are skipped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
import typer
from rich.console import Console
from rich.progress import track
from tiny_accuracy import summary, tally, write

from gprune import (
    CoverBudget,
    DivPrune,
    GPrune,
    GraphCover,
    Pruner,
    VisualTokens,
    WeightedCover,
    WeightedGPrune,
    make,
)
from gprune.ask.loading import quiet_transformers
from gprune.pruners.joint_distance import joint_distances, nearest_members
from gprune.pruners.reduction import Reduction
from gprune.tinyvlm import load
from gprune.training.accuracy import TYPES, Sample, encode, grid_of, held_out, score

# Seed of the scenes on which image-dependent budgets are calibrated.
CALIBRATION_SEED = 7


@dataclass(frozen=True)
class Counted(Pruner):
    """Merges dropped tokens into the nearest kept ones, with proportional attention.

    Attributes:
        method: name of the method that chooses the kept tokens. GraphCover's distance says which of
            them is nearest.
    """

    method: str = "random"

    name: ClassVar[str] = "counted"
    proportional: ClassVar[bool] = True

    def choose(self, tokens: VisualTokens, k: int) -> Reduction:
        kept = make(self.method, keep=k).select(tokens)
        return Reduction(kept, nearest_members(joint_distances(tokens), kept))


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        name: of the row.
        pruner: the method.
        compact: numbers tokens without gaps.
    """

    name: str
    pruner: Pruner
    compact: bool = False


def variants(keep: float, calibration: Sequence[VisualTokens]) -> Iterator[Variant]:
    """Yields variants of GraphCover, of its closest peer DivPrune, and of G-Prune."""
    yield Variant("divprune", DivPrune(keep))
    for place in (0.0, 0.5, 1.0, 2.0, 4.0, 8.0):
        yield Variant(f"place {place:g}", GraphCover(keep, place=place))
    yield Variant("place 1, positions without gaps", GraphCover(keep), compact=True)
    yield Variant("place 1, merged", GraphCover(keep, merge=True))
    for place in (0.0, 0.5, 1.0, 2.0):
        yield Variant(f"counted and merged, place {place:g}", WeightedCover(keep, place=place))
    yield Variant("counted and merged, positions without gaps", WeightedCover(keep), compact=True)
    for method in ("divprune", "gprune", "random"):
        yield Variant(f"{method}, counted and merged", Counted(keep, method=method))
    parts = {"": {}, ", threshold 0.7": {"threshold": 0.7}, ", no propagation": {"iterations": 0}}
    for name, changed in parts.items():
        yield Variant(f"gprune{name}", GPrune(keep, **changed))
        if changed:
            yield Variant(f"gprune{name}, counted and merged", WeightedGPrune(keep, **changed))
    for place in (0.5, 2.0):
        budget = CoverBudget.calibrated(keep, calibration, place=place)
        yield Variant(f"place 1, budget by place {place:g}", GraphCover(budget))


def load_stored(out: Path, again: bool) -> dict[str, Any]:
    """Returns the stored results; none if there is no file or ``again`` is set."""
    if again or not out.is_file():
        return {"rows": []}
    stored: dict[str, Any] = json.loads(out.read_text())
    return stored


def calibration_samples(scenes: int, easy_vqa: int) -> list[Sample]:
    """Returns pictures other than the scored ones, in about the same mix."""
    pool = held_out("validation", scenes // 2, easy_vqa + easy_vqa // 2, seed=CALIBRATION_SEED)
    return pool[: scenes // 2] + pool[scenes // 2 + easy_vqa :]


def table(rows: Sequence[dict[str, Any]], budgets: Sequence[float], full: dict[str, Any]) -> str:
    """Formats macro accuracy as Markdown, a row for each variant."""
    lines = [
        f"| | {' | '.join(str(keep) for keep in budgets)} |",
        "|---" * (1 + len(budgets)) + "|",
    ]
    for name in dict.fromkeys(row["variant"] for row in rows):
        cells = [f"{row['macro']:.1f}" for row in rows if row["variant"] == name]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, f"| all tokens | {full['macro']:.1f} |"]) + "\n"


def main(
    scenes: Annotated[int, typer.Option(help="Validation scenes.")] = 200,
    easy_vqa: Annotated[int, typer.Option(help="Validation pictures of easy-VQA.")] = 70,
    keeps: Annotated[str, typer.Option(help="Budgets.")] = "0.36,0.25,0.1,0.05",
    again: Annotated[bool, typer.Option("--again", help="Ignore stored results.")] = False,
    out: Annotated[Path, typer.Option(help="Where to write the numbers.")] = Path(
        "benchmarks/results/cover_ablation.json"
    ),
) -> None:
    """Score every variant and print a Markdown table of macro accuracy."""
    quiet_transformers()
    model, _ = load()
    samples = held_out("validation", scenes, easy_vqa)
    with torch.inference_mode():
        encoded = list(encode(model, samples))
        batches = encode(model, calibration_samples(scenes, easy_vqa))
        calibration = [tokens for batch in batches for tokens in batch.tokens]
    budgets = [float(keep) for keep in keeps.split(",")]
    out.parent.mkdir(parents=True, exist_ok=True)
    stored = load_stored(out, again)
    done = {(row["keep"], row["variant"]): row for row in stored["rows"]}
    full = stored.get("full") or summary(tally(samples, score(model, samples)))
    work = {
        (keep, variant.name): variant for keep in budgets for variant in variants(keep, calibration)
    }
    remaining = [key for key in work if key not in done]
    for keep, name in track(remaining, "variants", console=Console(stderr=True)):
        pruner, compact = work[keep, name].pruner, work[keep, name].compact
        result = summary(tally(samples, score(model, samples, pruner, encoded, compact)))
        kept = sum(len(pruner.select(tokens)) for batch in encoded for tokens in batch.tokens)
        share = kept / (len(samples) * grid_of(model) ** 2)
        done[keep, name] = {"variant": name, "keep": keep, "kept": share, **result}
        rows = [done[key] for key in work if key in done]
        write(out, {"full": full, "rows": rows, "types": TYPES})
    print(table([done[key] for key in work], budgets, full), end="")


if __name__ == "__main__":
    typer.run(main)
