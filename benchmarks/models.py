"""docs/models.md: do rankings of methods hold on other models? python benchmarks/models.py

Compares the results of `tiny_accuracy.py` on several models, one folder each; nothing is run here.
`tiny_accuracy.py --checkpoint FOLDER --out benchmarks/results/models/NAME` adds a model.
"""

from __future__ import annotations

import itertools
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from leaderboard import Board, accuracies, markdown, scored
from tiny_accuracy import FULL, MODEL, RESULTS

from gprune.evaluation.metrics import Tally, between

PAGE, OTHERS = Path("docs/models.md"), Path("benchmarks/results/models")
KEEPS = (0.5, 0.36, 0.25, 0.1, 0.05)

INTRODUCTION = """\
# Do rankings hold on other models?

Made by `python benchmarks/models.py` from results of `python benchmarks/tiny_accuracy.py` on
{count} tiny models, {scenes} held-out scenes and {easy_vqa} pictures of easy-VQA's official test
split each, the same for all. A ranking on one model can be an artefact of how its features came
about; what holds on models whose towers were taught otherwise is worth more. [What a tiny model
is](tiny.md).
"""

HOW = """\
Macro accuracy below is over the {count} types of question that *every* one of these models answers
well enough with all tokens: {kinds}.
"""


@dataclass(frozen=True)
class Model:
    """One model's results.

    Attributes:
        name: of the folder, or tinyvlm.
        made: what `tiny_accuracy.py` stored of how it was made.
        board: its results.
    """

    name: str
    made: dict[str, object]
    board: Board


def models(shipped: Path = RESULTS, others: Path = OTHERS) -> list[Model]:
    """The shipped model, then the others by name."""
    folders = [shipped, *sorted(path for path in others.glob("*") if path.is_dir())]
    found = []
    for folder in folders:
        made = json.loads((folder / MODEL).read_text())
        name = "tinyvlm" if folder == shipped else folder.name
        found.append(Model(name, made, Board(folder)))
    if any(model.board.questions != found[0].board.questions for model in found):
        raise ValueError(f"results in {str(others)!r} are of other questions; run them anew")
    return found


def on_common_types(every: Sequence[Model]) -> tuple[list[str], list[Model]]:
    """The types of question that all models answer well enough, and the models on these alone."""
    kinds = [kind for kind in every[0].board.kinds if all(kind in m.board.kinds for m in every)]
    boards = [Board(model.board.folder, kinds) for model in every]
    return kinds, [Model(m.name, m.made, b) for m, b in zip(every, boards, strict=True)]


def page(shipped: Path = RESULTS, others: Path = OTHERS) -> str:
    """The page in Markdown."""
    every = models(shipped, others)
    questions = every[0].board.questions
    head = INTRODUCTION.format(
        count=len(every), scenes=questions.scenes, easy_vqa=questions.easy_vqa
    )
    kinds, alike = on_common_types(every)
    names = ", ".join(kind.replace("_", " ") for kind in kinds)
    lines = [head, "## The models", "", *made_how(every), *answered(every)]
    lines += ["## Accuracy", "", *textwrap.wrap(HOW.format(count=len(kinds), kinds=names), 100), ""]
    for keep in KEEPS:
        lines += at_budget(alike, keep)
    return "\n".join(lines).rstrip() + "\n"


def made_how(every: Sequence[Model]) -> Iterator[str]:
    """A table of how the models were made."""
    heads = ("model", "vision tower", "taught by", "language model", "seed", "steps")
    yield from markdown(heads, ([model.name, *map(str, told(model.made))] for model in every))


def told(made: Mapping[str, object]) -> Iterator[object]:
    """How a model was made, for a row of a table."""
    architecture = made["architecture"]
    assert isinstance(architecture, dict)
    yield architecture["tower"]
    yield {"patches": "labels of patches", "captions": "captions"}[str(made["objective"])]
    yield "its own" if made["language"] is None else f"begun with that of {made['language']}"
    yield made["seed"]
    yield f"{made['patch_steps']} + {made['answer_steps']}"


def answered(every: Sequence[Model]) -> Iterator[str]:
    """A table of what each model answers with all tokens, by type."""
    yield "Right answers with all tokens, in %; in brackets what is too little to be evidence:"
    yield ""
    shares = [accuracies(model.board.whole[FULL, 1.0]) for model in every]
    rows = (
        [
            kind.replace("_", " "),
            *(
                f"{share[kind]:.1f}" if kind in model.board.kinds else f"({share[kind]:.1f})"
                for model, share in zip(every, shares, strict=True)
            ),
        ]
        for kind in shares[0]
    )
    yield from markdown(("type", *(model.name for model in every)), rows)


def at_budget(every: Sequence[Model], keep: float) -> Iterator[str]:
    """What the models say about the methods at one budget."""
    boards = [model.board.at(keep) for model in every]
    names = [name for name in boards[0] if all(name in board for board in boards)]
    retained = np.array(
        [
            [100 * board[name].macro / model.board.full.macro for name in names]
            for model, board in zip(every, boards, strict=True)
        ]
    )  # [models, methods]
    order = np.argsort(-retained.mean(0), kind="stable")
    yield from (
        f"### Keep {keep}",
        "",
        "Share of what all tokens reach, in %, and macro accuracy.",
        "",
    )
    rows = []
    for place in order:
        cells = [
            f"{share:.0f} · {scored(board[names[place]])}"
            for share, board in zip(retained[:, place], boards, strict=True)
        ]
        rows.append([names[place], f"{retained[:, place].mean():.0f}", *cells])
    yield from markdown(("method", "mean", *(model.name for model in every)), rows)
    yield from agreement(every, boards, names)


def agreement(
    every: Sequence[Model], boards: Sequence[Mapping[str, Tally]], names: Sequence[str]
) -> Iterator[str]:
    """How alike the models order the methods, and the pairs that they order otherwise."""
    parts = [
        f"{one.name} and {other.name} {rank_correlation(macros(a, names), macros(b, names)):+.2f}"
        for (one, a), (other, b) in itertools.combinations(zip(every, boards, strict=True), 2)
    ]
    yield f"Rank correlation (Kendall's tau): {', '.join(parts)}."
    samples = [{name: board[name].resampled() for name in names} for board in boards]
    verdicts = {
        (one, other): [verdict(sample[one] - sample[other]) for sample in samples]
        for one, other in itertools.combinations(names, 2)
    }
    decided = {pair: [v for v in found if v] for pair, found in verdicts.items()}
    alike = sum(len(found) == len(every) and len(set(found)) == 1 for found in decided.values())
    flipped = [pair for pair, found in decided.items() if len(set(found)) > 1]
    yield (
        f"Of {len(verdicts)} pairs of methods, {alike} are ordered alike by every model (95% "
        f"interval of the paired difference), {len(flipped)} are ordered one way by one model and "
        "the other way by another, the rest are undecided by at least one."
    )
    yield ""
    if flipped:
        yield "The flips, as points that the first is ahead of the second:"
        yield ""
        for one, other in flipped:
            ahead = ", ".join(
                f"{model.name} {board[one].macro - board[other].macro:+.1f}"
                for model, board, v in zip(every, boards, verdicts[one, other], strict=True)
                if v
            )
            yield f"- `{one}` and `{other}`: {ahead}"
        yield ""


def macros(board: Mapping[str, Tally], names: Sequence[str]) -> np.ndarray:
    """Macro accuracies of methods, [methods]."""
    return np.array([board[name].macro for name in names])


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Kendall's tau (tau-b, which accounts for ties) of two orderings of the same things."""
    first, second = (np.sign(x[:, None] - x[None, :]) for x in (one, other))
    scale = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / scale) if scale else float("nan")


def verdict(difference: np.ndarray) -> int:
    """1 if one method is better than another, -1 if it is worse, 0 if that cannot be told.

    Args:
        difference: of their macro accuracies in paired bootstrap samples.
    """
    low, high = between(difference)
    return int(low > 0) - int(high < 0)


def main(
    shipped: Annotated[Path, typer.Option(help="Results of the shipped model.")] = RESULTS,
    others: Annotated[Path, typer.Option(help="Folder of other models' results.")] = OTHERS,
    out: Annotated[Path, typer.Option(help="The page.")] = PAGE,
) -> None:
    """Write the page."""
    out.write_text(page(shipped, others))


if __name__ == "__main__":
    typer.run(main)
