"""Position ids of kept tokens and of the text after them."""

from __future__ import annotations

import pytest
import torch

from gprune import GPrune, UniformGridPruner, WeightedCover
from gprune.layouts import family_of
from gprune.proof.batches import GREEDY, finish_batch, forward, make_batch
from gprune.proof.models import SPECIMENS


def test_original_position_ids_reach_the_language_model(specimen, model):
    batch = make_batch(specimen, model, [1])
    seen = {}

    def spy(module, args, kwargs):
        seen.update(kwargs)

    handle = model.get_decoder().register_forward_pre_hook(spy, with_kwargs=True)
    with GPrune(keep=0.25)(model) as pruned:
        forward(model, batch)
    handle.remove()
    kept = pruned.kept_mask[0].nonzero().squeeze(1)
    assert torch.equal(seen["position_ids"], batch.positions(model)[..., kept])
    assert seen["attention_mask"] is not None  # otherwise gaps would read as packed sequences


@pytest.mark.parametrize("name", ["llava", "llava_next", "gemma3", "paligemma"])
@pytest.mark.parametrize("images", [[1], [2, 0, 1]])
def test_compact_positions(name, images):
    """Kept tokens and later text are numbered without gaps, at prefill and when decoding."""
    specimen = SPECIMENS[name]
    model = specimen.build()
    batch = make_batch(specimen, model, images)
    seen = []

    def spy(module, args, kwargs):
        seen.append((kwargs["position_ids"], kwargs["attention_mask"]))

    handle = model.get_decoder().register_forward_pre_hook(spy, with_kwargs=True)
    with GPrune(keep=0.25)(model, positions="compact") as pruned:
        cached = model.generate(**batch.inputs, **GREEDY)
        kept_mask = pruned.kept_mask
        handle.remove()
        uncached = model.generate(**batch.inputs, **GREEDY, use_cache=False)
    real = (kept_mask & batch.inputs["attention_mask"].bool()).sum(1)
    first = specimen.first_position
    for step, (positions, _) in enumerate(seen):
        for row, length in enumerate(real.tolist()):
            ids = positions.expand(len(real), -1)[row]
            expected = range(first, first + length) if step == 0 else [first + length + step - 1]
            assert ids[-len(expected) :].tolist() == list(expected)
    assert torch.equal(cached.sequences, uncached.sequences)
    for one, other in zip(cached.logits, uncached.logits, strict=True):
        assert (one - other).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("name", "pruner"),
    [(name, UniformGridPruner(1)) for name in ("llava", "llava_next", "gemma3")]
    + [("llava", WeightedCover(1))],
)
def test_compact_positions_over_turns(name, pruner):
    """Each turn continues the numbering of the previous one, even if that ends with an image."""
    specimen = SPECIMENS[name]
    model = specimen.build()
    turns = [make_batch(specimen, model, [1], seed=seed) for seed in range(3)]
    ids = turns[1].inputs["input_ids"][:, :-7]  # without the words after the image
    turns[1] = finish_batch(specimen, ids, torch.ones_like(ids), turns[1].rows, turns[1].lengths)
    turns.insert(2, make_batch(specimen, model, [0]))
    seen = []

    def spy(module, args, kwargs):
        seen.extend(kwargs["position_ids"][0].tolist())

    cache, ids = None, torch.empty(1, 0, dtype=torch.long)
    handle = model.get_decoder().register_forward_pre_hook(spy, with_kwargs=True)
    with pruner(model, positions="compact") as pruned, torch.no_grad():
        assert pruned.positions == "compact"
        for turn in turns:
            ids = torch.cat([ids, turn.inputs["input_ids"]], 1)
            call = {**turn.inputs, "attention_mask": torch.ones_like(ids)}
            call |= specimen.token_types(ids) if specimen.history else {}
            cache = model(**call, past_key_values=cache).past_key_values
            if turn is turns[1] and name == "llava":
                assert not pruned.kept_mask[0, -1]
    handle.remove()
    first = specimen.first_position
    assert seen == list(range(first, first + cache.get_query_offset()))


def test_compact_positions_are_refused_with_mrope(specimen, model):
    with pytest.raises(ValueError, match="positions='dense' must be one of"):
        GPrune(0.3)(model, positions="dense").__enter__()
    if family_of(model).multimodal_positions:
        with pytest.raises(ValueError, match="M-RoPE"):
            GPrune(0.3)(model, positions="compact").__enter__()
