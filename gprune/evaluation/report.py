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
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem;
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
        "with a 95% bootstrap interval over pictures; the one against random is paired. Lenient is "
        "the macro of answers that begin right, whatever was said after them. Retained, loyalty "
        "and overall are against all tokens; group A is the accuracy on the questions "
        "that all tokens answer right and image downsampling at the same budget gets wrong.</p>",
        table([accuracy_cells(row) for row in rows]),
        *(f"<p class=note>{html.escape(note)}</p>" for note in results["notes"]),
        "<h2>Cost</h2>",
        "<p>The share of the language model's multiply-adds at prefill that is saved, in three "
        "conventions, and key-value bytes by formula; the rest is measured. Times are medians of "
        "one question's share of its batch: prefill is until the first token, encoder and "
        "selection included; method is the selection alone; then each further token, and all of "
        "the answer. Peak memory is of a whole batch: all that is held, and what of it the batch "
        "has added.</p>",
        table([cost_cells(row) for row in rows]),
        "<h2>Accuracy against cost</h2>",
        svg(curves(rows)),
    ]
    if len(results["kinds"]) > 1:
        lines += [
            "<h2>By question type</h2>",
            "<p>Accuracy with its interval, and the lenient one.</p>",
            table([type_cells(row, row) for row in rows]),
            table([type_cells(row, row["lenient"]) for row in rows]),
            svg(by_kind(rows, results["kinds"])),
        ]
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
        "<p class=note>Runs are timed one after another, so their times hold the machine's drift; "
        "<code>gprune bench</code> and <code>gprune run --compare</code> time in turn.</p></html>"
    )
    return "\n".join(lines)


def accuracy_cells(row: dict[str, Any]) -> dict[str, str]:
    """A row's scores as text, by heading."""
    hard = row["group_a"]
    return {
        "method": row["method"],
        "keep": str(row["keep"]),
        "tokens": f"{row['kept_tokens']}/{row['visual_tokens']}",
        "macro": f"{row['macro']:.1f}",
        "interval": spread(row["interval"]),
        "lenient": f"{row['lenient']['macro']:.1f}",
        "− random": signed(row["minus_random"]),
        "retained": number(row["retained"]),
        "loyalty": number(row["loyalty"]),
        "overall": number(row["overall_performance"]),
        "group A": ""
        if hard is None
        else f"{number(hard['accuracy']) or '-'} of {hard['examples']}",
    }


def cost_cells(row: dict[str, Any]) -> dict[str, str]:
    """A row's costs as text, by heading."""
    saved = {f"{name} saved": f"{100 * one['saved']:.0f}%" for name, one in row["flops"].items()}
    return {
        "method": row["method"],
        "keep": str(row["keep"]),
        **saved,
        "KV KiB": number(row["kv_bytes_pruned"] / 2**10),
        "measured": number(row["kv_bytes_measured"] / 2**10),
        "prefill ms": number(row["prefill_ms"], 2),
        "method ms": number(row["method_ms"], 2),
        "ms a token": number(row["decode_ms_a_token"], 2),
        "answer ms": number(row["ms_an_answer"], 2),
        "peak MiB": number(mebibytes(row["peak_memory_bytes"])),
        "of it new": number(mebibytes(row["peak_growth_bytes"])),
    }


def number(value: float | None, digits: int = 1) -> str:
    """A number as text, nothing where it is not known."""
    return "" if value is None else f"{value:,.{digits}f}"


def mebibytes(count: int | None) -> float | None:
    return None if count is None else count / 2**20


def spread(interval: Sequence[float]) -> str:
    return "{:.1f} to {:.1f}".format(*interval)


def signed(versus: dict[str, Any] | None) -> str:
    """A difference with its interval, nothing where it is not known."""
    if versus is None:
        return ""
    return "{:+z.1f} ({:+z.1f} to {:+z.1f})".format(versus["macro"], *versus["interval"])


def table(rows: Sequence[dict[str, str]]) -> str:
    """Rows of cells by heading as HTML; all have the headings of the first."""
    cells = [f"<tr>{''.join(f'<th>{html.escape(head)}</th>' for head in rows[0])}</tr>"]
    for row in rows:
        full = " class=full" if row["method"] == "full" else ""
        values = "".join(f"<td>{html.escape(value)}</td>" for value in row.values())
        cells.append(f"<tr{full}>{values}</tr>")
    return f"<div class=scroll><table>{''.join(cells)}</table></div>"


def type_cells(row: dict[str, Any], scores: dict[str, Any]) -> dict[str, str]:
    """A row's accuracy of each type as text, by heading; ``scores`` are its strict or lenient."""
    types = {
        kind.replace("_", " "): ""
        if score is None
        else f"{score:.1f} ({spread(scores['type_intervals'][kind])})"
        for kind, score in scores["types"].items()
    }
    return {"method": row["method"], "keep": str(row["keep"]), **types}


def styles_of(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """How each method is drawn: a colour, and once those are used up another line."""
    names = dict.fromkeys(row["method"] for row in rows if row["method"] != "full")
    lines = ("-", "--", ":", "-.")
    return {
        name: {"label": name, "color": f"C{place % 10}", "linestyle": lines[place // 10 % 4]}
        for place, name in enumerate(names)
    }


def curves(rows: Sequence[dict[str, Any]]) -> Figure:
    """Macro accuracy against kept tokens, FLOPs and time."""
    styles = styles_of(rows)
    figure = Figure(figsize=(13, max(4, 0.22 * len(styles))))
    axes = figure.subplots(1, 3)
    full = next(row for row in rows if row["method"] == "full")
    costs: tuple[tuple[str, Callable[[dict[str, Any]], float]], ...] = (
        ("share of visual tokens kept", lambda row: row["kept_tokens"] / row["visual_tokens"]),
        ("prefill multiply-adds (exact)", lambda row: row["flops"]["exact"]["pruned"]),
        ("prefill, ms a question (measured)", lambda row: row["prefill_ms"]),
    )
    for axis, (label, cost) in zip(axes, costs, strict=True):
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
        for method, style in styles_of(rows).items():
            points = sorted(
                (row["kept_tokens"] / row["visual_tokens"], row["types"][kind])
                for row in rows
                if row["method"] == method
            )
            axis.plot(*zip(*points, strict=True), marker="o", markersize=2.5, **style)
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
