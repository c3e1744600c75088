"""torch.compile: results stay the same; number of graph breaks."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo
from torch._dynamo.utils import counters

from gprune import FastV, GPrune, WeightedCover
from gprune.errors import UnsupportedModelError
from gprune.proof.batches import make_batch
from gprune.proof.models import SPECIMENS

OPTIONS = {"max_new_tokens": 4, "do_sample": False}


def generated(model, batch, compiled) -> tuple[torch.Tensor, int]:
    """Generates with one module compiled; returns the tokens and the number of graph breaks."""
    torch._dynamo.reset()
    counters.clear()
    # Tests the tracer alone, without a backend.
    compiled.compile(backend="eager")
    try:
        return model.generate(**batch.inputs, **OPTIONS), sum(counters["graph_break"].values())
    finally:
        compiled._compiled_call_impl = None


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_compiled_decoder_has_no_more_breaks(name):
    """The hook is outside the decoder, the part worth compiling."""
    specimen = SPECIMENS[name]
    model = specimen.build()
    batch = make_batch(specimen, model, [1])
    _, own = generated(model, batch, model.get_decoder())
    with GPrune(0.4)(model):
        expected = model.generate(**batch.inputs, **OPTIONS)
        actual, breaks = generated(model, batch, model.get_decoder())
    assert torch.equal(expected, actual)
    assert breaks == own
    if name == "llava":  # Qwen3-VL indexes by a mask to add deepstack features
        assert breaks == 0


def test_a_compiled_model_gives_the_same_result():
    """The hook is traced too: more breaks than without it, the same result."""
    specimen = SPECIMENS["llava"]
    model = specimen.build()
    batch = make_batch(specimen, model, [1])
    _, own = generated(model, batch, model)
    with GPrune(0.4)(model):
        expected = model.generate(**batch.inputs, **OPTIONS)
        actual, breaks = generated(model, batch, model)
    assert torch.equal(expected, actual)
    assert breaks > own > 0


@pytest.mark.parametrize("pruner", [FastV(0.5), WeightedCover(0.5)], ids=["fastv", "weighted"])
def test_compiled_layers_are_refused_where_they_bypass_hooks(pruner):
    model = SPECIMENS["llava"].build()
    model.get_decoder().compile(backend="eager")
    with pytest.raises(UnsupportedModelError, match=r"compiled by torch\.compile bypasses"):
        pruner(model).__enter__()
    model.get_decoder()._compiled_call_impl = None
    with pruner(model):
        pass
