"""How a call is shortened: padding, batch rows, token types, labels and gradients."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from gprune import GPrune
from gprune.hf.choice import batch_rows
from gprune.hf.rewrite import padding_id
from gprune.proof.batches import forward, make_batch
from gprune.proof.models import IMAGE, SPECIMENS


def test_batch_rows_of_images():
    placeholder = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    assert batch_rows(placeholder, [1, 1, 3, 1]) == [0, 0, 2, 2]
    assert batch_rows(placeholder, [2, 4]) == [0, 2]
    assert batch_rows(placeholder[:1], [1, 1]) == [0, 0]
    assert batch_rows(placeholder[1:2].expand(2, -1), []) == []


def test_padding_id_is_no_placeholder():
    def config(own, text_own, size=100):
        text = SimpleNamespace(pad_token_id=text_own, vocab_size=size)
        return SimpleNamespace(pad_token_id=own, get_text_config=lambda: text)

    assert padding_id(config(7, 8), {3}) == 7
    assert padding_id(config(0, 8), {3}) == 0
    for own in (None, 3, -1, 100, [7]):  # missing, a placeholder, outside the vocabulary, a list
        assert padding_id(config(own, 8), {3}) == 8
    assert padding_id(config(99, 8), {3}) == 99
    assert padding_id(config(None, None), {0, 1, 3}) == 2
    assert padding_id(config(None, None), {0, 1}) == 2
    text = SimpleNamespace(vocab_size=9)
    assert padding_id(SimpleNamespace(get_text_config=lambda: text), {5}) == 0


@pytest.mark.parametrize("name", [name for name, specimen in SPECIMENS.items() if specimen.types])
def test_token_types_without_those_of_candidates(name):
    """Assisted decoding adds candidates to the prompt, but not to its token types."""
    specimen = SPECIMENS[name]
    model = specimen.build()
    batch = make_batch(specimen, model, [1])
    positions = batch.positions(model)
    types = specimen.token_types(batch.inputs["input_ids"])
    shorter = {name: values[:, :-2] for name, values in types.items()}
    with GPrune(keep=0.3)(model), torch.no_grad():
        expected = model(**batch.inputs, position_ids=positions).logits
        logits = model(**{**batch.inputs, **shorter}, position_ids=positions).logits
    assert torch.equal(logits, expected)


def test_loss_is_computed_at_kept_positions(specimen, model):
    batch = make_batch(specimen, model, [1])
    labels = batch.inputs["input_ids"].masked_fill(batch.inputs["input_ids"] == IMAGE, -100)
    with GPrune(keep=0.3)(model) as pruned:
        output = forward(model, batch, labels=labels)
    kept = labels[pruned.kept_mask]
    expected = torch.nn.functional.cross_entropy(output.logits[0, :-1], kept[1:], ignore_index=-100)
    assert torch.allclose(output.loss, expected)


def test_loss_of_uneven_rows(specimen, model):
    """Padding that pruning adds is never a label, whatever its token id."""
    batch = make_batch(specimen, model, [1, 2 if specimen.beams else 1])
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    labels = ids.masked_fill((ids == IMAGE) | (mask == 0), -100)
    with GPrune(keep=0.3)(model) as pruned:
        output = forward(model, batch, labels=labels)
    logits, labels = [], [row[kept] for row, kept in zip(labels, pruned.kept_mask, strict=True)]
    for own, row in zip(output.logits, labels, strict=True):
        # If another row is longer, the column before a row's first token is padding and predicts
        # that token, as padding does without pruning.
        first = len(own) - len(row)
        logits.append(own[first - 1 : -1] if first else own[:-1])
    labels = [row if len(x) == len(row) else row[1:] for x, row in zip(logits, labels, strict=True)]
    expected = torch.nn.functional.cross_entropy(torch.cat(logits), torch.cat(labels))
    assert torch.allclose(output.loss, expected)


def test_gradients_flow_through_the_kept_tokens(specimen, model):
    batch = make_batch(specimen, model, [1])
    pixels = batch.inputs["pixel_values"].clone().requires_grad_()
    with GPrune(keep=0.3)(model):
        model(**{**batch.inputs, "pixel_values": pixels}).logits.sum().backward()
    model.zero_grad()
    assert pixels.grad.abs().sum() > 0
