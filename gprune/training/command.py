"""The command that trains a tiny VLM: ``python -m gprune.training --out runs/tiny``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gprune.ask.loading import device_and_dtype
from gprune.training.loop import Trainer
from gprune.training.recipe import Recipe

app = typer.Typer(add_completion=False)


# Over 40 lines: one for each option.
@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder of the run; an unfinished one is resumed.")],
    seed: Annotated[int, typer.Option(help="Seed of weights and data.")] = Recipe.seed,
    tower: Annotated[
        str | None, typer.Option(help="clip or siglip; by default the recipe's.")
    ] = None,
    language: Annotated[
        str | None,
        typer.Option(help="Checkpoint folder, or tinyvlm, of the initial language model."),
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="Of stage 1: patches or captions; by default the recipe's.")
    ] = None,
    attention: Annotated[
        str | None, typer.Option(help="sdpa or products (faster in bfloat16 on a CPU).")
    ] = None,
    patch_steps: Annotated[int | None, typer.Option(min=1, help="Steps of stage 1.")] = None,
    answer_steps: Annotated[int | None, typer.Option(min=1, help="Steps of stage 2.")] = None,
    answer_rate: Annotated[
        float | None, typer.Option(min=0, help="Learning rate of stage 2.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures of a step.")] = None,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between saves.")] = 200,
    scenes: Annotated[int, typer.Option(min=1, help="Test scenes for the model card.")] = 400,
    easy_vqa: Annotated[int, typer.Option(min=1, help="easy-VQA pictures for the card.")] = 150,
    threads: Annotated[int | None, typer.Option(help="CPU threads; by default all.")] = None,
    device: Annotated[str, typer.Option(help="Such as cpu, cuda or cuda:1.")] = "cpu",
    stage: Annotated[
        str | None, typer.Option(help="patches: stop after stage 1, to be resumed.")
    ] = None,
) -> None:
    """Train the tiny VLM and write OUT/checkpoint; with --stage patches, stage 1 only.

    Example: python -m gprune.training --out runs/tiny --seed 0
    """
    if threads is not None:
        torch.set_num_threads(threads)
    options = {
        "language": language,
        "objective": objective,
        "attention": attention,
        "patch_steps": patch_steps,
        "answer_steps": answer_steps,
        "answer_rate": answer_rate,
        "batch": batch,
    }
    try:
        recipe = make_recipe(seed, tower, options)
        if stage not in (None, "patches"):
            raise ValueError(f"stage={stage!r} must be patches; without it, both are trained")
        trainer = Trainer(out, recipe, str(device_and_dtype(device, "float32")[0]))
    except (ValueError, FileNotFoundError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    train_stages(trainer, save_every, first_only=stage is not None)
    if stage is None:
        trainer.finish(scenes, easy_vqa)
        minutes = sum(trainer.done.seconds.values()) / 60
        typer.echo(f"wrote {out / 'checkpoint'} after {minutes:.1f} minutes of training")


def make_recipe(seed: int, tower: str | None, options: dict[str, Any]) -> Recipe:
    """Returns the default recipe with the options that are not None.

    Raises:
        ValueError: an option has an unknown value.
    """
    changed = {name: value for name, value in options.items() if value is not None}
    recipe = Recipe(seed=seed, **changed)
    if tower is None:
        return recipe
    return replace(recipe, architecture=replace(recipe.architecture, tower=tower))


def train_stages(trainer: Trainer, save_every: int, first_only: bool) -> None:
    """Runs both stages, or the first only, with a progress bar."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} {task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        trainer.run("patches", trainer.recipe.patch_steps, progress, save_every)
        if not first_only:
            trainer.run("answers", trainer.recipe.answer_steps, progress, save_every)
