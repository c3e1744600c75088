"""Entering and leaving the `with` block, nested, in threads and after errors."""

from __future__ import annotations

import threading

import pytest
import torch

from gprune import GPrune, RandomPruner, UniformGridPruner
from gprune.proof.batches import GREEDY, forward, make_batch
from gprune.proof.models import IMAGE
from gprune.proof.trace import no_trace


def hooks(model) -> list:
    return [model._forward_pre_hooks, model._forward_hooks, model._forward_hooks_always_called]


def test_leaving_leaves_no_trace(specimen, model):
    batch = make_batch(specimen, model, [1])
    untouched = forward(model, batch).logits
    attributes = set(vars(model))
    with GPrune(keep=0.3)(model):
        forward(model, batch)
    with pytest.raises(KeyError), GPrune(keep=0.3)(model):
        raise KeyError("from the body")
    ids = batch.inputs["input_ids"].clone()
    ids[0, -1] = IMAGE  # one placeholder more than there are features
    broken = {**batch.inputs, "input_ids": ids}
    with pytest.raises(ValueError, match="image placeholders"), GPrune(keep=0.3)(model):
        model(**broken)
    assert not any(hooks(model))
    assert set(vars(model)) == attributes
    assert torch.equal(forward(model, batch).logits, untouched)
    with GPrune(keep=0.3)(model):  # it can be entered again
        forward(model, batch)
    result = no_trace(model, GPrune(keep=0.3), batch.inputs)
    assert result.passed, result.detail


def test_nesting_is_refused(specimen, model):
    with GPrune(keep=0.3)(model):
        with pytest.raises(RuntimeError, match="cannot be nested"), RandomPruner(0.3)(model):
            pass
        assert all(len(kind) == 1 for kind in hooks(model))


def test_pruning_one_model_in_two_threads_is_refused(specimen, model):
    """Also from another thread."""
    raised = []

    def enter():
        try:
            with UniformGridPruner(0.5)(model):
                pass
        except RuntimeError as error:
            raised.append(str(error))

    with GPrune(keep=0.3)(model):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert len(raised) == 1
    assert "is being pruned already" in raised[0]


def test_two_models_in_two_threads(specimen):
    """Two models with different budgets, each pruned as if it were alone."""
    models = [specimen.build(), specimen.build()]
    keeps = [0.2, 0.7]
    batch = make_batch(specimen, models[0], [1, 2])
    alone, together = [], [[], []]
    for model, keep in zip(models, keeps, strict=True):
        with GPrune(keep)(model) as pruned:
            alone.append((model.generate(**batch.inputs, **GREEDY).sequences, pruned.kept_mask))
    ready = threading.Barrier(2)

    def prune_repeatedly(index):
        ready.wait()
        for _ in range(3):
            with GPrune(keeps[index])(models[index]) as pruned:
                output = models[index].generate(**batch.inputs, **GREEDY).sequences
                together[index].append((output, pruned.kept_mask))

    threads = [threading.Thread(target=prune_repeatedly, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, results in zip(alone, together, strict=True):
        assert len(results) == 3
        for result in results:
            assert all(map(torch.equal, expected, result))
