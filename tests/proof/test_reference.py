"""The references of the proof against loops written by hand, which call no `generate`."""

from __future__ import annotations

import pytest
import torch

from gprune import GPrune
from gprune.proof.batches import finish_batch, make_batch
from gprune.proof.cases import collate, encoder_inputs, make_case, per_position
from gprune.proof.families import specimen_case
from gprune.proof.images import IMAGE, PAD
from gprune.proof.models import EXPERIMENTAL, SPECIMENS
from gprune.proof.reference import Kept, full_length, pruned_greedy
from gprune.proof.running import difference
from gprune.proof.shortened import shortened_greedy, why_masking_differs

STEPS = 3


@torch.no_grad()
def masked_by_hand(model, batch, kept_mask):
    """Decodes step by step with explicit masks, positions and token types."""
    ids, real = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    positions, visible = batch.positions(model), real * kept_mask
    types = batch.specimen.token_types(ids)
    tokens, logits = [], []
    for _ in range(STEPS):
        last = model(
            input_ids=ids,
            attention_mask=visible,
            position_ids=positions,
            use_cache=False,
            **types,
            **batch.pixels,
        ).logits[:, -1]
        token = last.argmax(-1, keepdim=True)
        tokens.append(token)
        logits.append(last)
        ids = torch.cat([ids, token], 1)
        visible = torch.cat([visible, torch.ones_like(token)], 1)
        positions = torch.cat([positions, positions[..., -1:] + 1], -1)
        new = torch.full_like(token, batch.specimen.generated_type)
        types = {name: torch.cat([values, new], 1) for name, values in types.items()}
    return torch.cat(tokens, 1), torch.stack(logits, 1)


@pytest.mark.parametrize("name", list(SPECIMENS))
def test_masking_by_hand_is_the_same(name):
    specimen = SPECIMENS[name]
    model = specimen.build()
    batch = make_batch(specimen, model, [2, 0, 1], seed=4)
    with GPrune(0.3)(model) as pruned, torch.no_grad():
        model(**batch.inputs)
    kept = Kept(pruned.kept_mask)
    tokens, logits = masked_by_hand(model, batch, pruned.kept_mask)
    run = full_length(model, batch.inputs, kept, STEPS)
    assert torch.equal(run.tokens, tokens)
    assert difference(run.logits, logits) <= 1e-5
    # A row as if it had been alone.
    last = batch.inputs["input_ids"][2:, -int(batch.inputs["attention_mask"][2].sum()) :]
    alone = finish_batch(specimen, last, torch.ones_like(last), batch.rows[2:], [])
    own = full_length(model, alone.inputs, kept.row(2, last.shape[1]), STEPS, run.tokens[2:])
    assert difference(own.logits, logits[2:]) <= 1e-5


@torch.no_grad()
def shortened_by_hand(specimen, model, batch, kept_mask):
    """Decodes from embeddings in which the placeholders are replaced by hand."""
    ids, kept = batch.inputs["input_ids"], kept_mask[0]
    embeds = model.get_input_embeddings()(ids).clone()
    output = model.base_model.get_image_features(**batch.pixels, return_dict=True)
    embeds[ids == IMAGE] = torch.cat(list(specimen.features(model, output)))
    types = {name: value[:, kept] for name, value in specimen.token_types(ids).items()}
    return model(
        inputs_embeds=embeds[:, kept],
        attention_mask=torch.ones(1, int(kept.sum()), dtype=torch.long),
        position_ids=batch.positions(model)[..., kept],
        use_cache=False,
        **types,
    ).logits[:, -1]


@pytest.mark.parametrize("name", ["qwen3_5", "lfm2_vl", "aya_vision"])
def test_shortening_by_hand_is_the_same(name):
    specimen = (SPECIMENS | EXPERIMENTAL)[name]
    model = specimen.build()
    batch = make_batch(specimen, model, [2], seed=4)
    with GPrune(0.3)(model) as pruned, torch.no_grad():
        model(**batch.inputs)
    run = shortened_greedy(model, batch.inputs, pruned.kept_mask, 1)
    expected = shortened_by_hand(specimen, model, batch, pruned.kept_mask)
    assert difference(run.logits[:, 0], expected) <= 1e-5


def test_why_masking_differs():
    llava = SPECIMENS["llava"].build()
    assert why_masking_differs(llava, 500) is None
    assert "linear_attention layers" in why_masking_differs(EXPERIMENTAL["qwen3_5"].build(), 9)
    gemma = SPECIMENS["gemma3"].build(sliding_window=7)
    assert why_masking_differs(gemma, 7) is None
    assert why_masking_differs(gemma, 8) == "sliding_window=7 counts masked tokens"


@pytest.mark.parametrize("keep", [0.3, 4])
def test_what_was_kept_is_read_off_the_model(keep):
    specimen = SPECIMENS["llava_next"]
    model = specimen.build()
    batch = make_batch(specimen, model, [2, 0, 1])
    _, kept = pruned_greedy(model, GPrune(keep), batch.inputs)
    visual = batch.inputs["input_ids"] == IMAGE
    assert [image.row for image in kept.images] == [0, 0, 2]
    assert sum(len(image.rows) for image in kept.images) == int((kept.mask & visual).sum())
    assert all(image.features is None and image.counts is None for image in kept.images)


@pytest.mark.parametrize("name", [*SPECIMENS, *EXPERIMENTAL])
def test_rows_are_joined_as_processors_do(name):
    """Compares with batches that the specimens join themselves."""
    specimen = (SPECIMENS | EXPERIMENTAL)[name]
    model = specimen.build()
    batch = make_batch(specimen, model, [1, 2, 0])
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"].bool()
    rows = [
        finish_batch(specimen, own[real][None], torch.ones(1, int(real.sum())).long(), [images], [])
        for own, real, images in zip(ids, mask, batch.rows, strict=True)
    ]
    joined = collate(specimen.name, [row.inputs for row in rows], PAD)
    assert joined.keys() == batch.inputs.keys()
    for key, value in joined.items():
        assert torch.equal(value, batch.inputs[key]), key


def test_conversations_keep_the_turns_apart():
    _, case = specimen_case("idefics3")
    conversation = case.conversation
    joined, past = conversation.joined, conversation.past
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(joined[name][:, :past], conversation.first[name])
    assert torch.equal(joined["input_ids"][:, past:], conversation.second["input_ids"])
    assert torch.equal(joined["attention_mask"], conversation.second["attention_mask"])
    tiles = [part["pixel_values"].shape[1] for part in (joined, case.rows[0], case.rows[1])]
    assert tiles[0] == tiles[1] + tiles[2]
    assert per_position(joined).keys() | encoder_inputs(joined).keys() == joined.keys()


def test_padding_is_no_placeholder():
    model, case = specimen_case("llava")
    model.generation_config.pad_token_id = model.config.image_token_id
    model.config.text_config.pad_token_id = None
    batch = make_case(model, case.rows).batch
    counts = (batch["input_ids"] == model.config.image_token_id).sum(1)
    assert counts.tolist() == [16, 32, 0]
