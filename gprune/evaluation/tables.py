"""Rows of the results as text cells, for the terminal and for the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def brief_cells(row: dict[str, Any]) -> dict[str, str]:
    """Formats what matters most of a row, for a terminal of 80 columns, by column heading."""
    retained = row["retained"]
    return {
        "method": row["method"],
        "keep": str(row["keep"]),
        "accuracy, %": f"{row['macro']:.1f} ({format_interval(row['interval'])})",
        "retained": "" if retained is None else f"{retained:.1f}%",
        "prefill ms": format_number(row["prefill_ms"], 1),
    }


def accuracy_cells(row: dict[str, Any]) -> dict[str, str]:
    """Formats the scores of a row, by column heading."""
    return {
        "method": row["method"],
        "keep": str(row["keep"]),
        "tokens": f"{row['kept_tokens']}/{row['visual_tokens']}",
        "macro": f"{row['macro']:.1f}",
        "interval": format_interval(row["interval"]),
        "lenient": f"{row['lenient']['macro']:.1f}",
        "vs random": format_difference(row["minus_random"]),
        "retained": format_number(row["retained"]),
        "loyalty": format_number(row["loyalty"]),
        "overall": format_number(row["overall_performance"]),
        "group A": format_group(row["group_a"]),
    }


def cost_cells(row: dict[str, Any]) -> dict[str, str]:
    """Formats the costs of a row, by column heading."""
    saved = {f"{name} saved": f"{100 * cost['saved']:.0f}%" for name, cost in row["flops"].items()}
    return {
        "method": row["method"],
        "keep": str(row["keep"]),
        **saved,
        "KV KiB": format_number(row["kv_bytes_pruned"] / 2**10),
        "measured KV KiB": format_number(row["kv_bytes_measured"] / 2**10),
        "prefill ms": format_number(row["prefill_ms"], 2),
        "selection ms": format_number(row["method_ms"], 2),
        "ms/token": format_number(row["decode_ms_a_token"], 2),
        "ms/answer": format_number(row["ms_an_answer"], 2),
        "peak MiB": format_mebibytes(row["peak_memory_bytes"]),
        "added MiB": format_mebibytes(row["peak_growth_bytes"]),
    }


def type_cells(row: dict[str, Any], scores: dict[str, Any]) -> dict[str, str]:
    """Formats the accuracy of each question type, by column heading.

    Args:
        row: a row of the results.
        scores: ``row`` for strict accuracy, ``row["lenient"]`` for lenient accuracy.
    """
    types = {
        kind.replace("_", " "): ""
        if accuracy is None
        else f"{accuracy:.1f} ({format_interval(scores['type_intervals'][kind])})"
        for kind, accuracy in scores["types"].items()
    }
    return {"method": row["method"], "keep": str(row["keep"]), **types}


def format_number(value: float | None, digits: int = 1) -> str:
    """Formats a number; returns an empty text for None."""
    return "" if value is None else f"{value:,.{digits}f}"


def format_mebibytes(count: int | None) -> str:
    """Formats a number of bytes in MiB; returns an empty text for None."""
    return format_number(None if count is None else count / 2**20)


def format_interval(interval: Sequence[float]) -> str:
    """Formats the two ends of an interval."""
    return "{:.1f} to {:.1f}".format(*interval)


def format_difference(difference: dict[str, Any] | None) -> str:
    """Formats a signed difference with its interval; returns an empty text for None."""
    if difference is None:
        return ""
    return "{:+z.1f} ({:+z.1f} to {:+z.1f})".format(difference["macro"], *difference["interval"])


def format_group(scores: dict[str, Any] | None) -> str:
    """Formats the accuracy and the number of examples of a group; an empty text for None."""
    if scores is None:
        return ""
    return f"{format_number(scores['accuracy']) or '-'} of {scores['examples']}"
