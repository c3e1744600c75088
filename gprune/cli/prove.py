"""``gprune prove``: checks on this machine that pruning does what is claimed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gprune.ask.loading import device_and_dtype, load_model, quiet_transformers
from gprune.ask.prompts import open_image, prepare, prompt_for
from gprune.budget import parse_keep
from gprune.cli.console import error_console, exit_on_bad_use, print_json, progress_bar
from gprune.cli.options import (
    DEFAULT_DEVICE,
    DEFAULT_DTYPE,
    DEFAULT_KEEP,
    DEFAULT_METHOD,
    MODEL_HELP,
    DeviceOption,
    DtypeOption,
    JsonOption,
    KeepOption,
    MethodOption,
)
from gprune.cli.prove_report import CheckpointReport, FamiliesReport, Report
from gprune.cli.prove_served import ENGINES, check_engine, prove_served_model
from gprune.layouts import families
from gprune.pruners import make

if TYPE_CHECKING:
    from PIL import Image

    from gprune.pruners import Pruner

# Questions of different lengths, in words that the shipped models know.
QUESTIONS = ("how many shapes are there?", "what color is the background at the top?")
TEXT = "is it red?"
# Width and height of generated images; different shapes give different numbers of tokens.
SIZES = ((448, 448), (448, 336))


def complete_family(incomplete: str) -> list[str]:
    """Returns the families that start with ``incomplete``, for shell completion."""
    return [name for name in families() if name.startswith(incomplete)]


# Over 40 lines: eleven options.
def prove(
    model: Annotated[
        str | None,
        typer.Argument(help=f"{MODEL_HELP} Without it, tiny random models of all families."),
    ] = None,
    family: Annotated[
        list[str] | None,
        typer.Option(
            help="Without MODEL: prove this family; repeat the option for several.",
            autocompletion=complete_family,
        ),
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(help="An image of yours for MODEL; repeat the option for several."),
    ] = None,
    method: MethodOption = DEFAULT_METHOD,
    keep: KeepOption = DEFAULT_KEEP,
    device: DeviceOption = DEFAULT_DEVICE,
    dtype: DtypeOption = DEFAULT_DTYPE,
    attention: Annotated[
        str | None, typer.Option(help="Attention implementation, such as sdpa or eager.")
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="What runs MODEL: transformers; or vllm, whose answers are compared with those of "
            "transformers. With vllm MODEL is tinyvlm unless you name one.",
        ),
    ] = ENGINES[0],
    engine_options: Annotated[
        str | None, typer.Option(help="With vllm: a JSON object of further options of its LLM.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Prove on this machine that pruning equals masking, changes nothing at keep 1, and saves.

    Every line of the table is one claim about your model, device, dtype, attention kernel and
    versions. The exit code is 1 if a claim failed, or if nothing could be proven.

    Example: gprune prove llava-hf/llava-1.5-7b-hf --device cuda --dtype bfloat16
    """
    with exit_on_bad_use():
        pruner = make(method, keep=parse_keep(keep))
        quiet_transformers()
        check_engine(engine, engine_options, family, attention)
        if engine == "vllm":
            pictures = [open_image(path) for path in images or []] or generated_images()
            report: Report = prove_served_model(
                *(model or "tinyvlm", pruner, method, pictures, QUESTIONS[0]),
                *(device, dtype, engine_options),
            )
        elif model is None:
            if images:
                raise ValueError(
                    "--images needs MODEL: tiny random models have inputs of their own"
                )
            report = prove_families(pruner, family, device, dtype, attention)
        else:
            if family:
                raise ValueError(f"--family needs no MODEL: {model} is proven itself")
            report = prove_checkpoint(model, pruner, images or [], device, dtype, attention)
    if as_json:
        print_json(report.values())
    else:
        report.show()
    if not report.passed:
        raise typer.Exit(1)


def prove_families(
    pruner: Pruner, names: Sequence[str] | None, device: str, dtype: str, attention: str | None
) -> FamiliesReport:
    """Proves tiny random models of families, with a progress bar.

    Raises:
        ValueError: a family, the device or the dtype is unknown.
    """
    chosen = list(names or families())
    unknown = [name for name in chosen if name not in families()]
    if unknown:
        raise ValueError(f"family {unknown[0]!r} is unknown; choose from {', '.join(families())}")
    parsed_device, parsed_dtype = device_and_dtype(device, dtype)
    from gprune.proof import claim_names, prove_family

    kernel, claims, proofs = attention or "sdpa", claim_names(timed=False), []
    with progress_bar() as progress:
        bar = progress.add_task("proving", total=len(chosen) * len(claims))
        for done, name in enumerate(chosen, 1):
            progress.update(bar, description=name)
            proofs.append(
                prove_family(
                    *(name, pruner, parsed_dtype, lambda result: progress.advance(bar)),
                    device=parsed_device,
                    attention=kernel,
                )
            )
            progress.update(bar, completed=done * len(claims))
    named = str(parsed_dtype).removeprefix("torch.")
    return FamiliesReport(proofs, pruner, str(parsed_device), named, kernel)


def prove_checkpoint(
    name: str,
    pruner: Pruner,
    paths: Sequence[Path],
    device: str,
    dtype: str,
    attention: str | None,
) -> CheckpointReport:
    """Proves a user's model, with a progress bar.

    Raises:
        ValueError: the model or an image cannot be loaded, the attention kernel is unknown, or the
            method is for videos.
        UnsupportedModelError: the model, or the method with it, is not supported.
    """
    if pruner.scope == "video":
        raise ValueError(
            f"{pruner.name} prunes videos, and MODEL is proven with images; leave MODEL out to "
            "prove it with tiny random models"
        )
    images = [open_image(path) for path in paths] or generated_images()
    with error_console.status("loading the model"):
        network, processor = load_model(name, device, dtype)
        if attention is not None:
            network.set_attn_implementation(attention)
    from gprune.proof import claim_names, make_case
    from gprune.proof import prove as prove_model

    case = make_case(network, prompts(network, processor, images))
    results = []
    with progress_bar() as progress:
        bar = progress.add_task("proving", total=len(claim_names(timed=True)))
        for result in prove_model(network, case, pruner):
            progress.update(bar, advance=1, description=result.name)
            results.append(result)
    kernel = network.config.get_text_config()._attn_implementation
    named = str(network.dtype).removeprefix("torch.")
    return CheckpointReport(name, results, pruner, str(network.device), named, kernel)


def generated_images() -> list[Image.Image]:
    """Draws two scenes of different shapes."""
    from gprune.tinyvlm import make_scene

    return [make_scene("test", 0, seed).draw().resize(size) for seed, size in enumerate(SIZES)]


def prompts(model: Any, processor: Any, images: Sequence[Image.Image]) -> list[dict[str, Any]]:
    """Returns inputs for the first image, for the others, and for text alone.

    Models that require an image get no prompt of text.
    """
    import torch

    shown = [list(images[:1]), list(images[1:] or images[:1])]
    made = [
        prepare(model, processor, [(own, question)])
        for own, question in zip(shown, QUESTIONS, strict=True)
    ]
    try:
        text = prompt_for(processor, TEXT, 0)
        made.append(processor(text=[text], return_tensors="pt").to(model.device))
    except (ValueError, TypeError):
        error_console.print("this processor requires images: no prompt of text alone is proven")
    return [
        {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        for inputs in made
    ]
