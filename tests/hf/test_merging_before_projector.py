"""Merged rows inside a model: the encoder's features are merged and then projected.

The reference runs the model's own encoder and projector by hand, finds the patch of each token by
its projected feature, and merges with the lists of `released_merging`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gprune import TRIM, PruMerge, PruMergePlus, Pruner, VisionZip
from gprune.proof.batches import Batch, make_batch
from gprune.proof.models import IMAGE, SPECIMENS
from tests.hf.signal_specimens import SIGLIP
from tests.hf.test_encoder_layers import built
from tests.pruners import released_merging as released

FAMILIES = ("llava", "llava_next", "llava_onevision")
METHODS = [
    PruMerge(0.4),
    PruMerge("adaptive", neighbours=3),
    PruMerge(1),
    PruMergePlus("adaptive"),
    VisionZip(0.5, contextual=0.4),
    TRIM(0.4),
    TRIM("adaptive"),
]


@dataclass
class Patch:
    """What the encoder gives for all patches of a call, [patches, ...] each."""

    vision: Tensor
    features: Tensor
    joint: Tensor
    last_keys: Tensor
    attention: Tensor
    keys: Tensor

    def at(self, index: list[int]) -> Patch:
        return Patch(*(value[index] for value in vars(self).values()))


@torch.no_grad()
def encode(model: Any, pixels: Tensor) -> Patch:
    """Runs tower and projector by hand; features are those of the last layer but one."""
    tower = model.model.vision_tower
    pixels = pixels.flatten(0, -4)  # [tiles, 3, side, side]
    seen: dict[str, Tensor] = {}
    hooks = [
        layer.get_submodule(f"self_attn.{part}").register_forward_hook(
            lambda module, args, output, key=f"{part}{number}": seen.__setitem__(key, output)
        )
        for number, layer in enumerate(tower.encoder.layers)
        for part in ("q_proj", "k_proj")
    ]
    hidden = tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    for hook in hooks:
        hook.remove()
    query, key = seen["q_proj1"].double(), seen["k_proj1"].double()  # of the last layer
    joint = torch.softmax((query[:, :1] @ key.mT)[:, 0] / key.shape[-1] ** 0.5, -1)[:, 1:]
    heads = [seen[part].double().unflatten(-1, (4, -1)) for part in ("q_proj0", "k_proj0")]
    logits = torch.einsum("bhc,bnhc->bhn", heads[0][:, 0], heads[1]) / heads[1].shape[-1] ** 0.5
    attention = torch.softmax(logits, -1).mean(1)[:, 1:]
    features = model.model.multi_modal_projector(hidden)
    parts = (hidden, features, joint, key[:, 1:], attention, heads[1][:, 1:])
    return Patch(*(part.flatten(0, 1) for part in parts))


def groups_of(features: Tensor, patch: Patch) -> list[tuple[list[int], list[int]]]:
    """Returns for each group its rows of an image's features, and the patch of each row."""
    rows, index = [], []
    for row, feature in enumerate(features):
        distance = (patch.features - feature).abs().amax(1)
        if distance.min() < 1e-6:  # else a newline
            rows.append(row)
            index.append(int(distance.argmin()))
    split = [16] if len(features) > 16 else []
    bounds = [0, *split, len(rows)]
    return [(rows[start:stop], index[start:stop]) for start, stop in itertools.pairwise(bounds)]


def kept_numbers(pruner: Pruner, scores: list[float]) -> list[int]:
    """Returns the tokens that PruMerge, PruMerge+ or TRIM keep."""
    if pruner.keep != "adaptive":
        return sorted(released.ranked(scores)[: released_count(pruner, len(scores)) - 1])
    best = released.ranked(scores)[: released.outliers(scores)]
    more = released.evenly_added(best, len(scores)) if isinstance(pruner, PruMergePlus) else []
    return sorted([*best, *more])


def released_count(pruner: Pruner, n: int) -> int:
    return pruner.keep if isinstance(pruner.keep, int) else int(n * pruner.keep)


def reference(pruner: Pruner, patch: Patch, text: Tensor) -> released.Rows:
    """Merges a group in the encoder's space, in float64."""
    x = patch.vision.double().numpy()
    if isinstance(pruner, PruMerge):
        scores = patch.joint.tolist()
        kept = kept_numbers(pruner, scores)
        return released.prumerge(x, scores, patch.last_keys.numpy(), kept, pruner.neighbours)
    if isinstance(pruner, TRIM):
        logits = (patch.features.double() @ text.double().mean(0)).numpy()
        scores = np.exp(logits - logits.max())
        scores = (scores / scores.sum()).tolist()
        return released.trim(x, scores, len(kept_numbers(pruner, scores)))
    assert isinstance(pruner, VisionZip)
    k = int(len(x) * pruner.keep)
    return released.visionzip(
        x, patch.attention.tolist(), patch.keys.numpy(), k, int(k * pruner.contextual)
    )


@torch.no_grad()
def pruned_embeddings(model: Any, batch: Batch, pruner: Pruner) -> tuple[list[int], Tensor]:
    """Returns the placeholders that stay, by number, and what the language model gets there."""
    seen: list[Tensor] = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with pruner(model) as pruned:
        model(**batch.inputs)
    hook.remove()
    visual = batch.inputs["input_ids"][0] == IMAGE
    kept = pruned.kept_mask[0]
    return kept[visual].nonzero().squeeze(1).tolist(), seen[0][0][visual[kept]]


@pytest.mark.parametrize("pruner", METHODS, ids=lambda pruner: f"{pruner.name}-{pruner.keep}")
@pytest.mark.parametrize("name", FAMILIES)
def test_rows_are_merged_before_the_projector(name, pruner):
    specimen, model = built(name)
    batch = make_batch(specimen, model, [2])
    ids = batch.inputs["input_ids"][0]
    text = model.get_input_embeddings()(ids[ids != IMAGE]).detach()
    with torch.no_grad():
        output = model.model.get_image_features(**batch.pixels, return_dict=True)
    patches = encode(model, batch.pixels["pixel_values"])
    expected: dict[int, Tensor] = {}
    start = changed = 0
    for features in output.pooler_output:
        expected |= {start + row: feature for row, feature in enumerate(features)}
        for rows, index in groups_of(features, patches):
            kept, merged, extra = reference(pruner, patches.at(index), text)
            dropped = [i for i in range(len(rows)) if i not in kept]
            places = [*kept, dropped[-1]] if extra is not None else kept
            vectors = [*merged, extra] if extra is not None else merged
            new = torch.from_numpy(np.stack(vectors)).float()
            with torch.no_grad():
                projected = model.model.multi_modal_projector(new)
            for row in rows:
                del expected[start + row]
            for place, feature in zip(places, projected, strict=True):
                changed += int(not torch.allclose(feature, features[rows[place]], atol=1e-4))
                expected[start + rows[place]] = feature
        start += len(features)
    rows, embeddings = pruned_embeddings(model, batch, pruner)
    assert rows == sorted(expected)
    assert changed > 1
    wanted = torch.stack([expected[row] for row in rows])
    assert (embeddings - wanted).abs().max() <= 2e-5 * wanted.abs().max()


@pytest.mark.parametrize("name", ["vipllava", SIGLIP.name, "idefics3", "qwen2_5_vl"])
def test_elsewhere_projected_features_are_merged(name):
    """Where the projector reads several patches or layers; SigLIP's works row by row."""
    specimen, model = built(name) if name == SIGLIP.name else (SPECIMENS[name], None)
    model = model or specimen.build()
    batch = make_batch(specimen, model, [1])
    shown = []

    class Watched(VisionZip):
        def choose(self, tokens, k):
            shown.append((tokens, super().choose(tokens, k)))
            return shown[-1][1]

    pruner = Watched(0.5, contextual=0.4)
    with pruner(model) as pruned, torch.no_grad():
        model(**batch.inputs)
        images = [image for chosen in pruned.selections for image in chosen.images]
    after = torch.cat([found.features(tokens.features) for tokens, found in shown])
    got = []
    for image in images:
        of_row = dict(zip(image.reduced.rows.tolist(), image.reduced.features, strict=True))
        for group, kept in zip(image.groups, image.reduced.kept, strict=True):
            got += [of_row[row] for row in group.rows[kept].tolist()]
    same = torch.allclose(torch.stack(got), after, atol=1e-6)
    assert same == (name != SIGLIP.name)


def test_unchanged_rows_are_bit_identical():
    """Only merged rows go through the projector a second time."""
    specimen, model = built("llava")
    batch = make_batch(specimen, model, [1])
    with torch.no_grad():
        (features,) = model.model.get_image_features(**batch.pixels, return_dict=True).pooler_output
    rows, embeddings = pruned_embeddings(model, batch, TRIM(0.5))
    assert len(rows) == 8
    assert torch.equal(embeddings[:-1], features[rows[:-1]])
    assert not torch.allclose(embeddings[-1], features[rows[-1]])
