"""Draws what a model sees of an image and what a pruner kept of it."""

from __future__ import annotations

from collections.abc import Sequence
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


def model_view(processor: Any, outcome: Outcome, image: Image.Image, index: int = 0) -> Image.Image:
    """Returns the part of an image that its first group's tokens show.

    Args:
        processor: the model's.
        outcome: of a question about the image.
        image: the image as it was given. It is returned itself for models whose processor makes
            patches, which cannot be put together to an image here.
        index: number of the image in the prompt.
    """
    pixels = outcome.inputs["pixel_values"]  # [images, 3, h, w], with tiles [images, tiles, ...]
    if pixels.ndim < 4:  # patches, of all images in one row or image by image
        return image
    return denormalized(processor, pixels[index] if pixels.ndim == 4 else pixels[index, 0])


def first_groups(outcome: Outcome, images: int) -> list[KeptGroup]:
    """Returns the first group of each image of a prompt.

    Only that of the first where the model cuts images into tiles that are images to it, since
    their numbers are then not those of the images that were given.
    """
    groups: dict[int, KeptGroup] = {}
    for group in outcome.pruned.kept[0]:
        groups.setdefault(group.image, group)
    first = list(groups.values())
    return first if len(first) == images else first[:1]


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
    model: Any,
    processor: Any,
    pruner: Pruner,
    outcome: Outcome,
    images: Sequence[Image.Image],
) -> list[tuple[str, Image.Image]]:
    """Draws what the model sees, what was kept of it, and the scores behind the first image.

    Args:
        model: the model that answered.
        processor: its processor.
        pruner: the method.
        outcome: of a question about ``images``.
        images: as they were given, see `model_view`.

    Returns:
        (caption, picture) pairs for `gprune.viz.panel`; only views where tokens form no raster.
    """
    groups = first_groups(outcome, len(images))
    pictures: list[tuple[str, Image.Image]] = []
    for index, (image, group) in enumerate(zip(images, groups, strict=False)):
        view = model_view(processor, outcome, image, index)
        of_image = f" of image {index + 1}" if len(groups) > 1 else ""
        pictures.append((f"what the model sees{of_image}", viz.enlarged(view)))
        if group.grid is not None:
            caption = f"kept {len(group.indices)} of {group.size} tokens"
            pictures.append((caption, viz.overlay(view, group.indices, group.grid)))
    if groups[0].grid is not None and has_feature_scores(pruner):
        view = model_view(processor, outcome, images[0])
        pictures += score_pictures(pruner, view, first_group(model, outcome))
    return pictures


def score_pictures(
    pruner: ScorePruner, view: Image.Image, tokens: VisualTokens
) -> list[tuple[str, Image.Image]]:
    """Draws the scores of a group over its part of an image, and the graph of G-Prune."""
    assert tokens.grid is not None
    scores = pruner.score(tokens)
    pictures = [("scores by rank", viz.score_map(view, scores, tokens.grid))]
    if isinstance(pruner, GPrune):
        graph = pruner.graph(tokens)
        # The token with most edges shows the graph; the best-scored one is often isolated.
        token = int(graph.degree.argmax())
        drawn = viz.graph_picture(view, graph, token, tokens.grid)
        pictures.append((f"strongest neighbours of token {token}", drawn))
    return pictures
