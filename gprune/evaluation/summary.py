"""Scores and costs of every method and budget, out of what the runs have stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from gprune.costs.flops import CONVENTIONS, LanguageModelShape, saving
from gprune.evaluation.metrics import (
    Record,
    Tally,
    between,
    groups_of,
    loyalty,
    mean_tally,
    overall_performance,
    tally_of,
)

if TYPE_CHECKING:
    from gprune.evaluation.runner import Run

# The method whose failures tell what is hard to compress (VTC-Bench's group A).
REFERENCE = "downsampling"

# Measured times, of which medians are reported: a first batch warms up.
TIMES = ("ms_an_answer", "prefill_ms", "method_ms", "decode_ms_a_token")


def summary(
    finished: Mapping[Run, Sequence[dict[str, Any]]],
    kinds: Sequence[str],
    shape: LanguageModelShape,
    bytes_per_value: int,
) -> list[dict[str, Any]]:
    """One row for each method and budget; runs with several seeds become their mean.

    Args:
        finished: the stored lines of every finished run, the unpruned one among them.
        kinds: the types of question.
        shape: the language model's sizes.
        bytes_per_value: of its key-value cache.
    """
    records = {run: [record_of(line) for line in lines] for run, lines in finished.items()}
    budgets: dict[tuple[str, float | int], list[Run]] = {}
    for run in finished:
        budgets.setdefault((run.method, run.keep), []).append(run)
    tallies = {
        key: mean_tally([Tally.of(records[run], kinds) for run in members])
        for key, members in budgets.items()
    }
    full = next(run for run in finished if run.method == "full")
    base = tallies[full.method, full.keep]
    rows = []
    for (method, keep), members in budgets.items():
        tally = tallies[method, keep]
        begun = [
            Tally.of([record_of(line, "begins_right") for line in finished[run]], kinds)
            for run in members
        ]
        answers = [records[run] for run in members]
        versus = None if method in ("full", "random") else tallies.get(("random", keep))
        hard = None if method == "full" else budgets.get((REFERENCE, keep))
        rows.append(
            {
                "method": method,
                "keep": keep,
                **accuracies(tally),
                "lenient": accuracies(mean_tally(begun)),
                "retained": 100 * tally.macro / base.macro if base.macro else None,
                "loyalty": fmean([loyalty(records[full], said) for said in answers]),
                "overall_performance": overall_performance(base, tally),
                "minus_random": None if versus is None else difference(tally, versus),
                **group_scores(records[full], None if hard is None else records[hard[0]], answers),
                **costs(
                    [line for run in members for line in finished[run]], shape, bytes_per_value
                ),
            }
        )
    return rows


def record_of(line: dict[str, Any], right: str = "right") -> Record:
    """What the metrics need of a stored line; ``right`` names what counts as right."""
    kept = {name: line[name] for name in ("id", "picture", "kind", "prediction")}
    return Record(**kept, right=line[right])


def accuracies(tally: Tally) -> dict[str, Any]:
    """Macro accuracy and that of each type, with intervals; None for a type that nobody asked."""
    scores = zip(tally.accuracy.tolist(), tally.asked.sum(0), strict=True)
    types = [score if asked else None for score, asked in scores]
    return {
        "macro": tally.macro,
        "interval": tally.interval,
        "types": dict(zip(tally.kinds, types, strict=True)),
        "type_intervals": dict(zip(tally.kinds, tally.type_intervals, strict=True)),
    }


def costs(
    lines: Sequence[dict[str, Any]], shape: LanguageModelShape, bytes_per_value: int
) -> dict[str, Any]:
    """Cost counted by formula, for the mean example, and cost measured."""
    visual, kept, text = (
        round(fmean([line[name] for line in lines]))
        for name in ("visual_tokens", "kept_tokens", "text_tokens")
    )
    seen: int | list[int] = kept
    if "visual_by_layer" in lines[0]:  # it falls from layer to layer
        layers = zip(*(line["visual_by_layer"] for line in lines), strict=True)
        seen = [round(fmean(counts)) for counts in layers]
    counted = {
        convention: saving(
            shape,
            max(visual, 1),
            text,
            keep=1.0,
            convention=convention,
            bytes_per_value=bytes_per_value,
            kept_tokens=seen,
        )
        for convention in CONVENTIONS
    }
    return {
        "visual_tokens": visual,
        "kept_tokens": kept,
        "text_tokens": text,
        "flops": {
            name: {"full": one.flops_full, "pruned": one.flops_pruned, "saved": one.flops_saved}
            for name, one in counted.items()
        },
        "kv_bytes_full": counted["exact"].kv_bytes_full,
        "kv_bytes_pruned": counted["exact"].kv_bytes_pruned,
        "kv_bytes_measured": fmean([line["kv_bytes"] for line in lines]),
        **{name: median_of(line[name] for line in lines) for name in TIMES},
        "peak_memory_bytes": largest(line["memory_peak"] for line in lines),
        "peak_growth_bytes": largest(line["memory_growth"] for line in lines),
    }


def median_of(values: Iterable[float | None]) -> float | None:
    """The median of those that are known."""
    known = [value for value in values if value is not None]
    return median(known) if known else None


def largest(values: Iterable[int | None]) -> int | None:
    """The largest of those that are known."""
    return max((value for value in values if value is not None), default=None)


def difference(tally: Tally, other: Tally) -> dict[str, Any]:
    """How much higher ``tally`` is, with a 95% interval, paired by picture."""
    interval = between(tally.resampled() - other.resampled())
    return {"macro": tally.macro - other.macro, "interval": interval}


def group_scores(
    full: Sequence[Record],
    reference: Sequence[Record] | None,
    answers: Sequence[Sequence[Record]],
) -> dict[str, Any]:
    """Accuracy on what is hard and what is easy to compress; None without a reference.

    Args:
        full: the unpruned run.
        reference: the run whose failures tell what is hard, see `groups_of`.
        answers: a method's runs, with several seeds several.
    """
    if reference is None:
        return {"group_a": None, "group_b": None}
    scores: dict[str, Any] = {}
    for name, ids in zip(("group_a", "group_b"), groups_of(full, reference), strict=True):
        scores[name] = {"examples": len(ids), "accuracy": None, "interval": None}
        if ids:
            tally = mean_tally([tally_of(said, ids) for said in answers])
            scores[name] |= {"accuracy": tally.macro, "interval": tally.interval}
    return scores


def notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the numbers leave out, and what to do about it."""
    said = []
    pruned = [row for row in rows if row["method"] != "full"]
    for field, method, what in (
        ("minus_random", "random", "differences to random are"),
        ("group_a", REFERENCE, "group A (what image downsampling gets wrong) is"),
    ):
        without = [row["keep"] for row in pruned if row[field] is None and row["method"] != method]
        if without:
            said.append(
                f"{what} not known at keep {', '.join(map(str, dict.fromkeys(without)))}: no "
                f"finished run of {method} at that budget; add it to the methods"
            )
    if any(row["peak_memory_bytes"] is None for row in rows):
        said.append("peak memory is not known: this system does not tell a process's own")
    return said
