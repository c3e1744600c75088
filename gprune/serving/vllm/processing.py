"""vLLM's processors, which shorten the placeholders of images; they run in the frontend."""

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

from gprune.layouts.towers import cls_tokens, patches_per_side
from gprune.serving.families import served_family
from gprune.serving.plan import ImagePlan, encode_keep
from gprune.serving.settings import REQUEST_KEY, ServerSettings, keep_from_json

# The processor's output field that takes each image's plan to the workers.
PLAN_FIELD = "gprune_plan"


@dataclass
class PrunedDetails(PromptUpdateDetails):
    """The prompt tokens of a pruned image.

    Attributes:
        unused_positions: how many position ids of the unpruned image belong to no kept token.
    """

    unused_positions: int = 0


class ImagesOnly(BaseProcessingInfo):
    """A mixin for vLLM's processing information that accepts images and no videos."""

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        limits = super().get_supported_mm_limits()
        return {name: limit if name == "image" else 0 for name, limit in limits.items()}


class PruningProcessor(BaseMultiModalProcessor):
    """A mixin for vLLM's processors that shortens the placeholders of each image.

    A request's `mm_processor_kwargs` may hold ``gprune_keep``, which is removed before vLLM's own
    processor sees them. An invalid budget raises a ValueError, which the server answers with HTTP
    400.
    """

    def raster(self, size: Any, outputs: Mapping[str, Any], index: int) -> tuple[int, int, int]:
        """Returns (tokens, rows, columns) of an unpruned image, as `ImagePlan` defines them.

        Args:
            size: of the picture, with ``width`` and ``height`` in pixels.
            outputs: of vLLM's own processor, for all images of the request.
            index: of the image.
        """
        raise NotImplementedError

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = self.info.get_hf_config()
        self.family = served_family(config)
        self.settings = ServerSettings.from_config(config)

    def encoded_keep(self, kwargs: Mapping[str, object]) -> tuple[int, ...]:
        """Returns the encoded budget of a request; the server's if the request has none.

        Args:
            kwargs: the request's `mm_processor_kwargs`.

        Raises:
            ValueError: the budget is invalid.
        """
        keep = kwargs.get(REQUEST_KEY)
        if keep is None:
            return encode_keep(self.settings.keep)
        try:
            return encode_keep(keep_from_json(keep))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{REQUEST_KEY} in mm_processor_kwargs: {error}") from None

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> Any:
        # Memory is planned for the largest budget that a request can have: everything.
        inputs = super().get_dummy_inputs(*args, **kwargs)
        return dataclasses.replace(inputs, hf_processor_mm_kwargs={REQUEST_KEY: 1.0})

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        self.encoded_keep(inputs.hf_processor_mm_kwargs)  # refuse before images are processed
        return super().apply(inputs, timing_ctx)

    def _get_mm_hashes(self, inputs: Any) -> dict[str, list[str]]:
        kwargs = inputs.hf_processor_mm_kwargs
        hashes = dict(
            super()._get_mm_hashes(
                dataclasses.replace(inputs, hf_processor_mm_kwargs=without_keep(kwargs))
            )
        )
        algorithm = self.info.ctx.get_mm_config().mm_hasher_algorithm
        pruned_by = [self.settings.label(), *self.encoded_keep(kwargs)]
        hashes["image"] = [
            MultiModalHasher.hash_kwargs(algorithm, mm_hash=one, gprune=pruned_by)
            for one in hashes.get("image", [])
        ]
        return hashes

    def _get_cache_missing_processor_kwargs(self, inputs: Any, mm_is_cached: Any) -> dict[str, Any]:
        kwargs = inputs.hf_processor_mm_kwargs
        others = dataclasses.replace(inputs, hf_processor_mm_kwargs=without_keep(kwargs))
        return {
            **super()._get_cache_missing_processor_kwargs(others, mm_is_cached),
            **only_keep(kwargs),
        }

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        outputs = super()._apply_hf_processor_main(mm_items, without_keep(hf_kwargs))
        if not mm_items.get("image"):
            return outputs
        images = mm_items["image"]
        if not isinstance(images, ImageProcessorItems):
            raise ValueError(
                "image embeddings cannot be pruned, because the size of their image is unknown; "
                "send images"
            )
        keep = self.encoded_keep(hf_kwargs)
        plans = [
            ImagePlan(*self.raster(images.get_image_size(index), outputs, index), keep)
            for index in range(len(images))
        ]
        outputs[PLAN_FIELD] = torch.stack([plan.to_tensor() for plan in plans])
        return outputs

    def _get_mm_fields_config(
        self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> dict[str, Any]:
        fields = super()._get_mm_fields_config(hf_inputs, without_keep(hf_processor_mm_kwargs))
        return {**fields, PLAN_FIELD: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        updates = super()._get_prompt_updates(
            mm_items, without_keep(hf_processor_mm_kwargs), out_mm_kwargs
        )

        def shortened(index: int, content: Any) -> PrunedDetails:
            unpruned = content(index) if callable(content) else content
            plan = ImagePlan.from_tensor(out_mm_kwargs["image"][index][PLAN_FIELD].data)
            return self.shorten(unpruned, plan)

        return [
            dataclasses.replace(update, replacement=partial(shortened, content=update.content))
            for update in updates
            if update.modality == "image"
        ]

    def shorten(self, unpruned: Any, plan: ImagePlan) -> PrunedDetails:
        """Returns the prompt tokens of an image with one placeholder for each kept token.

        Args:
            unpruned: vLLM's prompt tokens of the image, a sequence or `PromptUpdateDetails`.
            plan: of the image.

        Raises:
            ValueError: see `ImagePlan.kept_tokens`.
            RuntimeError: vLLM and the plan differ in the number of visual tokens.
        """
        if not isinstance(unpruned, PromptUpdateDetails):
            unpruned = PromptUpdateDetails.from_seq(unpruned)
        ids, is_embed = unpruned.full, unpruned.is_embed
        placeholder = [True] * len(ids) if is_embed is None else is_embed(ids).tolist()
        if sum(placeholder) != plan.tokens:
            raise RuntimeError(
                f"vLLM counts {sum(placeholder)} visual tokens and gprune {plan.tokens} for the "
                "same image; please report the model and the image's size"
            )
        kept = plan.kept_tokens(self.family)
        # Placeholders are all alike, so the last ones are removed.
        end = len(ids) - placeholder[::-1].index(True)
        pruned = ids[: end - (plan.tokens - kept)] + ids[end:]
        if kept == plan.tokens:
            return PrunedDetails(pruned, is_embed)
        multimodal = self.family.multimodal_positions
        advance = max(plan.rows, plan.columns) if multimodal else plan.tokens
        return PrunedDetails(pruned, is_embed, advance - kept)

    def _apply_prompt_updates(self, token_ids: list[int], mm_prompt_updates: Any) -> Any:
        ids, placeholders = super()._apply_prompt_updates(token_ids, mm_prompt_updates)
        images = mm_prompt_updates.get("image", [])
        unused = sum(update.content.unused_positions for image in images for update in image)
        text = self.info.get_hf_config().get_text_config()
        if unused and len(ids) + unused > text.max_position_embeddings:
            raise ValueError(
                f"the prompt of {len(ids)} tokens keeps the position ids of {len(ids) + unused} "
                f"and the model has {text.max_position_embeddings}; send fewer or smaller images"
            )
        return ids, placeholders


def without_keep(kwargs: Mapping[str, object]) -> dict[str, object]:
    """Returns a request's `mm_processor_kwargs` without ``gprune_keep``."""
    return {name: value for name, value in kwargs.items() if name != REQUEST_KEY}


def only_keep(kwargs: Mapping[str, object]) -> dict[str, object]:
    """Returns ``gprune_keep`` of a request's `mm_processor_kwargs`, if it is there."""
    return {name: value for name, value in kwargs.items() if name == REQUEST_KEY}


class LlavaInfo(ImagesOnly, LlavaProcessingInfo):
    """LLaVA-1.5."""


class LlavaProcessor(PruningProcessor, LlavaMultiModalProcessor):
    """LLaVA-1.5."""

    def raster(self, size: Any, outputs: Mapping[str, Any], index: int) -> tuple[int, int, int]:
        config = self.info.get_hf_config()
        side = patches_per_side(config)
        return cls_tokens(config) + side * side, side, side


class CanvasProcessor(PruningProcessor):
    """LLaVA-NeXT and LLaVA-OneVision: a thumbnail and the unpadded canvas of tiles."""

    def raster(self, size: Any, outputs: Mapping[str, Any], index: int) -> tuple[int, int, int]:
        config, info = self.info.get_hf_config(), self.info
        side = patches_per_side(config)
        tile_rows, tile_columns = get_anyres_image_grid_shape(
            image_size=(size.height, size.width),
            grid_pinpoints=config.image_grid_pinpoints,
            patch_size=info.get_vision_encoder_info().get_image_size(),
        )
        canvas, newlines = info._get_num_unpadded_features(
            original_height=size.height,
            original_width=size.width,
            npatches=side,
            num_patch_height=tile_rows,
            num_patch_width=tile_columns,
        )
        # A very narrow picture may have newlines and no canvas.
        return side * side + canvas + newlines, newlines, canvas // max(newlines, 1)


class LlavaNextInfo(ImagesOnly, LlavaNextProcessingInfo):
    """LLaVA-NeXT."""


class LlavaNextProcessor(CanvasProcessor, LlavaNextMultiModalProcessor):
    """LLaVA-NeXT."""


class LlavaOnevisionInfo(ImagesOnly, LlavaOnevisionProcessingInfo):
    """LLaVA-OneVision."""


class LlavaOnevisionProcessor(CanvasProcessor, LlavaOnevisionMultiModalProcessor):
    """LLaVA-OneVision."""


class QwenProcessor(PruningProcessor):
    """Qwen-VL: rasters of any shape; patches are merged 2 x 2."""

    def raster(self, size: Any, outputs: Mapping[str, Any], index: int) -> tuple[int, int, int]:
        merge = self.info.get_hf_config().vision_config.spatial_merge_size
        frames, rows, columns = outputs["image_grid_thw"][index].tolist()
        rows, columns = rows // merge, columns // merge
        return frames * rows * columns, rows, columns


class Qwen2VLInfo(ImagesOnly, Qwen2VLProcessingInfo):
    """Qwen2-VL."""


class Qwen2VLProcessor(QwenProcessor, Qwen2VLMultiModalProcessor):
    """Qwen2-VL."""


class Qwen2_5_VLInfo(ImagesOnly, Qwen2_5_VLProcessingInfo):
    """Qwen2.5-VL."""


class Qwen2_5_VLProcessor(QwenProcessor, Qwen2_5_VLMultiModalProcessor):
    """Qwen2.5-VL."""


class Qwen3VLInfo(ImagesOnly, Qwen3VLProcessingInfo):
    """Qwen3-VL."""


class Qwen3VLProcessor(QwenProcessor, Qwen3VLMultiModalProcessor):
    """Qwen3-VL."""


class InternVLInfo(ImagesOnly, InternS1ProcessingInfo):
    """InternVL in the format of transformers."""


class InternVLProcessor(PruningProcessor, InternS1MultiModalProcessor):
    """InternVL: tiles, each of which is a group."""

    def raster(self, size: Any, outputs: Mapping[str, Any], index: int) -> tuple[int, int, int]:
        config = self.info.get_hf_config()
        side = int(patches_per_side(config) * config.downsample_ratio)
        return int(outputs["image_num_patches"][index]) * side * side, side, side
