"""Writes docs/leaderboard.md and the tables of README.md and docs/results.md from stored results.

    python benchmarks/leaderboard.py

Reads the files that `tiny_accuracy.py` wrote; runs no model.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from tiny_accuracy import BLIND, FULL, MODEL, RESULTS, read_method, read_questions, unpacked

from gprune.evaluation.metrics import Tally, mean_tally, tied_ranks
from gprune.evaluation.summary import REFERENCE, difference
from gprune.evaluation.tables import format_difference
from gprune.training.card import gate

PAGE, IN_SHORT, README = Path("docs/leaderboard.md"), Path("docs/results.md"), Path("README.md")
# The generated text of docs/results.md and README.md stands between these marks.
BEGINS, ENDS = (
    "<!-- benchmarks/leaderboard.py begins -->",
    "<!-- benchmarks/leaderboard.py ends -->",
)
IN_SHORT_KEEPS = (0.5, 0.36, 0.25, 0.1, 0.05)
README_KEEPS = (0.5, 0.36, 0.25, 0.1)
README_METHODS = ("weighted_cover", "graph_cover", "divprune", "gprune", "random")
BELOW = "below random"

INTRODUCTION = """\
# Leaderboard: the shipped tiny model

All numbers are of one small model that this project trained, on generated scenes with large
shapes. They do not rank methods on your model: `gprune eval` does. [Five other towers](models.md)
order some methods differently.

- **Made by** `python benchmarks/leaderboard.py` from the files in `{folder}`, which `python
  benchmarks/tiny_accuracy.py` writes.
- **Questions**: {questions}, on {scenes} held-out scenes and {easy_vqa} pictures of easy-VQA's
  official test split. An answer counts if it matches exactly, a box if its IoU is at least one
  half.
- **Macro accuracy** is the mean in % over {kinds} question types: those that the model answers to
  90% with all tokens, relation and box to 80%.
- **All tokens**: {full}. With the tokens of another picture: {blind}.
- **Brackets** hold 95% bootstrap intervals over pictures. Random is the mean of three seeds.
- **Ranks (bold) are tied when the data cannot tell methods apart.** A rank is one more than the
  number of methods that are better at that budget. A method is better than another when the 95%
  interval of their *paired* difference lies above 0. With this many pairs, a few will be chance.
- **Methods inside the language model** (dart, fastv, pyramiddrop, sparsevlm, vlm_pruner) see every
  token in its first layers, one or two of this model's five, so the same budget costs more. For
  sparsevlm it is the name of a setting. pyramiddrop and sparsevlm number positions anew, as their
  released code does, which this model was not trained for.
"""

WHY = """\
Why: G-Prune keeps the tokens with the most information per edge of the graph. Tokens without
similar ones come first, then clusters, the smallest first. So the largest plain regions can lose
every token, while random selection thins all regions alike. Small and distinct things survive;
questions about large plain ones fail, the more so the less is kept.
[GraphCover](methods/graph_cover.md) addresses this. Counting suffers with every method that gives
a kept token no more attention than one token has; see [WeightedCover](methods/weighted_cover.md).
"""


class Board:
    """Stored results as tallies.

    Args:
        folder: what `tiny_accuracy.py` wrote.
        kinds: the question types in the mean; by default those that the model answers well enough
            with all tokens (`gprune.training.card.gate`).

    Attributes:
        questions: the questions and their pictures.
        whole: tallies over all question types, by method and budget; the mean over seeds.
        kinds: the question types in the mean.
        full: the tally over `kinds` with all tokens.
        blind: the tally over `kinds` with all tokens of another picture.
        tallies: tallies over `kinds`, by method and budget.
        refused: by method, the error with which the model refused it.
        right: whether each question was answered right, by method and budget, one array a seed.
    """

    def __init__(self, folder: Path, kinds: Sequence[str] | None = None) -> None:
        self.folder = folder
        self.questions = read_questions(folder)
        self.right: dict[tuple[str, float | int], list[np.ndarray]] = {}
        self.refused: dict[str, str] = {}
        other = ("questions.json", MODEL)
        names = sorted(path.stem for path in folder.glob("*.json") if path.name not in other)
        for name in names:
            stored = read_method(folder, name)
            if "refused" in stored:
                self.refused[name] = stored["refused"]
            for run in stored["runs"]:
                right = unpacked(run["right"], len(self.questions))
                self.right.setdefault((name, run["keep"]), []).append(right)
        self.whole = {
            key: mean_tally([self.questions.tally(right) for right in seeds])
            for key, seeds in self.right.items()
        }
        shares = accuracies(self.whole[FULL, 1.0])
        good = [kind for kind, share in shares.items() if share >= gate(kind)]
        self.kinds = good if kinds is None else list(kinds)
        if not self.kinds:
            raise ValueError(f"results in {str(folder)!r}: no type of question is answered well")
        self.tallies = {key: of_kinds(tally, self.kinds) for key, tally in self.whole.items()}
        self.full, self.blind = self.tallies.pop((FULL, 1.0)), self.tallies.pop((BLIND, 1.0))

    @property
    def keeps(self) -> list[float | int]:
        """Returns the budgets, largest first."""
        return sorted({keep for _, keep in self.tallies}, reverse=True)

    @property
    def methods(self) -> list[str]:
        """Returns the methods, best first, by the mean over the budgets that all of them have."""
        names = dict.fromkeys(name for name, _ in self.tallies)
        common = [keep for keep in self.keeps if all((n, keep) in self.tallies for n in names)]

        def mean(name: str) -> float:
            return sum(self.tallies[name, keep].macro for keep in common)

        return sorted(names, key=mean, reverse=True)

    def at(self, keep: float | int) -> dict[str, Tally]:
        """Returns the tallies at a budget by method."""
        found = ((name, self.tallies.get((name, keep))) for name in self.methods)
        return {name: tally for name, tally in found if tally is not None}

    def versus_random(self, name: str, keep: float | int) -> str:
        """Returns the paired difference of macro accuracy to random, with its interval."""
        tally, random = (self.tallies.get((one, keep)) for one in (name, "random"))
        return format_difference(
            None if tally is None or random is None else difference(tally, random)
        )


def scored(tally: Tally) -> str:
    """Returns macro accuracy with its interval."""
    return "{:.1f} ({:.1f} to {:.1f})".format(tally.macro, *tally.interval)


def accuracies(tally: Tally) -> dict[str, float]:
    """Returns the accuracy in % by question type."""
    return dict(zip(tally.kinds, tally.accuracy.tolist(), strict=True))


def of_kinds(tally: Tally, kinds: Sequence[str]) -> Tally:
    """Returns the tally of some question types."""
    columns = [tally.kinds.index(kind) for kind in kinds]
    return Tally(list(kinds), tally.right[:, columns], tally.total[:, columns])


def markdown(heads: Iterable[object], rows: Iterable[Iterable[object]]) -> Iterator[str]:
    """Yields the lines of a Markdown table."""
    heads = list(heads)
    yield f"| {' | '.join(map(str, heads))} |"
    yield "|---" * len(heads) + "|"
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"
    yield ""


def page(folder: Path = RESULTS) -> str:
    """Returns the leaderboard in Markdown."""
    board = Board(folder)
    ranks = {keep: tied_ranks(board.at(keep)) for keep in board.keeps}
    lines = [introduction(board), "## Macro accuracy", "", *always_first(board, ranks)]

    def cell(name: str, keep: float | int) -> str:
        tally = board.tallies.get((name, keep))
        return "" if tally is None else f"**{ranks[keep][name]}** · {scored(tally)}"

    lines += markdown(
        ("method", *board.keeps),
        ([name, *(cell(name, keep) for keep in board.keeps)] for name in board.methods),
    )
    lines += [*against_random(board), *hard_questions(board), *by_kind(board), *refusals(board)]
    return "\n".join(lines).rstrip() + "\n"


def introduction(board: Board) -> str:
    """Returns the first section: what was asked and how to read the tables."""
    questions = board.questions
    text = INTRODUCTION.format(
        folder=board.folder,
        scenes=questions.scenes,
        easy_vqa=questions.easy_vqa,
        questions=len(questions),
        kinds=len(board.kinds),
        full=scored(board.full),
        blind=scored(board.blind),
    )
    poor = [
        f"{kind.replace('_', ' ')} ({share:.1f})"
        for kind, share in accuracies(board.whole[FULL, 1.0]).items()
        if kind not in board.kinds
    ]
    if poor:
        text += f"- Not answered well enough to be in the mean: {', '.join(poor)}.\n"
    return text


def always_first(board: Board, ranks: dict[float | int, dict[str, int]]) -> Iterator[str]:
    """Yields a sentence on the methods of rank 1 at every budget, if there are any."""
    names = [
        f"`{name}`"
        for name in board.methods
        if all(ranks[keep].get(name) == 1 for keep in board.keeps)
    ]
    if names and len(board.methods) > len(names):
        yield f"Rank 1 at every budget: {', '.join(names)}."
        yield ""


def against_random(board: Board) -> Iterator[str]:
    """Yields the paired differences to random, and the question types that methods lose on."""
    yield from ("## Against random selection", "", "Paired differences of the macro accuracy.", "")
    yield from markdown(
        ("method", *board.keeps),
        (
            [name, *(board.versus_random(name, keep) for keep in board.keeps)]
            for name in board.methods
            if name != "random"
        ),
    )
    verdicts = [
        f"- keep {keep}: {verdict(tallies['gprune'], tallies['random'])}"
        for keep in board.keeps
        if {"gprune", "random"} <= (tallies := board.at(keep)).keys()
    ]
    yield from ("### Where G-Prune loses to random", "", *verdicts, "")
    if any(BELOW in line for line in verdicts):
        yield WHY
    ours = [
        f"- keep {keep}, {other}: {verdict(tallies['weighted_cover'], tallies[other], other)}"
        for keep in board.keeps
        for other in ("random", REFERENCE)
        if {"weighted_cover", other} <= (tallies := board.at(keep)).keys()
    ]
    if ours:
        yield from ("### Where WeightedCover loses", "", *ours, "")


def verdict(tally: Tally, random: Tally, name: str = "random") -> str:
    """Says whether ``tally`` is above or below ``random``, and on which question types.

    Args:
        tally: the method's results.
        random: the results to compare with.
        name: the name of the method that ``random`` belongs to.
    """
    versus = difference(tally, random)
    low, high = versus["interval"]
    word = f"above {name}" if low > 0 else f"below {name}" if high < 0 else None
    word = word or f"not distinguishable from {name}"
    found: dict[str, list[str]] = {"below": [], "above": []}
    for kind in tally.kinds:
        one = difference(of_kinds(tally, [kind]), of_kinds(random, [kind]))
        low, high = one["interval"]
        if low > 0 or high < 0:
            side = "above" if low > 0 else "below"
            found[side].append(f"{kind.replace('_', ' ')} ({one['macro']:+z.1f})")
    parts = [f"{side} on {', '.join(kinds)}" for side, kinds in found.items() if kinds]
    return "; ".join([f"**{word}**, {format_difference(versus)}", *parts]) + "."


def hard_questions(board: Board) -> Iterator[str]:
    """Yields the accuracy on questions that downsampling gets wrong, VTC-Bench's group A."""
    yield from ("## What image downsampling gets wrong", "")
    if not any((REFERENCE, keep) in board.right for keep in board.keeps):
        yield f"Unknown: there are no results of `{REFERENCE}` yet."
        yield ""
        return
    yield "Accuracy in % on the questions that the model answers right with all tokens and wrong"
    yield "with a picture downsampled to as many tokens (group A of VTC-Bench, arXiv 2510.07143)."
    yield "The number of these questions stands in brackets."
    yield ""
    full = board.right[FULL, 1.0][0]
    keeps = [keep for keep in board.keeps if (REFERENCE, keep) in board.right]
    hard = {keep: full & ~board.right[REFERENCE, keep][0] for keep in keeps}

    def cell(name: str, keep: float | int) -> str:
        seeds = board.right.get((name, keep))
        if seeds is None or not hard[keep].any():
            return ""
        return f"{100 * np.mean([right[hard[keep]].mean() for right in seeds]):.1f}"

    yield from markdown(
        ("method", *(f"{keep} ({hard[keep].sum()})" for keep in keeps)),
        ([name, *(cell(name, keep) for keep in keeps)] for name in board.methods),
    )


def by_kind(board: Board) -> Iterator[str]:
    """Yields a folded table for every question type."""
    yield from ("## By question type", "", "Open a type to see every method.", "")
    for kind in board.questions.kinds:
        full = of_kinds(board.whole[FULL, 1.0], [kind])
        yield f"### {kind.replace('_', ' ').capitalize()}: {scored(full)} with all tokens"
        yield ""
        rows = []
        for name in board.methods:
            tallies = [board.whole.get((name, keep)) for keep in board.keeps]
            rows.append(
                [name, *("" if one is None else scored(of_kinds(one, [kind])) for one in tallies)]
            )
        summary = kind.replace("_", " ").capitalize()
        yield from ('<details markdown="1">', f"<summary>{summary}, every method</summary>", "")
        yield from markdown(("method", *board.keeps), rows)
        yield from ("</details>", "")


def refusals(board: Board) -> Iterator[str]:
    """Yields the methods that the model refused, with the error."""
    if board.refused:
        yield from ("## Not served by this model", "")
        yield from (f"- `{name}`: {reason}" for name, reason in sorted(board.refused.items()))


def in_short(folder: Path = RESULTS) -> str:
    """Returns the generated part of docs/results.md."""
    board = Board(folder)
    full = accuracies(board.whole[FULL, 1.0])
    types = ", ".join(f"{kind.replace('_', ' ')} {share:.1f}" for kind, share in full.items())
    text = (
        f"Macro accuracy in %, and in brackets the share of the accuracy with all tokens. The mean "
        f"is over the {len(board.kinds)} question types that the model answers well enough with "
        f"all tokens, on {board.questions.scenes} held-out scenes and {board.questions.easy_vqa} "
        f"pictures of easy-VQA's official test split. With all tokens it is {scored(board.full)}; "
        f"by type: {types}. With the tokens of another picture it is {scored(board.blind)}."
    )
    table = retained(board, board.methods, IN_SHORT_KEEPS)
    return "\n".join([*textwrap.wrap(text, 100), "", *table])


def readme_table(folder: Path = RESULTS) -> str:
    """Returns the generated part of README.md: some methods at some budgets."""
    return "\n".join(retained(Board(folder), README_METHODS, README_KEEPS))


def retained(board: Board, methods: Iterable[str], keeps: Iterable[float]) -> Iterator[str]:
    """Yields a table of macro accuracy and its share of what all tokens reach."""
    keeps = [keep for keep in keeps if keep in board.keeps]

    def cell(name: str, keep: float | int) -> str:
        tally = board.tallies.get((name, keep))
        return "" if tally is None else f"{tally.macro:.1f} ({tally.macro / board.full.macro:.0%})"

    full = ["all tokens", *[f"{board.full.macro:.1f}"] * len(keeps)]
    rows = ([name, *(cell(name, keep) for keep in keeps)] for name in methods)
    return markdown(("keep", *keeps), [full, *rows])


def between_marks(text: str, generated: str) -> str:
    """Returns ``text`` with the part between the two marks replaced.

    Raises:
        ValueError: a mark is missing.
    """
    before, begins, rest = text.partition(BEGINS)
    _, ends, after = rest.partition(ENDS)
    if not (begins and ends):
        raise ValueError(f"the page lacks {BEGINS} or {ENDS}")
    return f"{before}{BEGINS}\n{generated}{ENDS}{after}"


def main(
    results: Annotated[Path, typer.Option(help="Folder of tiny_accuracy.py.")] = RESULTS,
    out: Annotated[Path, typer.Option(help="The page.")] = PAGE,
    short: Annotated[Path, typer.Option(help="The page with the table in short.")] = IN_SHORT,
    readme: Annotated[Path, typer.Option(help="The file with the shortest table.")] = README,
) -> None:
    """Write the leaderboard and the tables of the README and the results page."""
    out.write_text(page(results))
    short.write_text(between_marks(short.read_text(), in_short(results)))
    readme.write_text(between_marks(readme.read_text(), readme_table(results)))


if __name__ == "__main__":
    typer.run(main)
