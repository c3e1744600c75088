"""Runs a model greedily, also along given tokens, and compares the logits of two runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from gprune.hf import find_cache

# Tokens that are generated in each run.
STEPS = 4

Inputs = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Run:
    """One greedy run.

    Attributes:
        tokens: the generated tokens, int64 [b, steps].
        logits: that chose them, float32 [b, steps, vocabulary].
        cache: the KV cache after the run; None without one.
    """

    tokens: Tensor
    logits: Tensor
    cache: Any = None

    def row(self, index: int) -> Run:
        """Returns one row, without the cache."""
        return Run(self.tokens[index : index + 1], self.logits[index : index + 1])


class ForcedTokens(LogitsProcessor):  # type: ignore[misc]
    """Makes `generate` follow given tokens, so that two runs stay comparable at every step."""

    def __init__(self, tokens: Tensor, prompt: int) -> None:
        """Prepares to follow ``tokens`` [b, steps] after ``prompt`` columns."""
        self.tokens, self.prompt = tokens, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        token = self.tokens[:, input_ids.shape[1] - self.prompt].to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter(1, token[:, None], 0.0)


@torch.no_grad()
def greedy(
    model: Any,
    inputs: Mapping[str, Tensor],
    steps: int = STEPS,
    forced: Tensor | None = None,
    **options: Any,
) -> Run:
    """Generates ``steps`` tokens greedily with `generate`.

    Args:
        model: the model.
        inputs: its inputs.
        steps: number of tokens; an end-of-sequence token does not stop earlier.
        forced: tokens to follow instead of the most likely ones, int64 [b, steps].
        options: further arguments of `generate`.
    """
    if forced is not None:
        options["logits_processor"] = [ForcedTokens(forced, inputs["input_ids"].shape[1])]
    output = model.generate(
        **inputs,
        **options,
        max_new_tokens=steps,
        min_new_tokens=steps,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    logits = torch.stack(output.logits, 1)
    logits = logits.float() if logits.itemsize < 4 else logits  # half precision alone
    return Run(output.sequences[:, -steps:], logits, find_cache(output))


def difference(one: Tensor, other: Tensor) -> float:
    """Returns the largest absolute difference; infinite if a value is NaN or shapes differ."""
    if one.shape != other.shape:
        return float("inf")
    largest = float((one.double() - other.to(one.device).double()).abs().max())
    return largest if largest == largest else float("inf")


@dataclass(frozen=True)
class Noise:
    """How far a model's logits differ from themselves between calls of different shapes.

    Attributes:
        measured: largest difference between the unpruned model's own runs.
        scale: largest absolute logit.
        epsilon: spacing of the dtype's numbers at 1.
    """

    measured: float
    scale: float
    epsilon: float

    @property
    def tolerance(self) -> float:
        """The largest difference that still counts as equal.

        Four times the model's own noise, which is itself the largest of a sample, and two units in
        the last place of the largest logit.
        """
        return 4 * self.measured + 2 * self.epsilon * self.scale

    @property
    def limit(self) -> float:
        """The largest noise of a model that can be trusted; beyond, its own calls disagree.

        Models measured here stay below 60 units in the last place of the largest logit; for half
        precision the limit is a tenth of that logit.
        """
        return min(1000 * self.epsilon, 0.1) * self.scale


def measure_noise(model: Any, rows: Sequence[Inputs], batch: Inputs) -> Noise:
    """Measures an unpruned model's noise: prompts alone, in an uneven batch, and without cache.

    Args:
        model: the model.
        rows: prompts of one row each.
        batch: the same prompts in one batch.
    """
    together = greedy(model, batch)
    largest, scale = 0.0, float(together.logits.abs().max())
    for index, inputs in enumerate(rows):
        reference = together.row(index)
        for options in ({}, {"use_cache": False}):
            alone = greedy(model, inputs, forced=reference.tokens, **options)
            largest = max(largest, difference(alone.logits, reference.logits))
    return Noise(largest, scale, torch.finfo(model.dtype).eps)
