"""Cache, records and clean-up of methods that prune between layers."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch

from gprune import FastV, GPrune, PyramidDrop, SparseVLM, kept_count
from gprune.proof.batches import GREEDY, forward, make_batch
from gprune.proof.models import IMAGE, SPECIMENS
from tests.hf.decoder.reference import PRUNERS, Reference, label
from tests.hf.layerwise import embedded, greedy, run

# The first keeps positions, the others number them anew; the last appends rows.
TURNS = [
    FastV(0.3, layer=1),
    PyramidDrop(0.2, layers=(1, 2)),
    SparseVLM(0.3, layers=(0, 1), recycle=0.6),
]


@pytest.mark.parametrize("pruner", PRUNERS, ids=label)
def test_later_layers_are_shorter(specimen, model, pruner):
    batch = make_batch(specimen, model, [2, 0, 1])
    real = batch.inputs["attention_mask"]
    with pruner(model) as pruned:
        output = forward(model, batch)
    depth = len(output.past_key_values.layers)
    text = (real.bool() & (batch.inputs["input_ids"] != IMAGE)).sum(1, keepdim=True)
    tokens = np.array(pruned.visual_by_layer) + text.numpy()
    assert tokens.shape == (3, depth)
    lengths = [layer.keys.shape[2] for layer in output.past_key_values.layers]
    first = pruner.stages(depth)[0]
    assert lengths[:first] == [real.shape[1]] * first
    assert lengths[first:] == tokens.max(0)[first:].tolist()
    assert lengths[-1] < lengths[0]
    assert output.logits.shape[1] == lengths[-1]
    assert tokens[:, -1].tolist() == pruned.kept_mask.sum(1).tolist()
    assert tokens[:, 0].tolist() == real.sum(1).tolist()
    assert (np.diff(tokens, axis=1) <= 0).all()
    assert output.past_key_values.get_seq_length() == real.shape[1]  # what `generate` slices by


@pytest.mark.parametrize("pruner", PRUNERS, ids=label)
def test_kept_describes_the_last_layer(specimen, model, pruner):
    batch = make_batch(specimen, model, [2, 0, 1])
    with pruner(model) as pruned:
        forward(model, batch)
    ids, real = batch.inputs["input_ids"], batch.inputs["attention_mask"].bool()
    visual = ids == IMAGE
    assert torch.equal(pruned.kept_mask & ~visual, real & ~visual)
    always = 0
    for row, groups in enumerate(pruned.kept):
        total = sum(group.size for group in groups)
        kept = sum(len(group.indices) for group in groups)
        if getattr(pruner, "form", "") == "paper" or not total:
            assert kept == (kept_count(total, pruner.keep) if total else 0)
        else:
            assert kept == pruner.schedule(total, len(pruned.layers))[-1]
        always = int(visual[row].sum()) - total  # the ends of a canvas's rows
        assert int((pruned.kept_mask & visual)[row].sum()) == kept + always


@pytest.mark.parametrize("pruner", TURNS, ids=label)
def test_text_in_a_second_turn(specimen, model, eager, pruner):
    """Adds several tokens at once after a pruned prompt."""
    batch = make_batch(specimen, model, [1, 2], seed=1)
    more = torch.tensor([[8, 9, 10]] * 2)
    mask = torch.cat([batch.inputs["attention_mask"], torch.ones_like(more)], 1)
    positions = batch.positions(model)
    after = positions[..., -1:] + torch.arange(1, 4)
    with pruner(model), torch.no_grad():
        cache = forward(model, batch, position_ids=positions).past_key_values
        turn = model(more, attention_mask=mask, position_ids=after, past_key_values=cache)
    with torch.no_grad():
        reference = Reference(eager, pruner, batch)
        greedy(eager, batch, 1, reference)
        embeds = torch.cat([embedded(eager, batch), eager.get_input_embeddings()(more)], 1)
        logits, _ = run(eager, embeds, mask.bool(), torch.cat([positions, after], -1), reference)
    assert (turn.logits - logits[:, -3:]).abs().max() <= 1e-5


@pytest.mark.parametrize("pruner", TURNS, ids=label)
def test_decoding_without_mask_or_positions(specimen, model, eager, pruner):
    batch = make_batch(specimen, model, [1])
    with pruner(model), torch.no_grad():
        output = forward(model, batch)
        token = output.logits[:, -1:].argmax(-1)
        step = model(input_ids=token, past_key_values=output.past_key_values)
        _, logits, _ = greedy(eager, batch, 2, Reference(eager, pruner, batch))
    assert (step.logits[:, -1] - logits[:, 1]).abs().max() <= 1e-5


@pytest.mark.parametrize("pruner", TURNS, ids=label)
def test_copied_cache_knows_what_was_pruned(specimen, model, pruner):
    batch = make_batch(specimen, model, [1, 2])
    with pruner(model), torch.no_grad():
        output = forward(model, batch)
        token = output.logits[:, -1:].argmax(-1)
        twin = copy.deepcopy(output.past_key_values)
        one = model(input_ids=token, past_key_values=output.past_key_values).logits
        other = model(input_ids=token, past_key_values=twin).logits
    assert torch.equal(one, other)


@pytest.mark.parametrize("pruner", TURNS, ids=label)
def test_cache_rows_can_be_selected_and_repeated(model, specimen, pruner):
    batch = make_batch(specimen, model, [1, 2])
    with pruner(model), torch.no_grad():
        output = forward(model, batch)
        token = output.logits[:, -1:].argmax(-1)
        mask = torch.cat([batch.inputs["attention_mask"], torch.ones_like(token)], 1)
        positions = batch.positions(model)[..., -1:] + 1
        cache = copy.deepcopy(output.past_key_values)
        plain = {"past_key_values": output.past_key_values}
        expected = model(token, attention_mask=mask, position_ids=positions, **plain).logits
        cache.batch_select_indices(torch.tensor([1]))
        cache.batch_repeat_interleave(2)
        rows = torch.tensor([1, 1])
        found = model(
            token[rows],
            attention_mask=mask[rows],
            position_ids=positions[..., rows, :],
            past_key_values=cache,
        ).logits
    assert (found - expected[rows]).abs().max() <= 1e-5


def test_a_cache_keeps_its_numbering():
    """A method that keeps positions continues a cache that was numbered without gaps."""
    specimen = SPECIMENS["llava"]
    model = specimen.build()
    batch = make_batch(specimen, model, [1, 2])
    pruner = PyramidDrop(0.2, layers=(1, 2))
    token = torch.tensor([[7], [8]])
    with pruner(model), torch.no_grad():
        cache = forward(model, batch).past_key_values
        twin = copy.deepcopy(cache)
        expected = model(input_ids=token, past_key_values=cache).logits
    with FastV(0.3)(model), torch.no_grad():
        assert torch.equal(model(input_ids=token, past_key_values=twin).logits, expected)


def test_rolling_back_into_the_prompt_is_refused(specimen, model):
    batch = make_batch(specimen, model, [1])
    with FastV(0.3)(model):
        cache = forward(model, batch).past_key_values
        with pytest.raises(ValueError, match="last 12 positions of the prompt"):
            cache.crop(-12)


def test_pruned_cache_is_refused_outside(specimen, model):
    batch = make_batch(specimen, model, [1])
    with FastV(0.3)(model):
        cache = forward(model, batch).past_key_values
    with pytest.raises(RuntimeError, match="pruned by gprune"):
        model(input_ids=torch.tensor([[7]]), past_key_values=cache)
    with GPrune(0.3)(model), pytest.raises(RuntimeError, match="pruned by gprune"):
        model(input_ids=torch.tensor([[7]]), past_key_values=cache)


def test_leaving_leaves_no_trace(specimen, model):
    batch = make_batch(specimen, model, [1])
    before = forward(model, batch).logits
    state = {name: set(vars(module)) for name, module in model.named_modules()}
    with pytest.raises(ZeroDivisionError), FastV(0.3)(model):
        assert forward(model, batch).logits.shape[1] / 0
    assert torch.equal(forward(model, batch).logits, before)
    assert state == {name: set(vars(module)) for name, module in model.named_modules()}
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_failed_call_leaves_the_next_one_alone(specimen, model):
    batch = make_batch(specimen, model, [1])
    with FastV(0.3)(model):
        expected = forward(model, batch).logits
        handle = model.lm_head.register_forward_pre_hook(lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            forward(model, batch)
        handle.remove()
        text = torch.tensor([[5, 6, 7]])
        with torch.no_grad():
            model(input_ids=text)
        assert torch.equal(forward(model, batch).logits, expected)


def test_two_threads_with_one_model():
    specimen = SPECIMENS["llava"]
    model = specimen.build()
    batches = [make_batch(specimen, model, images, seed=1) for images in ([1], [2, 0])]
    with FastV(0.3)(model):
        expected = [model.generate(**batch.inputs, **GREEDY).sequences for batch in batches]
        found = [[], []]

        def work(number):
            for _ in range(5):
                output = model.generate(**batches[number].inputs, **GREEDY)
                found[number].append(output.sequences)

        threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for one, runs in zip(expected, found, strict=True):
        assert len(runs) == 5
        assert all(torch.equal(one, run) for run in runs)
