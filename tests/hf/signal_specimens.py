"""Models whose vision encoders give signals; tests share them and leave them unchanged."""

from __future__ import annotations

import dataclasses
import functools

import transformers as tf

from gprune.proof.models import EXPERIMENTAL, IMAGE, SIDE, SMALL, SPECIMENS, VIDEO, builder

SIGLIP = dataclasses.replace(
    SPECIMENS["llava_onevision"],
    name="llava_onevision_siglip",
    build=builder(
        "LlavaOnevisionForConditionalGeneration",
        "LlavaOnevisionConfig",
        vision_config=lambda: tf.SiglipVisionConfig(
            **SMALL, image_size=8 * SIDE, patch_size=8, vision_use_head=False
        ),
        text_config=lambda: SPECIMENS["llava"].build().config.text_config,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=SPECIMENS["llava_next"].build().config.image_grid_pinpoints,
    ),
)


SEEN = {
    specimen.name: specimen
    for specimen in (SIGLIP, *SPECIMENS.values(), EXPERIMENTAL["qwen3_vl_moe"])
    if specimen.name not in ("mistral3", "pixtral")  # whose attention is not recomputed
}


CORE = ("llava", "llava_next", "llava_onevision_siglip", "qwen2_5_vl", "internvl")


# In transformers' own classes, which learn of two canvases only in their config.
UNSCALED = "anyres_max_9"


@functools.cache
def built(name, attention):
    model = SEEN[name].build(attention=attention)
    if hasattr(model.config, "vision_aspect_ratio"):
        model.config.vision_aspect_ratio = UNSCALED  # a scaled canvas mixes patches unevenly
    return model


def build(specimen, attention="sdpa"):
    """Returns a model that all tests share; none changes it."""
    return built(specimen.name, attention)
