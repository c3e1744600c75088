"""The part of ``gprune prove`` for ``--engine vllm``: a served model against transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from gprune.ask.loading import TINY, device_and_dtype, first_line, locate_model, read_config
from gprune.cli.console import error_console
from gprune.cli.prove_report import CheckpointReport

if TYPE_CHECKING:
    from PIL import Image

    from gprune.proof.results import Result
    from gprune.pruners import Pruner
    from gprune.serving.settings import ServerSettings

# What can run a model; the first is the default.
ENGINES = ("transformers", "vllm")
# Tolerances are stated for these.
DTYPES = ("float32", "bfloat16", "float16")


def check_engine(
    engine: str, options: str | None, families: Sequence[str] | None, attention: str | None
) -> None:
    """Checks that the options of the command fit the engine.

    Raises:
        ValueError: the engine is unknown, or an option is not for it.
    """
    if engine not in ENGINES:
        raise ValueError(f"--engine {engine} is unknown; choose from {', '.join(ENGINES)}")
    if engine != "vllm" and options is not None:
        raise ValueError("--engine-options needs --engine vllm")
    if engine == "vllm" and (families or attention):
        raise ValueError(
            "--family and --attention are for --engine transformers; name a MODEL for vLLM, and "
            "its attention kernel in --engine-options"
        )


def prove_served_model(
    name: str,
    pruner: Pruner,
    method: str,
    images: Sequence[Image.Image],
    question: str,
    device: str,
    dtype: str,
    options: str | None = None,
) -> CheckpointReport:
    """Proves a model in vLLM, each engine in a process of its own.

    Args:
        name: a folder, a Hub id, or a shipped model.
        pruner: the method.
        method: its name, as the user gave it.
        images: for the prompts.
        question: for the prompts.
        device: of the model in transformers; vLLM takes the device that it was built for.
        dtype: of the model in both engines.
        options: a JSON object of further options of vLLM's `LLM`.

    Raises:
        ImportError: vLLM is not installed.
        UnsupportedModelError: the plugin does not serve the model.
        ValueError: an argument is not valid, or the model has no processor.
    """
    from gprune.serving.command import vllm_version
    from gprune.serving.settings import ServerSettings

    version, theirs = vllm_version(), parse_options(options)
    settings = ServerSettings(pruner.keep, method)
    place, number = parse_place(device, dtype)
    results = served_results(name, settings, images, question, place, number, theirs)
    report = CheckpointReport(name, results, pruner, place, number, "vLLM's attention")
    report.versions["vllm"] = version
    return report


def served_results(
    name: str,
    settings: ServerSettings,
    images: Sequence[Image.Image],
    question: str,
    device: str,
    dtype: str,
    options: Mapping[str, Any],
) -> list[Result]:
    """Checks the claims about a model, and shows which engine is asked; see `prove_served_model`.

    Raises:
        UnsupportedModelError: the plugin does not serve the model.
        ValueError: the model has no config or processor, or there are too few images.
    """
    from gprune.proof.checkpoint import reply_in_transformers
    from gprune.serving.families import served_family
    from gprune.serving.proof.prompts import make_prompts
    from gprune.serving.proof.prove import make_job, prove_served

    config = read_config(name)
    served_family(config)  # refuses others
    processor = read_processor(name)
    prompts = make_prompts(processor, images, question)
    with served_folder(name) as folder, error_console.status("starting") as status:
        job = make_job(folder, config, processor, prompts, settings, dtype, options)
        results = prove_served(
            *(job, dtype, device, reply_in_transformers),
            report=lambda engine: status.update(f"asking {engine}"),
        )
        return list(results)


def parse_place(device: str, dtype: str) -> tuple[str, str]:
    """Returns the names of a device and of a dtype, ``auto`` resolved.

    Raises:
        ValueError: one is unknown, or no tolerance is stated for the dtype.
    """
    place, number = device_and_dtype(device, dtype)
    named = str(number).removeprefix("torch.")
    if named not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not served; use {', '.join(DTYPES)}")
    return str(place), named


def parse_options(text: str | None) -> dict[str, Any]:
    """Parses the options for vLLM.

    Raises:
        ValueError: ``text`` is not a JSON object.
    """
    example = "such as '{\"gpu_memory_utilization\": 0.8}'"
    try:
        options = json.loads(text or "{}")
    except json.JSONDecodeError:
        raise ValueError(
            f"--engine-options {text!r} is no JSON; pass an object {example}"
        ) from None
    if not isinstance(options, dict):
        raise ValueError(f"--engine-options {text!r} is no JSON object; pass one {example}")
    return options


def read_processor(name: str) -> Any:
    """Reads the processor of a model.

    Raises:
        ValueError: there is none, or it cannot be loaded.
    """
    from transformers import AutoProcessor

    place, local = locate_model(name)
    try:
        return AutoProcessor.from_pretrained(place, local_files_only=local)
    except Exception as error:
        raise ValueError(f"model {name!r} has no usable processor: {first_line(error)}") from error


@contextmanager
def served_folder(name: str) -> Iterator[str]:
    """Yields the folder or Hub id that vLLM reads: for a shipped model a copy in vLLM's format."""
    from gprune.serving.proof.checkpoints import copy_for_vllm

    place, _ = locate_model(name)
    if name not in TINY:
        yield place
        return
    with TemporaryDirectory() as folder:
        yield str(copy_for_vllm(Path(place), Path(folder) / name))
