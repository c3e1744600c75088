"""torch.compile: what is computed stays the same, and what it costs in graph breaks."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo
from torch._dynamo.utils import counters

from gprune import FastV, GPrune, WeightedCover
from gprune.errors import UnsupportedModelError
from tests.hf.batches import make_batch
from tests.hf.models import SPECIMENS

OPTIONS = {"max_new_tokens": 4, "do_sample": False}


def generated(model, batch, compiled) -> tuple[torch.Tensor, int]:
    """What the model says with one of its modules compiled, and the graph breaks."""
    torch._dynamo.reset()
    counters.clear()
    # The tracer alone: what it captures is compared, not what a backend makes of it.
    compiled.compile(backend="eager")
    try:
        return model.generate(**batch.inputs, **OPTIONS), sum(counters["graph_break"].values())
    finally:
        compiled._compiled_call_impl = None


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_compiled_decoder_has_no_more_breaks(name):
    """The part worth compiling: the hook is outside it."""
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


def test_compiled_whole_is_the_same():
    """The hook is then traced too: more breaks than transformers' own, the same result."""
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
def test_compiled_layers_are_refused_where_hooks_would_be_passed_by(pruner):
    model = SPECIMENS["llava"].build()
    model.get_decoder().compile(backend="eager")
    with pytest.raises(UnsupportedModelError, match=r"torch\.compile has made passes it by"):
        pruner(model).__enter__()
    model.get_decoder()._compiled_call_impl = None
    with pruner(model):
        pass
