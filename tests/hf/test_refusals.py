"""Calls and models that are refused, each with what to do instead."""

from __future__ import annotations

import copy

import pytest
import torch

from gprune import GPrune, versions
from gprune.errors import UnsupportedModelError, UnsupportedVersionError
from gprune.proof.batches import forward, make_batch
from gprune.proof.models import IMAGE, SPECIMENS


def test_4d_masks_are_refused(specimen, model):
    """Their columns cannot be removed, because a 4-D mask need not be causal."""
    batch = make_batch(specimen, model, [1])
    with GPrune(keep=0.3)(model), torch.no_grad():
        length = batch.inputs["input_ids"].shape[1]
        whole = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
        positions = batch.positions(model)
        with pytest.raises(ValueError, match="attention_mask must be a 2-D tensor"):
            model(**{**batch.inputs, "attention_mask": whole}, position_ids=positions)
        cache = forward(model, batch).past_key_values
        for columns in (cache.get_seq_length() + 1, cache.get_query_offset() + 1):
            mask = torch.zeros(1, 1, 1, columns)
            with pytest.raises(ValueError, match="attention_mask must be a 2-D tensor"):
                model(input_ids=torch.tensor([[5]]), past_key_values=cache, attention_mask=mask)


def test_embeddings_alone_are_refused(specimen, model):
    embeds = torch.randn(1, 5, 32)
    with GPrune(keep=0.3)(model), pytest.raises(ValueError, match="input_ids is missing"):
        model(inputs_embeds=embeds)


def test_placeholders_that_do_not_match_are_refused(specimen, model):
    batch = make_batch(specimen, model, [1])
    batch.inputs["input_ids"][0, -1] = IMAGE
    with GPrune(keep=0.3)(model), pytest.raises(ValueError, match="image placeholders"):
        forward(model, batch)


def test_placeholders_without_images_are_refused(specimen, model):
    batch = make_batch(specimen, model, [1])
    ids = batch.inputs["input_ids"]
    with GPrune(keep=0.3)(model), pytest.raises(ValueError, match="no image came with the call"):
        model(input_ids=ids)


def test_chunked_prefill_is_refused(specimen, model):
    batch = make_batch(specimen, model, [1])
    config = copy.deepcopy(model.generation_config)
    config.prefill_chunk_size = 9
    with GPrune(keep=0.3)(model):
        with pytest.raises(ValueError, match="prefill_chunk_size=7 would choose"):
            model.generate(**batch.inputs, max_new_tokens=2, prefill_chunk_size=7)
        with pytest.raises(ValueError, match="prefill_chunk_size=9 would choose"):
            model.generate(**batch.inputs, max_new_tokens=2, generation_config=config)


@pytest.mark.parametrize("name", [name for name, specimen in SPECIMENS.items() if specimen.whole])
def test_part_of_an_image_is_refused(name):
    """A chunked prefill written by hand would pass parts of an image."""
    specimen = SPECIMENS[name]
    model = specimen.build()
    batch = make_batch(specimen, model, [1])
    with torch.no_grad():
        encoded = model.base_model.get_image_features(**batch.pixels, return_dict=True)
    half = batch.lengths[0] // 2 - 1
    rows = [features[:half] for features in encoded.pooler_output]
    tensor = isinstance(encoded.pooler_output, torch.Tensor)
    encoded.pooler_output = torch.stack(rows) if tensor else rows
    seen = (batch.inputs["input_ids"][0] == IMAGE).cumsum(0)
    end = int((seen == half).nonzero()[0]) + 1
    ids, positions = batch.inputs["input_ids"][:, :end], batch.positions(model)[..., :end]
    with GPrune(keep=0.3)(model), pytest.raises(ValueError, match="features have"):
        model(input_ids=ids, position_ids=positions, mm_encoder_outputs={"image": encoded})


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_grids_of_other_images_are_refused(name):
    """Passes the grid of a larger image, and of a smaller one."""
    specimen = SPECIMENS[name]
    model = specimen.build()
    batch = make_batch(specimen, model, [1])
    for factor in (2, 1 / 2):
        grid = (batch.pixels["image_grid_thw"] * torch.tensor([1, factor, 1])).long()
        inputs = {**batch.inputs, **batch.pixels, "image_grid_thw": grid}
        with GPrune(keep=0.3)(model):
            with pytest.raises(ValueError, match="image_grid_thw does not fit pixel_values"):
                model(**inputs)
            with pytest.raises(ValueError, match="image_grid_thw does not fit pixel_values"):
                model.generate(**inputs, max_new_tokens=2)
        assert torch.isfinite(forward(model, batch).logits).all()  # the model still works


def test_logits_to_keep_as_positions_is_refused(specimen, model):
    batch = make_batch(specimen, model, [1])
    with GPrune(keep=0.3)(model), pytest.raises(ValueError, match="logits_to_keep"):
        forward(model, batch, logits_to_keep=torch.tensor([3]))


def test_infinite_features_are_refused(specimen, model):
    batch = make_batch(specimen, model, [1])
    batch.inputs["pixel_values"][0, ..., 0] = torch.inf
    with GPrune(keep=0.3)(model), pytest.raises(ValueError, match=r"features .* NaN or infinite"):
        forward(model, batch)


def test_other_models_are_refused_by_name():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    message = r"LlamaForCausalLM.*LlavaForConditional"
    with pytest.raises(UnsupportedModelError, match=message), GPrune(0.3)(LlamaForCausalLM(config)):
        pass


def test_untested_attention_is_refused(specimen):
    model = specimen.build()
    model.config.get_text_config()._attn_implementation = "flex_attention"
    with pytest.raises(UnsupportedModelError, match="flex_attention"), GPrune(0.3)(model):
        pass


@pytest.mark.parametrize("version", ["5.18.9", "5.25.0", "6.0"])
def test_untested_transformers_is_refused(model, monkeypatch, version):
    installed = {"transformers": version, "torch": "2.13.0"}
    monkeypatch.setattr(versions, "installed_version", installed.__getitem__)
    monkeypatch.setenv(versions.RANGES["transformers"].override, "refuse")
    with pytest.raises(UnsupportedVersionError, match="pip install"), GPrune(keep=0.3)(model):
        pass
    monkeypatch.setenv(versions.RANGES["transformers"].override, "1")
    with pytest.warns(UserWarning, match="nothing was proven"), GPrune(keep=0.3)(model):
        pass
