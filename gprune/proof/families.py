"""Checks all claims on a tiny random model of one family."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from gprune.errors import UnsupportedModelError
from gprune.hf.gate import proving
from gprune.layouts import families
from gprune.proof.batches import add_video, make_batch
from gprune.proof.cases import Case, make_case
from gprune.proof.mllama import make, mllama
from gprune.proof.models import EXPERIMENTAL, SPECIMENS
from gprune.proof.prove import described, one_line, prove
from gprune.proof.results import FamilyProof, Inapplicable, Result, Verdict
from gprune.proof.running import Inputs
from gprune.proof.specimens import Specimen
from gprune.pruners import Pruner
from gprune.pruners import make as make_pruner


def prove_family(
    name: str,
    pruner: Pruner | None = None,
    dtype: torch.dtype = torch.float32,
    report: Callable[[Result], Any] | None = None,
    device: torch.device | str = "cpu",
    attention: str = "sdpa",
) -> FamilyProof:
    """Checks every claim on a tiny random model of a family; takes seconds.

    Leaves torch's random state, its defaults for dtype, device and autograd, and its number of
    threads as they were.

    Args:
        name: of a family, see `gprune.families`.
        pruner: the method; by default the recommended one with ``keep=0.36``.
        dtype: of the model.
        report: called with each result as soon as it is known.
        device: that the model runs on.
        attention: its attention implementation.

    Raises:
        ValueError: there is no such family.
    """
    pruner = pruner or make_pruner("recommended", keep=0.36)
    results: list[Result] = []
    with proving(), default_settings():
        for result in prove_specimen(name, pruner, dtype, torch.device(device), attention):
            results.append(result)
            if report is not None:
                report(result)
    return FamilyProof(name, tuple(results))


def prove_specimen(
    name: str, pruner: Pruner, dtype: torch.dtype, device: torch.device, attention: str
) -> Iterator[Result]:
    """Builds a family's tiny model and checks every claim on it; as `prove_family`."""
    try:
        model, case = specimen_case(name, pruner.scope == "video", dtype, device, attention)
        yield from prove(model, case, pruner, timed=False)
    except (Inapplicable, UnsupportedModelError) as error:
        yield Result("model", Verdict.NOT_APPLICABLE, one_line(error))
    except StockError as error:
        yield Result("model", Verdict.NOT_RUNNABLE, one_line(error))


class StockError(RuntimeError):
    """Raised if a family's tiny model cannot be built or encode an image, without gprune."""


def specimen_case(
    name: str,
    video: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    attention: str = "sdpa",
) -> tuple[Any, Case]:
    """Builds the tiny random model of a family and its prompts.

    Args:
        name: of the family.
        video: whether prompts have videos instead of images.
        dtype: of the model.
        device: of the model.
        attention: its attention implementation.

    Raises:
        ValueError: there is no such family.
        Inapplicable: the family has no videos.
        StockError: the model cannot be built or run.
    """
    if name not in families():
        raise ValueError(f"family {name!r} is unknown; choose from {', '.join(families())}")
    specimen = (SPECIMENS | EXPERIMENTAL).get(name)
    if video and (specimen is None or specimen.video is None):
        raise Inapplicable("the tiny model of this family has no videos")
    try:
        model = (mllama if specimen is None else specimen.build)(dtype, attention)
        rows = mllama_rows(dtype) if specimen is None else prompts(specimen, model, video, dtype)
    except Exception as error:
        raise StockError(f"without gprune: {described(error)}") from error
    model = model.to(device)
    return model, make_case(model, [moved(row, device) for row in rows])


def moved(inputs: Inputs, device: torch.device | str) -> Inputs:
    """Returns inputs on a device."""
    return {name: value.to(device) for name, value in inputs.items()}


def prompts(specimen: Specimen, model: Any, video: bool, dtype: torch.dtype) -> list[Inputs]:
    """Returns prompts with one image, with two, and of text alone; or with a video in place."""
    if video:
        texts = [make_batch(specimen, model, [0], seed, dtype) for seed in (0, 3)]
        shown = [add_video(specimen, model, text)[0].inputs for text in texts]
    else:
        shown = [
            make_batch(specimen, model, [count], seed, dtype).inputs
            for count, seed in ((1, 0), (2, 3))
        ]
    return [*shown, make_batch(specimen, model, [0], 5, dtype).inputs]


def mllama_rows(dtype: torch.dtype) -> list[Inputs]:
    """Returns prompts for Mllama with images of different numbers of tiles.

    A row of text alone sees the blank images of other rows in transformers, so there is none.
    """
    return [make([[tiles]], seed, dtype) for seed, tiles in enumerate((2, 1, 3))]


@contextmanager
def default_settings() -> Iterator[None]:
    """Runs with torch's defaults, so that the caller's neither change a proof nor are changed.

    On one thread: tiny models have no work for more, and threads that wait for a busy machine make
    a proof several times slower.
    """
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    cuda: Any = torch.cuda
    devices = range(cuda.device_count()) if cuda.is_initialized() else []
    with (
        torch.random.fork_rng(devices),
        torch.device("cpu"),
        torch.autocast("cpu", enabled=False),
        torch.inference_mode(False),
    ):
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            torch.set_num_threads(threads)
