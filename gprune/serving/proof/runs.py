"""What a proof asks of stock and of pruned engines, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from gprune.proof.answers import Answer, Choice, Prompt
from gprune.serving.proof import engines
from gprune.serving.proof.prompts import image_token, picture
from gprune.serving.settings import REQUEST_KEY, ServerSettings
from gprune.versions import ALLOW, RANGES

Value = TypeVar("Value")

# Budgets that no request can have.
INVALID_KEEPS = (0, 1.5, "half")
# Pictures that some processors refuse and others turn into very few or very many tokens.
ODD_SIZES = ((1, 1), (400, 2), (2, 400))
# A request that the plugin does not take.
VIDEO = {"prompt": "What happens?", "multi_modal_data": {"video": np.zeros((2, 8, 8, 3), np.uint8)}}


@dataclass(frozen=True, eq=False)
class Job:
    """What to ask of one checkpoint.

    Attributes:
        model: a folder or a name on the Hub.
        settings: what to prune with.
        options: of vLLM's `LLM`, the same for both engines.
        prompts: the prompts; the last is used for the prefix cache.
        keeps: budgets of requests that have their own.
        steps: number of tokens in an answer.
    """

    model: str
    settings: ServerSettings
    options: Mapping[str, Any]
    prompts: Sequence[Prompt]
    keeps: Sequence[Any] = (0.1, 0.5, 1.0)
    steps: int = 6

    @property
    def own_budgets(self) -> list[Prompt]:
        """Every prompt with images with each of `keeps`."""
        shown = [prompt for prompt in self.prompts if prompt.images]
        return [replace(prompt, keep=keep) for prompt in shown for keep in self.keeps]

    def with_keep(self, keep: Any) -> list[Prompt]:
        """Every prompt with one budget."""
        return [replace(prompt, keep=keep) for prompt in self.prompts]


@dataclass(frozen=True, eq=False)
class StockRun:
    """Answers of stock vLLM: all prompts in one batch, and one after the other."""

    batch: list[Answer]
    alone: list[Answer]


@dataclass(frozen=True, eq=False)
class Asked:
    """A prompt with its budget, the answer to it, and what was kept of its images, if known."""

    prompt: Prompt
    answer: Answer
    choice: Choice | None


@dataclass(frozen=True, eq=False)
class CacheRun:
    """Answers to one prompt with and without the prefix cache.

    Attributes:
        first: with empty caches.
        again: the same request again.
        changed: the same prompt with another budget, after these two.
        uncached: the same as ``changed`` with empty caches.
        before_image: number of tokens before the prompt's first image.
    """

    first: Answer
    again: Answer
    changed: Answer
    uncached: Answer
    before_image: int


@dataclass(frozen=True, eq=False)
class Refused:
    """A request that must be refused, and the message; None if it was answered."""

    sent: str
    message: str | None


@dataclass(frozen=True, eq=False)
class PrunedRun:
    """Answers of vLLM with pruned images.

    Attributes:
        whole: to all prompts with a budget of 1, in one batch.
        asked: to each prompt with the server's budget, alone.
        own: to each prompt with images with each budget of a request, alone.
        together: to the prompts of `asked` and `own` again, in one batch.
        cache: with and without the prefix cache.
        refused: bad requests.
        odd: requests with pictures of odd sizes, which may be answered or refused.
        after: the first prompt of `asked` again, after the bad and odd requests.
    """

    whole: list[Answer]
    asked: list[Asked]
    own: list[Asked]
    together: list[Answer]
    cache: CacheRun
    refused: list[Refused]
    odd: list[Refused]
    after: Answer


def run_stock(job: Job) -> StockRun:
    """Asks an engine without gprune's architectures."""
    with engines.engine(job.model, None, job.options) as llm:
        batch = engines.ask(llm, job.prompts, job.steps)
        alone = []
        for prompt in job.prompts:
            engines.forget(llm)
            alone += engines.ask(llm, [prompt], job.steps)
        return StockRun(batch, alone)


def run_pruned(job: Job) -> PrunedRun:
    """Asks an engine that prunes images."""
    with engines.engine(job.model, job.settings, job.options) as llm:
        whole = engines.ask(llm, job.with_keep(1.0), job.steps)
        asked = [Asked(one, *engines.ask_recorded(llm, one, job.steps)) for one in job.prompts]
        own = [Asked(one, *engines.ask_recorded(llm, one, job.steps)) for one in job.own_budgets]
        engines.forget(llm)
        together = engines.ask(llm, [*job.prompts, *job.own_budgets], job.steps)
        cache = run_cache(llm, job)
        refused = [Refused(sent, engines.refusal(llm, one)) for sent, one in bad_requests(job)]
        odd = [Refused(sent, engines.refusal(llm, one)) for sent, one in odd_requests(job)]
        engines.forget(llm)
        (after,) = engines.ask(llm, job.prompts[:1], job.steps)
        return PrunedRun(whole, asked, own, together, cache, refused, odd, after)


def bad_requests(job: Job) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields requests that must be refused, each with a name."""
    for keep in INVALID_KEEPS:
        yield f"{REQUEST_KEY}={keep!r}", engines.request(replace(job.prompts[0], keep=keep))
    yield "a video", VIDEO


def odd_requests(job: Job) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields requests with pictures of odd sizes, each with a name."""
    for width, height in ODD_SIZES:
        prompt = replace(job.prompts[0], images=[picture(0, width, height)])
        yield f"{width} x {height} pixels", engines.request(prompt)


def run_cache(llm: Any, job: Job) -> CacheRun:
    """Asks the last prompt with and without the prefix cache."""
    prompt, changed = job.prompts[-1], replace(job.prompts[-1], keep=job.keeps[0])
    engines.forget(llm)
    (uncached,) = engines.ask(llm, [changed], job.steps)
    engines.forget(llm)
    (first,) = engines.ask(llm, [prompt], job.steps)
    (again,) = engines.ask(llm, [prompt], job.steps)
    (other,) = engines.ask(llm, [changed], job.steps)
    return CacheRun(first, again, other, uncached, tokens_before_image(llm, prompt))


def tokens_before_image(llm: Any, prompt: Prompt) -> int:
    """Returns how many tokens of a prompt come before its first image."""
    from vllm import SamplingParams

    sampling = SamplingParams(max_tokens=1)
    (output,) = llm.generate([engines.request(prompt)], sampling, use_tqdm=False)
    return list(output.prompt_token_ids).index(image_token(llm.model_config.hf_config))


class Runner(Protocol):
    """Calls a function with its arguments, here or in another process."""

    def __call__(self, function: Callable[..., Value], *args: Any) -> Value: ...


def run_here(function: Callable[..., Value], *args: Any) -> Value:
    """Calls a function in this process."""
    return function(*args)


def run_apart(function: Callable[..., Value], *args: Any) -> Value:
    """Calls a function in a new process, whose end frees all memory of the device.

    Raises:
        RuntimeError: the process was ended from outside, for example for want of memory.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=prepare_process) as pool:
        return pool.submit(function, *args).result()


def prepare_process() -> None:
    """Prepares a new process for vLLM, and keeps what libraries print out of the result."""
    os.environ.update(engines.ENVIRONMENT)
    os.environ[RANGES["vllm"].override] = ALLOW  # an untested version is what a proof is for
    os.dup2(2, 1)
