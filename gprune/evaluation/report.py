"""Renders an evaluation as one HTML page without external files."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from gprune.evaluation.charts import draw_cost_curves, draw_type_curves, to_svg
from gprune.evaluation.runs import FULL
from gprune.evaluation.tables import accuracy_cells, cost_cells, type_cells

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem;
       color: #1c2430; }
p, ul { max-width: 52rem; }
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

# What the columns of the two tables mean, as HTML.
SCORES_LEGEND = """<ul>
<li><b>macro</b>: mean of the accuracies of all question types, in %; <b>interval</b>: its 95%
bootstrap interval over pictures.</li>
<li><b>lenient</b>: macro accuracy if an answer may continue after a correct beginning.</li>
<li><b>vs random</b>: difference to random selection at the same budget, with the paired
interval.</li>
<li><b>retained</b>: macro accuracy relative to all tokens, in %; <b>overall</b>: quadratic mean of
the relative accuracies of all question types; <b>loyalty</b>: share of answers equal to those with
all tokens, right or wrong.</li>
<li><b>group A</b>: accuracy on the hard questions: correct with all tokens, wrong after
downsampling the image to the same budget.</li>
</ul>"""
COSTS_LEGEND = """<ul>
<li><b>fastv</b>, <b>linear</b>, <b>exact saved</b>: share of the language model's prefill
multiply-adds that pruning saves, in three counting conventions.</li>
<li><b>KV KiB</b>: size of the KV cache by formula. All columns after it are measured.</li>
<li>Times are medians for one question: the time of its batch divided by the batch size.
<b>prefill</b>: until the first token, image encoding and selection included; <b>selection</b>:
selection alone; <b>ms/token</b>: each further token; <b>ms/answer</b>: the whole answer.</li>
<li><b>peak MiB</b>: peak memory of a whole batch; <b>added MiB</b>: peak minus the memory in use
before the batch.</li>
</ul>"""
TIMING_NOTE = (
    "<p class=note>The runs were timed one after another, so their times include drift of the "
    "machine. <code>gprune bench</code> and <code>gprune run --compare</code> time full and pruned "
    "in turn.</p>"
)


def render_report(results: dict[str, Any], gallery: Sequence[tuple[str, Image.Image]] = ()) -> str:
    """Renders the report as HTML.

    Args:
        results: the results of `Evaluation.results`.
        gallery: captions and pictures of `build_gallery`.
    """
    rows = results["rows"]
    sections = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>gprune evaluation</title>",
        f"<style>{STYLE}</style><h1>gprune evaluation</h1>",
        accuracy_section(results),
        f"<h2>Cost</h2>{COSTS_LEGEND}",
        table([cost_cells(row) for row in rows]),
        f"<h2>Accuracy against cost</h2>{to_svg(draw_cost_curves(rows))}",
        type_section(results) if len(results["kinds"]) > 1 else "",
        gallery_section(gallery) if gallery else "",
        failure_section(results["failures"]) if results["failures"] else "",
        f"{TIMING_NOTE}</html>",
    ]
    return "\n".join(section for section in sections if section)


def accuracy_section(results: dict[str, Any]) -> str:
    """Renders the table of scores, with the notes on missing numbers."""
    notes = (f"<p class=note>{html.escape(note)}</p>" for note in results["notes"])
    return "\n".join(
        [
            f"<p>{html.escape(str(results['settings']['model']))}: {results['examples']} questions "
            f"about {results['pictures']} pictures.</p>",
            SCORES_LEGEND,
            table([accuracy_cells(row) for row in results["rows"]]),
            *notes,
        ]
    )


def type_section(results: dict[str, Any]) -> str:
    """Renders the accuracy of each question type, strict and lenient."""
    rows = results["rows"]
    return "\n".join(
        [
            "<h2>By question type</h2>",
            "<p>Accuracy in %, with its 95% interval.</p>",
            table([type_cells(row, row) for row in rows]),
            "<p>Lenient accuracy in %, with its 95% interval.</p>",
            table([type_cells(row, row["lenient"]) for row in rows]),
            "<p>Accuracy against the share of visual tokens kept. Dotted line: all tokens.</p>",
            to_svg(draw_type_curves(rows, results["kinds"])),
        ]
    )


def gallery_section(gallery: Sequence[tuple[str, Image.Image]]) -> str:
    """Renders the pictures with their captions."""
    figures = (
        f"<figure><img alt='' width=224 src='{data_url(picture)}'>"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, picture in gallery
    )
    return "\n".join(
        [
            "<h2>Examples</h2>",
            "<p>Questions that are answered correctly with all tokens. Pruned patches are "
            "dimmed.</p>",
            *figures,
        ]
    )


def failure_section(failures: dict[str, str]) -> str:
    """Renders the error message of each failed run."""
    items = (
        f"<li>{html.escape(label)}: {html.escape(reason)}</li>"
        for label, reason in failures.items()
    )
    return "\n".join(["<h2>Failures</h2><ul>", *items, "</ul>"])


def table(rows: Sequence[dict[str, str]]) -> str:
    """Renders rows of cells by heading as an HTML table; the first row gives the headings."""
    lines = [f"<tr>{''.join(f'<th>{html.escape(heading)}</th>' for heading in rows[0])}</tr>"]
    for row in rows:
        attribute = " class=full" if row["method"] == FULL else ""
        cells = "".join(f"<td>{html.escape(value)}</td>" for value in row.values())
        lines.append(f"<tr{attribute}>{cells}</tr>")
    return f"<div class=scroll><table>{''.join(lines)}</table></div>"


def data_url(picture: Image.Image) -> str:
    """Encodes a picture as a PNG data URL."""
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
