"""Runs the same prompts in vLLM and in transformers."""

from __future__ import annotations

import contextlib
import functools
import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from gprune.pruners import Pruner
from gprune.serving.families import (
    SERVED,
    pruned_architecture,
    served_family,
    stock_architecture,
)

NEW_TOKENS = 6


@dataclass(frozen=True)
class Prompt:
    """A prompt with its images; ``keep`` is the budget of the request, None for the server's."""

    text: str
    images: Sequence[Image.Image] = ()
    keep: Any = None

    def for_vllm(self) -> dict[str, Any]:
        """Returns the request that vLLM takes."""
        request: dict[str, Any] = {"prompt": self.text}
        if self.images:
            request["multi_modal_data"] = {"image": list(self.images)}
        if self.keep is not None:
            request["mm_processor_kwargs"] = {"gprune_keep": self.keep}
        return request


@dataclass(frozen=True)
class Answer:
    """A greedy answer.

    Attributes:
        tokens: generated ids.
        logprobs: log-probability of each.
        prompt: number of prompt tokens that the language model saw.
        text: of the answer; not compared.
    """

    tokens: list[int]
    logprobs: list[float]
    prompt: int
    text: str = field(default="", compare=False)


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Draws coloured blocks, so that some patches differ and some are alike."""
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (math.ceil(height / 9), math.ceil(width / 9), 3), np.uint8)
    return Image.fromarray(blocks.repeat(9, 0).repeat(9, 1)[:height, :width])


def prompts(image: str) -> list[Prompt]:
    """Returns prompts with images in every place; ``image`` is the placeholder text of one."""
    tall, wide, square = picture(0, 30, 61), picture(1, 61, 29), picture(2, 48, 48)
    return [
        Prompt(f"w1 w2 {image} w3 w4 w5", [square]),
        Prompt(f"{image} w6 w7", [wide]),
        Prompt(f"w8 {image} w9 {image} w10 w11", [tall, wide]),
        Prompt(f"w12 {image} {image} w13", [wide, tall]),
        Prompt("w14 w15 w16 w17"),
        Prompt(f"w18 w19 {image}", [tall]),
    ]


@functools.cache
def inspect_here() -> None:
    """Imports the models under test in this process.

    vLLM would inspect each in a process of its own, which takes ten seconds; only the test of the
    server lets it.
    """
    from vllm import ModelRegistry
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    for family in SERVED:
        for name in (stock_architecture(family), pruned_architecture(family)):
            ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())


@contextmanager
def engine(folder: Path, settings: dict[str, Any] | None = None, **options: Any) -> Iterator[Any]:
    """Starts vLLM on a checkpoint: stock, or pruned with ``settings``, by default G-Prune."""
    from transformers import AutoConfig
    from vllm import LLM

    inspect_here()
    if settings is not None:
        family = served_family(AutoConfig.from_pretrained(folder))
        options["hf_overrides"] = {
            "architectures": [pruned_architecture(family)],
            "gprune": {"method": "gprune", **settings},
        }
    defaults = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 512,
        "kv_cache_memory_bytes": 2**26,
        "block_size": 32,
        "seed": 0,
    }
    llm = LLM(str(folder), **(defaults | options))
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


def ask(llm: Any, asked: Sequence[Prompt], new_tokens: int = NEW_TOKENS) -> list[Answer]:
    """Returns greedy answers of vLLM, all prompts in one batch."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=new_tokens, logprobs=0, ignore_eos=True)
    outputs = llm.generate([prompt.for_vllm() for prompt in asked], sampling, use_tqdm=False)
    return [
        Answer(
            list(output.outputs[0].token_ids),
            [
                entry[token].logprob
                for entry, token in zip(
                    output.outputs[0].logprobs, output.outputs[0].token_ids, strict=True
                )
            ],
            len(output.prompt_token_ids),
            output.outputs[0].text,
        )
        for output in outputs
    ]


class Reference:
    """A checkpoint in transformers; answers one prompt at a time."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.model.generation_config.eos_token_id = None
        self.processor = AutoProcessor.from_pretrained(folder)

    @torch.inference_mode()
    def ask(
        self, asked: Sequence[Prompt], pruner: Pruner | None, new_tokens: int = NEW_TOKENS
    ) -> list[Answer]:
        """Returns greedy answers; ``pruner`` prunes the model in transformers."""
        with contextlib.nullcontext() if pruner is None else pruner(self.model) as pruned:
            return [self._ask(prompt, pruned, new_tokens) for prompt in asked]

    def _ask(self, prompt: Prompt, pruned: Any, new_tokens: int) -> Answer:
        inputs = self.processor(
            images=list(prompt.images) or None, text=[prompt.text], return_tensors="pt"
        )
        inputs.pop("batch_num_images", None)
        output = self.model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=new_tokens,
            output_logits=True,
            return_dict_in_generate=True,
        )
        length = inputs["input_ids"].shape[1]
        tokens = output.sequences[0, length:].tolist()
        logprobs = [
            logits[0].float().log_softmax(-1)[token].item()
            for logits, token in zip(output.logits, tokens, strict=True)
        ]
        prompt_tokens = length
        if pruned is not None and prompt.images:
            prompt_tokens -= pruned.dropped[0]
        return Answer(tokens, logprobs, prompt_tokens)


def assert_same(found: Sequence[Answer], expected: Sequence[Answer], tolerance: float) -> None:
    """Checks for equal tokens and prompt lengths, and log-probabilities within ``tolerance``."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.tokens == other.tokens
        assert one.prompt == other.prompt
        np.testing.assert_allclose(one.logprobs, other.logprobs, rtol=0, atol=tolerance)
