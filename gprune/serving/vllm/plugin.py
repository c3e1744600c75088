"""What vLLM calls in every process that it starts."""

from __future__ import annotations

import os

from gprune.serving.families import SERVED
from gprune.serving.versions import OVERRIDE, is_tested


def register() -> None:
    """Adds the pruned architectures to vLLM's registry; changes nothing that is there already.

    May be called many times. In a vLLM outside the tested range a model that asks for a pruned
    architecture is refused, and everything else works as without gprune.
    """
    import vllm
    from vllm import ModelRegistry

    for family in SERVED:
        # By name: a model is imported in the processes that run it, and refuses an untested vLLM.
        ModelRegistry.register_model(family.pruned, f"gprune.serving.vllm.models:{family.pruned}")
    if not is_tested(vllm.__version__) and os.environ.get(OVERRIDE) != "1":
        return
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from gprune.serving.vllm.config import PruningConfig

    for family in SERVED:
        MODELS_CONFIG_MAP[family.pruned] = PruningConfig
