"""vLLM's models, pruning images after the projector; they run in the workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import vllm
from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_world_size, get_tp_group

from gprune.versions import require_tested

# Before the imports below, which an untested vLLM may not have.
require_tested("vllm", vllm.__version__)

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

from gprune.layouts.base import Family  # noqa: E402
from gprune.serving.families import served_family  # noqa: E402
from gprune.serving.images import prune_images  # noqa: E402
from gprune.serving.plan import ImagePlan  # noqa: E402
from gprune.serving.row_numbers import split_row_numbers  # noqa: E402
from gprune.serving.settings import ServerSettings  # noqa: E402
from gprune.serving.vllm import processing  # noqa: E402
from gprune.serving.vllm.positions import (  # noqa: E402
    PromptImage,
    fill_positions,
    generated_offset,
    plan_positions,
)
from gprune.serving.vllm.processing import PLAN_FIELD  # noqa: E402


class PruningModel(nn.Module):
    """A mixin for vLLM's models that prunes images after the projector.

    The embeddings of an image are those of its kept tokens, each with its row number in two more
    channels. The model runner passes them to `recompute_mrope_positions` before it uses them, which
    removes the channels and returns the original position ids.
    """

    supports_mrope: ClassVar[bool] = True
    supports_multimodal_pruning: ClassVar[bool] = True

    # Called with the family, and the plan, projected features [n, width] and pruned embeddings of
    # each image; `gprune.serving.proof` reads the choice with it.
    observer: ClassVar[
        Callable[[Family, Sequence[ImagePlan], Sequence[Tensor], Sequence[Tensor]], None] | None
    ] = None

    def __init__(self, *, vllm_config: Any, prefix: str = "", **kwargs: Any) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, **kwargs)
        # vLLM's own model would append channels for pruned videos.
        self.is_multimodal_pruning_enabled = False
        config = vllm_config.model_config.hf_config
        self.family = served_family(config)
        self.settings = ServerSettings.from_config(config)
        self.width = config.get_text_config().hidden_size

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Encodes images and prunes them."""
        plans = kwargs.pop(PLAN_FIELD, None)
        # The method of vLLM's model, which follows this mixin among the bases of a subclass.
        images = super().embed_multimodal(**kwargs)  # type: ignore[misc]
        if plans is None:
            return images
        images, plans = list(images), [ImagePlan.from_tensor(row) for row in plans]
        pruned = prune_images(images, plans, self.family, self.settings.pruner, self.width)
        if get_tensor_model_parallel_world_size() > 1:
            # Features of ranks may differ in the last bit, and ranks must not keep other tokens.
            group = get_tp_group()
            pruned = [group.broadcast(image.contiguous()) for image in pruned]
        if PruningModel.observer is not None:
            projected = [image[:, : self.width] for image in images]
            PruningModel.observer(self.family, plans, projected, pruned)
        return pruned

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[Any]
    ) -> tuple[Tensor, int]:
        """Returns positions [3, 2 * length + 1] before images are encoded, and the offset after."""
        images = []
        for feature in sorted(mm_features, key=lambda feature: feature.mm_position.offset):
            plan = ImagePlan.from_tensor(feature.data[PLAN_FIELD].data)
            raster = (plan.rows, plan.columns) if self.family.multimodal_positions else None
            placeholders = placeholder_indices(feature.mm_position)
            images.append(PromptImage(placeholders, plan.tokens, raster))
        positions = plan_positions(len(input_tokens), images)
        return positions, generated_offset(positions)

    def recompute_mrope_positions(
        self,
        input_ids: Any,
        multimodal_embeddings: Any,
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[list[Tensor], Tensor, int]:
        """Returns embeddings without row numbers, the original positions, and the offset."""
        split = [split_row_numbers(embeddings) for embeddings in multimodal_embeddings]
        if split:
            rows = torch.cat([rows for _, rows in split]).to(mrope_positions.device)
            mrope_positions = fill_positions(mrope_positions, rows, num_computed_tokens)
        features = [features for features, _ in split]
        return features, mrope_positions, generated_offset(mrope_positions)


def placeholder_indices(position: Any) -> Tensor:
    """Returns the indices of an image's placeholders in the prompt, int64 [k]."""
    within = torch.arange(position.length)
    return position.offset + (within if position.is_embed is None else within[position.is_embed])


class PruningModel1D(PruningModel):
    """For models with 1-D positions: the inner language model sees the first of three rows."""

    first_row: Tensor

    def __init__(self, *, vllm_config: Any, prefix: str = "", **kwargs: Any) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, **kwargs)
        text = vllm_config.model_config.hf_config.get_text_config()
        self.last_position = text.max_position_embeddings - 1
        # CUDA graphs of the language model read positions at the address they had when recorded.
        size = vllm_config.scheduler_config.max_num_batched_tokens
        self.register_buffer("first_row", torch.zeros(size, dtype=torch.int64), persistent=False)

    def forward(self, input_ids: Any, positions: Tensor, *args: Any, **kwargs: Any) -> Any:
        first_row = self.first_row[: positions.shape[1]]
        # The processor refuses prompts beyond the rotary table; a long answer may run past it.
        torch.clamp(positions[0], max=self.last_position, out=first_row)
        return super().forward(input_ids, first_row, *args, **kwargs)


@MULTIMODAL_REGISTRY.register_processor(
    processing.LlavaProcessor, info=processing.LlavaInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class GPruneLlavaForConditionalGeneration(PruningModel1D, LlavaForConditionalGeneration):
    """LLaVA-1.5."""


@MULTIMODAL_REGISTRY.register_processor(
    processing.LlavaNextProcessor,
    info=processing.LlavaNextInfo,
    dummy_inputs=LlavaDummyInputsBuilder,
)
class GPruneLlavaNextForConditionalGeneration(PruningModel1D, LlavaNextForConditionalGeneration):
    """LLaVA-NeXT."""


@MULTIMODAL_REGISTRY.register_processor(
    processing.LlavaOnevisionProcessor,
    info=processing.LlavaOnevisionInfo,
    dummy_inputs=LlavaOnevisionDummyInputsBuilder,
)
class GPruneLlavaOnevisionForConditionalGeneration(
    PruningModel1D, LlavaOnevisionForConditionalGeneration
):
    """LLaVA-OneVision."""


@MULTIMODAL_REGISTRY.register_processor(
    processing.Qwen2VLProcessor,
    info=processing.Qwen2VLInfo,
    dummy_inputs=Qwen2VLDummyInputsBuilder,
)
class GPruneQwen2VLForConditionalGeneration(PruningModel, Qwen2VLForConditionalGeneration):
    """Qwen2-VL."""


@MULTIMODAL_REGISTRY.register_processor(
    processing.Qwen2_5_VLProcessor,
    info=processing.Qwen2_5_VLInfo,
    dummy_inputs=Qwen2VLDummyInputsBuilder,
)
class GPruneQwen2_5_VLForConditionalGeneration(PruningModel, Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL."""


@MULTIMODAL_REGISTRY.register_processor(
    processing.Qwen3VLProcessor,
    info=processing.Qwen3VLInfo,
    dummy_inputs=Qwen3VLDummyInputsBuilder,
)
class GPruneQwen3VLForConditionalGeneration(PruningModel, Qwen3VLForConditionalGeneration):
    """Qwen3-VL; the deepstack features of early layers are pruned to the same rows."""


@MULTIMODAL_REGISTRY.register_processor(
    processing.InternVLProcessor,
    info=processing.InternVLInfo,
    dummy_inputs=InternS1DummyInputsBuilder,
)
class GPruneInternVLForConditionalGeneration(PruningModel1D, InternS1ForConditionalGeneration):
    """InternVL in the format of transformers, which vLLM serves with its class for InternS1."""
