"""``gprune run``: any supported model on images of the user."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gprune import viz
from gprune.ask.answers import Outcome, answer
from gprune.ask.loading import TINY, load_model, quiet_transformers
from gprune.ask.pictures import outcome_pictures
from gprune.ask.prompts import open_image, require_question
from gprune.budget import parse_keep
from gprune.cli.console import (
    console,
    error_console,
    exit_on_bad_use,
    print_costs,
    print_json,
    print_line,
)
from gprune.cli.options import (
    DEFAULT_DEVICE,
    DEFAULT_DTYPE,
    DEFAULT_KEEP,
    DEFAULT_METHOD,
    DeviceOption,
    DtypeOption,
    JsonOption,
    KeepOption,
    MaxNewTokensOption,
    MethodOption,
    ModelArgument,
    RunOutOption,
)
from gprune.pruners import make

if TYPE_CHECKING:
    from gprune.costs import PrefillTimes
    from gprune.pruners import Pruner


# Over 40 lines: twelve options.
def run(
    model: ModelArgument,
    image: Annotated[list[Path], typer.Option(help="An image; repeat the option for several.")],
    prompt: Annotated[str, typer.Option(help="The question.")],
    keep: KeepOption = DEFAULT_KEEP,
    method: MethodOption = DEFAULT_METHOD,
    compare: Annotated[bool, typer.Option(help="Answer without pruning too.")] = False,
    device: DeviceOption = DEFAULT_DEVICE,
    dtype: DtypeOption = DEFAULT_DTYPE,
    max_new_tokens: MaxNewTokensOption = 64,
    out: RunOutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a supported model about your images, with pruning.

    Example: gprune run llava-hf/llava-1.5-7b-hf --image cat.jpg --prompt "What is this?" --compare
    """
    with exit_on_bad_use():
        require_question(prompt)
        path = None if out is None else viz.figure_path(out, "kept.png")
        pruner = make(method, keep=parse_keep(keep))
        images = [open_image(one) for one in image]
        quiet_transformers()
        with error_console.status("loading the model"):
            network, processor = load_model(model, device, dtype)
        if model in TINY:
            require_known_words(processor, prompt)
        with error_console.status("answering"):
            outcome = answer(network, processor, pruner, images, prompt, max_new_tokens, compare)
        times = time_prefill(network, outcome, pruner) if compare else None
        if path is not None:
            pictures = outcome_pictures(network, processor, pruner, outcome, images)
            path.parent.mkdir(parents=True, exist_ok=True)
            viz.panel(pictures, prompt).savefig(path)
    if not as_json:
        print_outcome(outcome, pruner, times, path)
        return
    subject = {"model": model, "method": pruner.name, "keep": pruner.keep, "prompt": prompt}
    print_json(
        {**subject, "images": [str(one) for one in image], **json_values(outcome, times, path)}
    )


def require_known_words(processor: Any, prompt: str) -> None:
    """Checks that a shipped model knows the words of a question, see `require_known`."""
    from gprune.tinyvlm.vocabulary import require_known

    require_known(processor.tokenizer, prompt)


def time_prefill(model: Any, outcome: Outcome, pruner: Pruner) -> PrefillTimes:
    """Times the prefill of an answered prompt with and without pruning."""
    from gprune.costs import prefill_times

    with error_console.status("timing the prefill"):
        return prefill_times(model, outcome.inputs, pruner)


def json_values(outcome: Outcome, times: PrefillTimes | None, path: Path | None) -> dict[str, Any]:
    """Collects the measured part of the JSON object."""
    saving = dataclasses.asdict(outcome.saving)
    saving.pop("keep")  # the number that was passed is in the object already
    return {
        "answer_full": outcome.answer_full,
        "answer_pruned": outcome.answer_pruned,
        **saving,
        "prefill_ms_full": times and times.full_ms,
        "prefill_ms_pruned": times and times.pruned_ms,
        "overlay": None if path is None else str(path),
    }


def print_outcome(
    outcome: Outcome, pruner: Pruner, times: PrefillTimes | None, path: Path | None
) -> None:
    """Prints the answer, what was kept and what that saves."""
    if outcome.answer_full is None:
        console.print(outcome.answer_pruned, markup=False)
    else:
        console.print("full:  ", outcome.answer_full, markup=False)
        console.print("pruned:", outcome.answer_pruned, markup=False)
    saving = outcome.saving
    print_line(f"{pruner.name} kept {saving.kept_tokens} of {saving.visual_tokens} visual tokens")
    print_costs(saving)
    if times is not None:
        print_line(f"prefill {times.full_ms:.1f} ms -> {times.pruned_ms:.1f} ms")
    if path is not None:
        print_line(f"picture {path}")
