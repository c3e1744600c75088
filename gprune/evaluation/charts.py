"""Charts of the report: accuracy against cost, and accuracy of each question type."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure

from gprune.evaluation.runs import FULL

LINE_STYLES = ("-", "--", ":", "-.")

# What accuracy is drawn against: a label, and the cost of a row.
COSTS: tuple[tuple[str, Callable[[dict[str, Any]], float]], ...] = (
    ("share of visual tokens kept", lambda row: row["kept_tokens"] / row["visual_tokens"]),
    ("prefill multiply-adds (exact)", lambda row: row["flops"]["exact"]["pruned"]),
    ("prefill, ms per question (measured)", lambda row: row["prefill_ms"]),
)


def method_styles(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns each method's plot style: one of ten colours, then another line style."""
    names = dict.fromkeys(row["method"] for row in rows if row["method"] != FULL)
    return {
        name: {
            "label": name,
            "color": f"C{index % 10}",
            "linestyle": LINE_STYLES[index // 10 % len(LINE_STYLES)],
        }
        for index, name in enumerate(names)
    }


def draw_cost_curves(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draws macro accuracy against kept tokens, multiply-adds and time."""
    styles = method_styles(rows)
    figure = Figure(figsize=(13, max(4, 0.22 * len(styles))))
    axes = figure.subplots(1, 3)
    full = next(row for row in rows if row["method"] == FULL)
    for axis, (label, cost) in zip(axes, COSTS, strict=True):
        for method, style in styles.items():
            points = sorted((cost(row), row["macro"]) for row in rows if row["method"] == method)
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3.5, **style)
        axis.scatter([cost(full)], [full["macro"]], color="black", zorder=3, label="all tokens")
        axis.set_xlabel(label)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("macro accuracy, %")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0, 0.86, 1))
    figure.legend(handles, labels, fontsize=8, loc="center right")
    return figure


def draw_type_curves(rows: Sequence[dict[str, Any]], kinds: Sequence[str]) -> Figure:
    """Draws the accuracy of each question type against kept tokens; dotted: all tokens."""
    columns = min(4, len(kinds))
    lines = -(-len(kinds) // columns)
    figure = Figure(figsize=(3.3 * columns, 2.6 * lines))
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True).ravel()
    for axis in axes[len(kinds) :]:
        axis.axis("off")
    full = next(row for row in rows if row["method"] == FULL)
    _, share = COSTS[0]
    for axis, kind in zip(axes, kinds, strict=False):
        for method, style in method_styles(rows).items():
            points = sorted(
                (share(row), row["types"][kind]) for row in rows if row["method"] == method
            )
            axis.plot(*zip(*points, strict=True), marker="o", markersize=2.5, **style)
        axis.axhline(full["types"][kind], color="black", linewidth=0.8, linestyle=":")
        axis.set_title(kind.replace("_", " "), fontsize=9)
        axis.grid(alpha=0.25)
    figure.tight_layout()
    return figure


def to_svg(figure: Figure) -> str:
    """Renders a figure as an SVG element."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg")
    return stream.getvalue()[stream.getvalue().index("<svg") :]
