"""The workers' part: vLLM's models, pruning after the projector and numbering what stays."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import vllm
from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_world_size, get_tp_group

from gprune.serving.versions import require_tested_vllm

require_tested_vllm(vllm.__version__)

from vllm.model_executor.models.interns1 import (  # noqa: E402
    InternS1DummyInputsBuilder,
    InternS1ForConditionalGeneration,
)
from vllm.model_executor.models.llava import (  # noqa: E402
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
)
from vllm.model_executor.models.llava_next import LlavaNextForConditionalGeneration  # noqa: E402
from vllm.model_executor.models.llava_onevision import (  # noqa: E402
    LlavaOnevisionDummyInputsBuilder,
    LlavaOnevisionForConditionalGeneration,
)
from vllm.model_executor.models.qwen2_5_vl import (  # noqa: E402
    Qwen2_5_VLForConditionalGeneration,
)
from vllm.model_executor.models.qwen2_vl import (  # noqa: E402
    Qwen2VLDummyInputsBuilder,
    Qwen2VLForConditionalGeneration,
)
from vllm.model_executor.models.qwen3_vl import (  # noqa: E402
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
)
from vllm.multimodal import MULTIMODAL_REGISTRY  # noqa: E402

from gprune.serving.families import served_family  # noqa: E402
from gprune.serving.images import ImagePlan, prune_images, without_numbers  # noqa: E402
from gprune.serving.settings import Settings  # noqa: E402
from gprune.serving.vllm import processing  # noqa: E402
from gprune.serving.vllm.positions import Placed, fill, next_offset, plan  # noqa: E402
from gprune.serving.vllm.processing import PLAN  # noqa: E402


class PrunesImages(nn.Module):
    """In front of a model of vLLM.

    The embeddings of an image are those of its kept tokens, each with the number of its row in two
    more channels. The runner hands them back before it uses them, and is told the positions.
    """

    supports_mrope: ClassVar[bool] = True
    supports_multimodal_pruning: ClassVar[bool] = True

    def __init__(self, *, vllm_config: Any, prefix: str = "", **kwargs: Any) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, **kwargs)
        # Of vLLM's model, which would add channels of its own where it prunes videos.
        self.is_multimodal_pruning_enabled = False
        config = vllm_config.model_config.hf_config
        self.family = served_family(config)
        self.settings = Settings.from_config(config)
        self.width = config.get_text_config().hidden_size

    def embed_multimodal(self, **kwargs: Any) -> Any:
        plans = kwargs.pop(PLAN, None)
        # Of the model of vLLM that a subclass stands in front of.
        images = super().embed_multimodal(**kwargs)  # type: ignore[misc]
        if plans is None:
            return images
        pruned = prune_images(
            list(images),
            [ImagePlan.from_tensor(row) for row in plans],
            self.family.divide,
            self.settings.pruner,
            self.width,
        )
        if get_tensor_model_parallel_world_size() > 1:
            # Ranks whose features differ in the last bit must not choose different tokens.
            group = get_tp_group()
            pruned = [group.broadcast(image.contiguous()) for image in pruned]
        return pruned

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[Any]
    ) -> tuple[Tensor, int]:
        images = []
        for feature in sorted(mm_features, key=lambda feature: feature.mm_position.offset):
            image = ImagePlan.from_tensor(feature.data[PLAN].data)
            raster = (image.rows, image.columns) if self.family.raster_positions else None
            images.append(Placed(places(feature.mm_position), image.tokens, raster))
        positions = plan(len(input_tokens), images)
        return positions, next_offset(positions)

    def recompute_mrope_positions(
        self,
        input_ids: Any,
        multimodal_embeddings: Any,
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[list[Tensor], Tensor, int]:
        split = [without_numbers(embeddings) for embeddings in multimodal_embeddings]
        if split:
            rows = torch.cat([rows for _, rows in split]).to(mrope_positions.device)
            mrope_positions = fill(mrope_positions, rows, num_computed_tokens)
        return [features for features, _ in split], mrope_positions, next_offset(mrope_positions)


def places(position: Any) -> Tensor:
    """Where an image's placeholders are in the prompt, int64 [k]."""
    within = torch.arange(position.length)
    return position.offset + (within if position.is_embed is None else within[position.is_embed])


class CountsTokens(PrunesImages):
    """Models with 1-D positions: the language model inside sees the first of the three rows."""

    counted: Tensor

    def __init__(self, *, vllm_config: Any, prefix: str = "", **kwargs: Any) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, **kwargs)
        text = vllm_config.model_config.hf_config.get_text_config()
        self.last_position = text.max_position_embeddings - 1
        # CUDA graphs inside read positions where they were when recorded: always here.
        most = vllm_config.scheduler_config.max_num_batched_tokens
        self.register_buffer("counted", torch.zeros(most, dtype=torch.int64), persistent=False)

    def forward(self, input_ids: Any, positions: Tensor, *args: Any, **kwargs: Any) -> Any:
        counted = self.counted[: positions.shape[1]]
        # A long answer to a short prompt may run past the table of rotations; a prompt cannot.
        torch.clamp(positions[0], max=self.last_position, out=counted)
        return super().forward(input_ids, counted, *args, **kwargs)


@MULTIMODAL_REGISTRY.register_processor(
    processing.LlavaProcessor, info=processing.LlavaInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class GPruneLlavaForConditionalGeneration(CountsTokens, LlavaForConditionalGeneration):
    """LLaVA-1.5."""


@MULTIMODAL_REGISTRY.register_processor(
    processing.LlavaNextProcessor,
    info=processing.LlavaNextInfo,
    dummy_inputs=LlavaDummyInputsBuilder,
)
class GPruneLlavaNextForConditionalGeneration(CountsTokens, LlavaNextForConditionalGeneration):
    """LLaVA-NeXT."""


@MULTIMODAL_REGISTRY.register_processor(
    processing.LlavaOnevisionProcessor,
    info=processing.LlavaOnevisionInfo,
    dummy_inputs=LlavaOnevisionDummyInputsBuilder,
)
class GPruneLlavaOnevisionForConditionalGeneration(
    CountsTokens, LlavaOnevisionForConditionalGeneration
):
    """LLaVA-OneVision."""


@MULTIMODAL_REGISTRY.register_processor(
    processing.Qwen2VLProcessor,
    info=processing.Qwen2VLInfo,
    dummy_inputs=Qwen2VLDummyInputsBuilder,
)
class GPruneQwen2VLForConditionalGeneration(PrunesImages, Qwen2VLForConditionalGeneration):
    """Qwen2-VL."""


@MULTIMODAL_REGISTRY.register_processor(
    processing.Qwen2_5_VLProcessor,
    info=processing.Qwen2_5_VLInfo,
    dummy_inputs=Qwen2VLDummyInputsBuilder,
)
class GPruneQwen2_5_VLForConditionalGeneration(PrunesImages, Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL."""


@MULTIMODAL_REGISTRY.register_processor(
    processing.Qwen3VLProcessor,
    info=processing.Qwen3VLInfo,
    dummy_inputs=Qwen3VLDummyInputsBuilder,
)
class GPruneQwen3VLForConditionalGeneration(PrunesImages, Qwen3VLForConditionalGeneration):
    """Qwen3-VL: what early layers add (deepstack) is cut the same way."""


@MULTIMODAL_REGISTRY.register_processor(
    processing.InternVLProcessor,
    info=processing.InternVLInfo,
    dummy_inputs=InternS1DummyInputsBuilder,
)
class GPruneInternVLForConditionalGeneration(CountsTokens, InternS1ForConditionalGeneration):
    """InternVL in transformers' format, which vLLM serves with InternS1's class."""
