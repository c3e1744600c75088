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

import matplotlib.pyplot as plt
import numpy as np
import typer
from leaderboard import Board, accuracies, markdown
from tiny_accuracy import FULL, MODEL, RESULTS

from gprune.evaluation.metrics import Tally, between

PAGE, OTHERS = Path("docs/models.md"), Path("benchmarks/results/models")
PICTURE = Path("docs/images/models.png")
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
    """The shipped model, then those taught as it was, then the others, by name."""
    folders = [shipped, *sorted(path for path in others.glob("*") if path.is_dir())]
    found = []
    for folder in folders:
        made = json.loads((folder / MODEL).read_text())
        name = "tinyvlm" if folder == shipped else folder.name
        found.append(Model(name, made, Board(folder)))
    if any(model.board.questions != found[0].board.questions for model in found):
        raise ValueError(f"results in {str(others)!r} are of other questions; run them anew")
    return sorted(found, key=lambda model: model.made["objective"] != found[0].made["objective"])


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
    lines += ["![What each model retains with each method](images/models.png)", ""]
    lines += ["## Accuracy", "", *textwrap.wrap(HOW.format(count=len(kinds), kinds=names), 100), ""]
    lines += in_short(alike)
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
    yield taught(made)
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


def in_short(every: Sequence[Model]) -> Iterator[str]:
    """How alike rankings are within and across what the towers were taught by."""
    kinds = list(dict.fromkeys(taught(model.made) for model in every))
    if len(kinds) < 2:
        return
    rows = []
    for keep in KEEPS:
        boards = [model.board.at(keep) for model in every]
        names = in_all(boards)
        taus: dict[tuple[str, ...], list[float]] = {}
        for (one, a), (other, b) in itertools.combinations(zip(every, boards, strict=True), 2):
            pair = tuple(dict.fromkeys((taught(one.made), taught(other.made))))
            taus.setdefault(pair, []).append(rank_correlation(macros(a, names), macros(b, names)))
        cells = [
            f"{np.mean(taus[pair]):+.2f}" if pair in taus else ""
            for pair in ((kinds[0],), (kinds[1],))
        ]
        best = []
        for kind in kinds:
            own = [
                macros(board, names)
                for model, board in zip(every, boards, strict=True)
                if taught(model.made) == kind
            ]
            best.append(f"`{names[int(np.mean(own, 0).argmax())]}`")
        rows.append([keep, *cells, f"{np.mean(taus[kinds[0], kinds[1]]):+.2f}", *best])
    yield "Kendall's tau of the rankings of two models, the mean over pairs of models:"
    yield ""
    yield from markdown(
        (
            "keep",
            f"both by {kinds[0]}",
            f"both by {kinds[1]}",
            "one by each",
            f"first by {kinds[0]}",
            f"first by {kinds[1]}",
        ),
        rows,
    )


def in_all(boards: Sequence[Mapping[str, Tally]]) -> list[str]:
    """The methods that every board has."""
    return [name for name in boards[0] if all(name in board for board in boards)]


def at_budget(every: Sequence[Model], keep: float) -> Iterator[str]:
    """What the models say about the methods at one budget."""
    boards = [model.board.at(keep) for model in every]
    names = in_all(boards)
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
        "Share of what all tokens reach, in %, with half of its 95% interval's width.",
        "",
    )
    rows = []
    for place in order:
        cells = []
        for model, board, share in zip(every, boards, retained[:, place], strict=True):
            low, high = board[names[place]].interval
            cells.append(f"{share:.0f} ± {50 * (high - low) / model.board.full.macro:.0f}")
        rows.append([names[place], f"{retained[:, place].mean():.0f}", *cells])
    yield from markdown(("method", "mean", *(model.name for model in every)), rows)
    yield from agreement(every, boards, names)


def agreement(
    every: Sequence[Model], boards: Sequence[Mapping[str, Tally]], names: Sequence[str]
) -> Iterator[str]:
    """How alike the models order the methods, and the pairs that they order otherwise."""
    values = [macros(board, names) for board in boards]
    yield "Kendall's tau between the rankings of two models:"
    yield ""
    yield from markdown(
        ("", *(model.name for model in every[1:])),
        (
            [
                every[row].name,
                *(
                    f"{rank_correlation(values[row], values[column]):+.2f}" if column > row else ""
                    for column in range(1, len(every))
                ),
            ]
            for row in range(len(every) - 1)
        ),
    )
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
    yield from between_objectives(every, boards, names)


def between_objectives(
    every: Sequence[Model], boards: Sequence[Mapping[str, Tally]], names: Sequence[str]
) -> Iterator[str]:
    """The pairs of methods that one way of teaching orders otherwise than another does."""
    groups: dict[str, list[Mapping[str, Tally]]] = {}
    for model, board in zip(every, boards, strict=True):
        groups.setdefault(taught(model.made), []).append(board)
    if len(groups) < 2:
        return
    (one, first), (two, second) = groups.items()
    ours, theirs = seeds_resampled(first, names), seeds_resampled(second, names)
    means = [np.mean([macros(board, names) for board in group], 0) for group in (first, second)]
    lines = []
    alike = 0
    for a, b in itertools.combinations(range(len(names)), 2):
        found = [verdict(samples[a] - samples[b]) for samples in (ours, theirs)]
        alike += found[0] == found[1] != 0
        if found[0] * found[1] < 0:
            ahead = [f"{mean[a] - mean[b]:+.1f}" for mean in means]
            lines.append(f"- `{names[a]}` and `{names[b]}`: {one} {ahead[0]}, {two} {ahead[1]}")
    yield (
        f"By what the towers were taught, over pictures and seeds: {alike} pairs are ordered alike "
        f"after {one} and after {two} (tau of the mean accuracies "
        f"{rank_correlation(*means):+.2f}), {len(lines)} otherwise"
        + (", as points that the first is ahead of the second:" if lines else ".")
    )
    yield ""
    if lines:
        yield from lines
        yield ""


def picture(every: Sequence[Model], path: Path) -> None:
    """Draws what each model retains with each method at two budgets."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 6), layout="constrained")
    order: list[str] = []
    for axis, keep in zip(axes, (0.25, 0.1), strict=True):
        boards = [model.board.at(keep) for model in every]
        share = {
            name: [
                100 * board[name].macro / model.board.full.macro
                for model, board in zip(every, boards, strict=True)
            ]
            for name in in_all(boards)
        }
        order = order or sorted(share, key=lambda name: np.mean(share[name]))
        names = [name for name in order if name in share]
        for number, model in enumerate(every):
            captions = model.made["objective"] == "captions"
            axis.plot(
                [share[name][number] for name in names],
                names,
                "^" if captions else "o",
                color=plt.get_cmap("Oranges" if captions else "Blues")(0.9 - 0.15 * number % 0.6),
                label=f"{model.name} ({taught(model.made)})",
                alpha=0.8,
            )
        axis.set(title=f"keep {keep}", xlabel="% of what all tokens reach")
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize="small")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def taught(made: Mapping[str, object]) -> str:
    """What a model's tower was taught by."""
    return {"patches": "labels of patches", "captions": "captions"}[str(made["objective"])]


def seeds_resampled(boards: Sequence[Mapping[str, Tally]], names: Sequence[str]) -> np.ndarray:
    """Macro accuracies of bootstrap samples of pictures and of models, [methods, RESAMPLES].

    The same draws for every method, so that differences are paired.
    """
    every = np.array([[board[name].resampled() for name in names] for board in boards])
    count = len(boards)
    rng = np.random.default_rng(0)
    weights = rng.multinomial(count, np.full(count, 1 / count), size=every.shape[2]) / count
    return np.einsum("mnr,rm->nr", every, weights)


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
    drawn: Annotated[Path, typer.Option(help="Its picture.")] = PICTURE,
) -> None:
    """Write the page and its picture."""
    out.write_text(page(shipped, others))
    picture(on_common_types(models(shipped, others))[1], drawn)


if __name__ == "__main__":
    typer.run(main)
