"""Asking a model with and without pruning, and the pictures that show what was kept.

What the commands and the web page share. transformers is imported where it is needed: help and
errors stay quick.
"""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any, TypeGuard

import gprune
from gprune import GPrune, Pruner, ScorePruner, VisualTokens
from gprune.ask.prompts import prepare

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from gprune.costs import Saving
    from gprune.hf import KeptGroup
    from gprune.layouts import Family


def seen_image(processor: Any, pixels: torch.Tensor) -> Image.Image:
    """What the vision tower sees, as a picture: ``pixels`` [3, h, w] with normalisation undone."""
    import torch
    from PIL import Image

    settings = processor.image_processor
    mean, std = (torch.tensor(x)[:, None, None] for x in (settings.image_mean, settings.image_std))
    array = ((pixels.float().cpu() * std + mean).clamp(0, 1) * 255).round().byte()
    return Image.fromarray(array.permute(1, 2, 0).numpy())


def generate(model: Any, processor: Any, inputs: Any, max_new_tokens: int | None) -> str:
    """Greedy decoding of one prompt; the answer without the prompt."""
    import torch

    options = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
    with torch.inference_mode():
        ids = model.generate(**inputs, do_sample=False, **options)
    new = ids[0, inputs["input_ids"].shape[1] :]
    return str(processor.decode(new, skip_special_tokens=True)).strip()


def quiet_transformers() -> None:
    """Keeps loading notices off the terminal unless the user asks for them."""
    from transformers.utils import logging

    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()
    logging.disable_progress_bar()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One prompt answered with pruning, and without it where that was asked for."""

    inputs: Any
    answer_full: str | None
    answer_pruned: str
    pruned: Any
    saving: Saving


def answer(
    model: Any,
    processor: Any,
    pruner: Pruner,
    images: list[Image.Image],
    text: str,
    max_new_tokens: int | None = None,
    compare: bool = True,
) -> Outcome:
    """Asks one question with pruning and, to ``compare``, without."""
    from gprune.costs import LanguageModelShape, saving

    inputs = prepare(model, processor, [(images, text)])
    full = generate(model, processor, inputs, max_new_tokens) if compare else None
    with pruner(model) as pruned:
        short = generate(model, processor, inputs, max_new_tokens)
    visual = int((inputs["input_ids"] == model.config.image_token_id).sum())
    by_layer = pruned.visual_by_layer
    assert isinstance(pruner.keep, float | int)  # commands take numbers alone
    cost = saving(
        LanguageModelShape.from_config(model.config),
        visual,
        inputs["input_ids"].shape[1] - visual,
        pruner.keep,
        bytes_per_value=model.dtype.itemsize,
        kept_tokens=visual - pruned.dropped[0] if by_layer is None else by_layer[0],
    )
    return Outcome(inputs, full, short, pruned, cost)


def shown_to(processor: Any, outcome: Outcome, picture: Image.Image) -> Image.Image:
    """The first group's part of the first image, as the model sees it.

    ``picture`` is that image as it was given, for models that take it as patches.
    """
    pixels = outcome.inputs["pixel_values"]  # [images, 3, h, w], with tiles [images, tiles, ...]
    if pixels.ndim < 4:  # patches, of all images in one row or image by image
        return picture
    return seen_image(processor, pixels[0] if pixels.ndim == 4 else pixels[0, 0])


def scores_features(pruner: Pruner) -> TypeGuard[ScorePruner]:
    """Whether a method gives `first_tokens`, which have no signals, a score each to be drawn."""
    return isinstance(pruner, ScorePruner) and not pruner.signals


def first_tokens(model: Any, outcome: Outcome) -> VisualTokens:
    """The first group of the first image, as the pruner saw it."""
    import torch

    family = outcome.pruned.family
    group: KeptGroup = outcome.pruned.kept[0][0]
    grid = None if group.grid is None else (1, *group.grid)
    with torch.inference_mode():
        encoded = family.encode(model, "image", dict(outcome.inputs))
        features = family.features(model, encoded)[0]
    rows = family.groups(model, "image", features, grid)[0].rows
    return VisualTokens(features[rows], grid=group.grid)


def pictures_of(
    model: Any, processor: Any, pruner: Pruner, outcome: Outcome, picture: Image.Image
) -> list[tuple[str, Image.Image]]:
    """The first image as the model sees it, what was kept of it, and why.

    ``picture`` is that image as it was given, see `shown_to`.
    """
    from gprune import viz

    group = outcome.pruned.kept[0][0]
    image = shown_to(processor, outcome, picture)
    pictures = [("what the model sees", viz.enlarged(image))]
    if group.grid is None:
        return pictures
    share = f"kept {len(group.indices)} of {group.size} tokens"
    pictures.append((share, viz.overlay(image, group.indices, group.grid)))
    if scores_features(pruner):
        tokens = first_tokens(model, outcome)
        pictures.append(("scores by rank", viz.score_map(image, pruner.score(tokens), group.grid)))
        if isinstance(pruner, GPrune):
            graph = pruner.graph(tokens)
            # The best-connected token shows the graph; the best-scored one is often isolated.
            token = int(graph.degree.argmax())
            drawn = viz.graph_picture(image, graph, token, group.grid)
            pictures.append((f"strongest neighbours of token {token}", drawn))
    return pictures


def place_and_kind(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """A device that works here, and a floating-point type.

    Raises:
        ValueError: it does not, or it is none.
    """
    import torch

    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ValueError(f"dtype={dtype!r} is no floating-point type; take float32 or bfloat16")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={device!r} cannot be used here: {reason}") from None
    return place, kind


# What the commands call the shipped models; the first two are one.
TINY = ("tiny", "tinyvlm", "tinyvlm-siglip")


def load_model(name: str, device: str, dtype: str) -> tuple[Any, Any]:
    """A supported model with its processor, checked before its weights are read.

    Args:
        name: a folder, a hub id, or one of `TINY`.
        device: such as cuda:1.
        dtype: such as bfloat16.

    Raises:
        ValueError: it cannot be loaded.
        UnsupportedModelError: its family is not supported.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    from gprune.layouts import family_of_architecture

    if name in TINY:
        from gprune.tinyvlm.model import checkpoint_folder

        name = str(checkpoint_folder("tinyvlm" if name == "tiny" else name))
    place, kind = place_and_kind(device, dtype)
    try:
        config = AutoConfig.from_pretrained(name)
        family = family_of_architecture(*(config.architectures or [type(config).__name__]))
        refuse_cross_attention(family)
        # Weights come from safetensors alone: nothing is unpickled.
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=kind, use_safetensors=True)
        processor = AutoProcessor.from_pretrained(name)
    except gprune.UnsupportedModelError:
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(
            f"model {name!r} cannot be loaded: {reason} (pass a folder or a hub id of "
            f"a supported family: {', '.join(gprune.families())})"
        ) from error
    return model.to(place).eval(), processor


def refuse_cross_attention(family: Family) -> None:
    """Raises UnsupportedModelError for models whose vision tokens commands could not count."""
    if family.cross_attention:
        raise gprune.UnsupportedModelError(
            f"{family.title} attends across to its vision tokens, which are not in its prompt: "
            "commands would count them wrongly. Prune it from Python: with GPrune(0.36)(model): ..."
        )
