"""GraphCover's parts on validation pictures: python benchmarks/cover_ablation.py

The weight of place, merging, counting for what was merged, and a budget that follows the picture,
calibrated on other pictures, chosen on the validation split of the tiny VLM's scenes and easy-VQA;
the test split stays for `tiny_accuracy.py`. What is stored already is not computed again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import torch
import typer
from rich.console import Console
from rich.progress import track
from tiny_accuracy import summary, tally, write
from torch import Tensor

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
from gprune.ask.answers import quiet_transformers
from gprune.pruners.base import MergingPruner
from gprune.pruners.cover import into_nearest
from gprune.tinyvlm import load
from gprune.training.accuracy import TYPES, encode, grid_of, held_out, score

# The seed of the scenes on which a budget that follows the picture is calibrated.
OTHERS = 7


@dataclass(frozen=True)
class Counted(MergingPruner):
    """The tokens of any method, each the mean of those nearest to it, and counting for them.

    Attributes:
        method: whose tokens; nearest is what GraphCover's distance says.
    """

    method: str = "random"

    name: ClassVar[str] = "counted"
    proportional: ClassVar[bool] = True

    def partition(self, tokens: VisualTokens, k: int) -> tuple[Tensor, Tensor | None]:
        kept = make(self.method, keep=k).select(tokens)
        distance, _ = GraphCover(k).joint(tokens)
        return kept, into_nearest(distance, kept)


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        name: what it is called.
        pruner: the method.
        compact: whether tokens are numbered without gaps.
    """

    name: str
    pruner: Pruner
    compact: bool = False


def variants(keep: float, others: Sequence[VisualTokens]) -> Iterator[Variant]:
    """GraphCover's parts, its nearest peer, and G-Prune's own parts."""
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
        budget = CoverBudget.calibrated(keep, others, place=place)
        yield Variant(f"place 1, budget by place {place:g}", GraphCover(budget))


def main(
    scenes: Annotated[int, typer.Option(help="Validation scenes.")] = 200,
    easy_vqa: Annotated[int, typer.Option(help="Validation pictures of easy-VQA.")] = 70,
    keeps: Annotated[str, typer.Option(help="Budgets.")] = "0.36,0.25,0.1,0.05",
    again: Annotated[bool, typer.Option("--again", help="Forget what is stored.")] = False,
    out: Annotated[Path, typer.Option(help="Where to write the numbers.")] = Path(
        "benchmarks/results/cover_ablation.json"
    ),
) -> None:
    """Score every variant and print a Markdown table of macro accuracy."""
    quiet_transformers()
    model, _ = load()
    grid = grid_of(model)
    samples = held_out("validation", scenes, easy_vqa)
    # Other pictures, in about the same mix.
    mixed = held_out("validation", scenes // 2, easy_vqa + easy_vqa // 2, seed=OTHERS)
    calibration = mixed[: scenes // 2] + mixed[scenes // 2 + easy_vqa :]
    with torch.inference_mode():
        encoded = list(encode(model, samples))
        others = [tokens for batch in encode(model, calibration) for tokens in batch.tokens]
    budgets = [float(keep) for keep in keeps.split(",")]
    out.parent.mkdir(parents=True, exist_ok=True)
    stored = json.loads(out.read_text()) if out.is_file() and not again else {"rows": []}
    done = {(row["keep"], row["variant"]): row for row in stored["rows"]}
    full = stored.get("full") or summary(tally(samples, score(model, samples)))
    work = [(keep, variant) for keep in budgets for variant in variants(keep, others)]
    order = [(keep, variant.name) for keep, variant in work]
    todo = [(keep, variant) for keep, variant in work if (keep, variant.name) not in done]
    for keep, variant in track(todo, "variants", console=Console(stderr=True)):
        pruner, name = variant.pruner, variant.name
        found = tally(samples, score(model, samples, pruner, encoded, variant.compact))
        kept = sum(len(pruner.select(one)) for batch in encoded for one in batch.tokens)
        share = kept / (len(samples) * grid**2)
        done[keep, name] = {"variant": name, "keep": keep, "kept": share, **summary(found)}
        rows = [done[one] for one in order if one in done]
        write(out, {"full": full, "rows": rows, "types": TYPES})
    rows = [done[one] for one in order]
    print(f"| | {' | '.join(str(keep) for keep in budgets)} |")
    print("|---" * (1 + len(budgets)) + "|")
    for name in dict.fromkeys(row["variant"] for row in rows):
        cells = [f"{row['macro']:.1f}" for row in rows if row["variant"] == name]
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"| all tokens | {full['macro']:.1f} |")


if __name__ == "__main__":
    typer.run(main)
