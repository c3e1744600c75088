"""Every served family: keep=1 equals stock vLLM, and less equals gprune in transformers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import gprune
from tests.serving.vllm.checkpoints import FAMILIES, make_checkpoint
from tests.serving.vllm.engines import (
    Answer,
    Prompt,
    Reference,
    ask,
    assert_same,
    engine,
    picture,
    prompts,
)

KEEP = 0.36


class Served:
    """A checkpoint of a family, the answers of stock vLLM, and the model in transformers."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = make_checkpoint(name, folder / name)
        self.prompts = prompts(FAMILIES[name].image)
        with engine(self.folder) as stock:
            self.stock = ask(stock, self.prompts)
        self.reference = Reference(self.folder)


@pytest.fixture(scope="module", params=list(FAMILIES))
def served(request: Any, tmp_path_factory: Any) -> Served:
    return Served(request.param, tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def pruning(served: Served) -> Iterator[Any]:
    with engine(served.folder, {"keep": KEEP}, enable_prefix_caching=False) as llm:
        yield llm


def with_keep(asked: list[Prompt], keep: Any) -> list[Prompt]:
    return [Prompt(prompt.text, prompt.images, keep) for prompt in asked]


def test_keep_1_answers_as_stock_vllm(served: Served, pruning: Any) -> None:
    assert_same(ask(pruning, with_keep(served.prompts, 1.0)), served.stock, 1e-5)


def test_a_smaller_keep_answers_as_gprune_in_transformers(served: Served, pruning: Any) -> None:
    expected = served.reference.ask(served.prompts, gprune.GPrune(KEEP))
    assert_same(ask(pruning, served.prompts), expected, 2e-3)
    # Pruning changes the answers; otherwise the comparison above would show nothing.
    assert any(
        one.logprobs != other.logprobs for one, other in zip(expected, served.stock, strict=True)
    )


@pytest.mark.parametrize("keep", [0.1, 3])
def test_a_request_sets_its_own_budget(served: Served, pruning: Any, keep: Any) -> None:
    expected = served.reference.ask(served.prompts, gprune.GPrune(keep))
    assert_same(ask(pruning, with_keep(served.prompts, keep)), expected, 2e-3)


@pytest.mark.parametrize("size", [(1, 1), (400, 2), (2, 400)])
def test_odd_pictures_do_not_stop_the_engine(
    served: Served, pruning: Any, size: tuple[int, int]
) -> None:
    image = FAMILIES[served.name].image
    # The processor may refuse it, before it reaches the engine.
    with contextlib.suppress(ValueError):
        ask(pruning, [Prompt(f"w1 {image} w2", [picture(0, *size)])])
    next_prompt = served.prompts[:1]
    expected = served.reference.ask(next_prompt, gprune.GPrune(KEEP))
    assert_same(ask(pruning, next_prompt), expected, 2e-3)


def test_budgets_differ_in_one_batch(served: Served, pruning: Any) -> None:
    keeps = [1.0, 0.1, KEEP, 3, None, 0.5]
    mixed = [
        Prompt(prompt.text, prompt.images, keep)
        for prompt, keep in zip(served.prompts, keeps, strict=True)
    ]
    expected: list[Answer] = []
    for prompt, keep in zip(served.prompts, keeps, strict=True):
        expected += served.reference.ask([prompt], gprune.GPrune(KEEP if keep is None else keep))
    assert_same(ask(pruning, mixed), expected, 2e-3)
