"""Attention by products compared with PyTorch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gprune.tinyvlm import load
from gprune.training.data import Steps
from gprune.training.loop import Trainer
from gprune.training.products import products
from gprune.training.recipe import Recipe


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_agrees_with_pytorch(b, heads, n, m, masked, seed):
    torch.manual_seed(seed)
    query, key, value = (torch.randn(b, heads, length, 4) for length in (n, m, m))
    mask = None
    if masked:
        visible = torch.rand(b, 1, n, m) < 0.7
        visible[..., 0] = True  # a fully masked row has no softmax
        mask = torch.zeros(b, 1, n, m).masked_fill(~visible, torch.finfo(torch.float32).min)
    out, weights = products(nn.Identity(), query, key, value, mask, scaling=0.3)
    expected = F.scaled_dot_product_attention(query, key, value, mask, scale=0.3)
    torch.testing.assert_close(out, expected.transpose(1, 2))
    torch.testing.assert_close(weights.sum(-1), torch.ones(b, heads, n))


def test_unsupported_calls_are_refused():
    query, key = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 3, 8)
    with pytest.raises(ValueError, match="as many key heads as query heads and no dropout"):
        products(nn.Identity(), query, key, key, None)
    with pytest.raises(ValueError, match=r"got 4, 4 and 0\.5; take 'sdpa'"):
        products(nn.Identity(), query, query, query, None, dropout=0.5)


def test_the_model_generates_the_same():
    """Covers masks built by transformers, a KV cache and padding."""
    model, processor = load()
    texts = ["<image>what color is the circle ?", "<image>how many squares ?"]
    inputs = processor(
        text=texts,
        images=list(torch.rand(2, 3, 128, 128)),
        return_tensors="pt",
        padding=True,
        padding_side="left",
    )
    expected = model.generate(**inputs, do_sample=False)
    model.set_attn_implementation("products")
    assert torch.equal(model.generate(**inputs, do_sample=False), expected)


@pytest.mark.parametrize("stage", ["patches", "answers"])
def test_gradients_agree_with_pytorch(tmp_path, stage):
    """Compares in float32 to rounding, and in bfloat16 relative to the error of PyTorch's own."""
    gradients = {}
    for attention in ("sdpa", "products"):
        for low in (False, True):
            recipe = Recipe(batch=3, easy_vqa_images=1, attention=attention, low_precision=low)
            trainer = Trainer(tmp_path / f"{attention}-{low}", recipe)
            parts = trainer.loss(stage, Steps(recipe, stage, 0, 1)[0])
            torch.stack(list(parts.values())).sum().backward()
            every = [p.grad.flatten() for p in trainer.modules.parameters() if p.grad is not None]
            gradients[attention, low] = torch.cat(every)

    def relative_error(one, other):
        return ((one - other).norm() / other.norm()).item()

    exact = gradients["sdpa", False]
    assert relative_error(gradients["products", False], exact) < 1e-5
    # bfloat16 itself changes gradients; products may do so at most twice as much as PyTorch does.
    limit = 2 * relative_error(gradients["sdpa", True], exact)
    assert relative_error(gradients["products", True], exact) < limit
