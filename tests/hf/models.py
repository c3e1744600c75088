"""Tiny random models of the supported families, and what their processors make of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as tf
from torch import Tensor

IMAGE, PAD, BOS, BREAK, VIDEO = 3, 0, 1, 58, 59
WORDS = 60
SIDE = 4  # tokens a side: 16 an image or tile

# What the processor makes of one image or video.
Image = dict[str, Tensor]
# Draws a tensor of a shape in the model's dtype.
Noise = Callable[..., Tensor]


def one_run(image: Image, length: int) -> list[int]:
    """The placeholders of an image that has nothing between them."""
    return [IMAGE] * length


def stacked(rows: list[list[Image]]) -> Image:
    """Images of all rows one after another, as most families take them."""
    images = [image for row in rows for image in row]
    return {key: torch.cat([image[key] for image in images]) for key in images[0]} if images else {}


@dataclass(frozen=True)
class Specimen:
    """One family under test.

    Attributes:
        name: the family's, or that of a variant.
        build: makes the model; takes (dtype, attention implementation).
        image: makes one image, given noise and a number that picks its shape.
        video: makes a video and says how many frames the language model sees of it.
        types: the argument that tells text from images: its name, and its values for ids of which
            videos' placeholders are those given.
        prompt: the ids that stand for an image, given its features' length.
        frame_break: ids between the frames of a video, empty where they are adjacent.
        video_id: the placeholder of videos.
        collate: joins the images of all rows of a batch.
        tiles: how many images the hook sees in one image.
        groups: groups of one such image.
        shared: whether beams share an image's features, so that they are pruned once.
        first_position: the position id of the first token.
        generated_type: what that argument is for a generated token.
        turns: whether images may come in a later turn.
        history: whether that argument covers all turns when it comes with a later one.
        beams: whether a row of several images may have beams (transformers' own code for GLM-4V
            mixes the images up).
        whole: whether part of an image can be told from a whole one.
        features: the projected features of each image in an encoder output.
    """

    name: str
    build: Callable[..., Any]
    image: Callable[[Noise, int], Image]
    video: Callable[[Noise], tuple[Image, int]] | None = None
    types: tuple[str, Callable[[Tensor, Tensor], Tensor]] | None = None
    prompt: Callable[[Image, int], list[int]] = one_run
    frame_break: tuple[int, ...] = ()
    video_id: int = VIDEO
    collate: Callable[[list[list[Image]]], Image] = stacked
    tiles: Callable[[Image], int] = lambda image: 1
    groups: int = 1
    shared: bool = True
    first_position: int = 0
    generated_type: int = 0
    turns: bool = True
    history: bool = False
    beams: bool = True
    whole: bool = True
    features: Callable[[Any, Any], Any] = lambda model, output: output.pooler_output

    def token_types(self, ids: Tensor, video: bool = False) -> dict[str, Tensor]:
        """The argument that tells text from images; ``video``: the batch has one."""
        if self.types is None:
            return {}
        name, values = self.types
        videos = (ids == self.video_id) if video else torch.zeros_like(ids, dtype=torch.bool)
        return {name: values(ids, videos)}


def modality(ids: Tensor, videos: Tensor) -> Tensor:
    """0 for text, 1 for images, 2 for videos."""
    return torch.where(videos, 2, (ids == IMAGE).int())


def prefix(ids: Tensor, videos: Tensor) -> Tensor:
    """PaliGemma: 0 for the whole prompt, which sees itself both ways."""
    return torch.zeros_like(ids)


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def _clip() -> tf.CLIPVisionConfig:
    return tf.CLIPVisionConfig(**SMALL, image_size=8 * SIDE, patch_size=8)


def _siglip(image_size: int, patch_size: int = 8) -> tf.SiglipVisionConfig:
    return tf.SiglipVisionConfig(
        **SMALL,
        image_size=image_size,
        patch_size=patch_size,
        vision_use_head=False,
    )


TEXT = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": 2,
}


def _llama() -> tf.LlamaConfig:
    return tf.LlamaConfig(**TEXT)


def _finish(model: Any, dtype: torch.dtype) -> Any:
    model.generation_config.eos_token_id = None  # run to the length asked for
    model.generation_config.pad_token_id = PAD
    # Larger weights than the default: attention that is nearly uniform would hide mistakes.
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.numel() == 1:
                weight.fill_(0.7)  # Mllama's gates start closed
            elif weight.ndim == 2 and not weight.any():
                weight.normal_(std=0.1)  # Gemma 3's projector starts from zero
            elif weight.ndim == 2 and "embed" not in name:
                weight.mul_(6)
        # A generated placeholder would ask for another image.
        model.get_output_embeddings().weight[[IMAGE, VIDEO]] = 0
    # Llama 4's vision tower has a complex buffer, which a cast would make real.
    return model.eval() if dtype == torch.float32 else model.eval().to(dtype)


def builder(model: str, config: str, **settings: Any) -> Callable[..., Any]:
    """A function that builds a model of transformers from its config's settings."""

    def build(
        dtype: torch.dtype = torch.float32,
        attention: str = "sdpa",
        sliding_window: int | None = None,
    ) -> Any:
        torch.manual_seed(0)
        made = {key: value() if callable(value) else value for key, value in settings.items()}
        if sliding_window is not None:
            made["text_config"].sliding_window = sliding_window
        tied = {"tie_word_embeddings": False}  # the output layer is edited, the input is not
        return _finish(
            getattr(tf, model)(getattr(tf, config)(**made, **tied, attn_implementation=attention)),
            dtype,
        )

    return build


def square(pixels: int) -> Callable[[Noise, int], Image]:
    """Images that are all of one size."""
    return lambda noise, index: {"pixel_values": noise(1, 3, pixels, pixels)}


def anyres(noise: Noise, index: int) -> Image:
    """Images of LLaVA-NeXT: (height, width) that unpad to canvases of different sizes."""
    shapes = [(30, 50), (61, 29), (64, 64), (20, 64)]
    shape = torch.tensor([shapes[index % len(shapes)]])
    return {"pixel_values": noise(1, 5, 3, 8 * SIDE, 8 * SIDE), "image_sizes": shape}


def square_frames(noise: Noise) -> tuple[Image, int]:
    """A video of three frames for the LLaVA families."""
    return {"pixel_values_videos": noise(1, 3, 3, 8 * SIDE, 8 * SIDE)}, 3


def patches(size: int) -> tuple[Any, Any]:
    """Images and videos as Qwen's processors flatten them, for patches of ``size`` pixels."""
    width = 3 * 2 * size * size

    def image(noise: Noise, index: int) -> Image:
        grids = [(1, 6, 10), (1, 8, 4), (1, 4, 12)]  # before merging two by two
        grid = torch.tensor([grids[index % len(grids)]])
        return {"pixel_values": noise(int(grid.prod()), width), "image_grid_thw": grid}

    def video(noise: Noise) -> tuple[Image, int]:
        grid = torch.tensor([[3, 6, 4]])
        return {"pixel_values_videos": noise(int(grid.prod()), width), "video_grid_thw": grid}, 3

    return image, video


def several_tiles(noise: Noise, index: int) -> Image:
    """Images of Idefics3: one to three tiles."""
    return {"pixel_values": noise(1, 1 + index % 3, 3, 16 * SIDE, 16 * SIDE)}


def tile_prompt(image: Image, length: int) -> list[int]:
    """A marker between tiles, which is text."""
    tiles = image["pixel_values"].shape[1]
    return ([BREAK] + [IMAGE] * (length // tiles)) * tiles


def padded_tiles(rows: list[list[Image]]) -> Image:
    """One row of tiles a prompt, padded with black ones."""
    if not any(rows):
        return {}
    tiles = [[image["pixel_values"][0] for image in row] for row in rows]
    most = max(sum(map(len, row)) for row in tiles)
    blank = next(image for row in tiles for image in row).new_zeros(most, 3, 16 * SIDE, 16 * SIDE)
    return {"pixel_values": torch.stack([torch.cat([*row, blank])[:most] for row in tiles])}


def pixtral_image(noise: Noise, index: int) -> Image:
    """Images of Mistral 3: (height, width) of their own, padded to the largest of the batch."""
    shapes = [(32, 48), (64, 32), (48, 48), (16, 64)]
    height, width = shapes[index % len(shapes)]
    pixels = torch.zeros(1, 3, 64, 64)
    pixels[..., :height, :width] = noise(1, 3, height, width)
    return {
        "pixel_values": pixels.to(noise(1).dtype),
        "image_sizes": torch.tensor([[height, width]]),
    }


def pixtral_prompt(image: Image, length: int) -> list[int]:
    """A break after each row of the raster, which is text."""
    height = int(image["image_sizes"][0, 0]) // 16
    return ([IMAGE] * (length // height) + [BREAK]) * height


def naflex(noise: Noise, index: int) -> Image:
    """Images of LFM2-VL: patches of a raster of any shape, padded to the most that there can be."""
    rows, columns = [(4, 6), (6, 4), (4, 4)][index % 3]
    pixels = torch.zeros(1, 24, 3 * 8 * 8, dtype=noise(1).dtype)
    pixels[:, : rows * columns] = noise(1, rows * columns, 3 * 8 * 8)
    return {
        "pixel_values": pixels,
        "spatial_shapes": torch.tensor([[rows, columns]]),
        "pixel_attention_mask": (torch.arange(24) < rows * columns).long()[None],
    }


def gemma4_image(noise: Noise, index: int) -> Image:
    """Images of Gemma 4: patches with their places, pooled three by three, padded."""
    rows, columns = [(12, 12), (12, 6), (6, 12)][index % 3]
    places = torch.full((1, 144, 2), -1)
    places[0, : rows * columns] = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    pixels = torch.zeros(1, 144, 3 * 4 * 4, dtype=noise(1).dtype)
    pixels[:, : rows * columns] = noise(1, rows * columns, 3 * 4 * 4)
    return {"pixel_values": pixels, "image_position_ids": places.flip(-1)}  # (x, y)


def _idefics(name: str, prefix: str) -> Specimen:
    """Idefics3 and SmolVLM, which are built alike."""
    return Specimen(
        name,
        builder(
            f"{prefix}ForConditionalGeneration",
            f"{prefix}Config",
            vision_config=lambda: getattr(tf, f"{prefix}VisionConfig")(
                **SMALL, image_size=16 * SIDE, patch_size=8
            ),
            text_config=_llama,
            image_token_id=IMAGE,
            scale_factor=2,
        ),
        several_tiles,
        prompt=tile_prompt,
        collate=padded_tiles,
        tiles=lambda image: image["pixel_values"].shape[1],
        shared=False,
    )


PINPOINTS = [[8 * SIDE, 16 * SIDE], [16 * SIDE, 8 * SIDE], [16 * SIDE, 16 * SIDE]]
# Head dimension 8: half of it is dealt out to time, rows and columns.
MROPE = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 1, 1]}
qwen_image, qwen_video = patches(4)
MERGED = {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64, "num_heads": 4}
QWEN_VISION = {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}

SPECIMENS = {
    specimen.name: specimen
    for specimen in (
        Specimen(
            "llava",
            builder(
                "LlavaForConditionalGeneration",
                "LlavaConfig",
                vision_config=_clip,
                text_config=_llama,
                image_token_id=IMAGE,
                vision_feature_layer=-1,
                image_seq_length=SIDE * SIDE,
            ),
            square(8 * SIDE),
        ),
        Specimen(
            "llava_siglip",  # no CLS token, and all of the tower's tokens are handed on
            builder(
                "LlavaForConditionalGeneration",
                "LlavaConfig",
                vision_config=lambda: _siglip(8 * SIDE),
                text_config=_llama,
                image_token_id=IMAGE,
                vision_feature_layer=-1,
                vision_feature_select_strategy="full",
                image_seq_length=SIDE * SIDE,
            ),
            square(8 * SIDE),
        ),
        Specimen(
            "llava_next",
            builder(
                "LlavaNextForConditionalGeneration",
                "LlavaNextConfig",
                vision_config=_clip,
                text_config=_llama,
                image_token_id=IMAGE,
                vision_feature_layer=-1,
                image_grid_pinpoints=PINPOINTS,
                image_seq_length=SIDE * SIDE,
            ),
            anyres,
            groups=2,
        ),
        Specimen(
            "llava_onevision",
            builder(
                "LlavaOnevisionForConditionalGeneration",
                "LlavaOnevisionConfig",
                vision_config=_clip,
                text_config=_llama,
                image_token_index=IMAGE,
                video_token_index=VIDEO,
                vision_feature_layer=-1,
                vision_feature_select_strategy="default",
                vision_aspect_ratio="anyres_max_2",  # some canvases are scaled to two tiles
                image_grid_pinpoints=PINPOINTS,
            ),
            anyres,
            video=square_frames,
            groups=2,
        ),
        Specimen(
            "qwen2_vl",
            builder(
                "Qwen2VLForConditionalGeneration",
                "Qwen2VLConfig",
                vision_config=QWEN_VISION
                | {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4},
                text_config=TEXT | {"rope_parameters": MROPE},
                image_token_id=IMAGE,
                video_token_id=VIDEO,
            ),
            qwen_image,
            video=qwen_video,
            types=("mm_token_type_ids", modality),
        ),
        Specimen(
            "qwen2_5_vl",
            builder(
                "Qwen2_5_VLForConditionalGeneration",
                "Qwen2_5_VLConfig",
                vision_config=QWEN_VISION
                | {
                    "depth": 2,
                    **MERGED,
                    "window_size": 16,
                    "fullatt_block_indexes": [1],
                },
                text_config=TEXT | {"rope_parameters": MROPE},
                image_token_id=IMAGE,
                video_token_id=VIDEO,
            ),
            qwen_image,
            video=qwen_video,
            types=("mm_token_type_ids", modality),
        ),
        Specimen(
            "qwen3_vl",
            builder(
                "Qwen3VLForConditionalGeneration",
                "Qwen3VLConfig",
                vision_config=QWEN_VISION
                | {
                    "depth": 3,
                    **MERGED,
                    "num_position_embeddings": 64,
                    "deepstack_visual_indexes": [0, 1],
                },
                text_config=TEXT | {"rope_parameters": MROPE, "head_dim": 8},
                image_token_id=IMAGE,
                video_token_id=VIDEO,
            ),
            qwen_image,
            video=qwen_video,
            types=("mm_token_type_ids", modality),
            frame_break=(BREAK, BREAK),
        ),
        Specimen(
            "internvl",
            builder(
                "InternVLForConditionalGeneration",
                "InternVLConfig",
                vision_config=lambda: tf.InternVLVisionConfig(
                    **SMALL,
                    image_size=[16 * SIDE, 16 * SIDE],  # merged two by two
                    patch_size=[8, 8],
                ),
                text_config=_llama,
                image_token_id=IMAGE,
                image_seq_length=SIDE * SIDE,
            ),
            square(16 * SIDE),
            shared=False,
        ),
        Specimen(
            "vipllava",
            builder(
                "VipLlavaForConditionalGeneration",
                "VipLlavaConfig",
                vision_config=_clip,
                text_config=_llama,
                image_token_index=IMAGE,
                image_seq_length=SIDE * SIDE,
                vision_feature_layers=[-1, 1],
            ),
            square(8 * SIDE),
            shared=False,
        ),
        Specimen(
            "llava_next_video",
            builder(
                "LlavaNextVideoForConditionalGeneration",
                "LlavaNextVideoConfig",
                vision_config=_clip,
                text_config=_llama,
                image_token_index=IMAGE,
                video_token_index=VIDEO,
                vision_feature_layer=-1,
                image_grid_pinpoints=PINPOINTS,
            ),
            anyres,
            video=square_frames,
            groups=2,
        ),
        _idefics("idefics3", "Idefics3"),
        _idefics("smolvlm", "SmolVLM"),
        Specimen(
            "paligemma",
            builder(
                "PaliGemmaForConditionalGeneration",
                "PaliGemmaConfig",
                vision_config=lambda: _siglip(8 * SIDE),
                text_config=lambda: tf.GemmaConfig(**TEXT, head_dim=8),
                image_token_index=IMAGE,
                projection_dim=32,
                hidden_size=32,
            ),
            square(8 * SIDE),
            types=("token_type_ids", prefix),
            shared=False,
            first_position=1,
            generated_type=1,
            turns=False,
        ),
        Specimen(
            "gemma3",
            builder(
                "Gemma3ForConditionalGeneration",
                "Gemma3Config",
                vision_config=lambda: _siglip(16 * SIDE),
                text_config=lambda: tf.Gemma3TextConfig(
                    **TEXT,
                    head_dim=8,
                    query_pre_attn_scalar=8,
                    layer_types=["sliding_attention", "full_attention", "sliding_attention"],
                ),
                image_token_index=IMAGE,
                mm_tokens_per_image=SIDE * SIDE,
            ),
            square(16 * SIDE),
            types=("token_type_ids", modality),
            shared=False,
            history=True,
        ),
        Specimen(
            "mistral3",
            builder(
                "Mistral3ForConditionalGeneration",
                "Mistral3Config",
                vision_config=lambda: tf.PixtralVisionConfig(
                    **SMALL,
                    image_size=64,
                    patch_size=8,
                ),
                text_config=lambda: tf.MistralConfig(**TEXT, head_dim=8, sliding_window=None),
                image_token_index=IMAGE,
                spatial_merge_size=2,
            ),
            pixtral_image,
            prompt=pixtral_prompt,
            whole=False,
        ),
        Specimen(
            "pixtral",
            builder(
                "LlavaForConditionalGeneration",
                "LlavaConfig",
                vision_config=lambda: tf.PixtralVisionConfig(
                    **SMALL,
                    image_size=64,
                    patch_size=16,
                ),
                text_config=lambda: tf.MistralConfig(**TEXT, head_dim=8, sliding_window=None),
                image_token_index=IMAGE,
                vision_feature_layer=-1,
                vision_feature_select_strategy="full",
            ),
            pixtral_image,
            prompt=pixtral_prompt,
            whole=False,
        ),
        Specimen(
            "aya_vision",
            builder(
                "AyaVisionForConditionalGeneration",
                "AyaVisionConfig",
                vision_config=lambda: _siglip(16 * SIDE),
                text_config=lambda: tf.Cohere2Config(**TEXT),
                image_token_index=IMAGE,
                downsample_factor=2,
            ),
            square(16 * SIDE),
            shared=False,
        ),
        Specimen(
            "cohere2_vision",
            builder(
                "Cohere2VisionForConditionalGeneration",
                "Cohere2VisionConfig",
                vision_config=lambda: _siglip(16 * SIDE),
                text_config=lambda: tf.Cohere2Config(**TEXT),
                image_token_id=IMAGE,
                downsample_factor=2,
                alignment_intermediate_size=64,
            ),
            square(16 * SIDE),
            shared=False,
        ),
        Specimen(
            "glm4v",
            builder(
                "Glm4vForConditionalGeneration",
                "Glm4vConfig",
                vision_config=QWEN_VISION
                | {
                    "depth": 2,
                    **MERGED,
                    "image_size": 32,
                },
                text_config=TEXT | {"rope_parameters": MROPE | {"partial_rotary_factor": 1.0}},
                image_token_id=IMAGE,
                video_token_id=VIDEO,
            ),
            qwen_image,
            video=qwen_video,
            types=("mm_token_type_ids", modality),
            frame_break=(BREAK, BREAK),
            video_id=IMAGE,
            beams=False,
        ),
    )
}

# Tier 3. Layers that carry a state from token to token cannot have tokens masked out of them.
EXPERIMENTAL = {
    specimen.name: specimen
    for specimen in (
        Specimen(
            "qwen3_vl_moe",
            builder(
                "Qwen3VLMoeForConditionalGeneration",
                "Qwen3VLMoeConfig",
                vision_config=QWEN_VISION
                | {
                    "depth": 3,
                    **MERGED,
                    "num_position_embeddings": 64,
                    "deepstack_visual_indexes": [0, 1],
                },
                text_config=TEXT
                | {
                    "rope_parameters": MROPE,
                    "head_dim": 8,
                    "num_experts": 4,
                    "num_experts_per_tok": 2,
                    "moe_intermediate_size": 32,
                },
                image_token_id=IMAGE,
                video_token_id=VIDEO,
            ),
            qwen_image,
            types=("mm_token_type_ids", modality),
        ),
        Specimen(
            "qwen3_5",
            builder(
                "Qwen3_5ForConditionalGeneration",
                "Qwen3_5Config",
                vision_config=QWEN_VISION
                | {
                    "depth": 2,
                    **MERGED,
                    "num_position_embeddings": 64,
                },
                text_config=TEXT
                | {
                    "rope_parameters": MROPE | {"partial_rotary_factor": 1.0},
                    "head_dim": 8,
                    "linear_key_head_dim": 8,
                    "linear_value_head_dim": 8,
                    "linear_num_key_heads": 2,
                    "linear_num_value_heads": 4,
                    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
                },
                image_token_id=IMAGE,
                video_token_id=VIDEO,
            ),
            qwen_image,
            types=("mm_token_type_ids", modality),
        ),
        Specimen(
            "qwen3_5_moe",
            builder(
                "Qwen3_5MoeForConditionalGeneration",
                "Qwen3_5MoeConfig",
                vision_config=QWEN_VISION
                | {
                    "depth": 2,
                    **MERGED,
                    "num_position_embeddings": 64,
                },
                text_config=TEXT
                | {
                    "rope_parameters": MROPE | {"partial_rotary_factor": 1.0},
                    "head_dim": 8,
                    "num_experts": 4,
                    "num_experts_per_tok": 2,
                    "moe_intermediate_size": 32,
                    "shared_expert_intermediate_size": 32,
                    "linear_key_head_dim": 8,
                    "linear_value_head_dim": 8,
                    "linear_num_key_heads": 2,
                    "linear_num_value_heads": 4,
                    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
                },
                image_token_id=IMAGE,
                video_token_id=VIDEO,
            ),
            qwen_image,
            types=("mm_token_type_ids", modality),
        ),
        Specimen(
            "lfm2_vl",
            builder(
                "Lfm2VlForConditionalGeneration",
                "Lfm2VlConfig",
                vision_config=lambda: tf.Siglip2VisionConfig(
                    **SMALL,
                    patch_size=8,
                    num_patches=16,
                    vision_use_head=False,
                ),
                text_config=lambda: tf.Lfm2Config(
                    **TEXT,
                    block_auto_adjust_ff_dim=False,
                    layer_types=["conv", "full_attention", "conv"],
                ),
                image_token_id=IMAGE,
                downsample_factor=2,
                projector_hidden_size=32,
            ),
            naflex,
        ),
        Specimen(
            "gemma4",
            builder(
                "Gemma4ForConditionalGeneration",
                "Gemma4Config",
                vision_config=lambda: tf.Gemma4VisionConfig(
                    **SMALL,
                    num_key_value_heads=4,
                    head_dim=8,
                    patch_size=4,
                    position_embedding_size=64,
                ),
                text_config=lambda: tf.Gemma4TextConfig(
                    **TEXT,
                    head_dim=8,
                    layer_types=["sliding_attention", "full_attention", "full_attention"],
                    hidden_size_per_layer_input=8,
                    vocab_size_per_layer_input=WORDS,
                    use_bidirectional_attention="vision",
                ),
                image_token_id=IMAGE,
                video_token_id=VIDEO,
                audio_token_id=57,
            ),
            gemma4_image,
            types=("mm_token_type_ids", modality),
        ),
        Specimen(
            "llama4",
            builder(
                "Llama4ForConditionalGeneration",
                "Llama4Config",
                vision_config={
                    "hidden_size": 32,
                    "intermediate_size": 128,  # four patches of a token
                    "num_hidden_layers": 2,
                    "num_attention_heads": 4,
                    "image_size": 16 * SIDE,
                    "patch_size": 8,
                    "projector_input_dim": 24,
                    "projector_output_dim": 24,
                    "vision_output_dim": 24,
                },
                text_config=lambda: tf.Llama4TextConfig(
                    **TEXT | {"num_hidden_layers": 4},
                    intermediate_size_mlp=64,
                    head_dim=8,
                    num_local_experts=4,
                    interleave_moe_layer_step=2,
                ),
                image_token_index=IMAGE,
                boi_token_index=56,
                eoi_token_index=57,
            ),
            square(16 * SIDE),
            features=lambda model, output: model.multi_modal_projector(output.last_hidden_state),
        ),
    )
}


def mllama(
    dtype: torch.dtype = torch.float32, attention: str = "sdpa", **settings: Any
) -> tf.MllamaForConditionalGeneration:
    """Mllama, whose images are no part of the sequence: pictures of up to four tiles."""
    return builder(
        "MllamaForConditionalGeneration",
        "MllamaConfig",
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 4,
            "intermediate_size": 64,
            "vision_output_dim": 96,
            "image_size": 8 * SIDE,
            "patch_size": 8,
            "max_num_tiles": 4,
            "intermediate_layers_indices": [0, 1],
            "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4]],
        },
        text_config=TEXT | {"num_hidden_layers": 4, "cross_attention_layers": [1, 3], **settings},
        image_token_index=IMAGE,
    )(dtype, attention)
