"""docs/leaderboard.md, and README.md's part of it, from results: python benchmarks/leaderboard.py

The results are those of `tiny_accuracy.py`; nothing is run here.
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
from gprune.evaluation.report import signed
from gprune.evaluation.summary import REFERENCE, difference
from gprune.training.card import gate

PAGE, README = Path("docs/leaderboard.md"), Path("README.md")
# Between these marks stands what README.md says of the results, at these budgets.
BEGINS, ENDS = (
    "<!-- benchmarks/leaderboard.py begins -->",
    "<!-- benchmarks/leaderboard.py ends -->",
)
SHORT = (0.5, 0.36, 0.25, 0.1, 0.05)
BELOW = "below random"

INTRODUCTION = """\
# Leaderboard: the shipped tiny model

Made by `python benchmarks/leaderboard.py` from the files in `{folder}`, which
`python benchmarks/tiny_accuracy.py` writes: {scenes} held-out scenes and {easy_vqa} pictures of
easy-VQA's official test split, {questions} questions, strict exact match in % (boxes: IoU of at
least one half). Macro is the mean over {kinds} question types: those that the model answers to 90%
with all tokens, relation and box to 80%. Random is the mean of three seeds.

With all tokens the model is right in {full}; given another picture, in {blind}.

- Brackets hold 95% bootstrap intervals over pictures.
- **Ranks (bold) are tied when the data cannot tell methods apart.** A rank is one more than the
  number of methods that are better at that budget, and one is better than another when the 95%
  interval of their *paired* difference lies above 0. With this many pairs, some will be luck.
- One small model on scenes of large shapes is no ranking of methods on yours: `gprune eval` makes
  that one. [Five other towers](models.md) order some methods otherwise.
"""

WHY = """\
Why: G-Prune keeps the tokens with the most information for each edge that they have in the graph.
Tokens without similar ones come first, then clusters, the smallest first, so the largest plain
regions can lose every token, while random selection thins all regions alike. What is small and
distinct survives; questions about what is large and plain lose their subject. The less is kept, the
more regions are gone. [GraphCover](methods/graph_cover.md) is our answer to that. Counting suffers
with every method whose tokens do not count for what they stand for, see
[WeightedCover](methods/weighted_cover.md).
"""


class Board:
    """The stored results as tallies.

    Args:
        folder: of `tiny_accuracy.py`.
        kinds: the types of question that count; by default those that the model answers well
            enough.

    Attributes:
        questions: what was asked.
        whole: tallies of all types of question, by method and budget; several seeds as their mean.
        kinds: the types that count as evidence: by default those that the model answers well
            enough with all tokens.
        full: of these, with all tokens.
        blind: of these, with all tokens of another picture.
        tallies: of these, by method and budget.
        refused: why methods could not be served.
        right: outcomes of every question by method and budget, one array a seed.
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
        """The budgets, the largest first."""
        return sorted({keep for _, keep in self.tallies}, reverse=True)

    @property
    def methods(self) -> list[str]:
        """The methods, best first, by the mean over the budgets that all of them have."""
        names = dict.fromkeys(name for name, _ in self.tallies)
        common = [keep for keep in self.keeps if all((n, keep) in self.tallies for n in names)]

        def mean(name: str) -> float:
            return sum(self.tallies[name, keep].macro for keep in common)

        return sorted(names, key=mean, reverse=True)

    def at(self, keep: float | int) -> dict[str, Tally]:
        """The methods that were run at a budget."""
        found = ((name, self.tallies.get((name, keep))) for name in self.methods)
        return {name: tally for name, tally in found if tally is not None}

    def versus_random(self, name: str, keep: float | int) -> str:
        """The paired difference of a method's macro accuracy to random, with its interval."""
        tally, random = (self.tallies.get((one, keep)) for one in (name, "random"))
        return signed(None if tally is None or random is None else difference(tally, random))


def scored(tally: Tally) -> str:
    """Macro accuracy with its interval."""
    return "{:.1f} ({:.1f} to {:.1f})".format(tally.macro, *tally.interval)


def accuracies(tally: Tally) -> dict[str, float]:
    """Right answers in % by type."""
    return dict(zip(tally.kinds, tally.accuracy.tolist(), strict=True))


def of_kinds(tally: Tally, kinds: Sequence[str]) -> Tally:
    """Some types of question alone."""
    places = [tally.kinds.index(kind) for kind in kinds]
    return Tally(list(kinds), tally.right[:, places], tally.asked[:, places])


def markdown(heads: Iterable[object], rows: Iterable[Iterable[object]]) -> Iterator[str]:
    """Lines of a Markdown table."""
    heads = list(heads)
    yield f"| {' | '.join(map(str, heads))} |"
    yield "|---" * len(heads) + "|"
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"
    yield ""


def page(folder: Path = RESULTS) -> str:
    """The page in Markdown."""
    board = Board(folder)
    lines = [introduction(board), "## Macro accuracy", ""]
    ranks = {keep: tied_ranks(board.at(keep)) for keep in board.keeps}

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
    """What was asked, and how to read the rest."""
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


def against_random(board: Board) -> Iterator[str]:
    """Paired differences of every method to random, and where G-Prune loses."""
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
        yield from ("### Whether WeightedCover loses on any type of question", "", *ours, "")


def verdict(tally: Tally, random: Tally, name: str = "random") -> str:
    """Whether ``tally`` is above or below random, and on which types of question.

    Args:
        tally: a method's.
        random: what it is compared with.
        name: what that is called.
    """
    versus = difference(tally, random)
    low, high = versus["interval"]
    word = f"above {name}" if low > 0 else f"below {name}" if high < 0 else None
    word = word or f"not told apart from {name}"
    found: dict[str, list[str]] = {"below": [], "above": []}
    for kind in tally.kinds:
        one = difference(of_kinds(tally, [kind]), of_kinds(random, [kind]))
        low, high = one["interval"]
        if low > 0 or high < 0:
            side = "above" if low > 0 else "below"
            found[side].append(f"{kind.replace('_', ' ')} ({one['macro']:+z.1f})")
    parts = [f"{side} on {', '.join(kinds)}" for side, kinds in found.items() if kinds]
    return "; ".join([f"**{word}**, {signed(versus)}", *parts]) + "."


def hard_questions(board: Board) -> Iterator[str]:
    """Accuracy on what downsampling gets wrong, VTC-Bench's group A."""
    yield from ("## What image downsampling gets wrong", "")
    if not any((REFERENCE, keep) in board.right for keep in board.keeps):
        yield f"Not known: there are no results of `{REFERENCE}` yet."
        yield ""
        return
    yield "Accuracy on the questions that all tokens answer right and downsampling to as many"
    yield "tokens gets wrong (group A of VTC-Bench, arXiv 2510.07143), with their number."
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
    """Accuracy of every type of question."""
    yield from ("## By question type", "")
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
        yield from markdown(("method", *board.keeps), rows)


def refusals(board: Board) -> Iterator[str]:
    """Methods without results, and why."""
    if board.refused:
        yield from ("## Not served by this model", "")
        yield from (f"- `{name}`: {reason}" for name, reason in sorted(board.refused.items()))


def excerpt(folder: Path = RESULTS) -> str:
    """What README.md says of the results, in Markdown."""
    board = Board(folder)
    full = board.whole[FULL, 1.0]
    types = ", ".join(
        f"{kind.replace('_', ' ')} {share:.1f}" for kind, share in accuracies(full).items()
    )
    keeps = [keep for keep in SHORT if keep in board.keeps]

    def cell(name: str, keep: float | int) -> str:
        tally = board.tallies.get((name, keep))
        return "" if tally is None else f"{tally.macro:.1f} ({tally.macro / board.full.macro:.0%})"

    said = (
        f"{board.questions.scenes} held-out scenes and {board.questions.easy_vqa} pictures of "
        f"easy-VQA's official test split, in %, all tokens: {types}; macro, the mean of the "
        f"{len(board.kinds)} types that it answers well enough, {scored(board.full)}. Given "
        f"another picture it is right in {scored(board.blind)}."
    )
    rows = ([name, *(cell(name, keep) for keep in keeps)] for name in board.methods)
    return "\n".join([*textwrap.wrap(said, 100), "", *markdown(("", *keeps), rows)])


def with_excerpt(text: str, said: str) -> str:
    """``text`` with what stands between the two marks replaced.

    Raises:
        ValueError: a mark is missing.
    """
    before, begins, rest = text.partition(BEGINS)
    _, ends, after = rest.partition(ENDS)
    if not (begins and ends):
        raise ValueError(f"{README} lacks {BEGINS} or {ENDS}")
    return f"{before}{BEGINS}\n{said}{ENDS}{after}"


def main(
    results: Annotated[Path, typer.Option(help="Folder of tiny_accuracy.py.")] = RESULTS,
    out: Annotated[Path, typer.Option(help="The page.")] = PAGE,
    readme: Annotated[Path, typer.Option(help="Where the short table goes.")] = README,
) -> None:
    """Write the leaderboard, and its short form into the README."""
    out.write_text(page(results))
    readme.write_text(with_excerpt(readme.read_text(), excerpt(results)))


if __name__ == "__main__":
    typer.run(main)
