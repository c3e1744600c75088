"""What pruning leaves alone: keep=1.0, prompts of text, arguments and the model itself."""

from __future__ import annotations

import inspect

import pytest
import torch

from gprune import GPrune
from gprune.hf.cache import PrunedCache
from gprune.proof.batches import GREEDY, forward, make_batch
from gprune.proof.identity import identity

# Images per row: one row; rows with different numbers of images; a row of text alone.
LAYOUTS = [[1], [3], [1, 2], [2, 0, 1]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("images", LAYOUTS)
def test_keep_one_is_bit_identical(specimen, images, dtype, attention):
    model = specimen.build(dtype, attention)
    batch = make_batch(specimen, model, images, dtype=dtype)
    beamed = batch
    if not specimen.beams:
        beamed = make_batch(specimen, model, [min(count, 1) for count in images], dtype=dtype)
    result = identity(model, GPrune(keep=0.3), batch.inputs, beamed.inputs)
    assert result.passed, result.detail


def test_text_only_passes_unchanged(specimen, model):
    batch = make_batch(specimen, model, [0, 0])
    untouched = model.generate(**batch.inputs, **GREEDY)
    with GPrune(keep=0.1)(model) as pruned:
        through = model.generate(**batch.inputs, **GREEDY)
        assert pruned.kept == [[], []]
        assert pruned.kept_mask.dtype == torch.bool
        assert pruned.kept_mask.all()
    assert torch.equal(untouched.sequences, through.sequences)
    assert not isinstance(through.past_key_values, PrunedCache)


def test_callers_inputs_are_not_touched(specimen, model):
    batch = make_batch(specimen, model, [1, 2])
    with torch.no_grad():
        encoded = model.base_model.get_image_features(**batch.pixels, return_dict=True)
    lengths = [len(x) for x in encoded.pooler_output]
    given = {"image": encoded}
    text = batch.text
    text["position_ids"] = batch.positions(model)  # M-RoPE needs grids, which features lack
    batch.inputs["position_ids"] = text["position_ids"]
    before = {name: value.clone() for name, value in batch.inputs.items()}
    with GPrune(keep=0.3)(model):
        from_pixels = forward(model, batch).logits
        with torch.no_grad():
            from_features = model(**text, mm_encoder_outputs=given).logits
    assert torch.equal(from_pixels, from_features)
    assert given["image"] is encoded
    assert [len(x) for x in encoded.pooler_output] == lengths
    assert all(torch.equal(batch.inputs[name], value) for name, value in before.items())


def test_positional_arguments(specimen, model):
    batch = make_batch(specimen, model, [1])
    names = list(inspect.signature(model.forward).parameters)
    values = [batch.inputs.get(name) for name in names]
    with GPrune(keep=0.3)(model), torch.no_grad():
        named = model(**batch.inputs).logits
        positional = model(
            *values[: names.index("pixel_values") + 1],
            **{
                name: value
                for name, value in zip(names, values, strict=True)
                if names.index(name) > names.index("pixel_values") and value is not None
            },
        ).logits
    assert torch.equal(named, positional)


def test_outputs_as_a_tuple(specimen, model):
    batch = make_batch(specimen, model, [1])
    with GPrune(keep=0.3)(model):
        output = forward(model, batch)
        logits, *others = forward(model, batch, return_dict=False)
    assert torch.equal(logits, output.logits)
    assert any(isinstance(other, PrunedCache) for other in others)
