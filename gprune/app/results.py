"""The table of answers as HTML. Everything that a user typed or a model answered is escaped."""

from __future__ import annotations

from html import escape

from gprune.ask.comparison import Comparison, MethodResult

HEADS = ("", "answer", "visual tokens", "multiply-adds", "KV cache", "prefill")
# How the title of a method's pictures goes on when they show scores; the second for methods that
# choose a set.
SCORED, UNSCORED = "scores", "(no scores)"


def results_table(comparison: Comparison) -> str:
    """Returns the question, its right answer and a row for each method as HTML."""
    rows = [unpruned_row(comparison)]
    rows += [result_row(one, comparison.answer_full) for one in comparison.results]
    question = f'<p class="asked">{escape(comparison.settings.question)}</p>'
    expected = ""
    if comparison.expected is not None:
        expected = f'<p class="expected">Right answer: <b>{escape(comparison.expected)}</b></p>'
    head = "".join(f"<th>{text}</th>" for text in HEADS)
    return (
        f'<div class="results">{question}{expected}<table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def unpruned_row(comparison: Comparison) -> str:
    """Returns the row of the model without pruning, which saves nothing."""
    saving = next((one.saving for one in comparison.results if one.saving is not None), None)
    answer = f'<span class="answer">{escape(comparison.answer_full)}</span>'
    tokens = "" if saving is None else token_bar(saving.visual_tokens, saving.visual_tokens)
    return table_row("all tokens", answer, tokens, "", "", "")


def result_row(result: MethodResult, answer_full: str) -> str:
    """Returns the row of a method: its answer and savings, or why it was refused."""
    saving, times = result.saving, result.times
    if saving is None:
        refusal = f'<td colspan="5" class="refusal">{escape(result.refusal or "")}</td>'
        return f"<tr><th>{escape(result.method)}</th>{refusal}</tr>"
    return table_row(
        result.method,
        compared_answer(result.answer, answer_full),
        token_bar(saving.kept_tokens, saving.visual_tokens),
        f"−{saving.flops_saved:.0%}",
        f"−{1 - saving.kv_bytes_pruned / saving.kv_bytes_full:.0%}",
        "" if times is None else f"{times.full_ms:.1f} → {times.pruned_ms:.1f} ms",
    )


def table_row(method: str, *cells: str) -> str:
    """Returns a row with the method as its head; ``cells`` are HTML.

    A phone shows each row as a block of its own: there ``data-head`` stands before a cell.
    """
    body = "".join(
        f'<td data-head="{head}">{cell}</td>' if cell else "<td></td>"
        for head, cell in zip(HEADS[1:], cells, strict=True)
    )
    return f"<tr><th>{escape(method)}</th>{body}</tr>"


def method_title(result: MethodResult) -> str:
    """Returns the title of a method's pictures; page.css chooses between its two ends."""
    scores = SCORED if result.scores is not None else UNSCORED
    return (
        f'<p class="title"><b>{escape(result.method)}</b> <span class="when-kept">keeps</span>'
        f'<span class="when-scores">{scores}</span></p>'
    )


def compared_answer(answer: str, answer_full: str) -> str:
    """Returns an answer with a label that tells whether it equals the unpruned one."""
    same = answer == answer_full
    label = "as with all tokens" if same else "differs"
    return (
        f'<span class="answer {"same" if same else "other"}">{escape(answer)}</span>'
        f'<span class="verdict">{label}</span>'
    )


def token_bar(kept: int, total: int) -> str:
    """Returns a bar and the numbers of kept and all tokens."""
    return (
        f'<span class="bar"><span style="width:{kept / total:.1%}"></span></span>'
        f'<span class="count">{kept} of {total}</span>'
    )
