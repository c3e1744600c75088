"""Computes scores and costs of every method and budget from the stored lines of the runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from gprune.costs.flops import CONVENTIONS, LanguageModelShape, Saving, saving
from gprune.evaluation.metrics import (
    Record,
    Tally,
    compression_groups,
    loyalty,
    mean_tally,
    overall_performance,
    percentile_interval,
    tally_subset,
)
from gprune.evaluation.runs import FULL, Run

# The method whose wrong answers define what is hard to compress (VTC-Bench's group A).
REFERENCE = "downsampling"

# Fields with measured times. Their medians are reported, because the first batch warms up.
TIMES = ("ms_an_answer", "prefill_ms", "method_ms", "decode_ms_a_token")


def summarize(
    finished: Mapping[Run, Sequence[dict[str, Any]]],
    kinds: Sequence[str],
    shape: LanguageModelShape,
    bytes_per_value: int,
) -> list[dict[str, Any]]:
    """Returns one row for each method and budget; several seeds are averaged.

    Args:
        finished: the stored lines of every finished run, including the unpruned one.
        kinds: the question types.
        shape: the language model's sizes.
        bytes_per_value: bytes of a value in its KV cache.
    """
    scores = Scores(finished, kinds)
    return [
        {
            "method": method,
            "keep": keep,
            **scores.fields(method, keep),
            **cost_fields([line for run in runs for line in finished[run]], shape, bytes_per_value),
        }
        for (method, keep), runs in scores.budgets.items()
    ]


class Scores:
    """Scores of every method and budget, relative to the unpruned run.

    Args:
        finished: the stored lines of every finished run, including the unpruned one.
        kinds: the question types.

    Attributes:
        budgets: the runs of each method and budget; several if there are several seeds.
    """

    def __init__(
        self, finished: Mapping[Run, Sequence[dict[str, Any]]], kinds: Sequence[str]
    ) -> None:
        self.lines, self.kinds = finished, kinds
        self.records = {run: [to_record(line) for line in lines] for run, lines in finished.items()}
        self.budgets: dict[tuple[str, float | int], list[Run]] = {}
        for run in finished:
            self.budgets.setdefault((run.method, run.keep), []).append(run)
        self.tallies = {
            key: mean_tally([Tally.from_records(self.records[run], kinds) for run in runs])
            for key, runs in self.budgets.items()
        }
        self.full = next(run for run in finished if run.method == FULL)

    def fields(self, method: str, keep: float | int) -> dict[str, Any]:
        """Returns the score fields of a row."""
        runs, tally = self.budgets[method, keep], self.tallies[method, keep]
        full_records = self.records[self.full]
        full = self.tallies[self.full.method, self.full.keep]
        random = None if method in (FULL, "random") else self.tallies.get(("random", keep))
        answers = [self.records[run] for run in runs]
        return {
            **accuracy_fields(tally),
            "lenient": accuracy_fields(self.lenient_tally(runs)),
            "retained": 100 * tally.macro / full.macro if full.macro else None,
            "loyalty": fmean([loyalty(full_records, records) for records in answers]),
            "overall_performance": overall_performance(full, tally),
            "minus_random": None if random is None else difference(tally, random),
            **group_scores(full_records, self.reference(method, keep), answers),
        }

    def lenient_tally(self, runs: Sequence[Run]) -> Tally:
        """Counts answers as correct that begin with a correct one; averages the runs."""
        return mean_tally(
            [
                Tally.from_records(
                    [to_record(line, "begins_right") for line in self.lines[run]], self.kinds
                )
                for run in runs
            ]
        )

    def reference(self, method: str, keep: float | int) -> Sequence[Record] | None:
        """Returns the answers of `REFERENCE` at a budget; None if there are none, or for `FULL`."""
        runs = None if method == FULL else self.budgets.get((REFERENCE, keep))
        return None if runs is None else self.records[runs[0]]


def to_record(line: dict[str, Any], right: str = "right") -> Record:
    """Converts a stored line; ``right`` is the field that says whether the answer is correct."""
    fields = {name: line[name] for name in ("id", "picture", "kind", "prediction")}
    return Record(**fields, right=line[right])


def accuracy_fields(tally: Tally) -> dict[str, Any]:
    """Returns macro and per-type accuracy with intervals; None for a type without questions."""
    scores = zip(tally.accuracy.tolist(), tally.total.sum(0), strict=True)
    types = [score if total else None for score, total in scores]
    return {
        "macro": tally.macro,
        "interval": tally.interval,
        "types": dict(zip(tally.kinds, types, strict=True)),
        "type_intervals": dict(zip(tally.kinds, tally.type_intervals, strict=True)),
    }


@dataclass(frozen=True)
class MeanPrompt:
    """Mean token counts of the examples, rounded.

    Attributes:
        visual: visual tokens before pruning.
        kept: visual tokens that reach the last layer.
        text: the other tokens.
        by_layer: ``kept``, or visual tokens in each layer if the method prunes between layers.
    """

    visual: int
    kept: int
    text: int
    by_layer: int | list[int]

    @classmethod
    def from_lines(cls, lines: Sequence[dict[str, Any]]) -> MeanPrompt:
        """Averages the counts of the stored lines."""
        visual, kept, text = (
            round(fmean([line[name] for line in lines]))
            for name in ("visual_tokens", "kept_tokens", "text_tokens")
        )
        if "visual_by_layer" not in lines[0]:
            return cls(visual, kept, text, kept)
        layers = zip(*(line["visual_by_layer"] for line in lines), strict=True)
        return cls(visual, kept, text, [round(fmean(counts)) for counts in layers])

    def saving(self, shape: LanguageModelShape, convention: str, bytes_per_value: int) -> Saving:
        """Counts the prefill cost of this prompt; see `gprune.costs.saving`."""
        return saving(
            shape,
            max(self.visual, 1),  # a prompt without images counts as one visual token
            self.text,
            keep=1.0,
            convention=convention,
            bytes_per_value=bytes_per_value,
            kept_tokens=self.by_layer,
        )


def cost_fields(
    lines: Sequence[dict[str, Any]], shape: LanguageModelShape, bytes_per_value: int
) -> dict[str, Any]:
    """Returns the cost fields of a row: counted for the mean prompt, and measured."""
    prompt = MeanPrompt.from_lines(lines)
    counted = {name: prompt.saving(shape, name, bytes_per_value) for name in CONVENTIONS}
    return {
        "visual_tokens": prompt.visual,
        "kept_tokens": prompt.kept,
        "text_tokens": prompt.text,
        "flops": {
            name: {"full": cost.flops_full, "pruned": cost.flops_pruned, "saved": cost.flops_saved}
            for name, cost in counted.items()
        },
        "kv_bytes_full": counted["exact"].kv_bytes_full,
        "kv_bytes_pruned": counted["exact"].kv_bytes_pruned,
        "kv_bytes_measured": fmean([line["kv_bytes"] for line in lines]),
        **{name: known_median(line[name] for line in lines) for name in TIMES},
        "peak_memory_bytes": known_max(line["memory_peak"] for line in lines),
        "peak_growth_bytes": known_max(line["memory_growth"] for line in lines),
    }


def known_median(values: Iterable[float | None]) -> float | None:
    """Returns the median of the values that are not None; None without such a value."""
    known = [value for value in values if value is not None]
    return median(known) if known else None


def known_max(values: Iterable[int | None]) -> int | None:
    """Returns the largest of the values that are not None; None without such a value."""
    return max((value for value in values if value is not None), default=None)


def difference(tally: Tally, other: Tally) -> dict[str, Any]:
    """Returns ``tally`` minus ``other`` in macro accuracy, with the paired 95% interval."""
    interval = percentile_interval(tally.resampled() - other.resampled())
    return {"macro": tally.macro - other.macro, "interval": interval}


def group_scores(
    full: Sequence[Record],
    reference: Sequence[Record] | None,
    answers: Sequence[Sequence[Record]],
) -> dict[str, Any]:
    """Returns the accuracy on hard and easy examples; None without a reference.

    Args:
        full: the unpruned run.
        reference: the run that defines what is hard, see `compression_groups`.
        answers: the method's runs, one for each seed.
    """
    if reference is None:
        return {"group_a": None, "group_b": None}
    scores: dict[str, Any] = {}
    groups = compression_groups(full, reference)
    for name, ids in zip(("group_a", "group_b"), groups, strict=True):
        scores[name] = {"examples": len(ids), "accuracy": None, "interval": None}
        if ids:
            tally = mean_tally([tally_subset(records, ids) for records in answers])
            scores[name] |= {"accuracy": tally.macro, "interval": tally.interval}
    return scores


def missing_data_notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lists the numbers that are missing from the rows, and how to get them."""
    notes = []
    pruned = [row for row in rows if row["method"] != FULL]
    for field, method, subject in (
        ("minus_random", "random", "differences to random are"),
        ("group_a", REFERENCE, "group A (what image downsampling gets wrong) is"),
    ):
        missing = [row["keep"] for row in pruned if row[field] is None and row["method"] != method]
        if missing:
            notes.append(
                f"{subject} not known at keep {', '.join(map(str, dict.fromkeys(missing)))}: no "
                f"finished run of {method} at that budget; add it to the methods"
            )
    if any(row["peak_memory_bytes"] is None for row in rows):
        notes.append("peak memory is not known: this system does not report it for a process")
    return notes
