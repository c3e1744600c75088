"""DART in a model keeps what its definition keeps of the model's own cache and hidden states."""

from __future__ import annotations

import pytest
import torch

from gprune import DART, kept_count
from gprune.proof.batches import add_video, finish_batch, forward, make_batch
from gprune.proof.models import SPECIMENS
from tests.hf.decoder.states import ModelStates, mask_of
from tests.hf.decoder.test_attention import llava_with
from tests.pruners import decoder_references as references


def expected_mask(model, batch, pruner, kept):
    """Returns the mask of columns that stay, chosen by the definition."""
    states = ModelStates(model, batch, pruner.layer)
    chosen = []
    for row, columns in enumerate(states.columns):
        if not len(columns):
            chosen.append([])
            continue
        tokens = states.tokens(row, kept[row])
        k = kept_count(len(columns), pruner.keep)
        turns = None
        if pruner.turns == "set":
            turns = set_turns(tokens, k, pruner)
        chosen.append(
            references.dart(tokens, k, pruner.pivots, pruner.text_pivots, pruner.overspend, turns)
        )
    return mask_of(states, chosen)


def set_turns(tokens, k, pruner):
    """Returns the pivots in the order of a set of their positions in the prompt."""
    n = len(tokens)

    def pivots_of(keys, count):
        norms = keys.double().abs().sum(1).tolist()
        return references.largest(norms, count)

    places = pivots_of(tokens.keys, pruner.pivots)
    places += [n + i for i in pivots_of(tokens.text_keys, pruner.text_pivots)]
    position = [*tokens.columns.tolist()]
    position += [position[-1] + 1 + i for i in range(len(tokens.text_keys))]
    at = {position[place]: place for place in places}
    return [at[one] for one in set(at)]


@pytest.mark.parametrize("images", [[1], [3], [2, 0, 1]])
@pytest.mark.parametrize("pruner", [DART(0.5), DART(0.5, layer=1, pivots=3, text_pivots=2)])
@torch.no_grad()
def test_keeps_what_the_definition_keeps(specimen, model, images, pruner):
    batch = make_batch(specimen, model, images, seed=4)
    with pruner(model) as pruned:
        forward(model, batch)
    assert torch.equal(pruned.kept_mask, expected_mask(model, batch, pruner, pruned.kept))
    counts = [sum(len(group.indices) for group in row) for row in pruned.kept]
    totals = [sum(group.size for group in row) for row in pruned.kept]
    assert counts == [kept_count(total, 0.5) if total else 0 for total in totals]


@pytest.mark.parametrize("images", [[1], [1, 0, 1]])
@torch.no_grad()
def test_the_released_number_and_turns(images):
    specimen = SPECIMENS["llava"]
    model = specimen.build()
    batch = make_batch(specimen, model, images, seed=4)
    pruner = DART(0.5, turns="set", overspend=True)
    with pruner(model) as pruned:
        forward(model, batch)
    assert torch.equal(pruned.kept_mask, expected_mask(model, batch, pruner, pruned.kept))
    # 8 of 16: 4 image pivots, and each of 8 pivots takes 1.
    assert pruned.visual_by_layer == [[16, 16, 12] if count else [0, 0, 0] for count in images]


@pytest.mark.parametrize("text", ["qwen2", "qwen3", "mistral"])
@torch.no_grad()
def test_other_language_models(text):
    model, specimen = llava_with(text)(), SPECIMENS["llava"]
    batch = make_batch(specimen, model, [2, 0, 1])
    pruner = DART(0.4)
    with pruner(model) as pruned:
        forward(model, batch)
    assert torch.equal(pruned.kept_mask, expected_mask(model, batch, pruner, pruned.kept))


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_onevision"])
@torch.no_grad()
def test_a_video_beside_an_image(name):
    specimen = SPECIMENS[name]
    model = specimen.build()
    batch, _ = add_video(specimen, model, make_batch(specimen, model, [1]))
    pruner = DART(0.4)
    with pruner(model) as pruned:
        forward(model, batch)
    assert torch.equal(pruned.kept_mask, expected_mask(model, batch, pruner, pruned.kept))


@torch.no_grad()
def test_each_row_keeps_what_it_keeps_alone():
    """Padding moves nothing, also where turns follow positions in the prompt."""
    specimen = SPECIMENS["llava"]
    model = specimen.build()
    batch = make_batch(specimen, model, [2, 1], seed=1)
    pruner = DART(0.5, turns="set")
    with pruner(model) as pruned:
        forward(model, batch)
        together = pruned.kept_mask
        for row, images in enumerate(batch.rows):
            real = batch.inputs["attention_mask"][row].bool()
            ids = batch.inputs["input_ids"][row : row + 1, real]
            alone = finish_batch(specimen, ids, torch.ones_like(ids), [images], [16] * len(images))
            forward(model, alone)
            assert torch.equal(pruned.kept_mask[0], together[row, real])


@torch.no_grad()
def test_a_prompt_without_text_after_the_image():
    """No text pivots are left; visual ones take all turns."""
    specimen = SPECIMENS["llava"]
    model = specimen.build()
    batch = make_batch(specimen, model, [1])
    ids = batch.inputs["input_ids"]
    end = int((ids[0] == model.config.image_token_id).nonzero().max()) + 1
    batch = finish_batch(specimen, ids[:, :end], torch.ones_like(ids[:, :end]), batch.rows, [16])
    pruner = DART(0.5)
    with pruner(model) as pruned:
        forward(model, batch)
    assert torch.equal(pruned.kept_mask, expected_mask(model, batch, pruner, pruned.kept))
    assert int(pruned.kept_mask.sum()) == end - 8


@torch.no_grad()
def test_before_the_language_model(specimen, model):
    """With ``layer=0`` the call itself gets shorter, as for any method that reads features."""
    batch = make_batch(specimen, model, [2, 0, 1])
    with DART(0.4, layer=0)(model) as pruned:
        logits = forward(model, batch).logits
    assert pruned.visual_by_layer is None
    assert logits.shape[1] < batch.inputs["input_ids"].shape[1]
    sizes = [(group.size, len(group.indices)) for row in pruned.kept for group in row]
    assert all(kept == kept_count(size, 0.4) for size, kept in sizes)


def test_layers_are_counted_from_the_model():
    model = SPECIMENS["llava"].build()
    with pytest.raises(ValueError, match=r"layers=\(3,\) must be ascending.*from 1 to 2"):
        DART(0.3, layer=3)(model).__enter__()
    with DART(0.3, layer=0)(model, positions="compact"):
        pass
