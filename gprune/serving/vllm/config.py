"""What happens when vLLM builds the config of a pruned model: checks, and the switches it needs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import vllm
from vllm.logger import init_logger
from vllm.model_executor.models.config import VerifyAndUpdateConfig

from gprune.serving.families import served_family
from gprune.serving.settings import CONFIG_KEY, REQUEST_KEY, Settings
from gprune.serving.versions import require_tested_vllm

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig

# A child of vLLM's logger, so that the line is shown where vLLM's are.
logger = init_logger("vllm.gprune")

# vLLM reads from this rate whether embeddings carry positions. Videos are refused, so none is
# pruned at it.
GATE = 1e-6
RUNNER = "VLLM_USE_V2_MODEL_RUNNER"


class PruningConfig(VerifyAndUpdateConfig):
    """Registered in vLLM's `MODELS_CONFIG_MAP` for every pruned architecture."""

    @staticmethod
    def verify_and_update_model_config(model_config: ModelConfig) -> None:
        """Runs when the model's config is complete, before the engine's.

        Raises:
            UnsupportedVersionError: this vLLM has not been tested.
            UnsupportedModelError: the plugin does not serve the model.
            TypeError, ValueError: the settings are wrong, or an option excludes pruning.
        """
        require_tested_vllm(vllm.__version__)
        config = model_config.hf_config
        family = served_family(config)
        if family.pruned not in model_config.architectures:
            raise ValueError(
                f"architectures={model_config.architectures} in the overrides do not fit a "
                f"{config.model_type} model; write {family.pruned!r}"
            )
        settings = Settings.from_config(config)
        multimodal = model_config.multimodal_config
        if multimodal is None:
            raise ValueError("the model runs without images; leave the pruned architecture out")
        refuse_options(multimodal)
        multimodal.video_pruning_rate = GATE
        if not family.raster_positions:
            # Makes the runner ask the model for positions, three rows of them, and hand them over.
            # In the outer config alone: the language model inside reads its own and sees one row.
            config.mrope_section = [1, 0, 0]
        # The newer model runner, vLLM's default on GPUs, has not been tested.
        if os.environ.setdefault(RUNNER, "0") != "0":
            raise ValueError(
                f"{RUNNER}={os.environ[RUNNER]} asks for a model runner that has not been tested "
                f"with pruning; unset it or set {RUNNER}=0"
            )
        logger.info_once("gprune: %s", settings.describe())

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Runs when the engine's config is complete, before the platform's defaults.

        Raises:
            ValueError: an option has not been proven with pruning.
        """
        from vllm.platforms import current_platform

        parallel = vllm_config.parallel_config
        lora = vllm_config.lora_config
        refused = {
            "pipeline_parallel_size > 1": parallel.pipeline_parallel_size > 1,
            "speculative_config": vllm_config.speculative_config is not None,
            "cudagraph_mm_encoder": vllm_config.compilation_config.cudagraph_mm_encoder,
            "enable_tower_connector_lora": lora is not None and lora.enable_tower_connector_lora,
        }
        for option, given in refused.items():
            if given:
                raise ValueError(
                    f"{option} has not been proven with pruned images; leave it out, or serve the "
                    "model unpruned"
                )
        if current_platform.is_cpu() and parallel.worker_cls == "auto":
            parallel.worker_cls = "gprune.serving.vllm.cpu.PruningCPUWorker"


def refuse_options(multimodal: Any) -> None:
    """Refuses multimodal options that exclude pruning."""
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
