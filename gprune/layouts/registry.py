"""The one list of supported model families."""

from __future__ import annotations

from typing import Any

from gprune.errors import UnsupportedModelError
from gprune.layouts.base import Family
from gprune.layouts.llava import Llava, LlavaNext, LlavaNextVideo, LlavaOnevision, Mistral3
from gprune.layouts.mllama import Mllama
from gprune.layouts.qwen import Glm4V, Qwen3VL, Qwen25VL, QwenVL
from gprune.layouts.square import (
    CohereVision,
    Gemma3,
    Idefics3,
    InternVL,
    Llama4,
    PaliGemma,
    SquareRaster,
)

BOTH = ("image", "video")
FRAMES = "an image; a frame"
CANVAS = "the thumbnail; the canvas of tiles, without its row ends"

FAMILIES: tuple[Family, ...] = (
    Llava(
        "llava",
        ("LlavaForConditionalGeneration",),
        "LLaVA-1.5, Pixtral",
        prunes_in_decoder=True,
        takes_weights=True,
        takes_smaller_images=True,
        served=True,
    ),
    LlavaNext(
        "llava_next",
        ("LlavaNextForConditionalGeneration",),
        "LLaVA-NeXT",
        CANVAS,
        prunes_in_decoder=True,
        takes_weights=True,
        served=True,
    ),
    LlavaOnevision(
        "llava_onevision",
        ("LlavaOnevisionForConditionalGeneration",),
        "LLaVA-OneVision",
        f"{CANVAS}; a frame",
        modalities=BOTH,
        prunes_in_decoder=True,
        takes_weights=True,
        served=True,
    ),
    QwenVL(
        "qwen2_vl",
        ("Qwen2VLForConditionalGeneration",),
        "Qwen2-VL",
        FRAMES,
        modalities=BOTH,
        prunes_in_decoder=True,
        takes_weights=True,
        takes_smaller_images=True,
        served=True,
    ),
    Qwen25VL(
        "qwen2_5_vl",
        ("Qwen2_5_VLForConditionalGeneration",),
        "Qwen2.5-VL",
        FRAMES,
        modalities=BOTH,
        prunes_in_decoder=True,
        takes_weights=True,
        takes_smaller_images=True,
        served=True,
    ),
    Qwen3VL(
        "qwen3_vl",
        ("Qwen3VLForConditionalGeneration",),
        "Qwen3-VL",
        FRAMES,
        modalities=BOTH,
        takes_weights=True,
        served=True,
    ),
    InternVL(
        "internvl",
        ("InternVLForConditionalGeneration",),
        "InternVL",
        "a tile",
        prunes_in_decoder=True,
        takes_weights=True,
        served=True,
    ),
    SquareRaster(
        "vipllava", ("VipLlavaForConditionalGeneration",), "ViP-LLaVA", tier=2, takes_weights=True
    ),
    LlavaNextVideo(
        "llava_next_video",
        ("LlavaNextVideoForConditionalGeneration",),
        "LLaVA-NeXT-Video",
        f"{CANVAS}; a frame",
        tier=2,
        modalities=BOTH,
        takes_weights=True,
    ),
    Idefics3(
        "idefics3",
        ("Idefics3ForConditionalGeneration",),
        "Idefics3",
        "a tile",
        tier=2,
        takes_weights=True,
    ),
    Idefics3(
        "smolvlm",
        ("SmolVLMForConditionalGeneration",),
        "SmolVLM",
        "a tile",
        tier=2,
        takes_weights=True,
    ),
    PaliGemma("paligemma", ("PaliGemmaForConditionalGeneration",), "PaliGemma", tier=2),
    Gemma3("gemma3", ("Gemma3ForConditionalGeneration",), "Gemma 3", tier=2),
    Mistral3(
        "mistral3",
        ("Mistral3ForConditionalGeneration",),
        "Mistral Small 3",
        tier=2,
        takes_weights=True,
    ),
    CohereVision(
        "aya_vision", ("AyaVisionForConditionalGeneration",), "Aya Vision", "a tile", tier=2
    ),
    CohereVision(
        "cohere2_vision",
        ("Cohere2VisionForConditionalGeneration",),
        "Command A Vision",
        "a tile",
        tier=2,
    ),
    Glm4V(
        "glm4v",
        ("Glm4vForConditionalGeneration",),
        "GLM-4V",
        FRAMES,
        tier=2,
        modalities=BOTH,
        takes_weights=True,
    ),
    Qwen3VL(
        "qwen3_vl_moe",
        ("Qwen3VLMoeForConditionalGeneration",),
        "Qwen3-VL MoE",
        FRAMES,
        tier=3,
        modalities=BOTH,
    ),
    QwenVL(
        "qwen3_5",
        ("Qwen3_5ForConditionalGeneration",),
        "Qwen3.5",
        FRAMES,
        tier=3,
        modalities=BOTH,
    ),
    QwenVL(
        "qwen3_5_moe",
        ("Qwen3_5MoeForConditionalGeneration",),
        "Qwen3.5 MoE",
        FRAMES,
        tier=3,
        modalities=BOTH,
    ),
    Family("gemma4", ("Gemma4ForConditionalGeneration",), "Gemma 4", tier=3),
    Family("lfm2_vl", ("Lfm2VlForConditionalGeneration",), "LFM2-VL", "a tile", tier=3),
    Llama4("llama4", ("Llama4ForConditionalGeneration",), "Llama 4", "a tile", tier=3),
    Mllama("mllama", ("MllamaForConditionalGeneration",), "Llama 3.2 Vision", "a tile", tier=3),
)


def families_with(capability: str) -> list[str]:
    """Returns the names of the families that declare a capability, in the order of `FAMILIES`.

    Args:
        capability: a flag of `Family`, such as ``prunes_in_decoder``.
    """
    return [family.name for family in FAMILIES if getattr(family, capability)]


def families() -> dict[str, int]:
    """Returns each supported model family with its tier; tier 1 passes every test."""
    return {family.name: family.tier for family in FAMILIES}


def family_of(model: Any) -> Family:
    """Returns the family of a model with a language-modelling head.

    Raises:
        UnsupportedModelError: the model's class belongs to no supported family.
    """
    return family_of_architecture(*(kind.__name__ for kind in type(model).__mro__))


def family_of_architecture(*names: str) -> Family:
    """Returns the family of a model class.

    Args:
        names: of the class and of its base classes, in this order.

    Raises:
        UnsupportedModelError: none of the names belongs to a supported family.
    """
    for family in FAMILIES:
        if any(name in family.architectures for name in names):
            return family
    supported = ", ".join(name for family in FAMILIES for name in family.architectures)
    raise UnsupportedModelError(
        f"model is a {names[0]}, which gprune cannot prune yet; supported: {supported}. Pass the "
        "model with its language-modelling head, unwrapped; CONTRIBUTING.md says how to add one"
    )
