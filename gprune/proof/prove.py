"""Checks all claims about one model, or about a tiny random model of one family."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from gprune.errors import UnsupportedModelError
from gprune.hf.gate import proving
from gprune.layouts import families
from gprune.proof.batches import add_video, make_batch
from gprune.proof.cases import Case, make_case
from gprune.proof.equality import (
    Prompt,
    batch_rows,
    beam_search,
    beams_are_right,
    masked_reference,
    uncached,
)
from gprune.proof.identity import identity
from gprune.proof.mllama import make, mllama
from gprune.proof.models import EXPERIMENTAL, SPECIMENS
from gprune.proof.results import FamilyProof, Inapplicable, Result, Verdict
from gprune.proof.running import STEPS, Inputs, Noise, measure_noise
from gprune.proof.shortened import why_masking_differs
from gprune.proof.sizes import Prefill, cache_length, measure_prefill, memory, prefill_time
from gprune.proof.specimens import Specimen
from gprune.proof.trace import no_trace, snapshot
from gprune.proof.turns import later_words, second_turn, text_conversation
from gprune.pruners import Pruner
from gprune.pruners import make as make_pruner

# The claims, in the order in which they are checked. The first is not gprune's: it runs the model
# by itself and measures its noise.
CLAIMS = (
    "model",
    "identity",
    "masked reference",
    "uncached",
    "batch",
    "beams",
    "text turn",
    "image turn",
    "cache length",
    "memory",
    "prefill",
    "no trace",
)
TIMED = "prefill"


def claim_names(timed: bool) -> list[str]:
    """Returns the names of the claims, in their order; ``timed``: whether the prefill is timed."""
    return [name for name in CLAIMS if timed or name != TIMED]


@dataclass(frozen=True)
class Subject:
    """A model, a method and prompts, with the runs that several claims share.

    Attributes:
        model: the model.
        pruner: the method.
        case: the prompts.
        noise: how far the unpruned model differs from itself.
        before: `snapshot` of the model before anything was pruned.
        timed: whether the prefill is timed.
    """

    model: Any
    pruner: Pruner
    case: Case
    noise: Noise
    before: dict[str, Any]
    timed: bool

    @cached_property
    def batch(self) -> Prompt:
        """The uneven batch."""
        return Prompt(self.model, self.pruner, self.case.batch)

    @cached_property
    def reference_prompt(self) -> Prompt:
        """The prompts that the full-length model is compared on: the batch, if masking works."""
        length = self.case.batch["input_ids"].shape[1] + STEPS
        if why_masking_differs(self.model, length) is None:
            return self.batch
        return Prompt(self.model, self.pruner, self.case.rows[1])

    @cached_property
    def beams(self) -> Inputs | None:
        """The largest batch with which the unpruned model's beam search works; None without one."""
        works = (
            batch
            for rows, batch in self.case.beams
            if beams_are_right(self.model, rows, batch, self.noise.tolerance)
        )
        return next(works, None)

    @cached_property
    def prefill(self) -> Prefill:
        """The caches after a prefill of the first prompt."""
        return measure_prefill(self.model, self.pruner, self.case.rows[0])

    def claims(self) -> dict[str, Callable[[], Result]]:
        """Returns a check for each claim but the first, by name; timing only if it is asked for."""
        model, pruner, case, bound = self.model, self.pruner, self.case, self.noise.tolerance
        checks: dict[str, Callable[[], Result]] = {
            "identity": lambda: identity(model, pruner, case.batch, self.beams),
            "masked reference": lambda: masked_reference(self.reference_prompt, bound),
            "uncached": lambda: uncached(self.batch, bound),
            "batch": lambda: batch_rows(self.batch, case.rows, bound),
            "beams": lambda: unless_stock_fails(self.beam_search, pruner),
            "text turn": lambda: unless_stock_fails(self.text_turn, pruner),
            "image turn": lambda: unless_stock_fails(self.image_turn, pruner),
            "cache length": lambda: cache_length(self.prefill),
            "memory": lambda: memory(self.prefill),
            "prefill": lambda: prefill_time(model, pruner, case.rows[0]),
            "no trace": lambda: no_trace(model, pruner, case.rows[0], self.before),
        }
        return {name: checks[name] for name in claim_names(self.timed)[1:]}

    def beam_search(self, pruner: Pruner | None) -> Result:
        """Checks beam search, of the unpruned model if there is no method.

        Raises:
            Inapplicable: the unpruned model's beam search does not work.
        """
        if self.beams is None:
            raise Inapplicable(
                "the unpruned model's beams have other scores than calls without beams"
            )
        return beam_search(Prompt(self.model, pruner, self.beams), self.noise.tolerance)

    def text_turn(self, pruner: Pruner | None) -> Result:
        """Checks a later turn of text, of the unpruned model if there is no method."""
        prompt = self.reference_prompt
        words = later_words(prompt.inputs, prompt.placeholders)
        conversation = text_conversation(prompt.inputs, words)
        return second_turn(self.model, pruner, conversation, self.noise.tolerance)

    def image_turn(self, pruner: Pruner | None) -> Result:
        """Checks a later turn with an image, of the unpruned model if there is no method.

        Raises:
            Inapplicable: the method or the family has no such turns.
        """
        if pruner is not None and pruner.scope == "decoder":
            raise Inapplicable(
                f"{pruner.name} ranks images by the text of one prompt and refuses later ones"
            )
        if self.case.conversation is None or self.case.lone_conversation is None:
            raise Inapplicable("the family has no later turns with images")
        conversation = self.case.conversation
        length = conversation.joined["input_ids"].shape[1] + STEPS
        if why_masking_differs(self.model, length) is not None:
            conversation = self.case.lone_conversation
        return second_turn(self.model, pruner, conversation, self.noise.tolerance)


def unless_stock_fails(check: Callable[[Pruner | None], Result], pruner: Pruner) -> Result:
    """Runs a check; if it fails, runs it without gprune too.

    Raises:
        Inapplicable: the unpruned model fails the same check.
    """
    result = check(pruner)
    if result.verdict == Verdict.FAILED:
        stock = check(None)
        if not stock.passed:
            raise Inapplicable(
                f"the unpruned model fails this itself: it differs by {stock.measured:.1e}"
            )
    return result


def prove(model: Any, case: Case, pruner: Pruner, timed: bool = True) -> Iterator[Result]:
    """Checks every claim on a model, one at a time.

    An exception inside a check is a failed check. If the model itself cannot run, its line is the
    only one.

    Args:
        model: a supported model, in evaluation mode.
        case: the prompts.
        pruner: the method; `identity` replaces its budget by 1.0.
        timed: whether to time the prefill.

    Raises:
        UnsupportedModelError: the method does not support the model.
        ValueError: the method does not support the model as it is loaded.
    """
    with proving():
        try:
            noise = measure_noise(model, case.rows, case.batch)
        except Exception as error:
            detail = f"without gprune: {described(error)}"
            yield Result("model", Verdict.NOT_RUNNABLE, detail)
            return
        before = snapshot(model)
        with pruner(model):  # refuses now what it cannot prune at all
            pass
    yield trusted(noise)
    if not trusted(noise).passed:
        return
    subject = Subject(model, pruner, case, noise, before, timed)
    for name, check in subject.claims().items():
        with proving():
            result = checked(name, check)
        yield result


def trusted(noise: Noise) -> Result:
    """Returns whether an unpruned model agrees with itself, without which nothing can be proven."""
    if not noise.measured <= noise.limit:
        detail = (
            "without gprune, one prompt gives logits that differ by "
            f"{noise.measured:.1e} between calls alone, in a batch and without cache, more than "
            f"{noise.limit:.1e}: transformers contradicts itself here, so nothing is proven"
        )
        return Result("model", Verdict.FAILED, detail, noise.measured, noise.limit)
    detail = (
        f"runs without gprune; its own logits, up to {noise.scale:.1f}, differ by up to "
        f"{noise.measured:.1e} between calls of different shapes, so {noise.tolerance:.1e} is equal"
    )
    return Result("model", Verdict.PASSED, detail, noise.measured, noise.limit)


def checked(name: str, check: Callable[[], Result]) -> Result:
    """Runs one check; an exception becomes its verdict."""
    try:
        return replace(check(), name=name)
    except (Inapplicable, UnsupportedModelError) as error:
        return Result(name, Verdict.NOT_APPLICABLE, one_line(error))
    except Exception as error:
        return Result(name, Verdict.FAILED, described(error))


def one_line(error: Exception) -> str:
    """Returns an error's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def described(error: Exception) -> str:
    """Returns the class and the first line of the message of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


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
