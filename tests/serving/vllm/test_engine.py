"""One engine: the prefix cache, features that are not finite, and refused requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("vllm")

import gprune
from tests.serving.vllm.checkpoints import make_checkpoint
from tests.serving.vllm.engines import (
    Prompt,
    Reference,
    ask,
    assert_same,
    engine,
    picture,
)

KEEP = 0.36


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    return make_checkpoint("llava", tmp_path_factory.mktemp("checkpoints") / "llava")


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return Reference(folder)


@pytest.fixture(scope="module")
def pruning(folder: Path) -> Iterator[Any]:
    with engine(folder, {"keep": KEEP}) as llm:
        yield llm


def cached_tokens(llm: Any, prompt: Prompt) -> int:
    """Returns how many prompt tokens the engine took from its prefix cache."""
    (answer,) = ask(llm, [prompt], 1)
    return answer.cached


def test_the_prefix_cache_depends_on_image_and_budget(
    pruning: Any, reference: Reference, folder: Path
) -> None:
    image, other = picture(3, 40, 40), picture(4, 40, 40)
    before = " ".join(f"w{index}" for index in range(28))
    after = " ".join(f"w{index}" for index in range(40))
    prompt = Prompt(f"{before} <image> {after}", [image])  # 28 + 5 + 40 tokens, blocks of 32
    assert cached_tokens(pruning, prompt) == 0
    assert cached_tokens(pruning, prompt) == 64
    (again,) = ask(pruning, [prompt])
    assert_same([again], reference.ask([prompt], gprune.GPrune(KEEP)), 2e-3)
    # A request with the server's budget shares its entries.
    assert cached_tokens(pruning, Prompt(prompt.text, [image], KEEP)) == 64
    # The image starts in the first block, so another image or budget shares no block.
    for changed in (Prompt(prompt.text, [other]), Prompt(prompt.text, [image], 0.35)):
        assert cached_tokens(pruning, changed) == 0
        assert_same(
            ask(pruning, [changed]),
            reference.ask([changed], gprune.GPrune(changed.keep or KEEP)),
            2e-3,
        )


def test_features_that_are_not_finite_do_not_stop_the_engine(
    pruning: Any, reference: Reference, monkeypatch: Any, caplog: Any
) -> None:
    from vllm.model_executor.models.llava import LlavaForConditionalGeneration

    encode = LlavaForConditionalGeneration.embed_multimodal

    def encode_with_nan(self: Any, **kwargs: Any) -> Any:
        features = torch.stack(list(encode(self, **kwargs)))
        features[:, [1, 7]] = float("nan")
        return features

    # Pictures that are in no cache.
    broken, intact = (Prompt("w1 <image> w2", [picture(seed, 40, 40)]) for seed in (5, 6))
    with monkeypatch.context() as patched:
        patched.setattr(LlavaForConditionalGeneration, "embed_multimodal", encode_with_nan)
        (answer,) = ask(pruning, [broken])
    assert torch.tensor(answer.logprobs).isfinite().all()
    assert sum("NaN or infinite and rank last" in line for line in caplog.messages) == 1
    assert_same(ask(pruning, [intact]), reference.ask([intact], gprune.GPrune(KEEP)), 2e-3)


@pytest.mark.parametrize("keep", [0, -3, 1.5, "half", {"pixel": 0.5}, [0.5], True])
def test_an_invalid_budget_is_refused(pruning: Any, keep: Any) -> None:
    with pytest.raises(ValueError, match="gprune_keep in mm_processor_kwargs: keep"):
        ask(pruning, [Prompt("w1 <image> w2", [picture(7, 40, 40)], keep)])


def test_a_prompt_whose_positions_do_not_fit_is_refused(pruning: Any) -> None:
    images = [picture(seed, 40, 40) for seed in range(33)]  # 33 * 16 positions, 33 * 5 tokens
    with pytest.raises(ValueError, match=r"keeps the position ids of 528 and the model has 512"):
        ask(pruning, [Prompt("<image> " * 33, images)])


def test_videos_are_refused(pruning: Any) -> None:
    from vllm.exceptions import VLLMValidationError

    video = {"prompt": "w1", "multi_modal_data": {"video": np.zeros((2, 8, 8, 3), np.uint8)}}
    with pytest.raises(VLLMValidationError, match="At most 0 video"):
        pruning.generate([video], use_tqdm=False)
