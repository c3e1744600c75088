"""Tiny random models of the supported families."""

from __future__ import annotations

import transformers as tf

from gprune.proof.experimental import EXPERIMENTAL
from gprune.proof.images import (
    BOS,
    BREAK,
    IMAGE,
    PAD,
    SIDE,
    VIDEO,
    WORDS,
    Image,
    Noise,
    anyres,
    padded_tiles,
    pixtral_image,
    pixtral_prompt,
    several_tiles,
    square,
    square_frames,
    tile_prompt,
)
from gprune.proof.specimens import (
    MERGED,
    MROPE,
    PINPOINTS,
    QWEN_VISION,
    SMALL,
    TEXT,
    Specimen,
    builder,
    clip_config,
    llama_config,
    modality,
    prefix,
    qwen_image,
    qwen_video,
    siglip_config,
)

__all__ = [
    "BOS",
    "BREAK",
    "EXPERIMENTAL",
    "IMAGE",
    "PAD",
    "SIDE",
    "SMALL",
    "SPECIMENS",
    "TEXT",
    "VIDEO",
    "WORDS",
    "Image",
    "Noise",
    "Specimen",
    "builder",
]


def idefics_specimen(name: str, prefix: str) -> Specimen:
    """Returns Idefics3 or SmolVLM, which have the same structure."""
    return Specimen(
        name,
        builder(
            f"{prefix}ForConditionalGeneration",
            f"{prefix}Config",
            vision_config=lambda: getattr(tf, f"{prefix}VisionConfig")(
                **SMALL, image_size=16 * SIDE, patch_size=8
            ),
            text_config=llama_config,
            image_token_id=IMAGE,
            scale_factor=2,
        ),
        several_tiles,
        prompt=tile_prompt,
        collate=padded_tiles,
        tiles=lambda image: image["pixel_values"].shape[1],
        shared=False,
    )


SPECIMENS = {
    specimen.name: specimen
    for specimen in (
        Specimen(
            "llava",
            builder(
                "LlavaForConditionalGeneration",
                "LlavaConfig",
                vision_config=clip_config,
                text_config=llama_config,
                image_token_id=IMAGE,
                vision_feature_layer=-1,
                image_seq_length=SIDE * SIDE,
            ),
            square(8 * SIDE),
        ),
        Specimen(
            "llava_siglip",  # no CLS token; the model takes all tokens of the tower
            builder(
                "LlavaForConditionalGeneration",
                "LlavaConfig",
                vision_config=lambda: siglip_config(8 * SIDE),
                text_config=llama_config,
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
                vision_config=clip_config,
                text_config=llama_config,
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
                vision_config=clip_config,
                text_config=llama_config,
                image_token_index=IMAGE,
                video_token_index=VIDEO,
                vision_feature_layer=-1,
                vision_feature_select_strategy="default",
                vision_aspect_ratio="anyres_max_2",  # scales some canvases to two tiles
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
                text_config=llama_config,
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
                vision_config=clip_config,
                text_config=llama_config,
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
                vision_config=clip_config,
                text_config=llama_config,
                image_token_index=IMAGE,
                video_token_index=VIDEO,
                vision_feature_layer=-1,
                image_grid_pinpoints=PINPOINTS,
            ),
            anyres,
            video=square_frames,
            groups=2,
        ),
        idefics_specimen("idefics3", "Idefics3"),
        idefics_specimen("smolvlm", "SmolVLM"),
        Specimen(
            "paligemma",
            builder(
                "PaliGemmaForConditionalGeneration",
                "PaliGemmaConfig",
                vision_config=lambda: siglip_config(8 * SIDE),
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
                vision_config=lambda: siglip_config(16 * SIDE),
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
                vision_config=lambda: siglip_config(16 * SIDE),
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
                vision_config=lambda: siglip_config(16 * SIDE),
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
