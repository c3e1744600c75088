"""Pruning inside transformers: identity at keep=1, a masked full-length model below it."""

from __future__ import annotations

import copy
import inspect
import threading
from types import SimpleNamespace

import pytest
import torch

from gprune import (
    GPrune,
    GraphCover,
    RandomPruner,
    ThumbnailGuided,
    ToMe,
    UniformGridPruner,
    VisualTokens,
    WeightedCover,
    kept_count,
)
from gprune.errors import UnsupportedModelError, UnsupportedVersionError
from gprune.hf import versions
from gprune.hf.cache import PrunedCache
from gprune.hf.hook import padding_id, rows_of
from gprune.layouts import family_of
from tests.hf.batches import (
    GREEDY,
    STEPS,
    Batch,
    add_video,
    feature_length,
    finish_batch,
    make_batch,
    masked_greedy,
    merged_outputs,
    noise,
    shortened_greedy,
)
from tests.hf.models import BREAK, IMAGE, SIDE, SPECIMENS
from tests.hf.quantised import Int4Linear, Int8Linear, quantise

FAMILIES = list(SPECIMENS)
# One image; uneven images with a text-only row; several images a row.
LAYOUTS = [[1], [3], [1, 2], [2, 0, 1]]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return SPECIMENS[request.param]


@pytest.fixture(scope="module")
def model(family):
    return family.build()


def forward(model, batch: Batch, **options):
    with torch.no_grad():
        return model(**batch.inputs, **options)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("images", LAYOUTS)
def test_keep_one_is_bit_identical(family, images, dtype, attention):
    model = family.build(dtype, attention)
    batch = make_batch(family, model, images, dtype=dtype)
    options = {**GREEDY, "max_new_tokens": STEPS}
    sampling = {"do_sample": True, "max_new_tokens": STEPS}
    beams = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": STEPS}

    beamed = batch
    if not family.beams:
        beamed = make_batch(family, model, [min(count, 1) for count in images], dtype=dtype)

    def run():
        torch.manual_seed(1)
        plain = forward(model, batch)
        greedy = model.generate(**batch.inputs, **options)
        return [
            plain.logits,
            forward(model, batch, use_cache=False).logits,
            greedy.sequences,
            *greedy.logits,
            model.generate(**batch.inputs, **sampling),
            model.generate(**beamed.inputs, **beams),
        ]

    untouched = run()
    with GPrune(keep=1.0)(model) as pruned:
        through = run()
        assert pruned.kept_mask.dtype == torch.bool
        assert pruned.kept_mask.all()
    for expected, actual in zip(untouched, through, strict=True):
        assert torch.equal(expected, actual)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("keep", [0.36, 0.1, 3])
@pytest.mark.parametrize("images", LAYOUTS)
def test_equals_the_masked_full_length_model(family, images, keep, attention):
    model = family.build(attention=attention)
    batch = make_batch(family, model, images, seed=5)
    with GPrune(keep=keep)(model) as pruned:
        output = model.generate(**batch.inputs, **GREEDY)
        kept_mask = pruned.kept_mask
    width = batch.inputs["input_ids"].shape[1]
    tokens, logits = masked_greedy(model, batch, kept_mask, STEPS)
    assert torch.equal(output.sequences[:, width:], tokens)
    assert torch.stack(output.logits, 1).sub(logits).abs().max() <= 1e-5


@pytest.mark.parametrize("images", LAYOUTS)
def test_without_cache_is_the_same(family, model, images):
    batch = make_batch(family, model, images, seed=2)
    with GPrune(keep=0.3)(model):
        cached = model.generate(**batch.inputs, **GREEDY)
        uncached = model.generate(**batch.inputs, **GREEDY, use_cache=False)
    assert torch.equal(cached.sequences, uncached.sequences)
    for one, other in zip(cached.logits, uncached.logits, strict=True):
        assert (one - other).abs().max() <= 1e-5


@pytest.mark.parametrize("keep", [1.0, 0.3])
@pytest.mark.parametrize("images", [[1], [2, 0, 1]])
def test_static_cache_is_the_same(family, model, images, keep):
    batch = make_batch(family, model, images, seed=2)
    untouched = model.generate(**batch.inputs, **GREEDY, cache_implementation="static")
    with GPrune(keep=keep)(model):
        dynamic = model.generate(**batch.inputs, **GREEDY)
        static = model.generate(**batch.inputs, **GREEDY, cache_implementation="static")
    assert torch.equal(dynamic.sequences, static.sequences)
    for one, other in zip(dynamic.logits, static.logits, strict=True):
        assert (one - other).abs().max() <= 1e-5
    if keep == 1.0:
        assert all(map(torch.equal, untouched.logits, static.logits))


@pytest.mark.parametrize("images", [[1], [2, 0, 1]])
def test_beams_equal_their_own_runs_without_cache(family, model, images):
    images = images if family.beams else [min(count, 1) for count in images]
    batch = make_batch(family, model, images, seed=3)
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": STEPS}
    with GPrune(keep=0.3)(model):
        cached = model.generate(**batch.inputs, **options)
        uncached = model.generate(**batch.inputs, **options, use_cache=False)
    assert torch.equal(cached, uncached)


# transformers' assisted decoding counts PaliGemma's first candidates as part of the prompt, which
# sees itself both ways: its result can differ from greedy decoding, with and without pruning.
ASSISTED = [name for name in FAMILIES if name != "paligemma"]


@pytest.mark.parametrize("name", ASSISTED)
def test_prompt_lookup_is_the_same(name):
    """Candidates are verified several at a time and the cache is rolled back."""
    family = SPECIMENS[name]
    model = family.build()
    batch = make_batch(family, model, [1])
    # Something to look up: the candidates after `7 8` come with the very first call.
    ids = torch.cat([batch.inputs["input_ids"], torch.tensor([[7, 8, 9, 7, 8]])], 1)
    longer = finish_batch(family, ids, torch.ones_like(ids), batch.rows, batch.lengths)
    options = {"max_new_tokens": 12, "do_sample": False}
    with GPrune(keep=0.3)(model):
        slow = model.generate(**longer.inputs, **options)
        fast = model.generate(**longer.inputs, **options, prompt_lookup_num_tokens=3)
    assert torch.equal(slow, fast)


@pytest.mark.parametrize("name", ASSISTED)
@pytest.mark.parametrize("noise_scale", [0.0, 0.3])
def test_assisted_decoding_is_the_same(name, noise_scale):
    """With an assistant that is always right and with one that is often wrong."""
    family = SPECIMENS[name]
    model, assistant = family.build(), family.build()
    with torch.no_grad():
        words = assistant.lm_head.weight[IMAGE + 1 : BREAK]  # it proposes no placeholders
        words.add_(noise_scale * noise(1)(*words.shape))
    batch = make_batch(family, model, [1])
    options = {"max_new_tokens": 10, "do_sample": False}
    with GPrune(keep=0.3)(model):
        slow = model.generate(**batch.inputs, **options)
        fast = model.generate(**batch.inputs, **options, assistant_model=assistant)
    assert torch.equal(slow, fast)


def test_cache_is_really_shorter(family, model):
    batch = make_batch(family, model, [1])
    length = batch.inputs["input_ids"].shape[1]
    with GPrune(keep=0.25)(model) as pruned:
        output = forward(model, batch)
    physical = int(pruned.kept_mask.sum())
    cache = output.past_key_values
    assert physical < length
    assert all(layer.keys.shape[2] == physical for layer in cache.layers)
    assert output.logits.shape[1] == physical
    assert cache.get_seq_length() == length  # what `generate` slices by
    assert cache.get_query_offset() == physical


@pytest.mark.parametrize("images", [[2, 0, 1], [1, 3]])
def test_kept_says_what_was_kept(family, model, images):
    batch = make_batch(family, model, images)
    keep = 0.3
    with GPrune(keep=keep)(model) as pruned:
        assert pruned.kept_mask is None
        assert pruned.kept == []
        output = forward(model, batch)
    # As long as the row that keeps most; logits are of every position.
    assert output.logits.shape[1] == int(pruned.kept_mask.sum(1).max())
    ids, real = batch.inputs["input_ids"], batch.inputs["attention_mask"].bool()
    visual = ids == IMAGE
    assert torch.equal(pruned.kept_mask & ~visual, real & ~visual)
    tiles = [sum(map(family.tiles, row)) for row in batch.rows]
    numbers = [sorted({group.image for group in row}) for row in pruned.kept]
    assert numbers == [list(range(count)) for count in tiles]
    newlines = 0
    for row, groups in enumerate(pruned.kept):
        total = 0
        for group in groups:
            assert len(group.indices) == kept_count(group.size, keep)
            assert group.indices.tolist() == sorted(set(group.indices.tolist()))
            assert group.grid is not None
            assert group.grid[0] * group.grid[1] == group.size
            total += len(group.indices)
        newlines += int((pruned.kept_mask & visual)[row].sum()) - total
    sizes = sum(group.size for row in pruned.kept for group in row)
    assert newlines == sum(batch.lengths) - sizes


def test_llava_next_groups_and_newlines():
    model = SPECIMENS["llava_next"].build()
    batch = make_batch(SPECIMENS["llava_next"], model, [1], seed=1)
    with GPrune(keep=1)(model) as pruned:  # one token a group
        forward(model, batch)
    thumbnail, canvas = pruned.kept[0]
    assert thumbnail.grid == (SIDE, SIDE)
    rows, columns = canvas.grid
    assert batch.lengths == [SIDE * SIDE + rows * (columns + 1)]
    kept = pruned.kept_mask[0][batch.inputs["input_ids"][0] == IMAGE]
    newlines = kept[SIDE * SIDE :].view(rows, columns + 1)[:, -1]
    assert newlines.all()
    assert int(kept.sum()) == 2 + rows


def test_the_config_tells_the_tokens_of_an_image(family, model):
    """What `gprune flops MODEL` goes by; None where pictures differ."""
    images = [family.image(noise(0), index) for index in range(3)]
    lengths = {feature_length(family, model, image) // family.tiles(image) for image in images}
    told = family_of(model).tokens_an_image(model.config)
    assert {told} == lengths if told is not None else len(lengths) > 1


def test_selection_is_of_the_projected_features(family, model):
    batch = make_batch(family, model, [1])
    with torch.no_grad():
        encoded = model.base_model.get_image_features(**batch.pixels, return_dict=True)
    features = encoded.pooler_output[0]
    with GPrune(keep=0.4)(model) as pruned:
        forward(model, batch)
    first = pruned.kept[0][0]
    expected = GPrune(keep=0.4).select(VisualTokens(features[: first.size]))
    assert torch.equal(first.indices, expected)


@pytest.mark.parametrize("name", ["llava_next", "qwen3_vl", "internvl", "idefics3", "gemma3"])
@pytest.mark.parametrize("pruner", [ToMe(0.4), GraphCover(0.4, merge=True)], ids=["tome", "cover"])
def test_merged_features_reach_the_language_model(name, pruner):
    """Against the masked full-length model, given the means in the place of the features."""
    family = SPECIMENS[name]
    model = family.build()
    batch = make_batch(family, model, [2, 1])
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


def test_batch_mates_do_not_change_what_is_kept(family, model):
    together = make_batch(family, model, [1, 2])
    with GPrune(keep=0.3)(model) as pruned:
        forward(model, together)
        expected = [group.indices for group in pruned.kept[0]]
        ids = together.inputs["input_ids"][:1, -int(together.inputs["attention_mask"][0].sum()) :]
        alone = finish_batch(family, ids, torch.ones_like(ids), together.rows[:1], [])
        with torch.no_grad():
            model(**alone.inputs)
        actual = [group.indices for group in pruned.kept[0]]
    assert all(map(torch.equal, expected, actual))


def test_original_position_ids_reach_the_language_model(family, model):
    batch = make_batch(family, model, [1])
    seen = {}

    def spy(module, args, kwargs):
        seen.update(kwargs)

    handle = model.get_decoder().register_forward_pre_hook(spy, with_kwargs=True)
    with GPrune(keep=0.25)(model) as pruned:
        forward(model, batch)
    handle.remove()
    kept = pruned.kept_mask[0].nonzero().squeeze(1)
    assert torch.equal(seen["position_ids"], batch.positions(model)[..., kept])
    assert seen["attention_mask"] is not None  # or gaps would read as packed sequences


@pytest.mark.parametrize("name", ["llava", "llava_next", "gemma3", "paligemma"])
@pytest.mark.parametrize("images", [[1], [2, 0, 1]])
def test_compact_positions(name, images):
    """Kept tokens and what follows are numbered without gaps, at prefill and when decoding."""
    family = SPECIMENS[name]
    model = family.build()
    batch = make_batch(family, model, images)
    seen = []

    def spy(module, args, kwargs):
        seen.append((kwargs["position_ids"], kwargs["attention_mask"]))

    handle = model.get_decoder().register_forward_pre_hook(spy, with_kwargs=True)
    with GPrune(keep=0.25)(model, positions="compact") as pruned:
        cached = model.generate(**batch.inputs, **GREEDY)
        kept_mask = pruned.kept_mask
        handle.remove()
        uncached = model.generate(**batch.inputs, **GREEDY, use_cache=False)
    real = (kept_mask & batch.inputs["attention_mask"].bool()).sum(1)
    first = family.first_position
    for step, (positions, _) in enumerate(seen):
        for row, length in enumerate(real.tolist()):
            ids = positions.expand(len(real), -1)[row]
            expected = range(first, first + length) if step == 0 else [first + length + step - 1]
            assert ids[-len(expected) :].tolist() == list(expected)
    assert torch.equal(cached.sequences, uncached.sequences)
    for one, other in zip(cached.logits, uncached.logits, strict=True):
        assert (one - other).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("name", "pruner"),
    [(name, UniformGridPruner(1)) for name in ("llava", "llava_next", "gemma3")]
    + [("llava", WeightedCover(1))],
)
def test_compact_positions_over_turns(name, pruner):
    """Each turn goes on where the one before it left off, also where that ends with a picture."""
    family = SPECIMENS[name]
    model = family.build()
    turns = [make_batch(family, model, images, seed=seed) for seed, images in enumerate(([1],) * 3)]
    ids = turns[1].inputs["input_ids"][:, :-7]  # without the words after the picture
    turns[1] = finish_batch(family, ids, torch.ones_like(ids), turns[1].rows, turns[1].lengths)
    turns.insert(2, make_batch(family, model, [0]))
    seen = []

    def spy(module, args, kwargs):
        seen.extend(kwargs["position_ids"][0].tolist())

    cache, ids = None, torch.empty(1, 0, dtype=torch.long)
    handle = model.get_decoder().register_forward_pre_hook(spy, with_kwargs=True)
    with pruner(model, positions="compact") as pruned, torch.no_grad():
        assert pruned.positions == "compact"
        for turn in turns:
            ids = torch.cat([ids, turn.inputs["input_ids"]], 1)
            call = {**turn.inputs, "attention_mask": torch.ones_like(ids)}
            call |= family.token_types(ids) if family.history else {}
            cache = model(**call, past_key_values=cache).past_key_values
            if turn is turns[1] and name == "llava":
                assert not pruned.kept_mask[0, -1]
    handle.remove()
    first = family.first_position
    assert seen == list(range(first, first + cache.get_query_offset()))


def test_compact_positions_need_plain_ones(family, model):
    with pytest.raises(ValueError, match="positions='dense' must be one of"):
        GPrune(0.3)(model, positions="dense").__enter__()
    if family_of(model).multimodal_positions:
        with pytest.raises(ValueError, match="M-RoPE"):
            GPrune(0.3)(model, positions="compact").__enter__()


def test_a_budget_for_each_kind_of_group():
    family = SPECIMENS["llava_onevision"]
    model = family.build()
    batch, _ = add_video(family, model, make_batch(family, model, [1]))
    keep = {"thumbnail": 1.0, "canvas": 0.25, "frame": 2}
    with GPrune(keep)(model) as pruned:
        model.generate(**batch.inputs, **GREEDY)
    kinds = [group.kind for group in pruned.kept[0]]
    assert kinds == ["thumbnail", "canvas", "frame", "frame", "frame"]
    for group in pruned.kept[0]:
        assert len(group.indices) == kept_count(group.size, keep[group.kind])
    with GPrune({"canvas": 0.5})(model), pytest.raises(ValueError, match=r"frame|thumbnail"):
        forward(model, batch)


def test_a_function_that_shares_a_budget_out():
    """It sees all groups of an image at once."""
    family = SPECIMENS["llava_next"]
    model = family.build()
    batch = make_batch(family, model, [1])

    def keep(groups):
        assert [group.kind for group in groups] == ["thumbnail", "canvas"]
        return [5, 10 - 5]

    with UniformGridPruner(keep)(model) as pruned:
        forward(model, batch)
    assert [len(group.indices) for group in pruned.kept[0]] == [5, 5]


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision", "llava_next_video"])
@pytest.mark.parametrize("method", [GPrune, ToMe])
def test_tiles_share_a_budget_as_the_thumbnail_guides(name, method):
    family = SPECIMENS[name]
    model = family.build()
    batch = make_batch(family, model, [2, 0, 1])
    policy = ThumbnailGuided(0.3, temperature=0.02)
    with method(policy)(model) as pruned:
        output = model.generate(**batch.inputs, **GREEDY)
        kept, kept_mask = [group for row in pruned.kept for group in row], pruned.kept_mask
        uncached = model.generate(**batch.inputs, **GREEDY, use_cache=False)
    assert torch.equal(output.sequences, uncached.sequences)
    with torch.no_grad():
        encoded = model.base_model.get_image_features(**batch.pixels, return_dict=True)
    uneven = False
    for image, features in enumerate(encoded.pooler_output):
        thumbnail, canvas = kept[2 * image : 2 * image + 2]
        assert len(thumbnail.indices) == kept_count(thumbnail.size, 0.3)
        assert len(canvas.indices) == kept_count(canvas.size, 0.3)
        divided = family_of(model).groups(model, "image", features, None)
        groups = [VisualTokens(features[g.rows], g.grid, kind=g.kind) for g in divided]
        shares = policy(groups)[1]
        counts = [int(torch.isin(canvas.indices, rows).sum()) for rows, _ in shares.parts]
        assert counts == list(shares.counts)
        uneven |= len(set(counts)) > 1
    assert uneven
    if method is GPrune:  # what merging sends to the language model has a test of its own
        tokens, logits = masked_greedy(model, batch, kept_mask, STEPS)
        assert torch.equal(output.sequences[:, -STEPS:], tokens)
        assert torch.stack(output.logits, 1).sub(logits).abs().max() <= 1e-5


def test_thumbnail_guidance_without_a_thumbnail_is_refused():
    family = SPECIMENS["llava"]
    model = family.build()
    batch = make_batch(family, model, [1])
    with GPrune(ThumbnailGuided(0.3))(model), pytest.raises(ValueError, match="of kind image"):
        forward(model, batch)


def test_no_mask_no_cache_is_not_read_as_packed_sequences(family, model):
    batch = make_batch(family, model, [1])
    inputs = {k: v for k, v in batch.inputs.items() if k != "attention_mask"}
    with GPrune(keep=0.25)(model) as pruned, torch.no_grad():
        last = model(**inputs, use_cache=False).logits[:, -1]
    _, logits = masked_greedy(model, batch, pruned.kept_mask, 1)
    assert (last - logits[:, 0]).abs().max() <= 1e-5


def in_one(first: Batch, second: Batch) -> Batch:
    """Two turns as one batch; it takes the images row by row, first turn, then second."""
    ids, mask = (
        torch.cat([first.inputs[name], second.inputs[name]], 1)
        for name in ("input_ids", "attention_mask")
    )
    rows = [one + other for one, other in zip(first.rows, second.rows, strict=True)]
    return finish_batch(first.specimen, ids, mask, rows, [])


@pytest.mark.parametrize("keep", [0.3, 1.0])
@pytest.mark.parametrize("name", [name for name, specimen in SPECIMENS.items() if specimen.turns])
def test_second_turn_with_another_image(name, keep):
    """Two turns through one cache equal one full-length call with both turns' drops masked."""
    family = SPECIMENS[name]
    model = family.build()
    first, second = (
        make_batch(family, model, [1, 2], seed=1),
        make_batch(family, model, [1, 1], seed=2),
    )
    joined = in_one(first, second)
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
            **(family.token_types(ids) if family.history else {}),
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


@pytest.mark.parametrize("name", [name for name, specimen in SPECIMENS.items() if specimen.turns])
def test_a_turn_of_text_after_a_pruned_one(name):
    """Its padding is seen by none, and types of the whole history lose those of dropped tokens."""
    family = SPECIMENS[name]
    model = family.build()
    first, second = make_batch(family, model, [1, 2], seed=1), make_batch(family, model, [0, 0])
    second.inputs["input_ids"][0, :3] = 0
    second.inputs["attention_mask"][0, :3] = 0
    joined = in_one(first, second)
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
            **(family.token_types(ids) if family.history else {}),
        )
        assert torch.equal(pruned.kept_mask, kept)  # of the latest prefill with pictures
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


@pytest.mark.parametrize("name", [name for name, specimen in SPECIMENS.items() if specimen.turns])
def test_an_answer_between_two_turns_with_images(name):
    """What was generated since the first turn keeps its places in the cache of the second."""
    family = SPECIMENS[name]
    model = family.build()
    first, answer, second = (
        make_batch(family, model, images, seed=seed)
        for seed, images in enumerate(([1, 2], [0, 0], [1, 1]), 1)
    )
    told = in_one(first, answer)
    joined = in_one(told, second)
    ids, mask = joined.inputs["input_ids"], joined.inputs["attention_mask"]
    positions = joined.positions(model)
    past, later = first.inputs["input_ids"].shape[1], told.inputs["input_ids"].shape[1]
    with UniformGridPruner(keep=0.3)(model) as pruned, torch.no_grad():
        cache = forward(model, first, position_ids=positions[..., :past]).past_key_values
        kept = [pruned.kept_mask]
        for place in range(past, later):
            model(
                input_ids=ids[:, place : place + 1],
                attention_mask=mask[:, : place + 1],
                position_ids=positions[..., place : place + 1],
                past_key_values=cache,
            )
        output = model(
            input_ids=ids[:, later:],
            attention_mask=mask,
            position_ids=positions[..., later:],
            past_key_values=cache,
            **(family.token_types(ids) if family.history else {}),
            **second.pixels,
        )
        kept += [torch.ones_like(ids[:, past:later]), pruned.kept_mask]
        assert cache.get_seq_length() == mask.shape[1]
    _, logits = masked_greedy(model, joined, torch.cat(kept, 1), 1)
    assert (output.logits[:, -1] - logits[:, 0]).abs().max() <= 1e-5


@pytest.mark.parametrize("images", [[0, 0], [1, 2]])
@pytest.mark.parametrize("name", [name for name, specimen in SPECIMENS.items() if specimen.turns])
def test_a_picture_after_a_turn_that_was_not_pruned(name, images):
    """One without pictures, or one outside the block: its cache is a plain one with a past."""
    family = SPECIMENS[name]
    model = family.build()
    first, second = (
        make_batch(family, model, images, seed=1),
        make_batch(family, model, [2, 1], seed=2),
    )
    joined = in_one(first, second)
    ids, mask = joined.inputs["input_ids"], joined.inputs["attention_mask"]
    positions = joined.positions(model)
    past = first.inputs["input_ids"].shape[1]
    cache = forward(model, first, position_ids=positions[..., :past]).past_key_values
    types = family.token_types(ids) if family.history else family.token_types(ids[:, past:])
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
        # Back into the second turn's text: the first turn's slots keep their places.
        cache.crop(-3)
        assert cache.get_seq_length() == mask.shape[1] - 2
    tokens, logits = masked_greedy(model, joined, kept, 2)
    assert torch.equal(token, tokens[:, :1])
    assert (output.logits[:, -1] - logits[:, 0]).abs().max() <= 1e-5
    assert (step.logits[:, -1] - logits[:, 1]).abs().max() <= 1e-5


def test_outputs_as_a_tuple(family, model):
    batch = make_batch(family, model, [1])
    with GPrune(keep=0.3)(model):
        output = forward(model, batch)
        logits, *others = forward(model, batch, return_dict=False)
    assert torch.equal(logits, output.logits)
    assert any(isinstance(other, PrunedCache) for other in others)


def test_decoding_without_mask_or_positions(family, model):
    """A hand-written loop that passes ids and cache alone still sees the right mask."""
    batch = make_batch(family, model, [1])
    with GPrune(keep=0.3)(model) as pruned, torch.no_grad():
        output = forward(model, batch)
        token = output.logits[:, -1:].argmax(-1)
        step = model(input_ids=token, past_key_values=output.past_key_values)
    _, logits = masked_greedy(model, batch, pruned.kept_mask, 2)
    assert (step.logits[:, -1] - logits[:, 1]).abs().max() <= 1e-5


def test_copied_cache_knows_what_was_pruned(family, model):
    batch = make_batch(family, model, [1, 2])
    with GPrune(keep=0.3)(model), torch.no_grad():
        output = forward(model, batch)
        token = output.logits[:, -1:].argmax(-1)
        twin = copy.deepcopy(output.past_key_values)
        one = model(input_ids=token, past_key_values=output.past_key_values).logits
        other = model(input_ids=token, past_key_values=twin).logits
    assert torch.equal(one, other)


def test_rolled_back_cache(family, model):
    """Back to the middle of the image: what follows sees what an earlier prefill's would."""
    batch = make_batch(family, model, [1])
    ids, positions = batch.inputs["input_ids"], batch.positions(model)
    length = ids.shape[1]
    with UniformGridPruner(keep=0.3)(model) as pruned, torch.no_grad():
        cache = forward(model, batch).past_key_values
        kept_mask = pruned.kept_mask
        remains = length - batch.lengths[0] // 2 - 3
        cache.crop(remains - length)
        assert cache.get_seq_length() == remains
        assert cache.layers[0].keys.shape[2] == int(kept_mask[0, :remains].sum())
        token = torch.tensor([[7]])
        step = model(
            input_ids=token, position_ids=positions[..., :1] + 50, past_key_values=cache
        ).logits
        # The same by hand: a fresh prefill, its cache cut to the slots that remain.
        twin = forward(model, batch).past_key_values
        slots = int(kept_mask[0, :remains].sum())
        for layer in twin.layers:
            layer.keys, layer.values = layer.keys[:, :, :slots], layer.values[:, :, :slots]
        twin.origin, twin.used = twin.origin[:, :slots], twin.used[:, :slots]
        twin.logical = remains
        expected = model(
            input_ids=token, position_ids=positions[..., :1] + 50, past_key_values=twin
        ).logits
    assert torch.equal(step, expected)


def test_rolling_back_rows_unevenly_is_refused(family, model):
    batch = make_batch(family, model, [1, 2])
    with GPrune(keep=0.3)(model):
        cache = forward(model, batch).past_key_values
        left = [(cache.origin >= length).sum(1).unique() for length in range(cache.logical)]
        uneven = next(length for length, counts in enumerate(left) if len(counts) > 1)
        with pytest.raises(ValueError, match="different numbers of tokens"):
            cache.crop(uneven - cache.logical)


def out_of_memory(*args):
    raise MemoryError


@pytest.mark.parametrize("inside", [None, "a step", "a step that fails"])
def test_pruned_cache_is_refused_outside(family, model, inside):
    """Whatever became of the last call inside."""
    batch = make_batch(family, model, [1])
    with GPrune(keep=0.3)(model), torch.no_grad():
        output = forward(model, batch)
        step = {
            "input_ids": output.logits[:, -1:].argmax(-1),
            "past_key_values": output.past_key_values,
        }
        if inside == "a step":
            model(**step)
        elif inside == "a step that fails":
            handle = model.get_decoder().register_forward_pre_hook(out_of_memory)
            with pytest.raises(MemoryError):
                model(**step)
            handle.remove()
    with pytest.raises(RuntimeError, match="was pruned by gprune"):
        model(**step)


def test_masks_in_four_dimensions_are_refused(family, model):
    """Of which columns they would be after pruning, they do not say."""
    batch = make_batch(family, model, [1])
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


@pytest.mark.parametrize("name", [name for name, specimen in SPECIMENS.items() if specimen.types])
def test_types_of_a_prompt_without_its_candidates(name):
    """Assisted decoding adds candidates to the prompt, but not to the types of its tokens."""
    family = SPECIMENS[name]
    model = family.build()
    batch = make_batch(family, model, [1])
    positions = batch.positions(model)
    types = family.token_types(batch.inputs["input_ids"])
    shorter = {name: values[:, :-2] for name, values in types.items()}
    with GPrune(keep=0.3)(model), torch.no_grad():
        expected = model(**batch.inputs, position_ids=positions).logits
        logits = model(**{**batch.inputs, **shorter}, position_ids=positions).logits
    assert torch.equal(logits, expected)


def test_loss_sees_the_kept_positions_only(family, model):
    batch = make_batch(family, model, [1])
    labels = batch.inputs["input_ids"].masked_fill(batch.inputs["input_ids"] == IMAGE, -100)
    with GPrune(keep=0.3)(model) as pruned:
        output = forward(model, batch, labels=labels)
    kept = labels[pruned.kept_mask]
    expected = torch.nn.functional.cross_entropy(output.logits[0, :-1], kept[1:], ignore_index=-100)
    assert torch.allclose(output.loss, expected)


def test_loss_of_uneven_rows(family, model):
    """What pruning pads a row with is no label, whatever the padding's own token is."""
    batch = make_batch(family, model, [1, 2 if family.beams else 1])
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    labels = ids.masked_fill((ids == IMAGE) | (mask == 0), -100)
    with GPrune(keep=0.3)(model) as pruned:
        output = forward(model, batch, labels=labels)
    logits, labels = [], [row[kept] for row, kept in zip(labels, pruned.kept_mask, strict=True)]
    for own, row in zip(output.logits, labels, strict=True):
        # The column before a row's own is padding where another row is longer: it is asked for the
        # row's first token, as padding is in a model without pruning.
        first = len(own) - len(row)
        logits.append(own[first - 1 : -1] if first else own[:-1])
    labels = [row if len(x) == len(row) else row[1:] for x, row in zip(logits, labels, strict=True)]
    expected = torch.nn.functional.cross_entropy(torch.cat(logits), torch.cat(labels))
    assert torch.allclose(output.loss, expected)


@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_quantised_weights(name, kind):
    """8-bit and 4-bit linear layers on the CPU: the hook touches no weight."""
    family = SPECIMENS[name]
    exact = family.build()
    model = quantise(family.build(), kind)
    batch = make_batch(family, model, [1, 2])
    untouched = model.generate(**batch.inputs, **GREEDY)
    unquantised = exact.generate(**batch.inputs, **GREEDY)
    assert not torch.equal(untouched.logits[0], unquantised.logits[0])
    with GPrune(keep=1.0)(model):
        through = model.generate(**batch.inputs, **GREEDY)
    assert all(map(torch.equal, untouched.logits, through.logits))
    with GPrune(keep=0.4)(model) as pruned:
        output = model.generate(**batch.inputs, **GREEDY)
        kept_mask = pruned.kept_mask
    tokens, logits = masked_greedy(model, batch, kept_mask, STEPS)
    assert torch.equal(output.sequences[:, -STEPS:], tokens)
    assert torch.stack(output.logits, 1).sub(logits).abs().max() <= 1e-5


@pytest.mark.filterwarnings("ignore")  # torch moves this API to another package
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_quantised_activations(name):
    """One scale for all tokens of a call: dropped ones weigh in if they are but masked."""
    family = SPECIMENS[name]
    model = family.build()
    # All but the output layer, which `generate` shows one token and a plain call all of them.
    torch.ao.quantization.quantize_dynamic(
        model.base_model, {torch.nn.Linear}, dtype=torch.qint8, inplace=True
    )
    assert any("quantized" in type(module).__module__ for module in model.modules())
    batch = make_batch(family, model, [1])
    untouched = model.generate(**batch.inputs, **GREEDY)
    with GPrune(keep=1.0)(model):
        through = model.generate(**batch.inputs, **GREEDY)
    assert all(map(torch.equal, untouched.logits, through.logits))
    with GPrune(keep=0.4)(model) as pruned:
        cached = model.generate(**batch.inputs, **GREEDY)
        kept_mask = pruned.kept_mask
        uncached = model.generate(**batch.inputs, **GREEDY, use_cache=False)
    assert torch.equal(cached.sequences, uncached.sequences)
    tokens, logits = shortened_greedy(model, batch, kept_mask, STEPS)
    assert torch.equal(uncached.sequences[:, -STEPS:], tokens)
    assert torch.stack(uncached.logits, 1).sub(logits).abs().max() <= 1e-5


def test_gradients_flow_through_the_kept_tokens(family, model):
    batch = make_batch(family, model, [1])
    pixels = batch.inputs["pixel_values"].clone().requires_grad_()
    with GPrune(keep=0.3)(model):
        model(**{**batch.inputs, "pixel_values": pixels}).logits.sum().backward()
    model.zero_grad()
    assert pixels.grad.abs().sum() > 0


def test_beams_choose_once_for_each_image(family, model, monkeypatch):
    batch = make_batch(family, model, [1, 2 if family.beams else 1])
    calls = []
    original = GPrune.choose
    monkeypatch.setattr(
        GPrune, "choose", lambda self, tokens, k: calls.append(k) or original(self, tokens, k)
    )
    with GPrune(keep=0.3)(model) as pruned:
        model.generate(**batch.inputs, num_beams=3, max_new_tokens=2)
        assert len(pruned.kept) == 6
    tiles = sum(family.tiles(image) for row in batch.rows for image in row)
    # Features in one tensor are copied for the beams, so they cannot be told to be the same.
    times = 1 if family.shared else 3
    assert len(calls) == tiles * family.groups * times


VIDEO_FAMILIES = [name for name, specimen in SPECIMENS.items() if specimen.video]


@pytest.mark.parametrize("keep", [1.0, 0.4])
@pytest.mark.parametrize("name", VIDEO_FAMILIES)
def test_videos_beside_images(name, keep):
    """An image and a video in one prompt; of the video every frame is a group."""
    family = SPECIMENS[name]
    model = family.build()
    beside = family.video_id != IMAGE  # else the model itself cannot tell them apart
    batch, frames = add_video(family, model, make_batch(family, model, [int(beside)]))
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
    """A window counts the tokens that are there: it reaches over pruned ones to older text."""
    family = SPECIMENS[name]
    model = family.build(attention=attention, sliding_window=7)
    batch = make_batch(family, model, [2])
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


def test_rows_that_images_of_any_length_fill():
    placeholder = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    assert rows_of(placeholder, [1, 1, 3, 1]) == [0, 0, 2, 2]
    assert rows_of(placeholder, [2, 4]) == [0, 2]
    assert rows_of(placeholder[:1], [1, 1]) == [0, 0]
    assert rows_of(placeholder[1:2].expand(2, -1), []) == []


def test_padding_is_no_placeholder():
    def config(own, of_text, size=100):
        text = SimpleNamespace(pad_token_id=of_text, vocab_size=size)
        return SimpleNamespace(pad_token_id=own, get_text_config=lambda: text)

    assert padding_id(config(7, 8), {3}) == 7
    assert padding_id(config(0, 8), {3}) == 0
    for own in (None, 3, -1, 100, [7]):  # missing, a placeholder, out of the vocabulary, several
        assert padding_id(config(own, 8), {3}) == 8
    assert padding_id(config(99, 8), {3}) == 99
    assert padding_id(config(None, None), {0, 1, 3}) == 2
    assert padding_id(config(None, None), {0, 1}) == 2
    text = SimpleNamespace(vocab_size=9)
    assert padding_id(SimpleNamespace(get_text_config=lambda: text), {5}) == 0


def test_text_only_passes_unchanged(family, model):
    batch = make_batch(family, model, [0, 0])
    untouched = model.generate(**batch.inputs, **GREEDY)
    with GPrune(keep=0.1)(model) as pruned:
        through = model.generate(**batch.inputs, **GREEDY)
        assert pruned.kept == [[], []]
        assert pruned.kept_mask.dtype == torch.bool
        assert pruned.kept_mask.all()
    assert torch.equal(untouched.sequences, through.sequences)
    assert not isinstance(through.past_key_values, PrunedCache)


def test_callers_inputs_are_not_touched(family, model):
    batch = make_batch(family, model, [1, 2])
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


def test_positional_arguments(family, model):
    batch = make_batch(family, model, [1])
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


def hooks(model) -> list:
    return [model._forward_pre_hooks, model._forward_hooks, model._forward_hooks_always_called]


def test_leaving_leaves_no_trace(family, model):
    batch = make_batch(family, model, [1])
    untouched = forward(model, batch).logits
    attributes = set(vars(model))
    with GPrune(keep=0.3)(model):
        forward(model, batch)
    with pytest.raises(KeyError), GPrune(keep=0.3)(model):
        raise KeyError("from the body")
    ids = batch.inputs["input_ids"].clone()
    ids[0, -1] = IMAGE  # one placeholder more than the image has features
    broken = {**batch.inputs, "input_ids": ids}
    with pytest.raises(ValueError, match="image placeholders"), GPrune(keep=0.3)(model):
        model(**broken)
    assert not any(hooks(model))
    assert set(vars(model)) == attributes
    assert torch.equal(forward(model, batch).logits, untouched)
    with GPrune(keep=0.3)(model):  # and it can be entered again
        forward(model, batch)


def test_nesting_is_refused(family, model):
    with GPrune(keep=0.3)(model):
        with pytest.raises(RuntimeError, match="cannot be nested"), RandomPruner(0.3)(model):
            pass
        assert all(len(kind) == 1 for kind in hooks(model))


def test_one_model_pruned_twice_at_once_is_refused(family, model):
    """From another thread too."""
    raised = []

    def enter():
        try:
            with UniformGridPruner(0.5)(model):
                pass
        except RuntimeError as error:
            raised.append(str(error))

    with GPrune(keep=0.3)(model):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert len(raised) == 1
    assert "is being pruned already" in raised[0]


def test_two_models_in_two_threads(family):
    """At different ratios, each as if it were alone."""
    models = [family.build(), family.build()]
    keeps = [0.2, 0.7]
    batch = make_batch(family, models[0], [1, 2])
    alone, together = [], [[], []]
    for model, keep in zip(models, keeps, strict=True):
        with GPrune(keep)(model) as pruned:
            alone.append((model.generate(**batch.inputs, **GREEDY).sequences, pruned.kept_mask))
    ready = threading.Barrier(2)

    def work(index):
        ready.wait()
        for _ in range(3):
            with GPrune(keeps[index])(models[index]) as pruned:
                output = models[index].generate(**batch.inputs, **GREEDY).sequences
                together[index].append((output, pruned.kept_mask))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, results in zip(alone, together, strict=True):
        assert len(results) == 3
        for result in results:
            assert all(map(torch.equal, expected, result))


def test_embeddings_alone_are_refused(family, model):
    embeds = torch.randn(1, 5, 32)
    with GPrune(keep=0.3)(model), pytest.raises(ValueError, match="input_ids is missing"):
        model(inputs_embeds=embeds)


def test_placeholders_that_do_not_match_are_refused(family, model):
    batch = make_batch(family, model, [1])
    batch.inputs["input_ids"][0, -1] = IMAGE
    with GPrune(keep=0.3)(model), pytest.raises(ValueError, match="image placeholders"):
        forward(model, batch)


def test_placeholders_without_images_are_refused(family, model):
    batch = make_batch(family, model, [1])
    ids = batch.inputs["input_ids"]
    with GPrune(keep=0.3)(model), pytest.raises(ValueError, match="no image came with the call"):
        model(input_ids=ids)


def test_chunked_prefill_is_refused(family, model):
    batch = make_batch(family, model, [1])
    config = copy.deepcopy(model.generation_config)
    config.prefill_chunk_size = 9
    with GPrune(keep=0.3)(model):
        with pytest.raises(ValueError, match="prefill_chunk_size=7 would choose"):
            model.generate(**batch.inputs, max_new_tokens=2, prefill_chunk_size=7)
        with pytest.raises(ValueError, match="prefill_chunk_size=9 would choose"):
            model.generate(**batch.inputs, max_new_tokens=2, generation_config=config)


@pytest.mark.parametrize("name", [name for name, specimen in SPECIMENS.items() if specimen.whole])
def test_part_of_an_image_is_refused(name):
    """As a chunked prefill by hand would pass it."""
    family = SPECIMENS[name]
    model = family.build()
    batch = make_batch(family, model, [1])
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
def test_grids_of_other_pictures_are_refused(name):
    """Of a larger picture, which the pixels do not fill, and of a smaller one."""
    family = SPECIMENS[name]
    model = family.build()
    batch = make_batch(family, model, [1])
    for factor in (2, 1 / 2):
        grid = (batch.pixels["image_grid_thw"] * torch.tensor([1, factor, 1])).long()
        inputs = {**batch.inputs, **batch.pixels, "image_grid_thw": grid}
        with GPrune(keep=0.3)(model):
            with pytest.raises(ValueError, match="image_grid_thw is of other pictures"):
                model(**inputs)
            with pytest.raises(ValueError, match="image_grid_thw is of other pictures"):
                model.generate(**inputs, max_new_tokens=2)
        assert torch.isfinite(forward(model, batch).logits).all()  # nothing is left behind


def test_logits_to_keep_as_positions_is_refused(family, model):
    batch = make_batch(family, model, [1])
    with GPrune(keep=0.3)(model), pytest.raises(ValueError, match="logits_to_keep"):
        forward(model, batch, logits_to_keep=torch.tensor([3]))


def test_infinite_features_are_refused(family, model):
    batch = make_batch(family, model, [1])
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


def test_untested_attention_is_refused(family):
    model = family.build()
    model.config.get_text_config()._attn_implementation = "flex_attention"
    with pytest.raises(UnsupportedModelError, match="flex_attention"), GPrune(0.3)(model):
        pass


@pytest.mark.parametrize("version", ["5.18.9", "5.24.0", "6.0"])
def test_untested_transformers_is_refused(model, monkeypatch, version):
    monkeypatch.setattr(versions, "installed", lambda: version)
    with pytest.raises(UnsupportedVersionError, match="pip install"), GPrune(keep=0.3)(model):
        pass
    monkeypatch.setenv(versions.OVERRIDE, "1")
    with GPrune(keep=0.3)(model):
        pass
