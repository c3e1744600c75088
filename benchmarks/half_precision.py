"""Measures what G-Prune's degrees in float16 change: python benchmarks/half_precision.py

On the shipped tiny model's features of validation scenes, for both published thresholds: how many
tokens have another degree than in float32, in how many scenes other tokens are kept, and how much
the two choices overlap. The page of G-Prune states the numbers; a test compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from gprune import GPrune, VisualTokens
from gprune.ask.loading import quiet_transformers
from gprune.tinyvlm import load
from gprune.training.accuracy import encode, held_out

RESULTS = Path(__file__).parent / "results" / "half_precision.json"
KEEPS = (0.5, 0.36, 0.25, 0.1)
THRESHOLDS = (0.5, 0.7)


def compare(scenes: Sequence[VisualTokens], threshold: float) -> dict[str, Any]:
    """Compares both degrees on the tokens of some scenes.

    Returns:
        ``threshold``; ``degrees``, share of tokens whose degree differs; ``scenes``, share of
        scenes with such a token; and ``choices``, for each keep the share of scenes in which other
        tokens are kept (``changed``), and the mean share of kept tokens that are the same
        (``overlap``).
    """
    graphs = [GPrune(1, threshold=threshold).graph(tokens) for tokens in scenes]
    differ = torch.stack([graph.degree != graph.float16_degree() for graph in graphs])
    choices = []
    for keep in KEEPS:
        overlaps = []
        for tokens in scenes:
            full, half = (
                set(GPrune(keep, threshold=threshold, degree=degree).select(tokens).tolist())
                for degree in ("float32", "float16")
            )
            overlaps.append(len(full & half) / len(full))
        changed = sum(overlap < 1 for overlap in overlaps) / len(overlaps)
        mean = sum(overlaps) / len(overlaps)
        choices.append({"keep": keep, "changed": changed, "overlap": mean, "least": min(overlaps)})
    return {
        "threshold": threshold,
        "degrees": differ.float().mean().item(),
        "scenes": differ.any(1).float().mean().item(),
        "choices": choices,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats the results as Markdown, a row for each threshold and keep."""
    lines = [
        "| threshold | tokens with another degree | keep | scenes with another choice | overlap |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['threshold']} | {row['degrees']:.1%} | {choice['keep']} "
        f"| {choice['changed']:.1%} | {choice['overlap']:.2%} |"
        for row in rows
        for choice in row["choices"]
    ]
    return "\n".join(lines) + "\n"


def main(
    scenes: Annotated[int, typer.Option(help="Validation scenes.")] = 200,
    out: Annotated[Path, typer.Option(help="Where to write the numbers.")] = RESULTS,
) -> None:
    """Compare both degrees and print a Markdown table."""
    quiet_transformers()
    model, _ = load()
    with torch.inference_mode():
        batches = encode(model, held_out("validation", scenes, 0))
        tokens = [one for batch in batches for one in batch.tokens]
    rows = [compare(tokens, threshold) for threshold in THRESHOLDS]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"scenes": scenes, "rows": rows}, indent=1) + "\n")
    print(table(rows), end="")


if __name__ == "__main__":
    typer.run(main)
