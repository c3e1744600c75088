"""Measured costs: of the right span, of the right bytes, and nothing left behind."""

from __future__ import annotations

import sys
import time

import pytest
import torch

from gprune import GPrune, UniformGridPruner
from gprune.ask.prompts import prepare
from gprune.costs import generation as measure
from gprune.costs.flops import LanguageModelShape
from gprune.costs.generation import Cost, cache_bytes, measured
from gprune.tinyvlm import load, make_scene

ROWS, NEW_TOKENS = 3, 4


@pytest.fixture(scope="module")
def tiny():
    return load()


@pytest.fixture(scope="module")
def inputs(tiny):
    model, processor = tiny
    asked = [([make_scene("test", 0, i).draw()], "how many shapes are there?") for i in range(ROWS)]
    return prepare(model, processor, asked)


def generate(model, inputs):
    # Answers end after two tokens; without an end they have as many as they are allowed.
    return model.generate(
        **inputs, do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=None, pad_token_id=0
    )


def test_a_full_run(tiny, inputs):
    model, _ = tiny
    with measured(model) as cost:
        ids = generate(model, inputs)
    assert cost.calls == NEW_TOKENS == ids.shape[1] - inputs["input_ids"].shape[1]
    assert 0 < cost.prefill < cost.seconds
    assert cost.decode == (cost.seconds - cost.prefill) / (NEW_TOKENS - 1)
    assert cost.method == 0
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
    with pruner(model), measured(model, pruner) as cost:
        generate(model, inputs)
    assert ROWS * 0.02 <= cost.method < cost.prefill
    shape = LanguageModelShape.from_config(model.config)
    length = inputs["input_ids"].shape[1] - 256 + 64
    assert cost.kv_bytes == ROWS * shape.kv_bytes(length, model.dtype.itemsize)
    assert vars(pruner) == {"keep": 0.25}


def test_the_clock_waits_for_the_accelerator(tiny, inputs, monkeypatch):
    """What is read is read after waiting: at the ends, after the prefill, around selection."""
    model, _ = tiny
    events = []
    perf_counter = time.perf_counter
    monkeypatch.setattr(measure, "synchronize", lambda device: events.append("wait"))
    monkeypatch.setattr(
        measure.time, "perf_counter", lambda: events.append("read") or perf_counter()
    )
    pruner = GPrune(0.5)
    with pruner(model), measured(model, pruner):
        generate(model, inputs)
    # Start; before and after the selection for all pictures; prefill; end. Others may read the
    # clock too.
    waits = [place for place, event in enumerate(events) if event == "wait"]
    assert len(waits) == 5
    assert all(events[place + 1] == "read" for place in waits)


def test_a_failure_leaves_nothing_behind(tiny, inputs):
    model, _ = tiny
    pruner = GPrune(0.5)
    with pytest.raises(RuntimeError, match="out of luck"), measured(model, pruner):
        raise RuntimeError("out of luck")
    assert not model._forward_hooks
    assert vars(pruner).keys() == vars(GPrune(0.5)).keys()


def test_one_token_has_no_decoding():
    assert Cost(seconds=2.0, prefill=1.0, calls=1).decode is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_of_the_block(tiny):
    model, _ = tiny
    size = 200 * 2**20
    with measured(model) as large:
        torch.ones(size, dtype=torch.uint8)
    with measured(model) as small:
        torch.ones(1000, dtype=torch.uint8)
    assert large.memory_peak - large.memory_before >= 0.95 * size
    # The process has held more before; the block has not.
    assert small.memory_peak - small.memory_before < size / 4


def test_unknown_memory_is_not_guessed(tiny, monkeypatch, tmp_path):
    model, _ = tiny
    monkeypatch.setattr(measure, "PROCESS", tmp_path / "absent")
    with measured(model) as cost:
        pass
    assert cost.memory_before is None
    assert cost.memory_peak is None


def test_cache_bytes_without_a_cache():
    assert cache_bytes(None) == 0
