"""Runs the same prompts in vLLM and in transformers, with `gprune prove`'s code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gprune.proof.answers import Answer, Prompt
from gprune.proof.checkpoint import Checkpoint
from gprune.pruners import Pruner
from gprune.serving.proof import engines
from gprune.serving.proof.prompts import picture
from gprune.serving.settings import ServerSettings

NEW_TOKENS = 6
# The end-of-sequence token of the tiny VLM; tokens after it are noise.
END = 2
OPTIONS = {
    "dtype": "float32",
    "max_model_len": 512,
    "kv_cache_memory_bytes": 2**26,
    "seed": 0,
}


def prompts(image: str) -> list[Prompt]:
    """Returns prompts with images in every place; ``image`` is the placeholder text of one.

    The last has text for several blocks of the prefix cache.
    """
    tall, wide, square = picture(0, 30, 61), picture(1, 61, 29), picture(2, 48, 48)
    long = " ".join(f"w{index}" for index in range(50))
    return [
        Prompt(f"w1 w2 {image} w3 w4 w5", [square]),
        Prompt(f"{image} w6 w7", [wide]),
        Prompt(f"w8 {image} w9 {image} w10 w11", [tall, wide]),
        Prompt(f"w12 {image} {image} w13", [wide, tall]),
        Prompt("w14 w15 w16 w17"),
        Prompt(f"w18 w19 {image}", [tall]),
        Prompt(f"w20 {image} {long} {long}", [square]),
    ]


@contextmanager
def engine(folder: Path, settings: dict[str, Any] | None = None, **options: Any) -> Iterator[Any]:
    """Starts vLLM on a checkpoint: stock, or pruned with ``settings``, by default G-Prune."""
    chosen = None if settings is None else ServerSettings(**({"method": "gprune"} | settings))
    with engines.engine(str(folder), chosen, OPTIONS | options) as llm:
        yield llm


def ask(llm: Any, asked: Sequence[Prompt], new_tokens: int = NEW_TOKENS) -> list[Answer]:
    """Returns greedy answers of vLLM, all prompts in one batch."""
    return engines.ask(llm, asked, new_tokens)


class Reference:
    """A checkpoint in transformers; answers one prompt at a time."""

    def __init__(self, folder: Path) -> None:
        self.checkpoint = Checkpoint(str(folder))

    def ask(
        self, asked: Sequence[Prompt], pruner: Pruner | None, new_tokens: int = NEW_TOKENS
    ) -> list[Answer]:
        """Returns greedy answers; ``pruner`` prunes the model in transformers."""
        return self.checkpoint.ask(asked, pruner, new_tokens)


def until_end(answer: Answer) -> list[int]:
    """Returns the tokens of an answer before the end-of-sequence token."""
    tokens = list(answer.tokens)
    return tokens[: tokens.index(END)] if END in tokens else tokens


def assert_same(found: Sequence[Answer], expected: Sequence[Answer], tolerance: float) -> None:
    """Checks for equal tokens and prompt lengths, and log-probabilities within ``tolerance``."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.tokens == other.tokens
        assert one.prompt == other.prompt
        np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=tolerance)
