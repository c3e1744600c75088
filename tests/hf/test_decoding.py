"""Beam search and assisted decoding of a pruned model."""

from __future__ import annotations

import pytest
import torch

from gprune import GPrune
from gprune.proof.batches import STEPS, finish_batch, make_batch, noise
from gprune.proof.equality import Prompt, beam_search
from gprune.proof.models import BREAK, IMAGE, SPECIMENS


@pytest.mark.parametrize("images", [[1], [2, 0, 1]])
def test_beams_equal_their_own_runs_without_cache(specimen, model, images):
    images = images if specimen.beams else [min(count, 1) for count in images]
    batch = make_batch(specimen, model, images, seed=3)
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": STEPS}
    with GPrune(keep=0.3)(model):
        cached = model.generate(**batch.inputs, **options)
        uncached = model.generate(**batch.inputs, **options, use_cache=False)
    assert torch.equal(cached, uncached)
    result = beam_search(Prompt(model, GPrune(keep=0.3), batch.inputs), 1e-5)
    assert result.passed, result.detail


def test_beams_choose_once_for_each_image(specimen, model, monkeypatch):
    batch = make_batch(specimen, model, [1, 2 if specimen.beams else 1])
    calls = []
    original = GPrune.choose
    monkeypatch.setattr(
        GPrune, "choose", lambda self, tokens, k: calls.append(k) or original(self, tokens, k)
    )
    with GPrune(keep=0.3)(model) as pruned:
        model.generate(**batch.inputs, num_beams=3, max_new_tokens=2)
        assert len(pruned.kept) == 6
    tiles = sum(specimen.tiles(image) for row in batch.rows for image in row)
    # Features in one tensor are copied for each beam, so they are not recognised as the same.
    times = 1 if specimen.shared else 3
    assert len(calls) == tiles * specimen.groups * times


# transformers' assisted decoding counts PaliGemma's first candidates as part of the prompt, which
# has bidirectional attention: its result can differ from greedy decoding, pruned or not.
ASSISTED = [name for name in SPECIMENS if name != "paligemma"]


@pytest.mark.parametrize("name", ASSISTED)
def test_prompt_lookup_is_the_same(name):
    """Several candidates are verified at a time, and the cache is rolled back."""
    specimen = SPECIMENS[name]
    model = specimen.build()
    batch = make_batch(specimen, model, [1])
    # The prompt repeats `7 8`, so the first call already has candidates.
    ids = torch.cat([batch.inputs["input_ids"], torch.tensor([[7, 8, 9, 7, 8]])], 1)
    longer = finish_batch(specimen, ids, torch.ones_like(ids), batch.rows, batch.lengths)
    options = {"max_new_tokens": 12, "do_sample": False}
    with GPrune(keep=0.3)(model):
        slow = model.generate(**longer.inputs, **options)
        fast = model.generate(**longer.inputs, **options, prompt_lookup_num_tokens=3)
    assert torch.equal(slow, fast)


@pytest.mark.parametrize("name", ASSISTED)
@pytest.mark.parametrize("noise_scale", [0.0, 0.3])
def test_assisted_decoding_is_the_same(name, noise_scale):
    """Decodes with an assistant that is always right, and with one that is often wrong."""
    specimen = SPECIMENS[name]
    model, assistant = specimen.build(), specimen.build()
    with torch.no_grad():
        words = assistant.lm_head.weight[IMAGE + 1 : BREAK]  # so that it proposes no placeholders
        words.add_(noise_scale * noise(1)(*words.shape))
    batch = make_batch(specimen, model, [1])
    options = {"max_new_tokens": 10, "do_sample": False}
    with GPrune(keep=0.3)(model):
        slow = model.generate(**batch.inputs, **options)
        fast = model.generate(**batch.inputs, **options, assistant_model=assistant)
    assert torch.equal(slow, fast)
