"""vLLM engines in this process, stock or pruned, and what they answer and keep."""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gprune.layouts.base import Family
from gprune.proof.answers import LIKELIEST, Answer, Choice, Prompt
from gprune.serving.command import config_overrides
from gprune.serving.families import pruned_architecture, served_family, stock_architecture
from gprune.serving.plan import ImagePlan
from gprune.serving.row_numbers import split_row_numbers
from gprune.serving.settings import REQUEST_KEY, ServerSettings

# What the environment must say before vLLM is imported: engines run in this process, where their
# choices can be read, and stdout is left to the result. On CPUs a worker would bind this process to
# one core.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}

# Options for CPUs: nothing is compiled, and short prompts fill blocks of the KV cache.
ON_CPU = {"enforce_eager": True, "block_size": 32}


@functools.cache
def inspect_here(family: Family) -> None:
    """Imports the models of a family in this process.

    vLLM would inspect each in a process of its own, which takes ten seconds.
    """
    from vllm import ModelRegistry
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    for name in (stock_architecture(family), pruned_architecture(family)):
        ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())


def overridden(config: Any, settings: ServerSettings, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options of vLLM with the overrides of a model config that ask for pruning."""
    theirs = options.get("hf_overrides", {})
    return {**options, "hf_overrides": {**theirs, **config_overrides(config, settings)}}


@contextmanager
def engine(
    model: str, settings: ServerSettings | None = None, options: Mapping[str, Any] | None = None
) -> Iterator[Any]:
    """Starts an engine and stops it afterwards.

    Args:
        model: a folder or a name on the Hub.
        settings: what to prune with; None starts stock vLLM.
        options: of vLLM's `LLM`.

    Raises:
        UnsupportedModelError: the plugin does not serve the model.
    """
    from transformers import AutoConfig
    from vllm import LLM
    from vllm.platforms import current_platform

    config = AutoConfig.from_pretrained(model)
    inspect_here(served_family(config))
    options = (ON_CPU if current_platform.is_cpu() else {}) | dict(options or {})
    if settings is not None:
        options = overridden(config, settings, options)
    llm = LLM(model, **options)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


def request(prompt: Prompt) -> dict[str, Any]:
    """Returns the request that vLLM takes."""
    asked: dict[str, Any] = {"prompt": prompt.text}
    if prompt.images:
        asked["multi_modal_data"] = {"image": list(prompt.images)}
    if prompt.keep is not None:
        asked["mm_processor_kwargs"] = {REQUEST_KEY: prompt.keep}
    return asked


def ask(llm: Any, prompts: Sequence[Prompt], steps: int) -> list[Answer]:
    """Returns greedy answers of ``steps`` tokens, all prompts in one batch.

    Raises:
        ValueError: the engine refuses a prompt.
    """
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=steps, logprobs=LIKELIEST, ignore_eos=True)
    outputs = llm.generate([request(prompt) for prompt in prompts], sampling, use_tqdm=False)
    return [to_answer(output) for output in outputs]


def to_answer(output: Any) -> Answer:
    """Returns the answer in an output of vLLM."""
    (found,) = output.outputs
    top = tuple({token: one.logprob for token, one in entry.items()} for entry in found.logprobs)
    length = len(output.prompt_token_ids)
    cached = output.num_cached_tokens or 0
    return Answer(tuple(found.token_ids), top, length, text=found.text, cached=cached)


def refusal(llm: Any, asked: dict[str, Any]) -> str | None:
    """Returns the message with which an engine refuses a request; None if it answers."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    try:
        llm.generate([asked], SamplingParams(max_tokens=1), use_tqdm=False)
    except (ValueError, VLLMValidationError) as error:  # which the server answers with HTTP 400
        return str(error)
    return None


def forget(llm: Any) -> None:
    """Empties the caches of an engine, so that it encodes and prunes images again."""
    llm.reset_prefix_cache()
    llm.llm_engine.reset_encoder_cache()


@dataclass(eq=False)
class Recorder:
    """Collects what an engine keeps, one image after the other.

    Attributes:
        kept: which tokens of each image were kept, bool [n].
        groups: projected features of each group of each image, float32 [m, d].
    """

    kept: list[Tensor] = field(default_factory=list)
    groups: list[Tensor] = field(default_factory=list)

    def __call__(
        self,
        family: Family,
        plans: Sequence[ImagePlan],
        images: Sequence[Tensor],
        pruned: Sequence[Tensor],
    ) -> None:
        """Records images of one call; arguments as `PruningModel.observer`."""
        for plan, image, embeddings in zip(plans, images, pruned, strict=True):
            kept = torch.zeros(plan.tokens, dtype=torch.bool)
            kept[split_row_numbers(embeddings)[1].cpu()] = True
            self.kept.append(kept)
            features = image.detach().float().cpu()
            self.groups += [features[group.rows] for group in plan.groups(family)]

    def choice(self, prompt: Prompt) -> Choice | None:
        """Returns what was recorded of a prompt; None if its images were pruned elsewhere."""
        if prompt.images and not self.kept:
            return None
        kept = torch.cat(self.kept).numpy() if self.kept else np.zeros(0, dtype=np.bool_)
        return Choice(kept, tuple(features.numpy() for features in self.groups))


@contextmanager
def recording() -> Iterator[Recorder]:
    """Records what engines in this process keep."""
    from gprune.serving.vllm.models import PruningModel

    recorder = Recorder()
    PruningModel.observer = recorder
    try:
        yield recorder
    finally:
        PruningModel.observer = None


def ask_recorded(llm: Any, prompt: Prompt, steps: int) -> tuple[Answer, Choice | None]:
    """Asks one prompt with empty caches; returns the answer, and what was kept of its images.

    The choice is None if the images were pruned in other processes, as with tensor parallelism.
    """
    forget(llm)
    with recording() as recorder:
        (answer,) = ask(llm, [prompt], steps)
    return answer, recorder.choice(prompt)
