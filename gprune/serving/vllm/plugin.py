"""The entry point that vLLM calls in every process that it starts."""

from __future__ import annotations

from gprune.serving.families import SERVED, pruned_architecture
from gprune.versions import is_allowed


def register() -> None:
    """Adds the pruned architectures to vLLM's registry; changes no existing entry.

    May be called repeatedly. An untested version of vLLM refuses models of a pruned architecture
    and otherwise works as without gprune.
    """
    import vllm
    from vllm import ModelRegistry

    for family in SERVED:
        name = pruned_architecture(family)
        # By name: only processes that run a model import it, and it refuses an untested vLLM.
        ModelRegistry.register_model(name, f"gprune.serving.vllm.models:{name}")
    if not is_allowed("vllm", vllm.__version__):
        return
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from gprune.serving.vllm.config import PruningConfig

    for family in SERVED:
        MODELS_CONFIG_MAP[pruned_architecture(family)] = PruningConfig
