"""Conversations of several turns through one cache."""

from __future__ import annotations

import pytest
import torch

from gprune import UniformGridPruner
from gprune.proof.batches import Batch, finish_batch, forward, make_batch, masked_greedy
from gprune.proof.models import SPECIMENS

# Specimens whose images may come in a later turn.
TURNS = [name for name, specimen in SPECIMENS.items() if specimen.turns]


def joined_turns(first: Batch, second: Batch) -> Batch:
    """Joins two turns into one batch; in each row the first turn's images come first."""
    ids, mask = (
        torch.cat([first.inputs[name], second.inputs[name]], 1)
        for name in ("input_ids", "attention_mask")
    )
    rows = [one + other for one, other in zip(first.rows, second.rows, strict=True)]
    return finish_batch(first.specimen, ids, mask, rows, [])


@pytest.mark.parametrize("keep", [0.3, 1.0])
@pytest.mark.parametrize("name", TURNS)
def test_second_turn_with_another_image(name, keep):
    """Compares with one full-length call in which the dropped tokens of both turns are masked."""
    specimen = SPECIMENS[name]
    model = specimen.build()
    first, second = (
        make_batch(specimen, model, [1, 2], seed=1),
        make_batch(specimen, model, [1, 1], seed=2),
    )
    joined = joined_turns(first, second)
    ids, mask = joined.inputs["input_ids"], joined.inputs["attention_mask"]
    positions = joined.positions(model)
    past = first.inputs["input_ids"].shape[1]
    with UniformGridPruner(keep=0.3)(model) as pruned:
        cache = forward(model, first, position_ids=positions[..., :past]).past_key_values
        kept_first = pruned.kept_mask
    with UniformGridPruner(keep=keep)(model) as pruned, torch.no_grad():
        output = model(
            input_ids=second.inputs["input_ids"],
            attention_mask=mask,
            position_ids=positions[..., past:],
            past_key_values=cache,
            **(specimen.token_types(ids) if specimen.history else {}),
            **second.pixels,
        )
        kept_second = pruned.kept_mask
        assert cache.get_seq_length() == mask.shape[1]
        token = output.logits[:, -1:].argmax(-1)
        step = model(
            input_ids=token,
            attention_mask=torch.cat([mask, torch.ones_like(token)], 1),
            position_ids=positions[..., -1:] + 1,
            past_key_values=cache,
        )
    tokens, logits = masked_greedy(model, joined, torch.cat([kept_first, kept_second], 1), 2)
    assert torch.equal(token, tokens[:, :1])
    assert (output.logits[:, -1] - logits[:, 0]).abs().max() <= 1e-5
    assert (step.logits[:, -1] - logits[:, 1]).abs().max() <= 1e-5


@pytest.mark.parametrize("name", TURNS)
def test_a_turn_of_text_after_a_pruned_one(name):
    """Padding of the second turn is masked; token types of the history lose dropped positions."""
    specimen = SPECIMENS[name]
    model = specimen.build()
    first, second = make_batch(specimen, model, [1, 2], seed=1), make_batch(specimen, model, [0, 0])
    second.inputs["input_ids"][0, :3] = 0
    second.inputs["attention_mask"][0, :3] = 0
    joined = joined_turns(first, second)
    ids, mask = joined.inputs["input_ids"], joined.inputs["attention_mask"]
    positions = joined.positions(model)
    past = first.inputs["input_ids"].shape[1]
    with UniformGridPruner(keep=0.3)(model) as pruned, torch.no_grad():
        cache = forward(model, first, position_ids=positions[..., :past]).past_key_values
        kept = pruned.kept_mask
        output = model(
            input_ids=ids[:, past:],
            attention_mask=mask,
            position_ids=positions[..., past:],
            past_key_values=cache,
            **(specimen.token_types(ids) if specimen.history else {}),
        )
        assert torch.equal(pruned.kept_mask, kept)  # of the latest prefill with images
        token = output.logits[:, -1:].argmax(-1)
        step = model(
            input_ids=token,
            attention_mask=torch.cat([mask, torch.ones_like(token)], 1),
            position_ids=positions[..., -1:] + 1,
            past_key_values=cache,
        )
    kept = torch.cat([kept, torch.ones_like(ids[:, past:])], 1)
    tokens, logits = masked_greedy(model, joined, kept, 2)
    assert torch.equal(token, tokens[:, :1])
    assert (output.logits[:, -1] - logits[:, 0]).abs().max() <= 1e-5
    assert (step.logits[:, -1] - logits[:, 1]).abs().max() <= 1e-5


@pytest.mark.parametrize("name", TURNS)
def test_an_answer_between_two_turns_with_images(name):
    """Tokens generated since the first turn keep their slots in the cache of the second."""
    specimen = SPECIMENS[name]
    model = specimen.build()
    first, answer, second = (
        make_batch(specimen, model, images, seed=seed)
        for seed, images in enumerate(([1, 2], [0, 0], [1, 1]), 1)
    )
    answered = joined_turns(first, answer)
    joined = joined_turns(answered, second)
    ids, mask = joined.inputs["input_ids"], joined.inputs["attention_mask"]
    positions = joined.positions(model)
    past, later = first.inputs["input_ids"].shape[1], answered.inputs["input_ids"].shape[1]
    with UniformGridPruner(keep=0.3)(model) as pruned, torch.no_grad():
        cache = forward(model, first, position_ids=positions[..., :past]).past_key_values
        kept = [pruned.kept_mask]
        for position in range(past, later):
            model(
                input_ids=ids[:, position : position + 1],
                attention_mask=mask[:, : position + 1],
                position_ids=positions[..., position : position + 1],
                past_key_values=cache,
            )
        output = model(
            input_ids=ids[:, later:],
            attention_mask=mask,
            position_ids=positions[..., later:],
            past_key_values=cache,
            **(specimen.token_types(ids) if specimen.history else {}),
            **second.pixels,
        )
        kept += [torch.ones_like(ids[:, past:later]), pruned.kept_mask]
        assert cache.get_seq_length() == mask.shape[1]
    _, logits = masked_greedy(model, joined, torch.cat(kept, 1), 1)
    assert (output.logits[:, -1] - logits[:, 0]).abs().max() <= 1e-5


@pytest.mark.parametrize("images", [[0, 0], [1, 2]])
@pytest.mark.parametrize("name", TURNS)
def test_an_image_after_a_turn_that_was_not_pruned(name, images):
    """The first turn has no images, or runs outside the block: its cache is a plain one."""
    specimen = SPECIMENS[name]
    model = specimen.build()
    first, second = (
        make_batch(specimen, model, images, seed=1),
        make_batch(specimen, model, [2, 1], seed=2),
    )
    joined = joined_turns(first, second)
    ids, mask = joined.inputs["input_ids"], joined.inputs["attention_mask"]
    positions = joined.positions(model)
    past = first.inputs["input_ids"].shape[1]
    cache = forward(model, first, position_ids=positions[..., :past]).past_key_values
    types = specimen.token_types(ids) if specimen.history else specimen.token_types(ids[:, past:])
    with UniformGridPruner(keep=0.3)(model) as pruned, torch.no_grad():
        call = {**second.inputs, "attention_mask": mask, **types}
        output = model(**call, position_ids=positions[..., past:], past_key_values=cache)
        kept = torch.cat([torch.ones_like(ids[:, :past]), pruned.kept_mask], 1)
        assert cache.get_seq_length() == mask.shape[1]
        token = output.logits[:, -1:].argmax(-1)
        step = model(
            input_ids=token,
            attention_mask=torch.cat([mask, torch.ones_like(token)], 1),
            position_ids=positions[..., -1:] + 1,
            past_key_values=cache,
        )
        # Rolls back into the second turn's text: the first turn's slots stay as they are.
        cache.crop(-3)
        assert cache.get_seq_length() == mask.shape[1] - 2
    tokens, logits = masked_greedy(model, joined, kept, 2)
    assert torch.equal(token, tokens[:, :1])
    assert (output.logits[:, -1] - logits[:, 0]).abs().max() <= 1e-5
    assert (step.logits[:, -1] - logits[:, 1]).abs().max() <= 1e-5
