"""An evaluation as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
       color: #1c2430; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #dde3ea;
         white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tr.full { font-weight: 600; background: #f2f5f9; }
figure { display: inline-block; vertical-align: top; margin: .5rem; font-size: 13px;
         width: 14rem; }
svg { max-width: 100%; height: auto; }
.scroll { overflow-x: auto; }
.note { color: #5a6675; font-size: 13px; }
"""


def page(results: dict[str, Any], cases: Sequence[tuple[str, Image.Image]] = ()) -> str:
    """The report.

    Args:
        results: what `Evaluation.results` returns.
        cases: (caption, picture) of examples worth looking at.
    """
    rows = results["rows"]
    settings = results["settings"]
    lines = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>gprune evaluation</title>",
        f"<style>{STYLE}</style><h1>gprune evaluation</h1>",
        f"<p>{html.escape(str(settings['model']))}: {results['examples']} questions about "
        f"{results['pictures']} pictures. Accuracy in %; macro is the mean over question types, "
        "with a 95% bootstrap interval over pictures; the one against random is paired.</p>",
        table(rows, results["kinds"]),
        "<h2>Accuracy against cost</h2>",
        svg(curves(rows)),
    ]
    if len(results["kinds"]) > 1:
        lines += ["<h2>By question type</h2>", svg(by_kind(rows, results["kinds"]))]
    if cases:
        lines.append("<h2>Cases</h2>")
        lines += [
            f"<figure><img alt='' width=224 src='{encoded(picture)}'>"
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
            for caption, picture in cases
        ]
    if results["failures"]:
        lines.append("<h2>Failures</h2><ul>")
        for label, reason in results["failures"].items():
            lines.append(f"<li>{html.escape(label)}: {html.escape(reason)}</li>")
        lines.append("</ul>")
    lines.append(
        "<p class=note>Times are of whole answers, one run after another: compare prefill times "
        "with <code>gprune run --compare</code>, which measures them side by side.</p></html>"
    )
    return "\n".join(lines)


def table(rows: Sequence[dict[str, Any]], kinds: Sequence[str]) -> str:
    """All numbers, one method and budget a row."""
    heads = [
        *("method", "keep", "tokens", "macro", "interval", "− random", "retained", "loyalty"),
        *("overall", "FLOPs saved", "KV bytes", "ms"),
        *(kind.replace("_", " ") for kind in kinds),
    ]
    cells = [f"<tr>{''.join(f'<th>{html.escape(head)}</th>' for head in heads)}</tr>"]
    for row in rows:
        low, high = row["interval"]
        versus = row["minus_random"]
        values = [
            row["method"],
            str(row["keep"]),
            f"{row['kept_tokens']}/{row['visual_tokens']}",
            f"{row['macro']:.1f}",
            f"{low:.1f} to {high:.1f}",
            "" if versus is None else f"{versus[0]:+.1f} to {versus[1]:+.1f}",
            "" if row["retained"] is None else f"{row['retained']:.1f}",
            f"{row['loyalty']:.1f}",
            "" if row["overall_performance"] is None else f"{row['overall_performance']:.1f}",
            f"{100 * row['flops_saved']:.0f}%",
            f"{row['kv_bytes_pruned']:,}",
            f"{row['ms_an_example']:.1f}",
            *(f"{row['types'][kind]:.1f}" for kind in kinds),
        ]
        full = " class=full" if row["method"] == "full" else ""
        cells.append(f"<tr{full}>{''.join(f'<td>{html.escape(v)}</td>' for v in values)}</tr>")
    return f"<div class=scroll><table>{''.join(cells)}</table></div>"


def methods_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in rows if row["method"] != "full"))


def curves(rows: Sequence[dict[str, Any]]) -> Figure:
    """Macro accuracy against kept tokens, FLOPs and time."""
    figure = Figure(figsize=(13, 4))
    axes = figure.subplots(1, 3)
    full = next(row for row in rows if row["method"] == "full")
    costs: tuple[tuple[str, Callable[[dict[str, Any]], float]], ...] = (
        ("share of visual tokens kept", lambda row: row["kept_tokens"] / row["visual_tokens"]),
        ("prefill multiply-adds (exact)", lambda row: row["flops_pruned"]),
        ("ms an answer", lambda row: row["ms_an_example"]),
    )
    for axis, (label, cost) in zip(axes, costs, strict=True):
        for method in methods_of(rows):
            points = sorted((cost(row), row["macro"]) for row in rows if row["method"] == method)
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3.5, label=method)
        axis.scatter([cost(full)], [full["macro"]], color="black", zorder=3, label="all tokens")
        axis.set_xlabel(label)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("macro accuracy, %")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    return figure


def by_kind(rows: Sequence[dict[str, Any]], kinds: Sequence[str]) -> Figure:
    """Accuracy of each type against kept tokens."""
    columns = min(4, len(kinds))
    lines = -(-len(kinds) // columns)
    figure = Figure(figsize=(3.3 * columns, 2.6 * lines))
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True).ravel()
    for axis in axes[len(kinds) :]:
        axis.axis("off")
    full = next(row for row in rows if row["method"] == "full")
    for axis, kind in zip(axes, kinds, strict=False):
        for method in methods_of(rows):
            points = sorted(
                (row["kept_tokens"] / row["visual_tokens"], row["types"][kind])
                for row in rows
                if row["method"] == method
            )
            axis.plot(*zip(*points, strict=True), marker="o", markersize=2.5, label=method)
        axis.axhline(full["types"][kind], color="black", linewidth=0.8, linestyle=":")
        axis.set_title(kind.replace("_", " "), fontsize=9)
        axis.grid(alpha=0.25)
    figure.tight_layout()
    return figure


def svg(figure: Figure) -> str:
    """A figure as an SVG element."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg")
    return stream.getvalue()[stream.getvalue().index("<svg") :]


def encoded(picture: Image.Image) -> str:
    """A picture as a data address."""
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
