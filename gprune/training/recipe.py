"""The hyperparameters of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field

from gprune.training.model import Architecture
from gprune.training.products import PRODUCTS

# How stage 1 trains the vision tower: dense labels of patches, or captions of regions.
OBJECTIVES = ("patches", "captions")
# Attention implementations for training; their results differ by rounding.
ATTENTIONS = ("sdpa", PRODUCTS)


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of a run; learning rates decay by a cosine to 1%.

    The defaults are those of the shipped checkpoint ``tinyvlm``. The field names are keys of the
    ``recipe.json`` beside each checkpoint.

    Raises:
        ValueError: ``objective`` is not in ``OBJECTIVES``, or ``attention`` not in ``ATTENTIONS``.
    """

    architecture: Architecture = field(default_factory=Architecture)
    language: str | None = None  # checkpoint of the initial language model, `copy_language_model`
    objective: str = "patches"  # of stage 1, one of OBJECTIVES
    asked: int = 3  # most questions of each type about a scene
    most_asked: int = 18  # most questions of all types about a scene
    low_precision: bool = True  # bfloat16 autocast: twice as fast on CPUs with bfloat16 units
    attention: str = "sdpa"  # one of ATTENTIONS
    seed: int = 0
    batch: int = 16
    patch_steps: int = 4500
    patch_rate: float = 1e-3
    ordinary_every: int = 4  # one in this many scenes of stage 1 is not crowded
    answer_steps: int = 2800
    answer_rate: float = 1e-3
    vision_rate: float = 4e-4  # of the tower in stage 2
    warmup: int = 150
    patch_weight: float = 0.3  # of stage 1's objective in stage 2
    name_weight: float = 0.3  # of `gprune.training.grounding` in stage 2
    easy_vqa_images: int = 2  # of each batch in stage 2
    easy_vqa_questions: int = 8  # about each of those images
    weight_decay: float = 0.05
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective={self.objective!r} must be one of {', '.join(OBJECTIVES)}")
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention={self.attention!r} must be one of {', '.join(ATTENTIONS)}")
