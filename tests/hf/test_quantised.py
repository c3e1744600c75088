"""Models with quantised weights or activations."""

from __future__ import annotations

import pytest
import torch

from gprune import GPrune
from gprune.proof.batches import GREEDY, STEPS, make_batch, masked_greedy, shortened_greedy
from gprune.proof.models import SPECIMENS
from tests.hf.quantised import Int4Linear, Int8Linear, quantise


@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_quantised_weights(name, kind):
    """Prunes models with 8-bit and 4-bit linear layers on the CPU."""
    specimen = SPECIMENS[name]
    exact = specimen.build()
    model = quantise(specimen.build(), kind)
    batch = make_batch(specimen, model, [1, 2])
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


@pytest.mark.filterwarnings("ignore")  # torch warns that this API moves to another package
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_quantised_activations(name):
    """All tokens of a call share one scale, so masking a token differs from dropping it."""
    specimen = SPECIMENS[name]
    model = specimen.build()
    # Not the output layer, which gets one token from `generate` but all from a plain call.
    torch.ao.quantization.quantize_dynamic(
        model.base_model, {torch.nn.Linear}, dtype=torch.qint8, inplace=True
    )
    assert any("quantized" in type(module).__module__ for module in model.modules())
    batch = make_batch(specimen, model, [1])
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
