"""The claims about a served model, checked on what the engines and transformers answered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from gprune.proof.answers import Answer, Difference, Reply, difference
from gprune.proof.results import Result, Verdict, holds, within
from gprune.serving.proof.runs import Asked, Job, PrunedRun, StockRun

# The claims, in the order in which they are checked.
CLAIMS = (
    "engines",
    "keep 1",
    "features",
    "choice",
    "answers",
    "request keeps",
    "one batch",
    "prefix cache",
    "refusals",
)

# vLLM's option for how many prompt tokens of a request are prefilled in one step.
CHUNK_OPTION = "long_prefill_token_threshold"
# Largest log-probability difference between stock vLLM and transformers with which a comparison of
# the two says anything; 16-bit engines differ by hundreds of roundings in a row.
MOST_NOISE = {torch.float32: 0.02, torch.bfloat16: 0.5, torch.float16: 0.25}
# Largest distance between image features of the two engines, as a share of their norm.
FEATURE_ERROR = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
UNREAD = "the workers are other processes, in which features and choice cannot be read"
# Measured noise is the largest of a few prompts, and pruned prompts are others.
FACTOR = 4
# A log-probability of a likely token is this large at most; its rounding is relative to it.
SCALE = 16.0


@dataclass(frozen=True, eq=False)
class Replies:
    """What transformers replied to the answers of both engines.

    Attributes:
        stock: to each prompt, unpruned, along stock vLLM's answer.
        asked: to each of `PrunedRun.asked`.
        own: to each of `PrunedRun.own`.
    """

    stock: list[Reply]
    asked: list[Reply]
    own: list[Reply]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What was asked and answered.

    Attributes:
        job: what was asked.
        dtype: of the model.
        stock: answers of stock vLLM.
        pruned: answers of vLLM with pruned images.
        replies: of transformers.
    """

    job: Job
    dtype: torch.dtype
    stock: StockRun
    pruned: PrunedRun
    replies: Replies

    @property
    def between_batches(self) -> float:
        """The largest difference that counts as equal between two answers of vLLM.

        Stock vLLM's own difference between prompts in a batch and alone, times `FACTOR`, and two
        units in the last place.
        """
        return self._bound(difference(self.stock.alone, self.stock.batch).largest)

    @property
    def between_engines(self) -> float:
        """The largest difference that counts as equal between vLLM and transformers.

        Their difference without gprune, times `FACTOR`, and two units in the last place.
        """
        return self._bound(self.engine_noise.largest)

    @property
    def unread(self) -> bool:
        """Whether it could not be read what the engine kept."""
        return any(one.choice is None for one in (*self.pruned.asked, *self.pruned.own))

    @property
    def engine_noise(self) -> Difference:
        """How far stock vLLM and transformers differ."""
        return difference(self.stock.alone, answers_of(self.replies.stock))

    def _bound(self, noise: float) -> float:
        return FACTOR * noise + 2 * torch.finfo(self.dtype).eps * SCALE


def answers_of(items: Sequence[Reply] | Sequence[Asked]) -> list[Answer]:
    """Returns the answers of replies or of asked prompts."""
    return [item.answer for item in items]


def check(evidence: Evidence) -> Iterator[Result]:
    """Checks every claim, in the order of `CLAIMS`."""
    yield engines(evidence)
    yield keep_1(evidence)
    yield features(evidence)
    yield choice(evidence)
    yield answers(evidence)
    yield request_keeps(evidence)
    yield one_batch(evidence)
    yield prefix_cache(evidence)
    yield refusals(evidence)


def engines(evidence: Evidence) -> Result:
    """Checks that stock vLLM and transformers agree, without which they cannot be compared."""
    found, most = evidence.engine_noise, MOST_NOISE[evidence.dtype]
    detail = f"without gprune stock vLLM answers as transformers ({tokens(found)})"
    return agreement("engines", found, most, detail)


def keep_1(evidence: Evidence) -> Result:
    """Checks that a budget of 1 answers as stock vLLM does."""
    found = difference(evidence.pruned.whole, evidence.stock.batch)
    detail = f"requests with gprune_keep 1 are answered as by stock vLLM ({tokens(found)})"
    return agreement("keep 1", found, evidence.between_batches, detail)


def features(evidence: Evidence) -> Result:
    """Checks that vLLM's image features are those of transformers."""
    if evidence.unread:
        return Result("features", Verdict.NOT_APPLICABLE, UNREAD)
    replies = [*evidence.replies.asked, *evidence.replies.own]
    largest = max(reply.feature_error for reply in replies)
    detail = "image features in vLLM are those in transformers (distance as a share of their norm)"
    return within("features", largest, FEATURE_ERROR[evidence.dtype], detail)


def choice(evidence: Evidence) -> Result:
    """Checks that vLLM keeps the tokens that gprune in transformers keeps of the same features."""
    asked = [*evidence.pruned.asked, *evidence.pruned.own]
    replies = [*evidence.replies.asked, *evidence.replies.own]
    if evidence.unread:
        return Result("choice", Verdict.NOT_APPLICABLE, UNREAD)
    kept = sum(int(reply.kept.sum()) for reply in replies)
    total = sum(reply.kept.size for reply in replies)
    wrong = sum(different_tokens(one, reply) for one, reply in zip(asked, replies, strict=True))
    detail = (
        f"kept {kept} of {total} visual tokens in {len(asked)} requests, the same as gprune in "
        "transformers"
    )
    failure = f"of {total} visual tokens {wrong} are kept by only one of vLLM and transformers"
    if wrong:
        return Result("choice", Verdict.FAILED, failure, wrong, 0)
    return Result("choice", Verdict.PASSED, detail, 0, 0)


def different_tokens(asked: Asked, reply: Reply) -> int:
    """Returns how many visual tokens of a prompt are kept by only one engine."""
    assert asked.choice is not None
    kept = asked.choice.kept
    if kept.shape != reply.kept.shape:
        return max(kept.size, reply.kept.size)
    return int((kept != reply.kept).sum())


def answers(evidence: Evidence) -> Result:
    """Checks that pruned prompts are answered as by gprune in transformers."""
    found = difference(answers_of(evidence.pruned.asked), answers_of(evidence.replies.asked))
    chunk = evidence.job.options.get(CHUNK_OPTION)
    chunks = f"; prefill in chunks of {chunk} tokens" if chunk else ""
    keep = evidence.job.settings.keep
    detail = f"with keep {keep} vLLM answers as gprune in transformers ({tokens(found)}{chunks})"
    return agreement("answers", found, evidence.between_engines, detail)


def request_keeps(evidence: Evidence) -> Result:
    """Checks that requests with a budget of their own are answered as in transformers."""
    found = difference(answers_of(evidence.pruned.own), answers_of(evidence.replies.own))
    keeps = ", ".join(map(str, evidence.job.keeps))
    detail = f"requests with gprune_keep {keeps} are answered as in transformers ({tokens(found)})"
    return agreement("request keeps", found, evidence.between_engines, detail)


def one_batch(evidence: Evidence) -> Result:
    """Checks that requests with different budgets do not disturb each other in one batch."""
    alone = answers_of([*evidence.pruned.asked, *evidence.pruned.own])
    found = difference(evidence.pruned.together, alone)
    detail = (
        f"{len(alone)} requests with different budgets are answered at once as they are alone "
        f"({tokens(found)})"
    )
    return agreement("one batch", found, evidence.between_batches, detail)


def prefix_cache(evidence: Evidence) -> Result:
    """Checks that the prefix cache serves the same request, and no other budget's image tokens."""
    name, run = "prefix cache", evidence.pruned.cache
    if not run.again.cached:
        detail = f"a repeated request of {run.again.prompt} tokens took none from the cache"
        return Result(name, Verdict.FAILED, detail, run.again.cached)
    if run.changed.cached > run.before_image:
        detail = (
            f"a request with another budget took {run.changed.cached} tokens from the cache, of "
            f"which only {run.before_image} come before the image"
        )
        return Result(name, Verdict.FAILED, detail, run.changed.cached, run.before_image)
    found = difference([run.again, run.changed], [run.first, run.uncached])
    detail = (
        f"{run.again.cached} of {run.again.prompt} tokens of a repeated request come from the "
        f"cache, {run.changed.cached} of one with another budget, and both are answered as without "
        f"it ({tokens(found)})"
    )
    return agreement(name, found, evidence.between_batches, detail)


def refusals(evidence: Evidence) -> Result:
    """Checks that bad requests are refused with a sentence and the engine goes on."""
    pruned = evidence.pruned
    answered = [one.sent for one in pruned.refused if one.message is None]
    silent = [one.sent for one in pruned.refused if one.message is not None and not one.message]
    found = difference([pruned.after], [pruned.asked[0].answer])
    goes_on = found.largest <= evidence.between_batches and not found.prompts
    sent = ", ".join(one.sent for one in pruned.refused)
    odd = ", ".join(one.sent for one in pruned.odd)
    problems = [
        *(f"{one} was answered" for one in answered),
        *(f"{one} was refused without a message" for one in silent),
        *([] if goes_on else ["the next request was answered differently"]),
    ]
    detail = f"{sent} are refused with a message, and after them and {odd} the engine answers"
    return holds("refusals", not problems, detail, "; ".join(problems))


def agreement(name: str, found: Difference, bound: float, detail: str) -> Result:
    """Returns a result that passes if prompts are equally long and log-probabilities agree."""
    if found.prompts:
        return Result(name, Verdict.FAILED, "; ".join(found.prompts))
    return within(name, found.largest, bound, detail)


def tokens(found: Difference) -> str:
    """Returns a phrase about the greedy tokens of two answers."""
    return f"{found.same} of {found.steps} greedy tokens the same"
