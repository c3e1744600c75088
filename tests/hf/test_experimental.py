"""The experimental families (tier 3)."""

from __future__ import annotations

import pytest
import torch
import transformers
from packaging.version import Version

from gprune import GPrune, GraphCover, ToMe, UnsupportedModelError
from gprune.proof.batches import GREEDY, STEPS, make_batch, masked_greedy, shortened_greedy
from gprune.proof.models import EXPERIMENTAL

# Its forward pass reads an output that transformers 5.24 does not set, with and without pruning.
LLAMA4 = pytest.mark.xfail(
    (5, 24) <= Version(transformers.__version__).release < (5, 25),
    raises=AttributeError,
    strict=True,
    reason="transformers 5.24 cannot run Llama 4 with images itself",
)
NAMES = [pytest.param(name, marks=LLAMA4) if name == "llama4" else name for name in EXPERIMENTAL]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("images", [[1], [2], [1, 2]])
def test_keep_one_is_bit_identical(name, attention, images):
    specimen = EXPERIMENTAL[name]
    model = specimen.build(attention=attention)
    batch = make_batch(specimen, model, images)
    untouched = model.generate(**batch.inputs, **GREEDY)
    with GPrune(keep=1.0)(model):
        through = model.generate(**batch.inputs, **GREEDY)
    assert torch.equal(untouched.sequences, through.sequences)
    assert all(map(torch.equal, untouched.logits, through.logits))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("images", [[1], [2]])
@pytest.mark.parametrize("keep", [0.36, 2])
def test_equals_the_physically_shortened_sequence(name, images, keep):
    """Compares a batch of one with a model that gets only embeddings of kept positions."""
    specimen = EXPERIMENTAL[name]
    # Gemma 4 amplifies rounding errors more than tenfold, so it is compared in float64.
    dtype = torch.float64 if name == "gemma4" else torch.float32
    model = specimen.build(dtype)
    batch = make_batch(specimen, model, images, dtype=dtype)
    # Deepstack features and per-layer inputs cannot be passed as embeddings, but be masked.
    can_mask = ("qwen3_vl_moe", "gemma4", "llama4")
    reference = masked_greedy if name in can_mask else shortened_greedy
    with GPrune(keep=keep)(model) as pruned:
        output = model.generate(**batch.inputs, **GREEDY)
        kept_mask = pruned.kept_mask
        uncached = model.generate(**batch.inputs, **GREEDY, use_cache=False)
    assert not kept_mask.all()
    tokens, logits = reference(model, batch, kept_mask, STEPS)
    assert torch.equal(output.sequences[:, -STEPS:], tokens)
    assert torch.equal(output.sequences, uncached.sequences)
    assert torch.stack(output.logits, 1).sub(logits).abs().max() <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_a_batch_do_not_change_each_other(name):
    specimen = EXPERIMENTAL[name]
    model = specimen.build()
    batch = make_batch(specimen, model, [1, 2])
    with GPrune(keep=0.4)(model) as pruned:
        together = model.generate(**batch.inputs, **GREEDY)
        kept = [group.indices for row in pruned.kept for group in row]
    assert len(kept) == 3
    length = int(batch.inputs["attention_mask"][0].sum())
    ids = batch.inputs["input_ids"][:1, -length:]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs |= specimen.collate(batch.rows[:1]) | specimen.token_types(ids)
    with GPrune(keep=0.4)(model):
        alone = model.generate(**inputs, **GREEDY)
    assert torch.equal(together.sequences[0, -STEPS:], alone.sequences[0, -STEPS:])


@LLAMA4
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_llama4_past_a_chunk(attention):
    """Attention chunks count the remaining tokens, as a sliding window does."""
    specimen = EXPERIMENTAL["llama4"]
    model = specimen.build(attention=attention)
    model.config.text_config.attention_chunk_size = 8
    batch = make_batch(specimen, model, [2])
    with GPrune(keep=0.4)(model) as pruned:
        output = model.generate(**batch.inputs, **GREEDY)
        kept_mask = pruned.kept_mask
        uncached = model.generate(**batch.inputs, **GREEDY, use_cache=False)
    assert int(kept_mask.sum()) > 2 * 8
    tokens, logits = shortened_greedy(model, batch, kept_mask, STEPS)
    assert torch.equal(output.sequences[:, -STEPS:], tokens)
    assert torch.equal(output.sequences, uncached.sequences)
    assert torch.stack(output.logits, 1).sub(logits).abs().max() <= 1e-5
    model.config.text_config.attention_chunk_size = 8192
    _, without = shortened_greedy(model, batch, kept_mask, STEPS)
    assert (logits - without).abs().max() > 1e-3  # so chunks matter here


@pytest.mark.parametrize("pruner", [ToMe(0.4), GraphCover(0.4, merge=True)], ids=["tome", "cover"])
def test_llama4_refuses_methods_that_merge(pruner):
    specimen = EXPERIMENTAL["llama4"]
    model = specimen.build()
    batch = make_batch(specimen, model, [1])
    message = f"{pruner.name} merges .* Llama4ForConditionalGeneration takes vision states"
    with pruner(model), pytest.raises(UnsupportedModelError, match=message):
        model(**batch.inputs)


@LLAMA4
def test_llama4_keeps_more_of_one_tile_than_of_another():
    specimen = EXPERIMENTAL["llama4"]
    model = specimen.build()
    batch = make_batch(specimen, model, [2])
    counts = iter([3, 9])
    with GPrune(lambda groups: [next(counts)])(model) as pruned:
        output = model.generate(**batch.inputs, **GREEDY)
        kept_mask, kept = pruned.kept_mask, pruned.kept
    assert [(len(group.indices), group.kind) for group in kept[0]] == [(3, "tile"), (9, "tile")]
    tokens, _ = masked_greedy(model, batch, kept_mask, STEPS)
    assert torch.equal(output.sequences[:, -STEPS:], tokens)
