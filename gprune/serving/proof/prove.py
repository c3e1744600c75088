"""Proves a served model: asks the engines and transformers, and checks the claims."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import torch

from gprune.budget import Keep
from gprune.proof.answers import Prompt, Question, Reply
from gprune.proof.results import Result, Verdict
from gprune.pruners.base import Pruner
from gprune.pruners.registry import make
from gprune.serving.proof.claims import CHUNK_OPTION, Evidence, Replies, check
from gprune.serving.proof.prompts import PromptLength, prompt_lengths
from gprune.serving.proof.runs import Asked, Job, Runner, run_apart, run_pruned, run_stock
from gprune.serving.settings import ServerSettings, keep_from_json

Value = TypeVar("Value")

# Prompts in flight at once; the KV cache has room for so many.
SEQUENCES = 8


class Reference(Protocol):
    """Replies to questions with a checkpoint in transformers, see `gprune.proof.checkpoint`."""

    def __call__(
        self,
        folder: str,
        dtype: str,
        device: str,
        questions: Sequence[tuple[Question, Pruner | None]],
    ) -> list[Reply]: ...


def engine_options(
    config: Any, dtype: str, lengths: Sequence[PromptLength], keep: Keep, steps: int
) -> dict[str, Any]:
    """Returns options for vLLM's `LLM` that suit a proof; the same for both engines.

    Args:
        config: of the model.
        dtype: name of a torch dtype.
        lengths: of the prompts.
        keep: the server's budget.
        steps: number of tokens in an answer.
    """
    text = config.get_text_config()
    longest = round_up(max(length.tokens for length in lengths) + steps + 1, 64)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    bytes_per_token = 2 * text.num_hidden_layers * heads * width * getattr(torch, dtype).itemsize
    # A third of the shortest pruned prompt, so that all images are prefilled in several chunks.
    chunk = min(length.pruned(keep) for length in lengths if length.visual) // 3
    return {
        "dtype": dtype,
        "seed": 0,
        "max_model_len": min(longest, text.max_position_embeddings),
        # Of all requests together: the encoder cache has this size, and holds every image.
        "max_num_batched_tokens": longest,
        "max_num_seqs": SEQUENCES,
        "enable_chunked_prefill": True,
        CHUNK_OPTION: max(chunk, 1),
        "enable_prefix_caching": True,
        "kv_cache_memory_bytes": max(2**26, bytes_per_token * longest * SEQUENCES),
    }


def round_up(number: int, step: int) -> int:
    """Returns the smallest multiple of ``step`` that is not below ``number``."""
    return -(-number // step) * step


class StepError(RuntimeError):
    """Raised if an engine fails."""

    def __init__(self, step: str, error: Exception) -> None:
        """Describes the failure of a step in one line."""
        lines = str(error).strip().splitlines() or [""]
        super().__init__(f"{step} failed: {type(error).__name__}: {lines[0]}")


def collect(
    job: Job,
    dtype: str,
    device: str,
    reference: Reference,
    run: Runner = run_apart,
    report: Callable[[str], Any] = lambda step: None,
) -> Evidence:
    """Asks stock vLLM, pruned vLLM and transformers, one after the other.

    Args:
        job: what to ask.
        dtype: name of the model's torch dtype.
        device: of the model in transformers, or ``auto``.
        reference: asks transformers.
        run: calls a function in a process of its own, or in this one.
        report: called with the engine that is asked next.

    Raises:
        StepError: an engine does not start or fails while it answers.
    """

    def ask(step: str, function: Callable[..., Value], *args: Any) -> Value:
        report(step)
        try:
            return run(function, *args)
        except Exception as error:
            raise StepError(step, error) from error

    stock = ask("stock vLLM", run_stock, job)
    pruned = ask("vLLM with pruned images", run_pruned, job)
    pairs = zip(job.prompts, stock.alone, strict=True)
    unpruned = [(Question(prompt, None, answer), None) for prompt, answer in pairs]
    questions = [question_about(one, job.settings) for one in (*pruned.asked, *pruned.own)]
    all_questions = [*unpruned, *questions]
    replies = ask("transformers", reference, job.model, dtype, device, all_questions)
    first, second = len(unpruned), len(unpruned) + len(pruned.asked)
    parts = Replies(replies[:first], replies[first:second], replies[second:])
    return Evidence(job, getattr(torch, dtype), stock, pruned, parts)


def question_about(asked: Asked, settings: ServerSettings) -> tuple[Question, Pruner]:
    """Returns the question to transformers about an answer, with the method and its budget."""
    given = asked.prompt.keep
    keep = settings.keep if given is None else keep_from_json(given)
    method = make(settings.method, keep=keep, **settings.options)
    return Question(asked.prompt, keep, asked.answer, asked.choice), method


def prove_served(
    job: Job,
    dtype: str,
    device: str,
    reference: Reference,
    run: Runner = run_apart,
    report: Callable[[str], Any] = lambda step: None,
) -> Iterator[Result]:
    """Checks every claim about a served model; arguments as `collect`.

    An engine that fails is a failed claim, and the only one.
    """
    try:
        evidence = collect(job, dtype, device, reference, run, report)
    except StepError as error:
        yield Result("engines", Verdict.FAILED, str(error))
        return
    yield from check(evidence)


def make_job(
    model: str,
    config: Any,
    processor: Any,
    prompts: Sequence[Prompt],
    settings: ServerSettings,
    dtype: str,
    options: Mapping[str, Any] | None = None,
    **values: Any,
) -> Job:
    """Returns what to ask of a checkpoint.

    Args:
        model: a folder or a name on the Hub.
        config: of the model.
        processor: the model's.
        prompts: see `Job`.
        settings: what to prune with.
        dtype: name of a torch dtype.
        options: of vLLM's `LLM`, over those of `engine_options`.
        values: further fields of `Job`.
    """
    job = Job(model, settings, {}, prompts, **values)
    lengths = prompt_lengths(config, processor, prompts)
    suitable = engine_options(config, dtype, lengths, settings.keep, job.steps)
    return replace(job, options=suitable | dict(options or {}))
