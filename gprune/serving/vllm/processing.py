"""The frontend's part: as many placeholders as tokens stay, and what the workers have to know."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from vllm.model_executor.models.interns1 import InternS1MultiModalProcessor, InternS1ProcessingInfo
from vllm.model_executor.models.llava import LlavaMultiModalProcessor, LlavaProcessingInfo
from vllm.model_executor.models.llava_next import (
    LlavaNextMultiModalProcessor,
    LlavaNextProcessingInfo,
    get_anyres_image_grid_shape,
)
from vllm.model_executor.models.llava_onevision import (
    LlavaOnevisionMultiModalProcessor,
    LlavaOnevisionProcessingInfo,
)
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.model_executor.models.qwen2_vl import Qwen2VLMultiModalProcessor, Qwen2VLProcessingInfo
from vllm.model_executor.models.qwen3_vl import Qwen3VLMultiModalProcessor, Qwen3VLProcessingInfo
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import ImageProcessorItems
from vllm.multimodal.processing import (
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptUpdateDetails,
)

from gprune.layouts import cls_tokens, patches_a_side
from gprune.serving.families import served_family
from gprune.serving.images import ImagePlan
from gprune.serving.settings import REQUEST_KEY, Settings, encode, parse_keep

# The field that carries an image's plan to the workers.
PLAN = "gprune_plan"


@dataclass
class PrunedDetails(PromptUpdateDetails):
    """What stands for an image, with what the unpruned image would have taken.

    Attributes:
        dropped: position ids that no token of the image stands at any more.
    """

    dropped: int = 0


class ImagesAlone(BaseProcessingInfo):
    """Processing information of a model that takes images and no videos."""

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        limits = super().get_supported_mm_limits()
        return {name: limit if name == "image" else 0 for name, limit in limits.items()}


class PruningProcessor(BaseMultiModalProcessor):
    """In front of a processor of vLLM: shortens what stands for each image in the prompt.

    A request's `mm_processor_kwargs` may hold ``gprune_keep``, which the processor underneath never
    sees. A value that is no budget raises a ValueError, which the server answers with HTTP 400.
    """

    def raster(self, size: Any, outputs: Mapping[str, Any], index: int) -> tuple[int, int, int]:
        """Tokens of an image before pruning, and rows and columns as `ImagePlan` has them.

        Args:
            size: of the picture, with ``width`` and ``height``.
            outputs: of the processor underneath, for all images.
            index: which of them.
        """
        raise NotImplementedError

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = self.info.get_hf_config()
        self.family = served_family(config)
        self.settings = Settings.from_config(config)

    def keep(self, kwargs: Mapping[str, object]) -> tuple[int, ...]:
        """The budget of a request, encoded; the server's where it names none.

        Raises:
            ValueError: it is no budget.
        """
        given = kwargs.get(REQUEST_KEY)
        if given is None:
            return encode(self.settings.keep)
        try:
            return encode(parse_keep(given))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{REQUEST_KEY} in mm_processor_kwargs: {error}") from None

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> Any:
        # Memory is planned for the most that a request can ask for: everything.
        inputs = super().get_dummy_inputs(*args, **kwargs)
        return dataclasses.replace(inputs, hf_processor_mm_kwargs={REQUEST_KEY: 1.0})

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        self.keep(inputs.hf_processor_mm_kwargs)  # refused before any image is looked at
        return super().apply(inputs, timing_ctx)

    def _get_mm_hashes(self, inputs: Any) -> dict[str, list[str]]:
        kwargs = inputs.hf_processor_mm_kwargs
        hashes = dict(
            super()._get_mm_hashes(
                dataclasses.replace(inputs, hf_processor_mm_kwargs=without_keep(kwargs))
            )
        )
        algorithm = self.info.ctx.get_mm_config().mm_hasher_algorithm
        pruned_by = [self.settings.label(), *self.keep(kwargs)]
        hashes["image"] = [
            MultiModalHasher.hash_kwargs(algorithm, mm_hash=one, gprune=pruned_by)
            for one in hashes.get("image", [])
        ]
        return hashes

    def _get_cache_missing_processor_kwargs(self, inputs: Any, mm_is_cached: Any) -> dict[str, Any]:
        kwargs = inputs.hf_processor_mm_kwargs
        rest = dataclasses.replace(inputs, hf_processor_mm_kwargs=without_keep(kwargs))
        return {
            **super()._get_cache_missing_processor_kwargs(rest, mm_is_cached),
            **only_keep(kwargs),
        }

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        outputs = super()._apply_hf_processor_main(mm_items, without_keep(hf_kwargs))
        if not mm_items.get("image"):
            return outputs
        images = mm_items["image"]
        if not isinstance(images, ImageProcessorItems):
            raise ValueError(
                "image embeddings cannot be pruned, for what made them is unknown; send images"
            )
        keep = self.keep(hf_kwargs)
        plans = [
            ImagePlan(*self.raster(images.get_image_size(index), outputs, index), keep)
            for index in range(len(images))
        ]
        outputs[PLAN] = torch.stack([plan.to_tensor() for plan in plans])
        return outputs

    def _get_mm_fields_config(
        self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> dict[str, Any]:
        fields = super()._get_mm_fields_config(hf_inputs, without_keep(hf_processor_mm_kwargs))
        return {**fields, PLAN: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        updates = super()._get_prompt_updates(
            mm_items, without_keep(hf_processor_mm_kwargs), out_mm_kwargs
        )

        def shortened(index: int, content: Any) -> PrunedDetails:
            whole = content(index) if callable(content) else content
            return self.shorten(
                whole, ImagePlan.from_tensor(out_mm_kwargs["image"][index][PLAN].data)
            )

        return [
            dataclasses.replace(update, replacement=partial(shortened, content=update.content))
            for update in updates
            if update.modality == "image"
        ]

    def shorten(self, whole: Any, plan: ImagePlan) -> PrunedDetails:
        """``whole``, what stands for an unpruned image, with as many placeholders as tokens stay.

        Raises:
            ValueError: see `ImagePlan.kept`.
            RuntimeError: vLLM counts other visual tokens than the plan.
        """
        if not isinstance(whole, PromptUpdateDetails):
            whole = PromptUpdateDetails.from_seq(whole)
        ids, is_embed = whole.full, whole.is_embed
        placeholder = [True] * len(ids) if is_embed is None else is_embed(ids).tolist()
        if sum(placeholder) != plan.tokens:
            raise RuntimeError(
                f"vLLM counts {sum(placeholder)} visual tokens and gprune {plan.tokens} for the "
                "same image; please report the model and the image's size"
            )
        kept = plan.kept(self.family.divide)
        # Those that go are taken from the end: placeholders are all alike.
        last = len(ids) - placeholder[::-1].index(True)
        short = ids[: last - (plan.tokens - kept)] + ids[last:]
        advance = max(plan.rows, plan.columns) if self.family.raster_positions else plan.tokens
        return PrunedDetails(short, is_embed, 0 if kept == plan.tokens else advance - kept)

    def _apply_prompt_updates(self, prompt_ids: list[int], mm_prompt_updates: Any) -> Any:
        ids, placeholders = super()._apply_prompt_updates(prompt_ids, mm_prompt_updates)
        images = mm_prompt_updates.get("image", [])
        dropped = sum(update.content.dropped for image in images for update in image)
        text = self.info.get_hf_config().get_text_config()
        if dropped and len(ids) + dropped > text.max_position_embeddings:
            raise ValueError(
                f"the prompt of {len(ids)} tokens keeps the position ids of {len(ids) + dropped} "
                f"and the model has {text.max_position_embeddings}; send fewer or smaller images"
            )
        return ids, placeholders


def without_keep(kwargs: Mapping[str, object]) -> dict[str, object]:
    """What the processor underneath may see of a request's `mm_processor_kwargs`."""
    return {name: value for name, value in kwargs.items() if name != REQUEST_KEY}


def only_keep(kwargs: Mapping[str, object]) -> dict[str, object]:
    """The rest of them."""
    return {name: value for name, value in kwargs.items() if name == REQUEST_KEY}


class LlavaInfo(ImagesAlone, LlavaProcessingInfo):
    """LLaVA-1.5."""


class LlavaProcessor(PruningProcessor, LlavaMultiModalProcessor):
    """LLaVA-1.5."""

    def raster(self, size: Any, outputs: Mapping[str, Any], index: int) -> tuple[int, int, int]:
        config = self.info.get_hf_config()
        side = patches_a_side(config)
        return cls_tokens(config) + side * side, side, side


class CanvasProcessor(PruningProcessor):
    """LLaVA-NeXT and LLaVA-OneVision: a thumbnail and the unpadded canvas of tiles."""

    def raster(self, size: Any, outputs: Mapping[str, Any], index: int) -> tuple[int, int, int]:
        config, info = self.info.get_hf_config(), self.info
        side = patches_a_side(config)
        high, wide = get_anyres_image_grid_shape(
            image_size=(size.height, size.width),
            grid_pinpoints=config.image_grid_pinpoints,
            patch_size=info.get_vision_encoder_info().get_image_size(),
        )
        canvas, rows = info._get_num_unpadded_features(
            original_height=size.height,
            original_width=size.width,
            npatches=side,
            num_patch_height=high,
            num_patch_width=wide,
        )
        # Of a picture so narrow that nothing is left of the canvas, its row ends may be.
        return side * side + canvas + rows, rows, canvas // max(rows, 1)


class LlavaNextInfo(ImagesAlone, LlavaNextProcessingInfo):
    """LLaVA-NeXT."""


class LlavaNextProcessor(CanvasProcessor, LlavaNextMultiModalProcessor):
    """LLaVA-NeXT."""


class LlavaOnevisionInfo(ImagesAlone, LlavaOnevisionProcessingInfo):
    """LLaVA-OneVision."""


class LlavaOnevisionProcessor(CanvasProcessor, LlavaOnevisionMultiModalProcessor):
    """LLaVA-OneVision."""


class QwenProcessor(PruningProcessor):
    """The Qwen families: rasters of any shape, merged two by two."""

    def raster(self, size: Any, outputs: Mapping[str, Any], index: int) -> tuple[int, int, int]:
        merge = self.info.get_hf_config().vision_config.spatial_merge_size
        frames, rows, columns = outputs["image_grid_thw"][index].tolist()
        rows, columns = rows // merge, columns // merge
        return frames * rows * columns, rows, columns


class Qwen2VLInfo(ImagesAlone, Qwen2VLProcessingInfo):
    """Qwen2-VL."""


class Qwen2VLProcessor(QwenProcessor, Qwen2VLMultiModalProcessor):
    """Qwen2-VL."""


class Qwen2_5_VLInfo(ImagesAlone, Qwen2_5_VLProcessingInfo):
    """Qwen2.5-VL."""


class Qwen2_5_VLProcessor(QwenProcessor, Qwen2_5_VLMultiModalProcessor):
    """Qwen2.5-VL."""


class Qwen3VLInfo(ImagesAlone, Qwen3VLProcessingInfo):
    """Qwen3-VL."""


class Qwen3VLProcessor(QwenProcessor, Qwen3VLMultiModalProcessor):
    """Qwen3-VL."""


class InternVLInfo(ImagesAlone, InternS1ProcessingInfo):
    """InternVL in transformers' format."""


class InternVLProcessor(PruningProcessor, InternS1MultiModalProcessor):
    """InternVL: tiles, each pruned on its own."""

    def raster(self, size: Any, outputs: Mapping[str, Any], index: int) -> tuple[int, int, int]:
        config = self.info.get_hf_config()
        side = int(patches_a_side(config) * config.downsample_ratio)
        return int(outputs["image_num_patches"][index]) * side * side, side, side
