"""The model families that the plugin serves, each proven by tests/serving."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gprune.errors import UnsupportedModelError
from gprune.serving.images import Division, thumbnail_and_canvas, tiles, whole_raster


@dataclass(frozen=True)
class ServedFamily:
    """A family and where vLLM finds its pruned form.

    Attributes:
        name: the ``model_type`` of its configs, as `gprune.families()` gives it.
        architecture: what its checkpoints name.
        divide: how an image's tokens divide into groups.
        raster_positions: whether position ids number rows and columns (M-RoPE), not tokens.
    """

    name: str
    architecture: str
    divide: Division
    raster_positions: bool = False

    @property
    def pruned(self) -> str:
        """The architecture to ask vLLM for."""
        return f"GPrune{self.architecture}"


SERVED: tuple[ServedFamily, ...] = (
    ServedFamily("llava", "LlavaForConditionalGeneration", whole_raster),
    ServedFamily("llava_next", "LlavaNextForConditionalGeneration", thumbnail_and_canvas),
    ServedFamily("llava_onevision", "LlavaOnevisionForConditionalGeneration", thumbnail_and_canvas),
    ServedFamily("qwen2_vl", "Qwen2VLForConditionalGeneration", whole_raster, True),
    ServedFamily("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", whole_raster, True),
    ServedFamily("qwen3_vl", "Qwen3VLForConditionalGeneration", whole_raster, True),
    ServedFamily("internvl", "InternVLForConditionalGeneration", tiles),
)


def served_family(config: Any) -> ServedFamily:
    """The family of a model config.

    Raises:
        UnsupportedModelError: the plugin does not serve it.
    """
    for family in SERVED:
        if family.name == config.model_type:
            if config.vision_config.model_type == "pixtral":
                break
            return family
    tower = getattr(getattr(config, "vision_config", None), "model_type", None)
    names = ", ".join(family.name for family in SERVED)
    raise UnsupportedModelError(
        f"the model is a {config.model_type} with a {tower} tower, which gprune's vLLM plugin does "
        f"not serve; it serves {names} (not with a Pixtral tower). `vllm serve` without gprune "
        "serves others unpruned"
    )
