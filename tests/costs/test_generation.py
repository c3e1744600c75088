"""Measured costs: the right time span, the right bytes, and no trace on model and pruner."""

from __future__ import annotations

import sys
import time

import pytest
import torch

from gprune import GPrune, UniformGridPruner
from gprune.ask.prompts import prepare
from gprune.costs import generation
from gprune.costs.flops import LanguageModelShape
from gprune.costs.generation import GenerationCost, cache_bytes, measure_generation
from gprune.tinyvlm import load, make_scene

ROWS, NEW_TOKENS = 3, 4


@pytest.fixture(scope="module")
def tiny():
    return load()


@pytest.fixture(scope="module")
def inputs(tiny):
    model, processor = tiny
    question = "how many shapes are there?"
    prompts = [([make_scene("test", 0, index).draw()], question) for index in range(ROWS)]
    return prepare(model, processor, prompts)


def generate(model, inputs):
    # Answers end after two tokens; without an end token they have NEW_TOKENS.
    return model.generate(
        **inputs, do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=None, pad_token_id=0
    )


def test_a_full_run(tiny, inputs):
    model, _ = tiny
    with measure_generation(model) as cost:
        ids = generate(model, inputs)
    assert cost.calls == NEW_TOKENS == ids.shape[1] - inputs["input_ids"].shape[1]
    assert 0 < cost.prefill < cost.seconds
    assert cost.decode_step == (cost.seconds - cost.prefill) / (NEW_TOKENS - 1)
    assert cost.selection == 0
    shape = LanguageModelShape.from_config(model.config)
    length = inputs["input_ids"].shape[1]
    assert cost.kv_bytes == ROWS * shape.kv_bytes(length, model.dtype.itemsize)
    assert not model._forward_hooks


def test_a_pruned_run(tiny, inputs, monkeypatch):
    model, _ = tiny
    pruner = UniformGridPruner(0.25)
    choose = UniformGridPruner.choose

    def slow(self, tokens, k):
        time.sleep(0.02)
        return choose(self, tokens, k)

    monkeypatch.setattr(UniformGridPruner, "choose", slow)
    with pruner(model), measure_generation(model, pruner) as cost:
        generate(model, inputs)
    assert ROWS * 0.02 <= cost.selection < cost.prefill
    shape = LanguageModelShape.from_config(model.config)
    length = inputs["input_ids"].shape[1] - 256 + 64
    assert cost.kv_bytes == ROWS * shape.kv_bytes(length, model.dtype.itemsize)
    assert vars(pruner) == {"keep": 0.25}


def test_the_accelerator_is_synchronized_before_the_clock_is_read(tiny, inputs, monkeypatch):
    """At the start and the end, after the prefill, and around the selection."""
    model, _ = tiny
    events = []
    perf_counter = time.perf_counter
    monkeypatch.setattr(generation, "synchronize", lambda device: events.append("synchronize"))
    monkeypatch.setattr(
        generation.time, "perf_counter", lambda: events.append("read") or perf_counter()
    )
    pruner = GPrune(0.5)
    with pruner(model), measure_generation(model, pruner):
        generate(model, inputs)
    # Start; before and after the selection for all pictures; prefill; end. Other code may read the
    # clock too.
    synchronized = [index for index, event in enumerate(events) if event == "synchronize"]
    assert len(synchronized) == 5
    assert all(events[index + 1] == "read" for index in synchronized)


def test_an_exception_leaves_no_trace(tiny, inputs):
    model, _ = tiny
    pruner = GPrune(0.5)
    with pytest.raises(RuntimeError, match="out of luck"), measure_generation(model, pruner):
        raise RuntimeError("out of luck")
    assert not model._forward_hooks
    assert vars(pruner).keys() == vars(GPrune(0.5)).keys()


def test_a_single_token_has_no_decoding_step():
    assert GenerationCost(seconds=2.0, prefill=1.0, calls=1).decode_step is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_measured_inside_the_block(tiny):
    model, _ = tiny
    size = 200 * 2**20
    with measure_generation(model) as large:
        torch.ones(size, dtype=torch.uint8)
    with measure_generation(model) as small:
        torch.ones(1000, dtype=torch.uint8)
    assert large.memory_peak - large.memory_before >= 0.95 * size
    # The process used more before the block; the block did not.
    assert small.memory_peak - small.memory_before < size / 4


def test_unknown_memory_is_none(tiny, monkeypatch, tmp_path):
    model, _ = tiny
    monkeypatch.setattr(generation, "PROCESS", tmp_path / "absent")
    with measure_generation(model) as cost:
        pass
    assert cost.memory_before is None
    assert cost.memory_peak is None


def test_cache_bytes_without_a_cache():
    assert cache_bytes(None) == 0
