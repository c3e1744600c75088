"""The cache after a pruned prefill: its lengths, copies, and rolling it back."""

from __future__ import annotations

import copy

import pytest
import torch

from gprune import GPrune, UniformGridPruner
from gprune.proof.batches import forward, make_batch, masked_greedy
from gprune.proof.sizes import cache_length, measure_prefill, memory


def test_cache_is_shorter(specimen, model):
    batch = make_batch(specimen, model, [1])
    length = batch.inputs["input_ids"].shape[1]
    with GPrune(keep=0.25)(model) as pruned:
        output = forward(model, batch)
    physical = int(pruned.kept_mask.sum())
    cache = output.past_key_values
    assert physical < length
    assert all(layer.keys.shape[2] == physical for layer in cache.layers)
    assert output.logits.shape[1] == physical
    assert cache.get_seq_length() == length  # `generate` slices by it
    assert cache.get_query_offset() == physical
    prefill = measure_prefill(model, GPrune(keep=0.25), batch.inputs)
    assert cache_length(prefill).passed
    assert memory(prefill).passed


def test_decoding_without_mask_or_positions(specimen, model):
    """A hand-written loop that passes only ids and cache gets the right mask."""
    batch = make_batch(specimen, model, [1])
    with GPrune(keep=0.3)(model) as pruned, torch.no_grad():
        output = forward(model, batch)
        token = output.logits[:, -1:].argmax(-1)
        step = model(input_ids=token, past_key_values=output.past_key_values)
    _, logits = masked_greedy(model, batch, pruned.kept_mask, 2)
    assert (step.logits[:, -1] - logits[:, 1]).abs().max() <= 1e-5


def test_copied_cache_knows_what_was_pruned(specimen, model):
    batch = make_batch(specimen, model, [1, 2])
    with GPrune(keep=0.3)(model), torch.no_grad():
        output = forward(model, batch)
        token = output.logits[:, -1:].argmax(-1)
        twin = copy.deepcopy(output.past_key_values)
        one = model(input_ids=token, past_key_values=output.past_key_values).logits
        other = model(input_ids=token, past_key_values=twin).logits
    assert torch.equal(one, other)


def test_rolled_back_cache(specimen, model):
    """Rolls back to the middle of the image; compares with a cache that was cut by hand."""
    batch = make_batch(specimen, model, [1])
    ids, positions = batch.inputs["input_ids"], batch.positions(model)
    length = ids.shape[1]
    with UniformGridPruner(keep=0.3)(model) as pruned, torch.no_grad():
        cache = forward(model, batch).past_key_values
        kept_mask = pruned.kept_mask
        remains = length - batch.lengths[0] // 2 - 3
        cache.crop(remains - length)
        assert cache.get_seq_length() == remains
        assert cache.layers[0].keys.shape[2] == int(kept_mask[0, :remains].sum())
        token = torch.tensor([[7]])
        step = model(
            input_ids=token, position_ids=positions[..., :1] + 50, past_key_values=cache
        ).logits
        # By hand: a new prefill, its cache cut to the remaining slots.
        twin = forward(model, batch).past_key_values
        slots = int(kept_mask[0, :remains].sum())
        for layer in twin.layers:
            layer.keys, layer.values = layer.keys[:, :, :slots], layer.values[:, :, :slots]
        twin.origin, twin.slot_mask = twin.origin[:, :slots], twin.slot_mask[:, :slots]
        twin.logical = remains
        expected = model(
            input_ids=token, position_ids=positions[..., :1] + 50, past_key_values=twin
        ).logits
    assert torch.equal(step, expected)


def test_rolling_back_rows_unevenly_is_refused(specimen, model):
    batch = make_batch(specimen, model, [1, 2])
    with GPrune(keep=0.3)(model):
        cache = forward(model, batch).past_key_values
        left = [(cache.origin >= length).sum(1).unique() for length in range(cache.logical)]
        uneven = next(length for length, counts in enumerate(left) if len(counts) > 1)
        with pytest.raises(ValueError, match="different numbers of tokens"):
            cache.crop(uneven - cache.logical)


def out_of_memory(*args):
    raise MemoryError


@pytest.mark.parametrize("inside", [None, "a step", "a step that fails"])
def test_pruned_cache_is_refused_outside(specimen, model, inside):
    """The cache is refused whether the last call inside succeeded or failed."""
    batch = make_batch(specimen, model, [1])
    with GPrune(keep=0.3)(model), torch.no_grad():
        output = forward(model, batch)
        step = {
            "input_ids": output.logits[:, -1:].argmax(-1),
            "past_key_values": output.past_key_values,
        }
        if inside == "a step":
            model(**step)
        elif inside == "a step that fails":
            handle = model.get_decoder().register_forward_pre_hook(out_of_memory)
            with pytest.raises(MemoryError):
                model(**step)
            handle.remove()
    with pytest.raises(RuntimeError, match="was pruned by gprune"):
        model(**step)
