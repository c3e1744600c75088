"""Draws what a model sees of an image and what a pruner kept of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

from PIL import Image

from gprune import viz
from gprune.pruners import GPrune, Pruner, ScorePruner
from gprune.tokens import VisualTokens

if TYPE_CHECKING:
    import torch

    from gprune.ask.answers import Outcome
    from gprune.hf import KeptGroup


def denormalized(processor: Any, pixels: torch.Tensor) -> Image.Image:
    """Returns the vision tower's input as an image: ``pixels`` [3, h, w], normalization undone."""
    import torch

    settings = processor.image_processor
    mean, std = (torch.tensor(x)[:, None, None] for x in (settings.image_mean, settings.image_std))
    array = ((pixels.float().cpu() * std + mean).clamp(0, 1) * 255).round().byte()
    return Image.fromarray(array.permute(1, 2, 0).numpy())


def model_view(processor: Any, outcome: Outcome, image: Image.Image) -> Image.Image:
    """Returns the part of the first image that the first group's tokens show.

    Args:
        processor: the model's.
        outcome: of a question about ``image``.
        image: the first image as it was given. It is returned itself for models whose processor
            makes patches, which cannot be put together to an image here.
    """
    pixels = outcome.inputs["pixel_values"]  # [images, 3, h, w], with tiles [images, tiles, ...]
    if pixels.ndim < 4:  # patches, of all images in one row or image by image
        return image
    return denormalized(processor, pixels[0] if pixels.ndim == 4 else pixels[0, 0])


def has_feature_scores(pruner: Pruner) -> TypeGuard[ScorePruner]:
    """Tells whether a method scores each token from features alone, as `first_group` has them."""
    return isinstance(pruner, ScorePruner) and not pruner.signals


def first_group(model: Any, outcome: Outcome) -> VisualTokens:
    """Encodes the first image again and returns its first group as the pruner saw it."""
    import torch

    family = outcome.pruned.family
    group: KeptGroup = outcome.pruned.kept[0][0]
    grid = None if group.grid is None else (1, *group.grid)
    with torch.inference_mode():
        encoded = family.encode(model, "image", dict(outcome.inputs))
        features = family.features(model, encoded)[0]
    rows = family.groups(model, "image", features, grid)[0].rows
    return VisualTokens(features[rows], grid=group.grid)


def kept_overlay(processor: Any, outcome: Outcome, image: Image.Image) -> Image.Image | None:
    """Draws the kept tokens of the first group over ``image``, see `model_view`.

    Returns:
        None where the tokens form no raster.
    """
    group: KeptGroup = outcome.pruned.kept[0][0]
    if group.grid is None:
        return None
    return viz.overlay(model_view(processor, outcome, image), group.indices, group.grid)


def outcome_pictures(
    model: Any, processor: Any, pruner: Pruner, outcome: Outcome, image: Image.Image
) -> list[tuple[str, Image.Image]]:
    """Draws the first image as the model sees it, what was kept of it, and the scores behind it.

    Args:
        model: the model that answered.
        processor: its processor.
        pruner: the method.
        outcome: of a question about ``image``.
        image: the first image as it was given, see `model_view`.

    Returns:
        (caption, picture) pairs for `gprune.viz.panel`; only the first where the tokens form no
        raster.
    """
    group: KeptGroup = outcome.pruned.kept[0][0]
    view = model_view(processor, outcome, image)
    pictures = [("what the model sees", viz.enlarged(view))]
    if group.grid is None:
        return pictures
    caption = f"kept {len(group.indices)} of {group.size} tokens"
    pictures.append((caption, viz.overlay(view, group.indices, group.grid)))
    if has_feature_scores(pruner):
        tokens = first_group(model, outcome)
        pictures.append(("scores by rank", viz.score_map(view, pruner.score(tokens), group.grid)))
        if isinstance(pruner, GPrune):
            graph = pruner.graph(tokens)
            # The token with most edges shows the graph; the best-scored one is often isolated.
            token = int(graph.degree.argmax())
            drawn = viz.graph_picture(view, graph, token, group.grid)
            pictures.append((f"strongest neighbours of token {token}", drawn))
    return pictures
