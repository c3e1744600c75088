"""FlashAttention as transformers calls it, with CPU stand-ins for its GPU kernels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import modeling_flash_attention_utils as flash

from gprune import FastV, GPrune, PyramidDrop, UniformGridPruner
from gprune.hf import model as pruned_model
from gprune.proof.batches import GREEDY, STEPS, make_batch, masked_greedy
from gprune.proof.models import SPECIMENS

# Families that support FlashAttention; it has no bidirectional attention in prompts.
NAMES = ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "idefics3", "mistral3", "aya_vision"]


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: bool) -> Tensor:
    """Attends within one sequence: q [s, h, d], k and v [t, g, d]; queries are the last keys."""
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    scores = torch.einsum("shd,thd->hst", q, k) * (scale or q.shape[-1] ** -0.5)
    s, t = scores.shape[1:]
    if causal:
        seen = torch.ones(s, t, dtype=torch.bool).tril(t - s)
        scores = scores.masked_fill(~seen, -torch.inf)
    return torch.einsum("hst,thd->shd", scores.softmax(-1), v)


def flash_fn(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False):
    return torch.stack([attend(*row, softmax_scale, causal) for row in zip(q, k, v, strict=True)])


def flash_varlen_fn(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
):
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32  # required by the kernels
    assert cu_seqlens_q[-1] == len(q)
    assert cu_seqlens_k[-1] == len(k)
    lengths = [ends.diff().tolist() for ends in (cu_seqlens_q, cu_seqlens_k, cu_seqlens_k)]
    assert max(lengths[0]) == max_seqlen_q
    assert max(lengths[1]) == max_seqlen_k
    parts = [torch.split(x, sizes) for x, sizes in zip((q, k, v), lengths, strict=True)]
    return torch.cat(
        [attend(*sequence, softmax_scale, causal) for sequence in zip(*parts, strict=True)]
    )


@pytest.fixture
def kernels(monkeypatch):
    for name, value in {
        "_loaded_implementation": "flash_attention_2",
        "_flash_fn": flash_fn,
        "_flash_varlen_fn": flash_varlen_fn,
        "_flash_with_kvcache_fn": None,
        "_pad_fn": flash._pad_input,
        "_unpad_fn": flash._unpad_input,
        "_process_flash_kwargs_fn": flash._lazy_define_process_function(flash_varlen_fn),
        "_process_with_kvcache_kwargs_fn": dict,
    }.items():
        monkeypatch.setattr(flash, name, value)


def with_flash(model):
    model.config.get_text_config()._attn_implementation = "flash_attention_2"
    return model


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("images", [[1], [3], [1, 1], [2, 0, 1]])
@pytest.mark.parametrize("keep", [1.0, 0.3])
def test_equals_the_masked_full_length_model(kernels, name, images, keep):
    specimen = SPECIMENS[name]
    model = with_flash(specimen.build())
    batch = make_batch(specimen, model, images)
    with GPrune(keep=keep)(model) as pruned:
        output = model.generate(**batch.inputs, **GREEDY)
        kept_mask = pruned.kept_mask
        uncached = model.generate(**batch.inputs, **GREEDY, use_cache=False)
    tokens, logits = masked_greedy(specimen.build(), batch, kept_mask, STEPS)
    assert torch.equal(output.sequences[:, -STEPS:], tokens)
    assert torch.equal(output.sequences, uncached.sequences)
    assert torch.stack(output.logits, 1).sub(logits).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl"])
@pytest.mark.parametrize("images", [[1], [2, 0, 1]])
@pytest.mark.parametrize("pruner", [FastV(0.3), PyramidDrop(0.2, layers=(1, 2))])
def test_layers_of_different_lengths(kernels, name, images, pruner):
    specimen = SPECIMENS[name]
    plain, model = specimen.build(), with_flash(specimen.build())
    batch = make_batch(specimen, model, images)
    with pruner(plain):
        expected = plain.generate(**batch.inputs, **GREEDY)
    with pruner(model):
        output = model.generate(**batch.inputs, **GREEDY)
    assert torch.equal(output.sequences, expected.sequences)
    for one, other in zip(output.logits, expected.logits, strict=True):
        assert (one - other).abs().max() <= 1e-5


def second_turns(model) -> Tensor:
    """Returns the last logits of a later turn with an image, with more keys than queries."""
    first, second = (make_batch(SPECIMENS["llava"], model, [1], seed=seed) for seed in (1, 2))
    mask = torch.cat([batch.inputs["attention_mask"] for batch in (first, second)], 1)
    with UniformGridPruner(keep=0.3)(model), torch.no_grad():
        cache = model(**first.inputs).past_key_values
        inputs = {**second.inputs, "attention_mask": mask}
        return model(**inputs, past_key_values=cache).logits[:, -1]


def test_second_turn(kernels):
    build = SPECIMENS["llava"].build
    assert (second_turns(with_flash(build())) - second_turns(build())).abs().max() <= 1e-5


def test_the_sequence_arguments_are_needed(kernels, monkeypatch):
    """Without them gaps in position ids are read as boundaries of packed sequences."""
    monkeypatch.setattr(pruned_model, "mark_as_one_sequence", lambda *args: None)
    with pytest.raises(AssertionError, match=r"cu_seqlens|len|max"):
        second_turns(with_flash(SPECIMENS["llava"].build()))


def test_later_images_with_sliding_windows_are_refused(kernels):
    specimen = SPECIMENS["aya_vision"]
    model = with_flash(specimen.build())
    first, second = (make_batch(specimen, model, [1], seed=seed) for seed in (1, 2))
    with GPrune(keep=0.3)(model), torch.no_grad():
        cache = model(**first.inputs).past_key_values
        mask = torch.cat([batch.inputs["attention_mask"] for batch in (first, second)], 1)
        inputs = {**second.inputs, "attention_mask": mask}
        with pytest.raises(ValueError, match="sliding-window layers"):
            model(**inputs, past_key_values=cache)
