"""Writes docs/models.md, the same methods on several models: python benchmarks/models.py

Reads the files that `tiny_accuracy.py` wrote, one folder a model; runs no model.
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

from gprune.evaluation.metrics import Tally, percentile_interval

PAGE, OTHERS = Path("docs/models.md"), Path("benchmarks/results/models")
PICTURE = Path("docs/images/models.png")
KEEPS = (0.5, 0.36, 0.25, 0.1, 0.05)

# The budget of `headline`, which README.md quotes.
QUOTED = ("weighted_cover", 0.25)

INTRODUCTION = """\
# Do rankings hold on other models?

{headline}. Rankings of other methods depend on how the vision tower was trained: choosing by L2
norm is among the worst methods after training on patch labels and among the better ones after
captions.

All {count} are small models that this project trained, and they share one language model: the
others started from the first one's and trained it further. So they differ in their features,
hardly in how the features are read. Each answered the same questions on {scenes} held-out scenes
and {easy_vqa} pictures of easy-VQA's official test split. `python benchmarks/models.py` writes
this page from results of `python benchmarks/tiny_accuracy.py`. [How the models were
trained](tiny.md).
"""

HOW = """\
Macro accuracy below is the mean over the {count} question types that *every* model answers well
enough with all tokens: {kinds}.
"""

CORRECTED = """\
DART, HiPrune, HoloV, VisionZip, VisPruner and VLM-Pruner were corrected after four of the models
had been measured, so they are missing here. Their results on the two shipped models are current:
[tinyvlm](leaderboard.md), and tinyvlm-siglip in `benchmarks/results/models/tinyvlm-siglip`.
"""


@dataclass(frozen=True)
class Model:
    """One model's results.

    Attributes:
        name: of its folder of results, or tinyvlm.
        made: its training settings, as `tiny_accuracy.py` stored them.
        board: its results.
    """

    name: str
    made: dict[str, object]
    board: Board


def models(shipped: Path = RESULTS, others: Path = OTHERS) -> list[Model]:
    """Returns the shipped model, then those with its training objective, then the others.

    Raises:
        ValueError: some results are of other questions.
    """
    folders = [shipped, *sorted(path for path in others.glob("*") if path.is_dir())]
    found = []
    for folder in folders:
        made = json.loads((folder / MODEL).read_text())
        name = "tinyvlm" if folder == shipped else folder.name
        found.append(Model(name, made, Board(folder)))
    if any(model.board.questions != found[0].board.questions for model in found):
        raise ValueError(f"results in {str(others)!r} are of other questions; run them again")
    return sorted(found, key=lambda model: model.made["objective"] != found[0].made["objective"])


def on_common_types(every: Sequence[Model]) -> tuple[list[str], list[Model]]:
    """Returns the question types that all models answer well enough, and the models on these."""
    kinds = [kind for kind in every[0].board.kinds if all(kind in m.board.kinds for m in every)]
    boards = [Board(model.board.folder, kinds) for model in every]
    return kinds, [Model(m.name, m.made, b) for m, b in zip(every, boards, strict=True)]


def page(shipped: Path = RESULTS, others: Path = OTHERS) -> str:
    """Returns the page in Markdown."""
    every = models(shipped, others)
    questions = every[0].board.questions
    kinds, alike = on_common_types(every)
    head = INTRODUCTION.format(
        headline=headline(alike),
        count=len(every),
        scenes=questions.scenes,
        easy_vqa=questions.easy_vqa,
    )
    names = ", ".join(kind.replace("_", " ") for kind in kinds)
    lines = [head, "## The models", "", *made_how(every), *answered(every)]
    lines += ["![What each model retains with each method](images/models.png)", ""]
    lines += ["## Accuracy", "", *textwrap.wrap(HOW.format(count=len(kinds), kinds=names), 100), ""]
    lines += [*textwrap.wrap(CORRECTED, 100, break_long_words=False), ""]
    lines += in_short(alike)
    for keep in KEEPS:
        lines += at_budget(alike, keep)
    return "\n".join(lines).rstrip() + "\n"


def headline(every: Sequence[Model]) -> str:
    """Returns what one method retains at one budget on all models, without a full stop."""
    name, keep = QUOTED
    shares = [100 * m.board.tallies[name, keep].macro / m.board.full.macro for m in every]
    return (
        f"At keep {keep}, `{name}` retains {min(shares):.0f} to {max(shares):.0f}% of the accuracy "
        f"with all tokens\non each of {len(every)} models"
    )


def made_how(every: Sequence[Model]) -> Iterator[str]:
    """Yields a table of the models' training settings."""
    heads = ("model", "vision tower", "trained on", "language model", "seed", "steps")
    yield from markdown(heads, ([m.name, *map(str, training_cells(m.made))] for m in every))


def training_cells(made: Mapping[str, object]) -> Iterator[object]:
    """Yields a model's training settings as cells of a table row."""
    architecture = made["architecture"]
    assert isinstance(architecture, dict)
    yield architecture["tower"]
    yield objective(made)
    yield "its own" if made["language"] is None else f"started from {made['language']}'s"
    yield made["seed"]
    yield f"{made['patch_steps']} + {made['answer_steps']}"


def answered(every: Sequence[Model]) -> Iterator[str]:
    """Yields a table of each model's accuracy with all tokens, by question type."""
    yield "Accuracy with all tokens in %; types in brackets are answered too poorly to be evidence:"
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
    """Yields a table of rank correlations within and across training objectives."""
    kinds = list(dict.fromkeys(objective(model.made) for model in every))
    if len(kinds) < 2:
        return
    rows = []
    for keep in KEEPS:
        boards = [model.board.at(keep) for model in every]
        names = in_all(boards)
        taus: dict[tuple[str, ...], list[float]] = {}
        for (one, a), (other, b) in itertools.combinations(zip(every, boards, strict=True), 2):
            pair = tuple(dict.fromkeys((objective(one.made), objective(other.made))))
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
                if objective(model.made) == kind
            ]
            best.append(f"`{names[int(np.mean(own, 0).argmax())]}`")
        rows.append([keep, *cells, f"{np.mean(taus[kinds[0], kinds[1]]):+.2f}", *best])
    yield "Kendall's tau between the rankings of two models, the mean over pairs of models:"
    yield ""
    yield from markdown(
        (
            "keep",
            f"both {kinds[0]}",
            f"both {kinds[1]}",
            "one of each",
            f"best on {kinds[0]}",
            f"best on {kinds[1]}",
        ),
        rows,
    )


def in_all(boards: Sequence[Mapping[str, Tally]]) -> list[str]:
    """Returns the methods that every board has."""
    return [name for name in boards[0] if all(name in board for board in boards)]


def at_budget(every: Sequence[Model], keep: float) -> Iterator[str]:
    """Yields what each model retains at one budget, and how far the models agree."""
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
        "Share of the accuracy with all tokens, in %, ± half the width of its 95% interval.",
        "",
    )
    rows = []
    for method in order:
        cells = []
        for model, board, share in zip(every, boards, retained[:, method], strict=True):
            low, high = board[names[method]].interval
            cells.append(f"{share:.0f} ± {50 * (high - low) / model.board.full.macro:.0f}")
        rows.append([names[method], f"{retained[:, method].mean():.0f}", *cells])
    yield from markdown(("method", "mean", *(model.name for model in every)), rows)
    yield from agreement(every, boards, names)


def agreement(
    every: Sequence[Model], boards: Sequence[Mapping[str, Tally]], names: Sequence[str]
) -> Iterator[str]:
    """Yields rank correlations of the models and the pairs that objectives order differently."""
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
        f"Of {len(verdicts)} pairs of methods, all models order {alike} the same way (95% interval "
        f"of the paired difference), {len(flipped)} are ordered one way by one model and "
        "the other way by another, and the rest are undecided on at least one model."
    )
    yield ""
    yield from between_objectives(every, boards, names)


def between_objectives(
    every: Sequence[Model], boards: Sequence[Mapping[str, Tally]], names: Sequence[str]
) -> Iterator[str]:
    """Yields the pairs of methods that the two training objectives order differently."""
    groups: dict[str, list[Mapping[str, Tally]]] = {}
    for model, board in zip(every, boards, strict=True):
        groups.setdefault(objective(model.made), []).append(board)
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
        f"By training objective, over pictures and seeds: {alike} pairs are ordered the same way "
        f"after {one} and after {two} (tau of the mean accuracies "
        f"{rank_correlation(*means):+.2f}), {len(lines)} differently"
        + (". By how many points the first is ahead of the second:" if lines else ".")
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
                label=f"{model.name} ({objective(model.made)})",
                alpha=0.8,
            )
        axis.set(title=f"keep {keep}", xlabel="% of the accuracy with all tokens")
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize="small")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def objective(made: Mapping[str, object]) -> str:
    """Returns what a model's vision tower was trained on."""
    return {"patches": "patch labels", "captions": "captions"}[str(made["objective"])]


def seeds_resampled(boards: Sequence[Mapping[str, Tally]], names: Sequence[str]) -> np.ndarray:
    """Returns macro accuracies of bootstrap samples of pictures and models, [methods, RESAMPLES].

    The draws are the same for every method, so that differences are paired.
    """
    every = np.array([[board[name].resampled() for name in names] for board in boards])
    count = len(boards)
    rng = np.random.default_rng(0)
    weights = rng.multinomial(count, np.full(count, 1 / count), size=every.shape[2]) / count
    return np.einsum("mnr,rm->nr", every, weights)


def macros(board: Mapping[str, Tally], names: Sequence[str]) -> np.ndarray:
    """Returns macro accuracies, [methods]."""
    return np.array([board[name].macro for name in names])


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Returns Kendall's tau-b, which accounts for ties, of two orderings of the same items."""
    first, second = (np.sign(x[:, None] - x[None, :]) for x in (one, other))
    scale = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / scale) if scale else float("nan")


def verdict(difference: np.ndarray) -> int:
    """Returns 1 if a method is better than another, -1 if it is worse, 0 if undecided.

    Args:
        difference: of their macro accuracies in paired bootstrap samples.
    """
    low, high = percentile_interval(difference)
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
