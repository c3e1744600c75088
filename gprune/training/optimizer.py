"""AdamW with a learning rate per part of the model, and the schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from gprune.training.recipe import Recipe


def build_optimizer(recipe: Recipe, stage: str, modules: nn.Module) -> torch.optim.Optimizer:
    """Builds AdamW over the parameters that a stage trains.

    Stage ``patches`` trains the tower, the projector and the heads, and the word embeddings unless
    they come from a trained language model: patches then move towards words, not words towards
    patches. Stage ``answers`` trains everything.

    Args:
        recipe: of the run.
        stage: ``patches`` or ``answers``.
        modules: with the model as ``model``.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in modules.named_parameters():
        in_vision = name.startswith("model.model.vision_tower.")
        in_language = name.startswith("model.model.language_model.")
        if stage == "patches":
            trains_words = recipe.language is None and name.endswith("embed_tokens.weight")
            if in_language and not trains_words:
                continue
            rate = recipe.patch_rate
        else:
            rate = recipe.vision_rate if in_vision else recipe.answer_rate
        decay = recipe.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": rate, "initial": rate, "weight_decay": decay}
            for (rate, decay), parameters in groups.items()
        ],
        betas=(0.9, 0.98),
        fused=True,
    )


def schedule_factor(step: int, total: int, warmup: int) -> float:
    """Returns the learning rate's factor: linear warm-up, then a cosine from 1 to 0.01."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, total: int, warmup: int) -> None:
    """Sets the learning rates of a step."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial"] * schedule_factor(step, total, warmup)
