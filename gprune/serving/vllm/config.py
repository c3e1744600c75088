"""The config hook of pruned models: checks options, and sets the switches that vLLM needs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import vllm
from vllm.logger import init_logger
from vllm.model_executor.models.config import VerifyAndUpdateConfig

from gprune.serving.families import pruned_architecture, served_family
from gprune.serving.settings import CONFIG_KEY, REQUEST_KEY, ServerSettings
from gprune.versions import require_tested

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig

# A child of vLLM's logger, because only its lines are shown.
logger = init_logger("vllm.gprune")

# A rate above 0 makes vLLM expect positions in embeddings. Videos are refused, so no video is
# pruned at this rate.
VIDEO_PRUNING_RATE = 1e-6
RUNNER_VARIABLE = "VLLM_USE_V2_MODEL_RUNNER"


class PruningConfig(VerifyAndUpdateConfig):
    """The entry of every pruned architecture in vLLM's `MODELS_CONFIG_MAP`."""

    @staticmethod
    def verify_and_update_model_config(model_config: ModelConfig) -> None:
        """Checks and updates a model's config; runs before the engine's config is built.

        Raises:
            UnsupportedVersionError: this vLLM has not been tested.
            UnsupportedModelError: the plugin does not serve the model.
            TypeError, ValueError: the settings are invalid, or an option excludes pruning.
        """
        require_tested("vllm", vllm.__version__)
        config = model_config.hf_config
        family = served_family(config)
        architecture = pruned_architecture(family)
        if architecture not in model_config.architectures:
            raise ValueError(
                f"architectures={model_config.architectures} in the overrides do not fit a "
                f"{config.model_type} model; write {architecture!r}"
            )
        settings = ServerSettings.from_config(config)
        multimodal = model_config.multimodal_config
        if multimodal is None:
            raise ValueError("the model runs without images; leave the pruned architecture out")
        refuse_multimodal_options(multimodal)
        multimodal.video_pruning_rate = VIDEO_PRUNING_RATE
        if not family.multimodal_positions:
            # The runner then asks the model for three rows of positions and passes them on. Only
            # the outer config has it: the inner language model reads its own and sees one row.
            config.mrope_section = [1, 0, 0]
        require_tested_runner()
        logger.info_once("gprune: %s", settings.describe())

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Checks and updates the engine's config; runs before the platform's defaults are set.

        Raises:
            ValueError: an option has not been tested with pruning.
        """
        from vllm.platforms import current_platform

        parallel = vllm_config.parallel_config
        lora = vllm_config.lora_config
        untested = {
            "pipeline_parallel_size > 1": parallel.pipeline_parallel_size > 1,
            "speculative_config": vllm_config.speculative_config is not None,
            "cudagraph_mm_encoder": vllm_config.compilation_config.cudagraph_mm_encoder,
            "enable_tower_connector_lora": lora is not None and lora.enable_tower_connector_lora,
        }
        for option, is_set in untested.items():
            if is_set:
                raise ValueError(
                    f"{option} has not been proven with pruned images; leave it out, or serve the "
                    "model unpruned"
                )
        if current_platform.is_cpu() and parallel.worker_cls == "auto":
            parallel.worker_cls = "gprune.serving.vllm.cpu.PruningCPUWorker"


def refuse_multimodal_options(multimodal: Any) -> None:
    """Checks vLLM's multimodal options.

    Raises:
        ValueError: one of them excludes pruning.
    """
    if multimodal.video_pruning_rate:
        raise ValueError(
            f"video_pruning_rate={multimodal.video_pruning_rate} prunes videos, which a server "
            "that prunes images does not take; leave it out"
        )
    if REQUEST_KEY in (multimodal.mm_processor_kwargs or {}):
        raise ValueError(
            f"mm_processor_kwargs of the server has {REQUEST_KEY}; write the server's keep into "
            f"--hf-overrides, under {CONFIG_KEY!r}"
        )


def require_tested_runner() -> None:
    """Selects vLLM's first model runner; its second, the default on GPUs, has not been tested.

    Raises:
        ValueError: the environment selects the second one.
    """
    if os.environ.setdefault(RUNNER_VARIABLE, "0") != "0":
        raise ValueError(
            f"{RUNNER_VARIABLE}={os.environ[RUNNER_VARIABLE]} selects a model runner that has not "
            f"been tested with pruning; unset it or set {RUNNER_VARIABLE}=0"
        )
