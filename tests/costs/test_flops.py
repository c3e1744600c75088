"""Counted costs: against published values, real modules and closed forms."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from gprune import FastV, PyramidDrop
from gprune.costs import LanguageModelShape, keep_for, saving
from gprune.costs.flops import exact, fastv, linear, vision_tower_flops

LLAVA_7B = LanguageModelShape(4096, 11008, 32, heads=32)
LLAMA_3_8B = LanguageModelShape(4096, 14336, 32, heads=32, kv_heads=8, head_dim=128)


@pytest.mark.parametrize(("n", "tera"), [(576, 2.986), (192, 0.976), (128, 0.649), (64, 0.323)])
def test_published_values_of_fastv(n, tera):
    assert round(fastv(LLAVA_7B, n) / 1e12, 3) == tera


def test_linear_layers_of_llama_3():
    assert round(linear(LLAMA_3_8B, 1) / 1e9, 2) == 6.98


def test_linear_equals_the_weights_of_the_decoder():
    """One multiply-add per weight and token: counts the weights of the real module."""
    import torch
    from transformers import LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=10,
        hidden_size=48,
        intermediate_size=100,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=10,
    )
    with torch.device("meta"):
        layers = LlamaForCausalLM(config).model.layers
    weights = sum(p.numel() for p in layers.parameters() if p.ndim == 2)
    assert linear(LanguageModelShape.from_config(config), 7) == 7 * weights


def test_exact_counts_causal_pairs():
    shape = LanguageModelShape(8, 16, 2, heads=2, kv_heads=1, head_dim=3)
    attention = sum(2 * keys * 6 for keys in range(1, 6))  # scores, and weighted sums of values
    assert exact(shape, 5) == linear(shape, 5) + 2 * attention


def test_kv_bytes():
    assert LLAMA_3_8B.kv_bytes(10) == 2 * 32 * 8 * 128 * 2 * 10
    assert LLAVA_7B.kv_bytes(1, bytes_per_value=4) == 2 * 32 * 4096 * 4


@pytest.mark.parametrize("convention", ["fastv", "linear", "exact"])
def test_one_count_per_layer(convention):
    """FastV: two layers at full length, the others pruned; the sum of two shallower models."""
    counts = FastV(0.25).schedule(576, 32)
    result = saving(LLAVA_7B, 576, 40, 0.25, convention, kept_tokens=counts)
    first, rest = replace(LLAVA_7B, layers=2), replace(LLAVA_7B, layers=30)
    full, pruned = (saving(part, 576, 40, 0.25, convention) for part in (first, rest))
    assert result.flops_pruned == full.flops_full + pruned.flops_pruned
    assert result.kv_bytes_pruned == full.kv_bytes_full + pruned.kv_bytes_pruned
    assert result.flops_full == saving(LLAVA_7B, 576, 40, 1.0, convention).flops_full
    assert result.kept_tokens == 144
    same = saving(LLAVA_7B, 576, 40, 0.25, convention, kept_tokens=[144] * 32)
    assert same == saving(LLAVA_7B, 576, 40, 0.25, convention)


def test_pyramid_drop_of_the_paper_saves_about_half():
    counts = PyramidDrop(0.125).schedule(576, 32)
    assert sum(counts) / 32 == 270
    result = saving(LLAVA_7B, 576, 40, 0.125, "fastv", kept_tokens=counts)
    assert 0.49 < result.flops_saved < 0.52


def test_vision_tower_flops():
    vision = CLIPVisionConfig(
        hidden_size=10,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    config = LlavaConfig(vision_config=vision, text_config=LlamaConfig())
    assert vision_tower_flops(config) == 4 * 10 * 48 + 2 * (
        4 * 4 * 100 + 2 * 16 * 10 + 2 * 4 * 10 * 20
    )


def test_saving_of_the_gprune_paper():
    """Infers the paper's counts: 18.52 T are about 2,653 tokens in `linear`, -63.57% about 967."""
    assert round(linear(LLAMA_3_8B, 2653) / 1e12, 2) == 18.52
    result = saving(LLAMA_3_8B, 2653, 0, 967, "linear")
    assert abs(result.flops_saved - 0.6357) < 1e-3


@given(
    st.integers(1, 3000),
    st.integers(0, 200),
    st.floats(0, 0.95),
    st.sampled_from(["fastv", "linear", "exact"]),
)
def test_keep_for_is_the_largest_that_meets_the_target(n, text, target, convention):
    try:
        keep = keep_for(target, LLAMA_3_8B, n, text, convention)
    except ValueError:
        assert saving(LLAMA_3_8B, n, text, 1, convention).flops_saved < target
        return
    result = saving(LLAMA_3_8B, n, text, keep, convention)
    assert result.flops_saved >= target
    if result.kept_tokens < n:
        one_more = saving(LLAMA_3_8B, n, text, result.kept_tokens + 1, convention)
        assert one_more.flops_saved < target


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: saving(LLAVA_7B, 576, 0, 0.5, "thop"), "convention='thop' must be one of fastv"),
        (lambda: saving(LLAVA_7B, 0, 0, 0.5), "visual_tokens=0"),
        (lambda: saving(LLAVA_7B, 5, -1, 0.5), "text_tokens=-1"),
        (lambda: keep_for(1.0, LLAVA_7B, 5, 0), "target_saving=1.0"),
        (lambda: LanguageModelShape(0, 1, 1), "hidden_size=0"),
        (lambda: saving(LLAVA_7B, 5, 0, 0.5, kept_tokens=[2, 1]), "kept_tokens has 2 counts"),
        (lambda: LanguageModelShape(8, 8, 1, heads=3, kv_heads=2), "multiple of kv_heads=2"),
    ],
)
def test_numbers_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
