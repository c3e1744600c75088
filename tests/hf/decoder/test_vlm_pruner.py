"""VLM-Pruner in a model keeps and merges what its definition does with the model's own states."""

from __future__ import annotations

import pytest
import torch

from gprune import VLMPruner, kept_count
from gprune.proof.batches import GREEDY, add_video, finish_batch, forward, make_batch
from gprune.proof.models import SPECIMENS
from tests.hf.decoder.states import ModelStates, mask_of, recorded_input
from tests.hf.decoder.test_attention import llava_with
from tests.pruners.decoder_references import VLMPrunerReference

PRUNERS = [
    VLMPruner(0.5),
    VLMPruner(0.5, layer=1, pivots=2, threshold=0.1, batch=3, channels=20),
    VLMPruner(0.5, threshold=0.0, fill=False),
]


def check(model, batch, pruner):
    """Compares kept tokens and the states that enter the layer with the definition's."""
    with recorded_input(model, pruner.layer) as found, pruner(model) as pruned:
        forward(model, batch)
    states = ModelStates(model, batch, pruner.layer)
    hidden, chosen = states.hidden.clone(), []
    for row, columns in enumerate(states.columns):
        chosen.append([])
        if not len(columns):
            continue
        tokens = states.tokens(row, pruned.kept[row])
        reference = VLMPrunerReference(tokens, pruner.buffering, pruner.channels)
        k = kept_count(len(columns), pruner.keep)
        kept = reference.kept(k, pruner.pivots, pruner.threshold, pruner.batch, pruner.fill)
        hidden[row, columns[kept]] = torch.from_numpy(reference.merged(kept)).float()
        chosen[-1] = kept
    mask = mask_of(states, chosen)
    assert torch.equal(pruned.kept_mask, mask)
    expected = model.get_decoder().layers[pruner.layer].input_layernorm(hidden)
    for row, own in enumerate(mask):
        wanted = expected[row, own]
        assert (found[0][row, -len(wanted) :] - wanted).abs().max() <= 1e-4
    return chosen


@pytest.mark.parametrize("images", [[1], [3], [2, 0, 1]])
@pytest.mark.parametrize("pruner", PRUNERS)
@torch.no_grad()
def test_keeps_and_merges_what_the_definition_does(specimen, model, images, pruner):
    batch = make_batch(specimen, model, images, seed=4)
    chosen = check(model, batch, pruner)
    if pruner.fill:
        totals = [len(columns) for columns in ModelStates(model, batch, pruner.layer).columns]
        counts = [kept_count(total, 0.5) if total else 0 for total in totals]
        assert [len(kept) for kept in chosen] == counts


@pytest.mark.parametrize("text", ["qwen2", "qwen3", "mistral"])
@torch.no_grad()
def test_other_language_models(text):
    model, specimen = llava_with(text)(), SPECIMENS["llava"]
    check(model, make_batch(specimen, model, [2, 0, 1]), VLMPruner(0.4))


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_onevision"])
@torch.no_grad()
def test_a_video_beside_an_image(name):
    specimen = SPECIMENS[name]
    model = specimen.build()
    batch, _ = add_video(specimen, model, make_batch(specimen, model, [1]))
    check(model, batch, VLMPruner(0.4))


@torch.no_grad()
def test_each_row_keeps_what_it_keeps_alone():
    specimen = SPECIMENS["llava"]
    model = specimen.build()
    batch = make_batch(specimen, model, [2, 1], seed=1)
    with VLMPruner(0.5)(model) as pruned:
        forward(model, batch)
        together = pruned.kept_mask
        for row, images in enumerate(batch.rows):
            real = batch.inputs["attention_mask"][row].bool()
            ids = batch.inputs["input_ids"][row : row + 1, real]
            alone = finish_batch(specimen, ids, torch.ones_like(ids), [images], [16] * len(images))
            forward(model, alone)
            assert torch.equal(pruned.kept_mask[0], together[row, real])


@torch.no_grad()
def test_passes_that_end_early_are_decoded(specimen, model):
    """Fewer tokens than the budget stay, a different number in each row."""
    batch = make_batch(specimen, model, [2, 1], seed=3)
    with VLMPruner(0.9, threshold=0.0, fill=False)(model) as pruned:
        output = model.generate(**batch.inputs, **GREEDY)
        counts = [layers[-1] for layers in pruned.visual_by_layer]
        again = model.generate(**batch.inputs, **GREEDY, use_cache=False)
    totals = [layers[0] for layers in pruned.visual_by_layer]
    assert all(count < kept_count(n, 0.9) for count, n in zip(counts, totals, strict=True))
    assert torch.equal(output.sequences, again.sequences)


@torch.no_grad()
def test_before_the_language_model(specimen, model):
    """With ``layer=0`` the call itself gets shorter, as for any method that reads features."""
    batch = make_batch(specimen, model, [2, 0, 1])
    with VLMPruner(0.4, layer=0)(model) as pruned:
        logits = forward(model, batch).logits
    assert pruned.visual_by_layer is None
    assert logits.shape[1] < batch.inputs["input_ids"].shape[1]
    sizes = [(group.size, len(group.indices)) for row in pruned.kept for group in row]
    assert all(kept == kept_count(size, 0.4) for size, kept in sizes)
