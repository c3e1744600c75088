"""Pruning between layers equals a full-length model whose later layers hide dropped tokens."""

from __future__ import annotations

import pytest
import torch

from gprune import FastV, PyramidDrop, SparseVLM
from gprune.proof.batches import GREEDY, STEPS, add_video, finish_batch, forward, make_batch, noise
from gprune.proof.models import BREAK, IMAGE, SPECIMENS
from tests.hf.decoder.reference import PRUNERS, Reference, label
from tests.hf.decoder.toys import AppendsAndMerges
from tests.hf.layerwise import greedy

LAYOUTS = [[1], [3], [2, 0, 1]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("pruner", [FastV(1.0), PyramidDrop(1.0), SparseVLM(1.0)], ids=label)
@pytest.mark.parametrize("images", [[1], [2, 0, 1]])
def test_keep_one_is_bit_identical(specimen, images, pruner, attention):
    model = specimen.build(torch.bfloat16, attention)
    batch = make_batch(specimen, model, images, dtype=torch.bfloat16)
    beams = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": STEPS}

    def through():
        output = model.generate(**batch.inputs, **GREEDY)
        return [
            forward(model, batch).logits,
            forward(model, batch, use_cache=False).logits,
            output.sequences,
            *output.logits,
            model.generate(**batch.inputs, **beams),
        ]

    untouched = through()
    with pruner(model) as pruned:
        same = through()
        assert pruned.kept_mask.all()
    assert all(map(torch.equal, untouched, same))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("pruner", PRUNERS, ids=label)
@pytest.mark.parametrize("images", LAYOUTS)
@torch.no_grad()
def test_equals_the_masked_full_length_model(specimen, eager, images, pruner, attention):
    """The reference makes its own choice; kept tokens, output tokens and logits agree."""
    model = specimen.build(attention=attention)
    batch = make_batch(specimen, model, images, seed=5)
    with pruner(model) as pruned:
        output = model.generate(**batch.inputs, **GREEDY)
    reference = Reference(eager, pruner, batch)
    tokens, logits, _ = greedy(eager, batch, STEPS, reference)
    width = batch.inputs["input_ids"].shape[1]
    if sum(images) and len(images) > 1:
        assert torch.equal(pruned.kept_mask, reference.kept_mask())
    else:
        assert torch.equal(pruned.kept_mask & reference.real, reference.kept_mask())
    assert torch.equal(output.sequences[:, width:], tokens)
    assert torch.stack(output.logits, 1).sub(logits).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["llava", "llava_next", "internvl"])
@pytest.mark.parametrize("pruner", PRUNERS, ids=label)
@pytest.mark.parametrize("images", LAYOUTS)
@torch.no_grad()
def test_the_numbering_that_is_not_the_default(name, pruner, images):
    specimen = SPECIMENS[name]
    model, eager = specimen.build(), specimen.build(attention="eager")
    batch = make_batch(specimen, model, images, seed=6)
    positions = "compact" if pruner.default_positions == "original" else "original"
    with pruner(model, positions=positions):
        output = model.generate(**batch.inputs, **GREEDY)
    tokens, logits, _ = greedy(eager, batch, STEPS, Reference(eager, pruner, batch, positions))
    assert torch.equal(output.sequences[:, -STEPS:], tokens)
    assert torch.stack(output.logits, 1).sub(logits).abs().max() <= 1e-5
    # The numbering shows in the result, or nothing was tested.
    default = greedy(eager, batch, STEPS, Reference(eager, pruner, batch))[1]
    assert torch.stack(output.logits, 1).sub(default).abs().max() > 1e-4


@pytest.mark.parametrize("pruner", [PyramidDrop(0.2, layers=(1, 2)), AppendsAndMerges(0.4)])
def test_each_layer_numbers_its_tokens_without_gaps(pruner):
    """Looks at the rotary embeddings that the layers get, in the prompt and in decoding."""
    specimen = SPECIMENS["llava"]
    model = specimen.build()
    batch = make_batch(specimen, model, [2, 0, 1])
    seen = []
    for layer in model.get_decoder().layers:
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["position_embeddings"][0]),
            with_kwargs=True,
        )
    with pruner(model) as pruned:
        model.generate(**batch.inputs, **GREEDY | {"max_new_tokens": 3})
    text = ((batch.inputs["input_ids"] != IMAGE) & batch.inputs["attention_mask"].bool()).sum(1)
    lengths = torch.tensor(pruned.visual_by_layer) + text[:, None]  # [b, layers]
    rotary = model.get_decoder().rotary_emb
    for number, cos in enumerate(seen):
        step, layer = divmod(number, lengths.shape[1])
        for row, length in enumerate(lengths[:, layer].tolist()):
            last = torch.arange(length) if step == 0 else torch.tensor([length + step - 1])
            expected = rotary(cos, last[None])[0]
            assert torch.equal(cos[row, -len(last) :], expected[0])


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_onevision"])
@pytest.mark.parametrize("pruner", PRUNERS, ids=label)
@torch.no_grad()
def test_videos_beside_images(name, pruner):
    specimen = SPECIMENS[name]
    model, eager = specimen.build(), specimen.build(attention="eager")
    batch, frames = add_video(specimen, model, make_batch(specimen, model, [1]))
    with pruner(model) as pruned:
        output = model.generate(**batch.inputs, **GREEDY)
    reference = Reference(eager, pruner, batch)
    tokens, logits, _ = greedy(eager, batch, STEPS, reference)
    assert torch.equal(pruned.kept_mask, reference.kept_mask())
    assert torch.equal(output.sequences[:, -STEPS:], tokens)
    assert torch.stack(output.logits, 1).sub(logits).abs().max() <= 1e-5
    assert [group.kind for group in pruned.kept[0]].count("frame") == frames


@pytest.mark.parametrize("pruner", PRUNERS, ids=label)
@pytest.mark.parametrize("images", LAYOUTS)
def test_without_cache_is_the_same(specimen, model, images, pruner):
    """Generated tokens do not rank, so each step keeps what the first one kept."""
    batch = make_batch(specimen, model, images, seed=2)
    with pruner(model):
        cached = model.generate(**batch.inputs, **GREEDY)
        uncached = model.generate(**batch.inputs, **GREEDY, use_cache=False)
    assert torch.equal(cached.sequences, uncached.sequences)
    for one, other in zip(cached.logits, uncached.logits, strict=True):
        assert (one - other).abs().max() <= 1e-5


@pytest.mark.parametrize("pruner", PRUNERS, ids=label)
@pytest.mark.parametrize("images", [[1], [2, 0, 1]])
def test_beams_equal_their_own_runs_without_cache(specimen, model, images, pruner):
    batch = make_batch(specimen, model, images, seed=3)
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": STEPS}
    with pruner(model):
        cached = model.generate(**batch.inputs, **options)
        uncached = model.generate(**batch.inputs, **options, use_cache=False)
    assert torch.equal(cached, uncached)


@pytest.mark.parametrize("pruner", PRUNERS, ids=label)
def test_prompt_lookup_is_the_same(specimen, model, pruner):
    """Candidates come with the first call, are verified together, and rolled back."""
    batch = make_batch(specimen, model, [1])
    ids = torch.cat([batch.inputs["input_ids"], torch.tensor([[7, 8, 9, 7, 8]])], 1)
    longer = finish_batch(specimen, ids, torch.ones_like(ids), batch.rows, batch.lengths)
    options = {"max_new_tokens": 12, "do_sample": False}
    with pruner(model):
        slow = model.generate(**longer.inputs, **options)
        fast = model.generate(**longer.inputs, **options, prompt_lookup_num_tokens=3)
    assert torch.equal(slow, fast)


@pytest.mark.parametrize("noise_scale", [0.0, 0.3])
def test_assisted_decoding_is_the_same(specimen, model, noise_scale):
    assistant = specimen.build()
    with torch.no_grad():
        words = assistant.lm_head.weight[IMAGE + 1 : BREAK]
        words.add_(noise_scale * noise(1)(*words.shape))
    batch = make_batch(specimen, model, [1])
    options = {"max_new_tokens": 10, "do_sample": False}
    with FastV(0.3)(model):
        slow = model.generate(**batch.inputs, **options)
        fast = model.generate(**batch.inputs, **options, assistant_model=assistant)
    assert torch.equal(slow, fast)


def test_half_precision(specimen):
    model = specimen.build(torch.bfloat16)
    batch = make_batch(specimen, model, [2, 0, 1], dtype=torch.bfloat16)
    with SparseVLM(0.3)(model) as pruned:
        output = model.generate(**batch.inputs, **GREEDY)
    assert all(logits.isfinite().all() for logits in output.logits)
    assert pruned.kept_mask.sum() < batch.inputs["attention_mask"].sum()


@pytest.mark.parametrize("pruner", [FastV(0.3), PyramidDrop(0.3, layers=(1, 2))], ids=label)
@pytest.mark.parametrize("padded", [False, True])
def test_padding_on_the_right(padded, pruner):
    """The last real token ranks, wherever the padding is."""
    specimen = SPECIMENS["llava"]
    model = specimen.build()
    batch = make_batch(specimen, model, [1])
    ids = batch.inputs["input_ids"]
    mask = torch.ones_like(ids)
    if padded:
        ids, mask = (torch.cat([part, torch.zeros(1, 3).long()], 1) for part in (ids, mask))
    with pruner(model) as pruned, torch.no_grad():
        last = model(**{**batch.inputs, "input_ids": ids, "attention_mask": mask}).logits[:, -1]
        expected = forward(model, batch).logits[:, -1]
    assert (last - expected).abs().max() <= 1e-5
    assert pruned.visual_by_layer == [pruner.schedule(16, 3)]
