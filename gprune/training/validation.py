"""Validation of both stages on a few held-out pictures."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from gprune.tinyvlm.contents import PATTERNS, SHAPES
from gprune.tinyvlm.scenes import make_scene
from gprune.tinyvlm.vocabulary import build_tokenizer
from gprune.training.accuracy import by_type, grid_of, held_out, score, to_pixels, tower_tokens
from gprune.training.captions import captions_of
from gprune.training.heads import CaptionHeads, PatchHeads
from gprune.training.labels import KIND_WORDS, PATCH_HUES, PATCH_MARKS, Labels, dense_labels

# Pictures of the validation split.
SCENES, EASY_VQA = 96, 48


@torch.inference_mode()
def validate_vision(
    model: LlavaForConditionalGeneration, heads: PatchHeads | CaptionHeads
) -> dict[str, float]:
    """Measures the objective of stage 1: `patch_accuracy`, or `CaptionHeads.accuracy`."""
    grid = grid_of(model)
    scenes = [make_scene("validation", 0, index) for index in range(SCENES)]
    pixels = to_pixels([scene.draw(grid) for scene in scenes])
    features, cls = tower_tokens(model, pixels)
    projected = model.model.multi_modal_projector(features)
    labels = dense_labels(scenes, grid)
    words = model.get_input_embeddings().weight
    if isinstance(heads, CaptionHeads):
        captions = captions_of(scenes, labels, build_tokenizer())
        return heads.accuracy(projected, cls, words, captions)
    return patch_accuracy(heads, projected, words, labels)


def patch_accuracy(
    heads: PatchHeads, projected: Tensor, words: Tensor, labels: Labels
) -> dict[str, float]:
    """Returns the share of correct patch labels by what the patches show.

    An edge counts as right within one bin.
    """
    kinds, hues, marks = (
        logits.argmax(-1) == label
        for logits, label in zip(
            heads(projected, words), (labels.kinds, labels.hues, labels.marks), strict=True
        )
    )
    edge_error = (heads.edges(projected, words).argmax(-1) - labels.edges).abs()
    centre, ink = PATCH_MARKS.index("centre"), PATCH_HUES.index("ink")
    signs = (labels.marks > 0) & (labels.marks < centre)
    patterns = torch.tensor([word in PATTERNS for word in KIND_WORDS])[labels.kinds]
    # Name in the log: correct predictions, and the patches that count.
    parts = {
        "shape": (kinds, labels.kinds < len(SHAPES)),
        "pattern": (kinds, patterns),
        "sign": (kinds, signs),
        "color": (hues, labels.hues < ink),
        "tint": (hues, labels.hues > ink),
        "order": (marks, signs),
        "centre": (marks, labels.marks == centre),
        "edges": (edge_error <= 1, labels.edges >= 0),
    }
    return {name: correct[mask].float().mean().item() for name, (correct, mask) in parts.items()}


def validate_answers(model: LlavaForConditionalGeneration) -> dict[str, float]:
    """Returns the share of right answers by question type, with all tokens."""
    samples = held_out("validation", SCENES, EASY_VQA, grid=grid_of(model))
    outcomes = by_type(samples, score(model, samples))
    return {kind: float(np.mean(results)) for kind, results in outcomes.items()}
