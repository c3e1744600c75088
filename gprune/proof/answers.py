"""Greedy answers to prompts with images, of any engine, and how far two of them differ.

Knows no engine: `gprune.proof.checkpoint` answers in transformers, `gprune.serving.proof` in vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gprune.budget import Keep

# Tokens of each step whose log-probabilities are compared.
LIKELIEST = 5


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt with its images.

    Attributes:
        text: with the placeholder text of each image.
        images: in the order of their placeholders.
        keep: the budget of this request; None for that of the server.
    """

    text: str
    images: Sequence[Image.Image] = ()
    keep: Any = None


@dataclass(frozen=True)
class Answer:
    """A greedy answer.

    Attributes:
        tokens: the likeliest token of each step.
        top: log-probabilities of each step, by token; `tokens` are among them.
        prompt: number of prompt tokens that the language model saw.
        path: the tokens that the steps followed, if they are not `tokens`.
        text: of the answer; empty if the engine gives none.
        cached: number of prompt tokens that came from a prefix cache.
    """

    tokens: tuple[int, ...]
    top: tuple[dict[int, float], ...]
    prompt: int
    path: tuple[int, ...] = ()
    text: str = field(default="", compare=False)
    cached: int = field(default=0, compare=False)

    @property
    def followed(self) -> tuple[int, ...]:
        """The tokens that the steps followed."""
        return self.path or self.tokens

    @property
    def logprobs(self) -> list[float]:
        """The log-probability of each token."""
        return [entry[token] for entry, token in zip(self.top, self.tokens, strict=True)]


@dataclass(frozen=True, eq=False)
class Choice:
    """What an engine kept of the images of one prompt.

    Attributes:
        kept: which visual tokens were kept, bool [n], in the order of the prompt.
        groups: projected features of each group of tokens that are pruned together, float32 [m, d],
            in the order of the prompt.
    """

    kept: NDArray[np.bool_]
    groups: tuple[NDArray[np.float32], ...]


@dataclass(frozen=True, eq=False)
class Question:
    """What a reference is asked about another engine's answer.

    Attributes:
        prompt: the prompt.
        keep: its budget; None runs the model unpruned.
        answer: of the other engine; the reference follows its tokens and returns log-probabilities
            of its likeliest ones.
        choice: of the other engine; the method runs on its features, so that it faces the same
            numbers. None runs it on the reference's own.
    """

    prompt: Prompt
    keep: Keep | None
    answer: Answer
    choice: Choice | None = None


@dataclass(frozen=True, eq=False)
class Reply:
    """What a reference replies to a `Question`.

    Attributes:
        answer: along the other engine's tokens.
        kept: which visual tokens were kept, bool [n], in the order of the prompt.
        feature_error: the largest distance of an image's features from the other engine's, as a
            share of their norm; 0 without a choice.
    """

    answer: Answer
    kept: NDArray[np.bool_]
    feature_error: float = 0.0


@dataclass(frozen=True)
class Difference:
    """How far two engines' answers differ.

    Attributes:
        largest: largest difference between the log-probabilities of a token.
        same: number of steps with the same greedy token.
        steps: number of compared steps.
        prompts: a sentence for each pair of answers whose prompts have different lengths.
    """

    largest: float
    same: int
    steps: int
    prompts: tuple[str, ...]


def difference(found: Sequence[Answer], expected: Sequence[Answer]) -> Difference:
    """Compares answers step by step, as long as both followed the same tokens.

    Log-probabilities of the likeliest tokens of either are compared. Where the other does not list
    a token, it is at most as likely as the least likely token that it lists.
    """
    largest, same, steps = 0.0, 0, 0
    prompts = []
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        if one.prompt != other.prompt:
            prompts.append(f"prompt {index} has {one.prompt} tokens instead of {other.prompt}")
        for step, (ours, theirs) in enumerate(zip(one.top, other.top, strict=True)):
            if one.followed[:step] != other.followed[:step]:
                break
            steps += 1
            same += one.tokens[step] == other.tokens[step]
            largest = max(largest, distance(ours, theirs))
    return Difference(largest, same, steps, tuple(prompts))


def distance(ours: dict[int, float], theirs: dict[int, float]) -> float:
    """Returns the largest difference between log-probabilities of one step, see `difference`."""
    floors = min(ours.values()), min(theirs.values())
    largest = 0.0
    for token in ours.keys() | theirs.keys():
        if token not in theirs:
            gap = max(0.0, ours[token] - floors[1])
        elif token not in ours:
            gap = max(0.0, theirs[token] - floors[0])
        else:
            gap = abs(ours[token] - theirs[token])
        # NaN is no agreement, and compares as smaller than nothing.
        largest = max(largest, gap if gap == gap else float("inf"))
    return largest
