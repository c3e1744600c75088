"""Tiny random models of the experimental families (tier 3)."""

from __future__ import annotations

import transformers as tf

from gprune.proof.images import IMAGE, SIDE, VIDEO, WORDS, gemma4_image, naflex, square
from gprune.proof.specimens import (
    MERGED,
    MROPE,
    QWEN_VISION,
    SMALL,
    TEXT,
    Specimen,
    builder,
    modality,
    qwen_image,
)

# Tokens cannot be masked out of layers that carry a state from token to token.
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
                    "intermediate_size": 128,  # four patches per token
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
