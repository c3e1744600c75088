"""Weighted keys equal a full-length model whose mask adds the logarithms of member counts."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache, StaticCache

from gprune import GraphCover, WeightedCover, WeightedGPrune
from gprune.errors import UnsupportedModelError
from gprune.hf.weighted import biased_mask, causal_mask, require_interpreted
from gprune.layouts import families_with
from gprune.proof.batches import GREEDY, STEPS, make_batch
from gprune.proof.models import IMAGE, SPECIMENS
from gprune.pruners.image import GroupedImage, assemble
from gprune.pruners.reduction import Reduction
from gprune.serving.settings import served_methods
from gprune.tokens import Group
from tests.hf.merging import merged_outputs

LAYOUTS = [[1], [2, 0, 1]]


# Pixtral uses LLaVA's class.
@pytest.fixture(scope="module", params=[*families_with("takes_weights"), "pixtral"])
def specimen(request):
    return SPECIMENS[request.param]


@pytest.fixture(scope="module")
def model(specimen):
    return specimen.build()


@torch.no_grad()
def full_length(model, batch, kept_mask, pruner, steps):
    """Decodes greedily with the full-length model, without a cache and without hooks.

    Its 4-D mask hides dropped tokens and adds the logarithm of each key's member count.
    """
    ids = batch.inputs["input_ids"]
    outputs, counts = merged_outputs(model, batch, pruner)
    bias = torch.zeros(ids.shape)
    bias[ids == IMAGE] = torch.cat(counts).log()
    visible = batch.inputs["attention_mask"].bool() & kept_mask
    positions, types = batch.positions(model), batch.specimen.token_types(ids)
    chosen, logits = [], []
    for _ in range(steps):
        seen = visible[:, None, None] & torch.ones(2 * ids.shape[1:], dtype=torch.bool).tril()
        mask = torch.where(seen, bias[:, None, None], torch.finfo(torch.float32).min)
        last = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            mm_encoder_outputs={"image": outputs},
            use_cache=False,
            **types,
        ).logits[:, -1]
        token = last.argmax(-1, keepdim=True)
        chosen.append(token)
        logits.append(last)
        ids = torch.cat([ids, token], 1)
        bias = torch.cat([bias, torch.zeros(token.shape)], 1)
        visible = torch.cat([visible, torch.ones_like(token, dtype=torch.bool)], 1)
        positions = torch.cat([positions, positions[..., -1:] + 1], -1)
        new = torch.full_like(token, batch.specimen.generated_type)
        types = {name: torch.cat([values, new], 1) for name, values in types.items()}
    return torch.cat(chosen, 1), torch.stack(logits, 1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("keep", [0.36, 2])
@pytest.mark.parametrize("images", LAYOUTS)
def test_equals_the_full_length_model_with_weighted_keys(specimen, images, keep, attention):
    model = specimen.build(attention=attention)
    batch = make_batch(specimen, model, images, seed=3)
    pruner = WeightedCover(keep, place=0)  # the reference does not compute every family's grids
    with pruner(model) as pruned:
        output = model.generate(**batch.inputs, **GREEDY)
        kept_mask = pruned.kept_mask
    tokens, logits = full_length(model, batch, kept_mask, pruner, STEPS)
    width = batch.inputs["input_ids"].shape[1]
    assert torch.equal(output.sequences[:, width:], tokens)
    assert torch.stack(output.logits, 1).sub(logits).abs().max() <= 1e-5
    with GraphCover(keep, place=0, merge=True)(model):
        unweighted = model.generate(**batch.inputs, **GREEDY)
    assert (unweighted.logits[0] - output.logits[0]).abs().max() > 1e-4  # or nothing was tested


@pytest.mark.parametrize("images", LAYOUTS)
def test_without_cache_and_with_a_static_one_is_the_same(specimen, model, images):
    batch = make_batch(specimen, model, images, seed=2)
    with WeightedCover(0.3)(model):
        cached = model.generate(**batch.inputs, **GREEDY)
        others = [
            model.generate(**batch.inputs, **GREEDY, use_cache=False),
            model.generate(**batch.inputs, **GREEDY, cache_implementation="static"),
        ]
    for other in others:
        assert torch.equal(cached.sequences, other.sequences)
        for one, two in zip(cached.logits, other.logits, strict=True):
            assert (one - two).abs().max() <= 1e-5


def test_beams_equal_their_own_runs_without_cache(specimen, model):
    batch = make_batch(specimen, model, [1, 1] if specimen.beams else [1], seed=4)
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": STEPS}
    with WeightedCover(0.3)(model):
        cached = model.generate(**batch.inputs, **options)
        uncached = model.generate(**batch.inputs, **options, use_cache=False)
    assert torch.equal(cached, uncached)


def test_keep_one_changes_nothing(specimen, model):
    batch = make_batch(specimen, model, [2, 1])
    with torch.no_grad():
        untouched = model(**batch.inputs).logits
        with WeightedCover(1.0)(model):
            through = model(**batch.inputs).logits
        again = model(**batch.inputs).logits
    assert torch.equal(untouched, through)
    assert torch.equal(untouched, again)
    for layer in model.get_decoder().layers:
        assert not layer.self_attn._forward_pre_hooks


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_second_turn_still_weighs_earlier_keys(name):
    """Adds text token by token and at once, with a copied cache and a crop."""
    specimen = SPECIMENS[name]
    model = specimen.build()
    batch = make_batch(specimen, model, [1], seed=1)
    more = torch.randint(4, 9, (1, 5), generator=torch.Generator().manual_seed(0))
    pruner = WeightedCover(0.3)

    def turn(cache, ids):
        with torch.no_grad():
            return model(input_ids=ids, past_key_values=cache).logits

    with pruner(model) as pruned, torch.no_grad():
        cache = model(**batch.inputs).past_key_values
        kept_mask = pruned.kept_mask
        twin = copy.deepcopy(cache)
        at_once = turn(cache, more)[:, -1]
        for place in range(5):
            one_by_one = turn(twin, more[:, place : place + 1])[:, -1]
        twin.crop(-2)
        again = turn(twin, more[:, 3:])[:, -1]
    assert (at_once - one_by_one).abs().max() <= 1e-5
    assert (at_once - again).abs().max() <= 1e-5
    ids = torch.cat([batch.inputs["input_ids"], more], 1)
    longer = copy.copy(batch)
    longer.inputs = {
        **batch.inputs,
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        **specimen.token_types(ids),
    }
    seen = torch.cat([kept_mask, torch.ones_like(more, dtype=torch.bool)], 1)
    _, logits = full_length(model, longer, seen, pruner, 1)
    assert (at_once - logits[:, 0]).abs().max() <= 1e-5


def test_a_weighted_key_equals_repeated_keys():
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = torch.randn(3, 2, 4, 9, 8, generator=generator)
    counts = torch.tensor([[3, 1, 1, 5, 2, 1, 1, 1, 1], [1, 1, 4, 1, 1, 2, 1, 1, 7]])
    mask = torch.ones(9, 9, dtype=torch.bool)[None, None]
    made = biased_mask(mask, counts.log(), torch.float32)
    found = scaled_dot_product_attention(queries, keys, values, attn_mask=made)
    for row, own in enumerate(counts):
        often = [x[row].repeat_interleave(own, 1) for x in (keys, values)]
        expected = scaled_dot_product_attention(queries[row], *often)
        assert torch.allclose(found[row], expected, atol=1e-6)


def test_biased_masks():
    bias = torch.tensor([[0.0, 1.0, 2.0, 0.0]])
    omitted = biased_mask(causal_mask(bias, 2, None), bias, torch.float32)[0, 0]
    least = torch.finfo(torch.float32).min
    assert omitted[0].tolist() == [0, 1, 2, least]
    assert omitted[1].tolist() == [0, 1, 2, 0]
    static = torch.tensor([[[[True, True, True, True, False, False]]]])
    assert biased_mask(static, bias, torch.float32)[0, 0].tolist() == [[0, 1, 2, 0, least, least]]
    additive = torch.tensor([[[[0.0, 0.0, -3.0, 0.0]]]])
    assert biased_mask(additive, bias, torch.float32)[0, 0].tolist() == [[0, 1, -1, 0]]
    assert biased_mask(static, bias, torch.bfloat16).dtype == torch.bfloat16


def test_member_counts():
    kept = torch.tensor([1, 4])
    members = torch.tensor([0, 0, 1, -1, 1, 1])
    assert Reduction(kept, members).member_counts().tolist() == [2, 3]
    assert Reduction(kept).member_counts().tolist() == [1, 1]
    with pytest.raises(ValueError, match="tokens merged by weights or appended"):
        Reduction(kept, weights=torch.ones(2, 6)).member_counts()


@pytest.mark.parametrize("name", ["gemma3", "aya_vision", "paligemma"])
def test_models_with_other_layers_are_refused(name):
    model = SPECIMENS[name].build()
    with pytest.raises(UnsupportedModelError, match="weighted_cover"), WeightedCover(0.5)(model):
        pass


def test_attention_without_a_mask_is_refused(model):
    config = model.config.get_text_config()
    config._attn_implementation_internal, before = "flash_attention_2", config._attn_implementation
    try:
        with (
            pytest.raises(UnsupportedModelError, match="attn_implementation='sdpa'"),
            WeightedCover(0.5)(model),
        ):
            pass
    finally:
        config._attn_implementation_internal = before


def test_member_counts_with_bfloat16_features():
    """Counts above 256 are not representable in bfloat16."""
    group = Group(torch.arange(301), None, "image")
    all_in_first = Reduction(torch.tensor([0]), torch.zeros(301, dtype=torch.long))
    features = torch.ones(301, 4, dtype=torch.bfloat16)
    reduced = assemble(GroupedImage(features, [group]), [all_in_first], proportional=True)
    assert reduced.member_counts.tolist() == [301] + [1] * 300


def test_a_weighted_cache_is_not_continued_without_weights():
    specimen = SPECIMENS["llava"]
    model = specimen.build()
    batch = make_batch(specimen, model, [1])
    with WeightedCover(0.5)(model), torch.no_grad():
        cache = model(**batch.inputs).past_key_values
    more = torch.tensor([[5]])
    with torch.no_grad():
        with (
            GraphCover(0.5)(model),
            pytest.raises(ValueError, match="graph_cover would forget; continue it inside"),
        ):
            model(input_ids=more, past_key_values=cache)
        with WeightedGPrune(0.2)(model):
            model(input_ids=more, past_key_values=cache)


def test_caches_that_generate_compiles_for_are_refused_on_an_accelerator():
    model = SPECIMENS["llava"].build()
    static = StaticCache(config=model.config.get_text_config(), max_cache_len=9)
    with pytest.raises(ValueError, match="StaticCache of a fixed size"):
        require_interpreted(static, torch.device("cuda"))
    require_interpreted(static, torch.device("cpu"))
    require_interpreted(DynamicCache(), torch.device("cuda"))
    require_interpreted(None, torch.device("cuda"))


def test_it_always_merges_and_is_not_served():
    with pytest.raises(ValueError, match="merge=False leaves kept tokens without members"):
        WeightedCover(0.5, merge=False)
    assert "weighted_cover" not in served_methods()
    assert "graph_cover" in served_methods()
