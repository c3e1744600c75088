"""Downsampling equals the unpruned model with a smaller image and its shorter prompt."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from gprune import Downsampling, VisualTokens, kept_count
from gprune.errors import UnsupportedModelError
from gprune.layouts import families_with
from gprune.proof.batches import GREEDY, STEPS, add_video, finish_batch, make_batch
from gprune.proof.models import IMAGE, PAD, SIDE, SPECIMENS

FAMILIES = families_with("takes_smaller_images")
LAYOUTS = [[1], [3], [2, 0, 1]]
PATCH, MERGE = 4, 2  # Qwen's, in the tiny models


@given(
    rows=st.integers(1, 60),
    columns=st.integers(1, 60),
    keep=st.one_of(st.floats(0.01, 1), st.integers(1, 4000)),
)
def test_raster_meets_the_budget_in_shape(rows, columns, keep):
    k = kept_count(rows * columns, keep)
    r, c = Downsampling(keep).raster(rows, columns)
    assert 1 <= r <= rows
    assert 1 <= c <= columns
    assert r * c <= k
    if k == rows * columns:
        assert (r, c) == (rows, columns)
    if r > 1 and c > 1:  # neither side could be longer at the same shape
        assert (r + 1) ** 2 * columns > k * rows
        assert (c + 1) ** 2 * rows > k * columns


@given(rows=st.integers(2, 40), columns=st.integers(2, 40), keep=st.floats(0.1, 0.99))
@settings(deadline=None)
def test_raster_is_that_of_qwens_processor(rows, columns, keep):
    """Compares at an equal budget of pixels, without the processor's minimum size."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    k = kept_count(rows * columns, keep)
    if k == rows * columns or max(rows, columns) > k:
        return
    height, width = smart_resize(rows * 28, columns * 28, 28, 1, k * 28 * 28)
    r, c = Downsampling(keep).raster(rows, columns)
    # The processor's root in floating point can be just below a whole number.
    assert abs(r - height // 28) <= 1
    assert abs(c - width // 28) <= 1
    exact = [(r * r * columns) == k * rows, (c * c * rows) == k * columns]
    assert (r, c) == (height // 28, width // 28) or any(exact)


def smaller_square(image, side):
    return {
        "pixel_values": F.interpolate(
            image["pixel_values"], (side * 8, side * 8), mode="bicubic", antialias=True
        )
    }


def image_of_patches(patches, high, wide):
    """Rebuilds an image from Qwen's patches, one patch at a time."""
    pixels = torch.zeros(6, high * PATCH, wide * PATCH)
    number = 0
    for top in range(0, high, MERGE):
        for left in range(0, wide, MERGE):
            for y in range(top, top + MERGE):
                for x in range(left, left + MERGE):
                    block = patches[number].view(6, PATCH, PATCH)
                    rows = slice(y * PATCH, (y + 1) * PATCH)
                    pixels[:, rows, x * PATCH : (x + 1) * PATCH] = block
                    number += 1
    return pixels


def patches_of_image(pixels):
    high, wide = (size // PATCH for size in pixels.shape[1:])
    found = []
    for top in range(0, high, MERGE):
        for left in range(0, wide, MERGE):
            for y in range(top, top + MERGE):
                for x in range(left, left + MERGE):
                    rows = slice(y * PATCH, (y + 1) * PATCH)
                    found.append(pixels[:, rows, x * PATCH : (x + 1) * PATCH].flatten())
    return torch.stack(found)


def smaller_patches(image, pruner):
    _, high, wide = image["image_grid_thw"][0].tolist()
    r, c = pruner.raster(high // MERGE, wide // MERGE)
    pixels = image_of_patches(image["pixel_values"], high, wide)
    size = (r * MERGE * PATCH, c * MERGE * PATCH)
    small = F.interpolate(pixels[None], size, mode="bicubic", antialias=True)[0]
    grid = torch.tensor([[1, r * MERGE, c * MERGE]])
    return {"pixel_values": patches_of_image(small), "image_grid_thw": grid}


def smaller_batch(specimen, pruner, batch):
    """Returns the batch of the smaller images, left-padded."""
    rows, lengths = [], []
    for row in batch.rows:
        rows.append([])
        for image in row:
            if specimen.name == "llava":
                r, c = pruner.raster(SIDE, SIDE)
                assert r == c
                rows[-1].append(smaller_square(image, r))
            else:
                rows[-1].append(smaller_patches(image, pruner))
                r, c = (rows[-1][-1]["image_grid_thw"][0, 1:] // MERGE).tolist()
            lengths.append(r * c)
    left = iter(zip(batch.lengths, lengths, strict=True))
    prompts = []
    for ids, mask in zip(batch.inputs["input_ids"], batch.inputs["attention_mask"], strict=True):
        prompt, rest = [], ids[mask.bool()].tolist()
        while rest:
            if rest[0] == IMAGE:
                full, small = next(left)
                prompt += [IMAGE] * small
                rest = rest[full:]
            else:
                prompt.append(rest.pop(0))
        prompts.append(prompt)
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    return finish_batch(specimen, ids, mask, rows, lengths)


def encoded(model, specimen, batch):
    """Encodes the smaller images without gprune; returns the model's inputs."""
    options = {"interpolate_pos_encoding": True} if specimen.name == "llava" else {}
    output = model.base_model.get_image_features(**batch.pixels, **options, return_dict=True)
    return {**batch.text, "mm_encoder_outputs": {"image": output}}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("keep", [0.6, 0.3, 1])
@pytest.mark.parametrize("images", LAYOUTS)
@torch.no_grad()
def test_equals_the_model_given_smaller_images(name, images, keep, attention):
    specimen = SPECIMENS[name]
    model = specimen.build(attention=attention)
    batch = make_batch(specimen, model, images, seed=3)
    pruner = Downsampling(keep)
    small = smaller_batch(specimen, pruner, batch)
    positions = small.positions(model)
    inputs = encoded(model, specimen, small)
    if name == "llava":
        expected = model.generate(**inputs, **GREEDY)
        tokens = expected.sequences[:, -STEPS:]
        logits = torch.stack(expected.logits, 1)
    else:
        tokens, logits = stepwise(model, small, inputs, positions)
    with pruner(model) as pruned:
        uncached = model.generate(**batch.inputs, **GREEDY, use_cache=False)
        called = model(**batch.inputs).logits[:, -1]
        output = model.generate(**batch.inputs, **GREEDY)
    assert (called - logits[:, 0]).abs().max() <= 1e-5
    assert torch.equal(output.sequences[:, -STEPS:], tokens)
    assert torch.equal(output.sequences, uncached.sequences)
    assert torch.stack(output.logits, 1).sub(logits).abs().max() <= 1e-5
    kept = (pruned.kept_mask & batch.inputs["attention_mask"].bool()).sum(1)
    assert kept.tolist() == small.inputs["attention_mask"].sum(1).tolist()
    for group in (group for row in pruned.kept for group in row):
        r, c = pruner.raster(*group.grid)
        assert len(group.indices) == r * c
        assert group.indices.tolist() == sorted(set(group.indices.tolist()))


def stepwise(model, batch, inputs, positions):
    """Decodes greedily without a cache and with given positions."""
    tokens, logits = [], []
    inputs = dict(inputs)
    for _ in range(STEPS):
        last = model(**inputs, position_ids=positions, use_cache=False).logits[:, -1]
        token = last.argmax(-1, keepdim=True)
        tokens.append(token)
        logits.append(last)
        for field, new in (("input_ids", token), ("attention_mask", torch.ones_like(token))):
            inputs[field] = torch.cat([inputs[field], new], 1)
        types = inputs["mm_token_type_ids"]
        inputs["mm_token_type_ids"] = torch.cat([types, torch.zeros_like(types[:, :1])], 1)
        positions = torch.cat([positions, positions[..., -1:] + 1], -1)
    return torch.cat(tokens, 1), torch.stack(logits, 1)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("images", [[1], [2, 0, 1]])
def test_keep_one_is_bit_identical(name, images):
    specimen = SPECIMENS[name]
    model = specimen.build(torch.bfloat16)
    batch = make_batch(specimen, model, images, dtype=torch.bfloat16)
    untouched = model.generate(**batch.inputs, **GREEDY)
    with Downsampling(1.0)(model) as pruned:
        same = model.generate(**batch.inputs, **GREEDY)
    assert pruned.kept_mask.all()
    assert torch.equal(untouched.sequences, same.sequences)
    assert all(map(torch.equal, untouched.logits, same.logits))


@pytest.mark.parametrize("name", FAMILIES)
def test_beams_and_prompt_lookup(name):
    specimen = SPECIMENS[name]
    model = specimen.build()
    batch = make_batch(specimen, model, [1])
    plain = {"max_new_tokens": 8, "do_sample": False}
    with Downsampling(0.5)(model):
        slow = model.generate(**batch.inputs, **plain)
        fast = model.generate(**batch.inputs, **plain, prompt_lookup_num_tokens=3)
        beams = model.generate(**batch.inputs, num_beams=3, max_new_tokens=4)
        alone = model.generate(**batch.inputs, num_beams=3, max_new_tokens=4, use_cache=False)
    assert torch.equal(slow, fast)
    assert torch.equal(beams, alone)


def test_llava_with_the_cls_token():
    """CLS is not a patch: it is kept, before the smaller raster."""
    specimen = SPECIMENS["llava"]
    model = specimen.build()
    model.config.vision_feature_select_strategy = "full"
    batch = make_batch(specimen, model, [2])
    assert batch.lengths == [SIDE * SIDE + 1] * 2
    with Downsampling(0.25)(model) as pruned, torch.no_grad():
        model(**batch.inputs)
    kept = pruned.kept_mask[0][batch.inputs["input_ids"][0] == IMAGE].view(2, -1)
    assert kept.sum(1).tolist() == [5, 5]
    assert kept[:, 0].all()


def test_leaving_leaves_no_trace():
    specimen = SPECIMENS["llava"]
    model = specimen.build()
    batch = make_batch(specimen, model, [1])
    with torch.no_grad():
        before = model(**batch.inputs).logits
        with Downsampling(0.25)(model):
            model(**batch.inputs)
        assert torch.equal(model(**batch.inputs).logits, before)
    assert "get_image_features" not in vars(model.base_model)


class TestRefusals:
    def test_other_families_by_name(self):
        for name in ("llava_next", "internvl", "pixtral"):
            model = SPECIMENS[name].build()
            with pytest.raises(UnsupportedModelError, match=type(model).__name__):
                Downsampling(0.5)(model).__enter__()

    def test_videos(self):
        specimen = SPECIMENS["qwen2_5_vl"]
        model = specimen.build()
        batch, _ = add_video(specimen, model, make_batch(specimen, model, [0]))
        with Downsampling(0.5)(model), pytest.raises(ValueError, match="has a video"):
            model(**batch.inputs)

    def test_features_encoded_before(self):
        specimen = SPECIMENS["llava"]
        model = specimen.build()
        batch = make_batch(specimen, model, [1])
        output = model.base_model.get_image_features(**batch.pixels, return_dict=True)
        given = {**batch.text, "mm_encoder_outputs": {"image": output}}
        with Downsampling(0.25)(model), pytest.raises(ValueError, match="pass pixel_values"):
            model(**given)

    def test_budgets_for_groups(self):
        with pytest.raises(TypeError, match="must be a ratio or a count"):
            Downsampling({"image": 0.5})

    def test_features_alone(self):
        with pytest.raises(ValueError, match="too late"):
            Downsampling(0.5).select(VisualTokens(torch.ones(4, 2)))

    def test_towers_that_cannot_interpolate(self):
        model = SPECIMENS["llava"].build()

        class Fixed(tf.CLIPVisionModel):
            def forward(self, pixel_values):
                return super().forward(pixel_values)

        model.base_model.vision_tower = Fixed(model.config.vision_config)
        with pytest.raises(UnsupportedModelError, match="cannot interpolate"):
            Downsampling(0.5)(model).__enter__()
