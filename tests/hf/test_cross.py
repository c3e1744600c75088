"""Mllama, which cross-attends to images, equals a full-length model with masked columns."""

from __future__ import annotations

import copy

import pytest
import torch

from gprune import (
    GPrune,
    RandomPruner,
    ThumbnailGuided,
    ToMe,
    UniformGridPruner,
    VisualTokens,
    kept_count,
)
from gprune.hf.cross_cache import CrossPrunedCache
from gprune.proof.batches import GREEDY, STEPS
from gprune.proof.mllama import PATCHES, TILES, make, mllama
from gprune.proof.models import SIDE
from gprune.proof.reference import Kept, full_length

# For each row of the batch the tiles of each of its images.
LAYOUTS = [[[2]], [[1], [4]], [[3, 1], [2]], [[1], [], [2, 3]]]


def columns(rows, kept):
    """Returns a mask of the kept vision tokens, bool [b, images * tiles * patches]."""
    left = torch.zeros(len(rows), max(map(len, rows)), TILES, PATCHES, dtype=torch.bool)
    for row, (images, groups) in enumerate(zip(rows, kept, strict=True)):
        group = iter(groups)
        for image, tiles in enumerate(images):
            for tile in range(tiles):
                chosen = next(group)
                assert chosen.image == image
                assert chosen.kind == "tile"
                assert chosen.grid == (SIDE, SIDE)
                left[row, image, tile, 0] = True  # CLS
                left[row, image, tile, 1 + chosen.indices] = True
        assert next(group, None) is None
    return left.flatten(1)


def masked_greedy(model, inputs, left, states=None):
    """Decodes at full length with every other vision token masked; returns tokens and logits."""
    everything = torch.ones_like(inputs["input_ids"], dtype=torch.bool)
    kept = Kept(everything, columns=left, cross_states=states)
    run = full_length(model, inputs, kept, STEPS)
    return run.tokens, run.logits


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", LAYOUTS)
def test_keep_one_is_bit_identical(rows, dtype, attention):
    model = mllama(dtype, attention)
    inputs = make(rows, dtype=dtype)

    @torch.no_grad()
    def run():
        torch.manual_seed(1)
        greedy = model.generate(**inputs, **GREEDY)
        return [
            model(**inputs).logits,
            model(**inputs, use_cache=False).logits,
            greedy.sequences,
            *greedy.logits,
            model.generate(**inputs, do_sample=True, max_new_tokens=STEPS),
            model.generate(**inputs, num_beams=3, num_return_sequences=2, max_new_tokens=STEPS),
            *model.generate(**inputs, **GREEDY, cache_implementation="static").logits,
        ]

    untouched = run()
    with GPrune(keep=1.0)(model) as pruned:
        through = run()
    assert all(map(torch.equal, untouched, through))
    assert pruned.kept_mask.all()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("keep", [0.36, 2])
@pytest.mark.parametrize("rows", LAYOUTS)
def test_equals_the_full_length_model_with_masked_columns(rows, keep, attention):
    model = mllama(attention=attention)
    inputs = make(rows, seed=5)
    with GPrune(keep)(model) as pruned:
        output = model.generate(**inputs, **GREEDY)
        kept, kept_mask = pruned.kept, pruned.kept_mask
        uncached = model.generate(**inputs, **GREEDY, use_cache=False)
        static = model.generate(**inputs, **GREEDY, cache_implementation="static")
    assert kept_mask.all()
    assert kept_mask.shape == inputs["input_ids"].shape
    sizes = [len(group.indices) for row in kept for group in row]
    assert sizes == [kept_count(PATCHES - 1, keep)] * sum(map(sum, rows))
    tokens, logits = masked_greedy(model, inputs, columns(rows, kept))
    for run in (output, uncached, static):
        assert torch.equal(run.sequences[:, -STEPS:], output.sequences[:, -STEPS:])
        # Rows without images have no full-length reference, see the next test.
        real = [row for row, images in enumerate(rows) if images]
        assert torch.equal(run.sequences[real, -STEPS:], tokens[real])
        assert torch.stack(run.logits, 1)[real].sub(logits[real]).abs().max() <= 1e-5


def test_a_row_without_images_is_as_if_alone():
    """transformers lets it see the black tiles that pad the batch; pruning removes them."""
    model = mllama()
    inputs = make([[2], [], [1, 3]])
    with GPrune(0.3)(model) as pruned:
        output = model.generate(**inputs, **GREEDY)
        assert pruned.kept[1] == []
    real = inputs["attention_mask"][1].bool()
    alone = model.generate(input_ids=inputs["input_ids"][1:2, real], **GREEDY)
    assert torch.equal(output.sequences[1, -STEPS:], alone.sequences[0, -STEPS:])
    difference = torch.stack(output.logits, 1)[1] - torch.stack(alone.logits, 1)[0]
    assert difference.abs().max() <= 1e-5


def test_beams_equal_their_own_runs_without_cache():
    model = mllama()
    inputs = make([[3, 1], [2]], seed=3)
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": STEPS}
    with GPrune(0.3)(model):
        cached = model.generate(**inputs, **options)
        uncached = model.generate(**inputs, **options, use_cache=False)
    assert torch.equal(cached, uncached)


def test_only_the_cross_attention_cache_is_shorter():
    model = mllama()
    inputs = make([[3]])
    with GPrune(0.25)(model), torch.no_grad():
        cache = model(**inputs).past_key_values
    assert isinstance(cache, CrossPrunedCache)
    length = inputs["input_ids"].shape[1]
    assert [layer.keys.shape[2] for layer in cache.layers] == [length, 15, length, 15]
    assert cache.get_seq_length() == length


def test_merged_states_reach_the_language_model():
    model, rows = mllama(), [[2, 1], [3]]
    inputs = make(rows)
    pruner = ToMe(0.4)
    with pruner(model) as pruned:
        output = model.generate(**inputs, **GREEDY)
        kept = pruned.kept
    with torch.no_grad():
        names = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")
        encoded = model.model.vision_model(**{name: inputs[name] for name in names})
        states = model.model.multi_modal_projector(encoded.last_hidden_state)
    for row, images in enumerate(rows):
        for image, tiles in enumerate(images):
            for tile in range(tiles):
                own = states[row, image, tile, 1:]
                reduction = pruner.reduce(VisualTokens(own.clone(), grid=(SIDE, SIDE)))
                own[reduction.kept] = reduction.features(own)
    _, logits = masked_greedy(model, inputs, columns(rows, kept), states.flatten(1, 3))
    assert torch.stack(output.logits, 1).sub(logits).abs().max() <= 1e-5


def test_second_turn_with_another_image():
    """Compares with one full-length call in which the dropped tokens of both turns are masked."""
    model = mllama()
    first, second = make([[2], [1]], seed=1), make([[3], [4]], seed=2)
    old, new = first["cross_attention_mask"], second["cross_attention_mask"]
    # Text that sees no image averages over all images. In one call the first words would average
    # over the second turn's image too, so here they see the first image.
    old[:] = old[:, -1:].clone()
    bottom = torch.cat([old[:, -1:].expand(-1, new.shape[1], -1, -1), new], 2)
    past = old.shape[1]
    joined = {name: torch.cat([first[name], second[name]], 1) for name in first}
    joined["cross_attention_mask"] = torch.cat([torch.cat([old, 0 * old], 2), bottom], 1)
    mask = joined["attention_mask"]
    positions = mask.cumsum(-1) - 1
    second |= {"attention_mask": mask, "cross_attention_mask": bottom}
    with UniformGridPruner(0.3)(model) as pruned, torch.no_grad():
        cache = model(**first).past_key_values
        kept_first = pruned.kept
        output = model(**second, position_ids=positions[:, past:], past_key_values=cache)
        kept_second = pruned.kept
        token = output.logits[:, -1:].argmax(-1)
        step = model(
            input_ids=token,
            attention_mask=torch.cat([mask, torch.ones_like(token)], 1),
            position_ids=positions[:, -1:] + 1,
            cross_attention_mask=bottom[:, -1:],
            past_key_values=cache,
        )
    left = torch.cat([columns([[2], [1]], kept_first), columns([[3], [4]], kept_second)], 1)
    tokens, logits = masked_greedy(model, joined, left)
    assert torch.equal(token, tokens[:, :1])
    assert (output.logits[:, -1] - logits[:, 0]).abs().max() <= 1e-5
    assert (step.logits[:, -1] - logits[:, 1]).abs().max() <= 1e-5


def test_an_image_after_an_unpruned_one():
    """The first turn runs outside the block, so its cache holds every vision token."""
    model = mllama()
    first, second = make([[2]], seed=1), make([[3]], seed=2)
    old, new = first["cross_attention_mask"], second["cross_attention_mask"]
    old[:] = old[:, -1:].clone()
    bottom = torch.cat([old[:, -1:].expand(-1, new.shape[1], -1, -1), new], 2)
    joined = {name: torch.cat([first[name], second[name]], 1) for name in first}
    joined["cross_attention_mask"] = torch.cat([torch.cat([old, 0 * old], 2), bottom], 1)
    second |= {"attention_mask": joined["attention_mask"], "cross_attention_mask": bottom}
    with torch.no_grad():
        cache = model(**first).past_key_values
        with GPrune(0.3)(model) as pruned:
            output = model(**second, past_key_values=cache)
    whole = torch.ones(1, TILES * PATCHES, dtype=torch.bool)
    _, logits = masked_greedy(model, joined, torch.cat([whole, columns([[3]], pruned.kept)], 1))
    assert (output.logits[:, -1] - logits[:, 0]).abs().max() <= 1e-5


def test_a_text_turn_and_a_hand_written_loop():
    """Passes only ids and cache; without a mask all text sees all kept tokens."""
    model = mllama()
    inputs = make([[3]])
    inputs["cross_attention_mask"][:] = inputs["cross_attention_mask"][:, -1:].clone()
    with GPrune(0.3)(model) as pruned, torch.no_grad():
        output = model(**inputs)
        token = output.logits[:, -1:].argmax(-1)
        step = model(input_ids=token, past_key_values=output.past_key_values)
        kept = pruned.kept
        assert len(kept[0]) == 3
        model(input_ids=token)
        assert pruned.kept == [[]]
        assert pruned.kept_mask.shape == (1, 1)
    _, logits = masked_greedy(model, inputs, columns([[3]], kept))
    assert (step.logits[:, -1] - logits[:, 1]).abs().max() <= 1e-5


def test_without_a_mask_every_tile_counts():
    model = mllama()
    inputs = make([[4], [4]])
    bare = {name: value for name, value in inputs.items() if name != "cross_attention_mask"}
    inputs["cross_attention_mask"][:] = 1
    with GPrune(0.3)(model) as pruned, torch.no_grad():
        masks, kept = model(**inputs).logits, pruned.kept
        none = model(**bare).logits
    assert [len(row) for row in kept] == [4, 4]
    assert (masks - none).abs().max() <= 1e-5


def test_text_only_passes_unchanged():
    model = mllama()
    inputs = make([[], []])
    untouched = model.generate(**inputs, **GREEDY)
    with GPrune(0.1)(model) as pruned:
        through = model.generate(**inputs, **GREEDY)
        assert pruned.kept == [[], []]
    assert all(map(torch.equal, untouched.logits, through.logits))


def test_tiles_of_an_image_can_share_a_budget():
    model = mllama()

    def keep(tiles):
        assert {tile.kind for tile in tiles} == {"tile"}
        return [1 + index for index in range(len(tiles))]

    with RandomPruner(keep)(model) as pruned, torch.no_grad():
        model(**make([[3], [2, 1]]))
    counts = [[len(group.indices) for group in row] for row in pruned.kept]
    assert counts == [[1, 2, 3], [1, 2, 1]]
    with GPrune(ThumbnailGuided(0.3))(model), pytest.raises(ValueError, match="of kind tile"):
        model(**make([[3]]))


def test_other_rows_do_not_change_what_is_kept():
    model = mllama()
    together, alone = make([[3], [2]], seed=4), make([[3]], seed=4)
    alone["pixel_values"] = together["pixel_values"][:1]
    with GPrune(0.3)(model) as pruned, torch.no_grad():
        model(**together)
        expected = [group.indices for group in pruned.kept[0]]
        model(**alone)
    assert all(map(torch.equal, expected, [group.indices for group in pruned.kept[0]]))


def test_compact_positions_are_the_original_ones():
    """The sequence stays complete, so there are no gaps to close."""
    model, inputs = mllama(), make([[2], [1]])
    logits = []
    for positions in ("original", "compact"):
        with GPrune(0.3)(model, positions=positions) as pruned, torch.no_grad():
            assert pruned.positions == positions
            logits.append(model(**inputs).logits)
    assert torch.equal(*logits)


def test_copied_cache_knows_what_was_pruned():
    model = mllama()
    inputs = make([[3], [1]])
    with GPrune(0.3)(model), torch.no_grad():
        output = model(**inputs)
        token = output.logits[:, -1:].argmax(-1)
        twin = copy.deepcopy(output.past_key_values)
        twin.batch_select_indices(torch.tensor([1]))
        one = model(input_ids=token, past_key_values=output.past_key_values).logits
        other = model(input_ids=token[1:], past_key_values=twin).logits
    assert (one[1:] - other).abs().max() <= 1e-5


def test_leaving_leaves_no_trace():
    model = mllama()
    inputs = make([[2]])
    language = model.model.language_model
    attributes = set(vars(model)), set(vars(language))
    with torch.no_grad():
        untouched = model(**inputs).logits
        with GPrune(0.3)(model):
            cache = model(**inputs).past_key_values
            with pytest.raises(RuntimeError, match="cannot be nested"), GPrune(0.3)(model):
                pass
        with pytest.raises(KeyError), GPrune(0.3)(model):
            raise KeyError("from the body")
        assert (set(vars(model)), set(vars(language))) == attributes
        assert not model._forward_hooks
        assert not model._forward_pre_hooks
        assert torch.equal(model(**inputs).logits, untouched)
        with pytest.raises(RuntimeError, match="was pruned by gprune"):
            model(input_ids=torch.tensor([[7]]), past_key_values=cache)


def test_callers_inputs_are_not_touched():
    model = mllama()
    inputs = make([[2], [1, 3]])
    before = {name: value.clone() for name, value in inputs.items()}
    with GPrune(0.3)(model), torch.no_grad():
        model(**inputs)
    assert all(torch.equal(before[name], value) for name, value in inputs.items())


def test_arguments_of_other_shapes_are_refused():
    model = mllama()
    inputs = make([[2]])
    with GPrune(0.3)(model), torch.no_grad():
        cache = model(**inputs).past_key_values
        with pytest.raises(ValueError, match="has 136 columns for vision tokens, expected 68"):
            model(
                input_ids=torch.tensor([[7]]),
                past_key_values=cache,
                cross_attention_mask=torch.ones(1, 1, 2, TILES),
            )
        with pytest.raises(ValueError, match=r"cross_attention_states of shape \[3, 17, 32\]"):
            model(input_ids=inputs["input_ids"], cross_attention_states=torch.ones(3, PATCHES, 32))
        # transformers fails to roll this cache back, with and without pruning.
        with pytest.raises(ValueError, match="would roll the cache back"):
            model.generate(**inputs, max_new_tokens=8, prompt_lookup_num_tokens=3)
    inputs["pixel_values"][:] = torch.inf
    with GPrune(0.3)(model), pytest.raises(ValueError, match=r"features .* NaN or infinite"):
        model(**inputs)
