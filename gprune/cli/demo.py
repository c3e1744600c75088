"""``gprune demo``: the shipped tiny model with all tokens and with pruning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from gprune import viz
from gprune.ask.prompts import open_image
from gprune.budget import parse_keep
from gprune.cli.console import (
    console,
    error_console,
    exit_on_bad_use,
    print_costs,
    print_json,
    print_line,
    progress_bar,
)
from gprune.cli.options import (
    DEFAULT_KEEP,
    METHOD_HELP,
    JsonOption,
    KeepOption,
    OutOption,
    complete_method,
)
from gprune.pruners import RECOMMENDED, RECOMMENDED_REASON, make

if TYPE_CHECKING:
    from gprune.ask.demonstration import Demo, DemoAnswers
    from gprune.costs import PrefillTimes

PAPER, RECOMMENDED_NAME = "gprune", "recommended"

DemoMethodOption = Annotated[
    str | None,
    typer.Option(
        help=f"{METHOD_HELP} The demo shows both by default.", autocompletion=complete_method
    ),
]


def demo(
    keep: KeepOption = DEFAULT_KEEP,
    method: DemoMethodOption = None,
    image: Annotated[Path | None, typer.Option(help="An image of your own.")] = None,
    question: Annotated[str | None, typer.Option(help="A question of your own.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Index of the held-out scene.")] = 4,
    out: OutOption = Path("out/demo.png"),
    as_json: JsonOption = False,
) -> None:
    """Ask the shipped tiny model about a held-out scene, with all tokens and with pruning.

    Example: gprune demo --keep 0.25 --method graph_cover --seed 3
    """
    with exit_on_bad_use():
        path = viz.figure_path(out, "demo.png")
        names = (PAPER, RECOMMENDED_NAME) if method is None else (method,)
        pruners = [make(name, keep=parse_keep(keep)) for name in names]
        own_image = None if image is None else open_image(image)
        with error_console.status("loading the model"):
            # It imports transformers, which errors above need not wait for.
            from gprune.ask.demonstration import Demo

            shown = Demo.load(pruners, seed, own_image, question)
        # The JSON object is about the first question only.
        answers = answer_all(shown, 1 if as_json else len(shown.questions))
        with error_console.status("timing the prefill"):
            times = shown.prefill_times(answers[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        viz.panel(shown.pictures(answers), shown.title(answers)).savefig(path)
    if as_json:
        print_json(json_values(shown, answers[0], times, path))
        return
    console.print(answers_table(shown, answers, keep))
    console.print(RECOMMENDED_REASON, markup=False, highlight=False)
    print_costs(answers[0].outcomes[0].saving)
    print_line(
        f"prefill {times.full_ms:.1f} ms -> {times.pruned_ms:.1f} ms with {pruners[0].name} "
        "(encoder, selection and language model; median of 9)"
    )
    print_line(f"picture {path}")


def answer_all(demo: Demo, count: int) -> list[DemoAnswers]:
    """Answers the first ``count`` questions with a progress bar."""
    with progress_bar() as progress:
        return [
            demo.answer(question)
            for question in progress.track(demo.questions[:count], description="answering")
        ]


def json_values(
    demo: Demo, answers: DemoAnswers, times: PrefillTimes, path: Path
) -> dict[str, Any]:
    """Collects the JSON object: the first method, then the recommended one if both were used."""
    pruner, outcome = demo.pruners[0], answers.outcomes[0]
    saving = outcome.saving
    both = len(demo.pruners) > 1
    return {
        "model": "gprune tiny VLM",
        "method": pruner.name,
        "keep": pruner.keep,
        "question": answers.question.text,
        "expected": answers.question.expected,
        "answer_full": outcome.answer_full,
        "answer_pruned": outcome.answer_pruned,
        "visual_tokens": saving.visual_tokens,
        "kept_tokens": saving.kept_tokens,
        "flops_full": saving.flops_full,
        "flops_pruned": saving.flops_pruned,
        "flops_saved": saving.flops_saved,
        "prefill_ms_full": times.full_ms,
        "prefill_ms_pruned": times.pruned_ms,
        "overlay": str(path),
        "recommended_method": RECOMMENDED,
        "answer_recommended": answers.outcomes[1].answer_pruned if both else None,
    }


def answers_table(demo: Demo, answers: Sequence[DemoAnswers], keep: str) -> Table:
    """Builds the table of all answers, wrong ones in red, with the number of right ones below."""
    from gprune.ask.demonstration import right_answers

    saving = answers[0].outcomes[0].saving
    names = [pruner.name for pruner in demo.pruners]
    title = f"keep {keep}: {saving.kept_tokens} of {saving.visual_tokens} tokens"
    table = Table(title=title, show_footer=len(answers) > 1)
    table.add_column("question", footer="right answers")
    table.add_column("expected", footer=str(len(answers)))
    for column, name in enumerate(("all tokens", *names)):
        table.add_column(name, footer=str(right_answers(answers, column)))
    for one in answers:
        question = one.question
        cells = [
            Text(text, style="red" if question.is_right(text) is False else "")
            for text in one.texts
        ]
        table.add_row(Text(question.text), Text(question.expected or "?"), *cells)
    return table
