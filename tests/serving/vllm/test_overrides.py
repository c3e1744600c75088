"""What the plugin overrides is there in the installed vLLM, with the same parameters.

vLLM calls these methods by name. A renamed one would leave an override that nothing calls.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.model_executor.models.interfaces import SupportsMRoPE, SupportsMultiModalPruning

from gprune.serving.vllm import models, processing
from gprune.serving.vllm.config import PruningConfig
from gprune.serving.vllm.cpu import PruningCPUWorker

# Methods that only the plugin calls; vLLM must not have their names.
OWN = {"raster", "encoded_keep", "shorten"}
# What the runner asks of a model with M-RoPE and with pruned embeddings; few stock models have it.
INTERFACES = (SupportsMRoPE, SupportsMultiModalPruning)


def plugin_classes() -> Iterator[type]:
    for module in (models, processing):
        for value in vars(module).values():
            if inspect.isclass(value) and value.__module__ == module.__name__:
                bases = [base.__module__ for base in value.__mro__]
                if any(name.startswith("vllm.model_executor.models") for name in bases):
                    yield value
    yield PruningConfig
    yield PruningCPUWorker


def overrides(plugin: type) -> Iterator[tuple[str, Any, list[Any]]]:
    """Yields each method of the plugin with the methods of vLLM that it overrides."""
    theirs = [one for one in (*plugin.__mro__, *INTERFACES) if one.__module__.startswith("vllm.")]
    for base in plugin.__mro__:
        if base.__module__.startswith("gprune."):
            for name, value in vars(base).items():
                method = getattr(value, "__func__", value)
                if inspect.isfunction(method):
                    found = [vars(one)[name] for one in theirs if name in vars(one)]
                    yield name, method, [getattr(one, "__func__", one) for one in found]


def named_parameters(function: Callable[..., Any]) -> list[str]:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return [one.name for one in parameters if one.kind not in kinds]


def passes_on(function: Callable[..., Any]) -> bool:
    parameters = inspect.signature(function).parameters.values()
    return any(one.kind == inspect.Parameter.VAR_POSITIONAL for one in parameters)


@pytest.mark.parametrize("plugin", list(plugin_classes()), ids=lambda one: one.__name__)
def test_every_override_has_the_parameters_of_what_it_overrides(plugin: type) -> None:
    for name, method, theirs in overrides(plugin):
        if name in OWN:
            assert not theirs, f"vLLM has a method {name} of its own"
        elif name not in ("__init__", "forward", "embed_multimodal"):
            assert theirs, f"vLLM has no {name}, so nothing calls the plugin's"
            if not passes_on(method):
                assert named_parameters(method) == named_parameters(theirs[0]), name


def test_the_classes_are_those_of_every_family() -> None:
    found = {one.__name__ for one in plugin_classes()}
    assert len(found) >= 7 * 3
    assert {"PruningConfig", "PruningCPUWorker", "Qwen2_5_VLProcessor", "LlavaInfo"} <= found


def test_config_hooks_are_those_of_vllm() -> None:
    assert issubclass(PruningConfig, VerifyAndUpdateConfig)
    for name in ("verify_and_update_model_config", "verify_and_update_config"):
        theirs = inspect.signature(getattr(VerifyAndUpdateConfig, name)).parameters
        assert list(inspect.signature(getattr(PruningConfig, name)).parameters) == list(theirs)
