"""``gprune eval``: the accuracy of methods and budgets on questions with known answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from gprune.ask.loading import load_model, quiet_transformers
from gprune.ask.prompts import check_template
from gprune.budget import parse_keep
from gprune.cli.console import (
    console,
    error_console,
    exit_on_bad_use,
    print_error,
    print_json,
    print_line,
    progress_bar,
)
from gprune.cli.options import (
    DEFAULT_DEVICE,
    DEFAULT_DTYPE,
    DeviceOption,
    DtypeOption,
    JsonOption,
    MaxNewTokensOption,
    ModelArgument,
    TemplateOption,
)
from gprune.pruners import make

if TYPE_CHECKING:
    from gprune.evaluation.runner import Evaluation
    from gprune.evaluation.runs import Run

TASKS_HELP = (
    "Comma-separated: scenes, easy_vqa, or JSONL files. A line of a file is an object with image "
    "(a path or a list), question, answer (or a list of right ones), and optionally type."
)


# Over 40 lines: fourteen options.
def evaluate(
    model: ModelArgument,
    tasks: Annotated[str, typer.Option(help=TASKS_HELP)],
    methods: Annotated[
        str, typer.Option(help="Comma-separated method names.")
    ] = "recommended,random",
    keep: Annotated[
        str, typer.Option(help="Comma-separated budgets, shares or counts.")
    ] = "0.36,0.1",
    limit: Annotated[int | None, typer.Option(min=1, help="Images of each task at most.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Questions in a batch.")] = 16,
    template: TemplateOption = None,
    max_new_tokens: MaxNewTokensOption = 32,
    device: DeviceOption = DEFAULT_DEVICE,
    dtype: DtypeOption = DEFAULT_DTYPE,
    out: Annotated[
        Path, typer.Option(help="Folder for results; an unfinished evaluation in it is resumed.")
    ] = Path("out/eval"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the results that the folder holds.")
    ] = False,
    wide: Annotated[
        bool, typer.Option("--wide", help="Print all columns, for a terminal of 200 columns.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Score methods and budgets on questions with known answers; write results and a report.

    Example: gprune eval tinyvlm --tasks scenes --methods gprune,graph_cover,random --keep 0.36,0.1
    """
    from gprune.evaluation.runner import Evaluation, remove_evaluation, require_no_loss
    from gprune.evaluation.tasks import load_tasks

    with exit_on_bad_use():
        check_template(template)
        runs = parse_runs(methods, keep)
        if not overwrite:
            require_no_loss(out, runs)
        examples = load_tasks([task.strip() for task in tasks.split(",")], limit)
        quiet_transformers()
        with error_console.status("loading the model"):
            network, processor = load_model(model, device, dtype)
        processor.tokenizer.padding_side = "left"  # the answer follows the prompt's last token
        settings = {"model": model, "tasks": tasks, "limit": limit, "device": device}
        if overwrite:
            remove_evaluation(out)
        evaluation = Evaluation(
            *(network, processor, examples, out, {**settings, "dtype": dtype}),
            batch=batch,
            max_new_tokens=max_new_tokens,
            template=template,
        )
        perform(evaluation, runs, len(examples))
        results = evaluation.results(runs)
    write_results(evaluation, runs, results, out)
    if as_json:
        print_json(results)
    else:
        print_results(results, out, wide)
    if results["failures"]:  # the results name them too
        print_error(
            "; ".join(f"{label}: {reason}" for label, reason in results["failures"].items())
        )
        raise typer.Exit(2)


def parse_runs(methods: str, keeps: str) -> list[Run]:
    """Parses comma-separated methods and budgets and combines them to runs, without duplicates.

    Raises:
        ValueError: a method is unknown or a budget out of range.
    """
    from gprune.evaluation.runs import plan_runs

    names = [make(name.strip(), keep=1.0).name for name in methods.split(",")]
    budgets = [parse_keep(text) for text in keeps.split(",")]
    return plan_runs(list(dict.fromkeys(names)), list(dict.fromkeys(budgets)))


def perform(evaluation: Evaluation, runs: Sequence[Run], examples: int) -> None:
    """Performs every run with a progress bar of its own; Ctrl-C says how to go on."""
    try:
        with progress_bar() as progress:
            for run in runs:
                bar = progress.add_task(run.label, total=examples)
                evaluation.perform(run, lambda count, bar=bar: progress.advance(bar, count))  # type: ignore[misc]
    except KeyboardInterrupt:
        stored = sum(len(evaluation.lines(run)) for run in runs)
        error_console.print(
            f"interrupted: {stored} of {examples * len(runs)} answers are stored in "
            f"{evaluation.folder}; run the same command again to go on from there",
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(130) from None


def write_results(
    evaluation: Evaluation, runs: Sequence[Run], results: dict[str, Any], folder: Path
) -> None:
    """Writes results.json and report.html."""
    from gprune.evaluation.gallery import build_gallery
    from gprune.evaluation.report import render_report

    finished = list(evaluation.finished(runs))
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    gallery = build_gallery(evaluation, finished)
    (folder / "report.html").write_text(render_report(results, gallery))


def print_results(results: dict[str, Any], folder: Path, wide: bool) -> None:
    """Prints a table of what matters most, or all columns in two tables, and the notes on them."""
    from gprune.evaluation.tables import accuracy_cells, brief_cells, cost_cells

    for cells_of in (accuracy_cells, cost_cells) if wide else (brief_cells,):
        rows = [cells_of(row) for row in results["rows"]]
        table = Table(*rows[0])
        for row in rows:
            table.add_row(*row.values())
        console.print(table)
    for note in results["notes"]:
        console.print(note, markup=False, highlight=False)
    print_line(f"report {folder / 'report.html'}")
