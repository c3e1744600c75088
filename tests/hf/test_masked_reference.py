"""Generation equals that of a full-length model with the dropped tokens masked out."""

from __future__ import annotations

import pytest
import torch

from gprune import GPrune, GraphCover, ToMe, kept_count
from gprune.proof.batches import (
    GREEDY,
    STEPS,
    add_video,
    make_batch,
    masked_greedy,
    shortened_greedy,
)
from gprune.proof.equality import Prompt, masked_reference, uncached
from gprune.proof.models import IMAGE, SPECIMENS
from gprune.proof.reference import pruned_greedy
from tests.hf.merging import merged_outputs

# Images per row: one row; rows with different numbers of images; a row of text alone.
LAYOUTS = [[1], [3], [1, 2], [2, 0, 1]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("keep", [0.36, 0.1, 3])
@pytest.mark.parametrize("images", LAYOUTS)
def test_equals_the_masked_full_length_model(specimen, images, keep, attention):
    model = specimen.build(attention=attention)
    batch = make_batch(specimen, model, images, seed=5)
    prompt = Prompt(model, GPrune(keep=keep), batch.inputs)
    result = masked_reference(prompt, 1e-5)
    assert result.passed, result.detail
    run, kept = prompt.pruned
    tokens, _ = masked_greedy(model, batch, kept.mask, STEPS)
    assert torch.equal(run.tokens, tokens)  # along its own tokens too


@pytest.mark.parametrize("images", LAYOUTS)
def test_generation_without_cache_is_the_same(specimen, model, images):
    prompt = Prompt(model, GPrune(keep=0.3), make_batch(specimen, model, images, seed=2).inputs)
    result = uncached(prompt, 1e-5)
    assert result.passed, result.detail
    alone, _ = pruned_greedy(model, prompt.pruner, prompt.inputs, use_cache=False)
    assert torch.equal(prompt.pruned[0].tokens, alone.tokens)


@pytest.mark.parametrize("keep", [1.0, 0.3])
@pytest.mark.parametrize("images", [[1], [2, 0, 1]])
def test_generation_with_a_static_cache_is_the_same(specimen, model, images, keep):
    batch = make_batch(specimen, model, images, seed=2)
    untouched = model.generate(**batch.inputs, **GREEDY, cache_implementation="static")
    with GPrune(keep=keep)(model):
        dynamic = model.generate(**batch.inputs, **GREEDY)
        static = model.generate(**batch.inputs, **GREEDY, cache_implementation="static")
    assert torch.equal(dynamic.sequences, static.sequences)
    for one, other in zip(dynamic.logits, static.logits, strict=True):
        assert (one - other).abs().max() <= 1e-5
    if keep == 1.0:
        assert all(map(torch.equal, untouched.logits, static.logits))


@pytest.mark.parametrize("name", ["llava_next", "qwen3_vl", "internvl", "idefics3", "gemma3"])
@pytest.mark.parametrize("pruner", [ToMe(0.4), GraphCover(0.4, merge=True)], ids=["tome", "cover"])
def test_merged_features_reach_the_language_model(name, pruner):
    """Compares with the masked full-length model, given means in place of kept features."""
    specimen = SPECIMENS[name]
    model = specimen.build()
    batch = make_batch(specimen, model, [2, 1])
    with pruner(model) as pruned:
        output = model.generate(**batch.inputs, **GREEDY)
        kept_mask = pruned.kept_mask
    given, _ = merged_outputs(model, batch, pruner)
    real = batch.inputs["attention_mask"]
    inputs = {**batch.text, "attention_mask": real * kept_mask}
    inputs["position_ids"] = batch.positions(model)
    with torch.no_grad():
        last = model(**inputs, mm_encoder_outputs={"image": given}, use_cache=False).logits[:, -1]
    assert (output.logits[0] - last).abs().max() <= 1e-5


def test_a_call_without_mask_and_cache_is_not_read_as_packed_sequences(specimen, model):
    batch = make_batch(specimen, model, [1])
    inputs = {k: v for k, v in batch.inputs.items() if k != "attention_mask"}
    with GPrune(keep=0.25)(model) as pruned, torch.no_grad():
        last = model(**inputs, use_cache=False).logits[:, -1]
    _, logits = masked_greedy(model, batch, pruned.kept_mask, 1)
    assert (last - logits[:, 0]).abs().max() <= 1e-5


WITH_VIDEO = [name for name, specimen in SPECIMENS.items() if specimen.video]


@pytest.mark.parametrize("keep", [1.0, 0.4])
@pytest.mark.parametrize("name", WITH_VIDEO)
def test_videos_beside_images(name, keep):
    """Prunes an image and a video in one prompt; every frame of the video is a group."""
    specimen = SPECIMENS[name]
    model = specimen.build()
    beside = specimen.video_id != IMAGE  # otherwise the model cannot distinguish them
    batch, frames = add_video(specimen, model, make_batch(specimen, model, [int(beside)]))
    untouched = model.generate(**batch.inputs, **GREEDY)
    with GPrune(keep=keep)(model) as pruned:
        output = model.generate(**batch.inputs, **GREEDY)
        kept_mask, kept = pruned.kept_mask, pruned.kept[0]
        uncached = model.generate(**batch.inputs, **GREEDY, use_cache=False)
    video = [group for group in kept if group.modality == "video"]
    assert len(video) == frames
    assert all(len(group.indices) == kept_count(group.size, keep) for group in video)
    assert all(group.grid is not None for group in video)
    assert any(group.modality == "image" for group in kept) == beside
    assert torch.equal(output.sequences, uncached.sequences)
    if keep == 1.0:
        assert torch.equal(output.sequences, untouched.sequences)
        assert all(map(torch.equal, output.logits, untouched.logits))
        return
    tokens, logits = masked_greedy(model, batch, kept_mask, STEPS)
    assert torch.equal(output.sequences[:, -STEPS:], tokens)
    assert torch.stack(output.logits, 1).sub(logits).abs().max() <= 1e-5


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["gemma3", "aya_vision", "mistral3"])
def test_past_a_sliding_window(name, attention):
    """A sliding window counts the remaining tokens, so it reaches further back after pruning."""
    specimen = SPECIMENS[name]
    model = specimen.build(attention=attention, sliding_window=7)
    batch = make_batch(specimen, model, [2])
    with GPrune(keep=0.4)(model) as pruned:
        output = model.generate(**batch.inputs, **GREEDY)
        static = model.generate(**batch.inputs, **GREEDY, cache_implementation="static")
        kept_mask = pruned.kept_mask
        uncached = model.generate(**batch.inputs, **GREEDY, use_cache=False)
    assert int(kept_mask.sum()) > 2 * 7
    tokens, logits = shortened_greedy(model, batch, kept_mask, STEPS)
    assert torch.equal(output.sequences[:, -STEPS:], tokens)
    assert torch.equal(output.sequences, uncached.sequences)
    assert torch.equal(output.sequences, static.sequences)
    assert torch.stack(output.logits, 1).sub(logits).abs().max() <= 1e-5
