"""The shipped tiny VLM's accuracy by method and budget: python benchmarks/tiny_accuracy.py

Held-out scenes and the official easy-VQA test split. Macro accuracy is the mean over question
types; its interval is a 95% bootstrap over pictures; retained is its share of the macro accuracy of
all tokens. Random selection is averaged over three seeds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from gprune import make, methods
from gprune.cli import parse_keep, quiet_transformers
from gprune.evaluation.metrics import Record, Tally, mean_tally
from gprune.evaluation.runner import RANDOM_SEEDS
from gprune.tinyvlm import load
from gprune.tinyvlm.accuracy import TYPES, Sample, held_out, score


def tally(samples: Sequence[Sample], outcomes: Sequence[Sequence[bool]]) -> Tally:
    """The outcomes of `score` by picture and type."""
    records = [
        Record("", str(row), question.kind, "", good)
        for row, (sample, results) in enumerate(zip(samples, outcomes, strict=True))
        for question, good in zip(sample.questions, results, strict=True)
    ]
    return Tally.of(records, TYPES)


def summary(tally: Tally) -> dict[str, object]:
    """Accuracy by type, their mean, and its 95% bootstrap interval, in %."""
    types = dict(zip(TYPES, tally.accuracy.tolist(), strict=True))
    return {"macro": tally.macro, "interval": tally.interval, "types": types}


def main(
    scenes: Annotated[int, typer.Option(help="Held-out scenes.")] = 400,
    easy_vqa: Annotated[int, typer.Option(help="Pictures of easy-VQA's test split.")] = 150,
    keeps: Annotated[str, typer.Option(help="Budgets.")] = "0.5,0.36,0.25,0.1,0.05",
    names: Annotated[str, typer.Option(help="Methods; all by default.")] = ",".join(methods()),
    checkpoint: Annotated[Path | None, typer.Option(help="Another checkpoint.")] = None,
    out: Annotated[Path, typer.Option(help="Where to write the numbers.")] = Path(
        "benchmarks/results/tiny_accuracy.json"
    ),
    stored: Annotated[
        bool, typer.Option("--stored", help="Print the numbers in OUT anew.")
    ] = False,
) -> None:
    """Score every method at every budget and print Markdown tables."""
    if stored:
        print_tables(json.loads(out.read_text())["rows"])
        return
    quiet_transformers()
    model, _ = load(checkpoint)
    samples = held_out("test", scenes, easy_vqa)
    shuffled = [
        Sample(other.image, sample.questions)
        for part in (samples[:scenes], samples[scenes:])
        for sample, other in zip(part, [*part[1:], *part[:1]], strict=True)
    ]
    rows: list[dict[str, Any]] = []
    for label, shown in (("all tokens", samples), ("all tokens, another picture", shuffled)):
        rows.append({"method": label, "keep": 1.0, **summary(tally(shown, score(model, shown)))})
    runs = [(name, keep) for keep in keeps.split(",") for name in names.split(",")]
    # The bar goes to the terminal, the table to whoever reads the output.
    for name, keep in track(runs, "methods and budgets", console=Console(stderr=True)):
        seeds = [{"seed": seed} for seed in RANDOM_SEEDS] if name == "random" else [{}]
        found = [
            tally(samples, score(model, samples, make(name, keep=parse_keep(keep), **options)))
            for options in seeds
        ]
        rows.append({"method": name, "keep": parse_keep(keep), **summary(mean_tally(found))})
    record = {
        "scenes": scenes,
        "easy_vqa": easy_vqa,
        "random_seeds": len(RANDOM_SEEDS),
        "rows": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=2) + "\n")
    print_tables(rows)


def print_tables(rows: Sequence[dict[str, Any]]) -> None:
    """Macro accuracy by method and budget, then everything, as Markdown."""
    full = rows[0]["macro"]
    pruned = [row for row in rows if row["keep"] != 1.0]
    keeps = list(dict.fromkeys(row["keep"] for row in pruned))
    print(f"| | {' | '.join(map(str, keeps))} |")
    print("|---" * (1 + len(keeps)) + "|")
    for name in dict.fromkeys(row["method"] for row in pruned):
        own = [row for row in pruned if row["method"] == name]
        cells = [f"{row['macro']:.1f} ({100 * row['macro'] / full:.0f}%)" for row in own]
        print(f"| {name} | {' | '.join(cells)} |")
    headings = ["method", "keep", "macro", "retained", *(kind.replace("_", " ") for kind in TYPES)]
    print(f"\n| {' | '.join(headings)} |")
    print("|---" * len(headings) + "|")
    for row in rows:
        low, high = row["interval"]
        cells = " | ".join(f"{row['types'][kind]:.1f}" for kind in TYPES)
        print(
            f"| {row['method']} | {row['keep']} | {row['macro']:.1f} ({low:.1f} to {high:.1f}) "
            f"| {100 * row['macro'] / full:.1f} | {cells} |"
        )


if __name__ == "__main__":
    typer.run(main)
