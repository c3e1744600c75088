"""Checks all claims about one model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from gprune.errors import UnsupportedModelError
from gprune.hf.gate import proving
from gprune.proof.cases import Case
from gprune.proof.equality import (
    Prompt,
    batch_rows,
    beam_search,
    beams_are_right,
    masked_reference,
    uncached,
)
from gprune.proof.identity import identity
from gprune.proof.results import Inapplicable, Result, Verdict
from gprune.proof.running import STEPS, Inputs, Noise, measure_noise
from gprune.proof.shortened import why_masking_differs
from gprune.proof.sizes import Prefill, cache_length, measure_prefill, memory, prefill_time
from gprune.proof.trace import no_trace, snapshot
from gprune.proof.turns import later_words, second_turn, text_conversation
from gprune.pruners import Pruner

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
