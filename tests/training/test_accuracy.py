"""Scoring with any pruner: counts by question type, and budgets that differ by picture."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from gprune import CoverBudget, GPrune, GraphCover
from gprune.tinyvlm import load
from gprune.training.accuracy import by_type, encode, held_out, score
from gprune.training.model import build_model


@pytest.fixture(scope="module")
def model():
    return build_model(0).eval()


def test_score_counts_by_type(model):
    samples = held_out("test", scenes=4, easy_vqa=2)
    outcomes = score(model, samples, GPrune(0.5))
    assert [len(results) for results in outcomes] == [len(sample.questions) for sample in samples]
    counts = Counter(question.kind for sample in samples for question in sample.questions)
    assert {kind: len(results) for kind, results in by_type(samples, outcomes).items()} == counts


def test_pictures_with_different_budgets_are_scored_independently():
    model, _ = load()
    samples = held_out("test", scenes=6, easy_vqa=2)
    budget = CoverBudget(radius=0.9)
    pruner = GraphCover(keep=budget)
    with torch.no_grad():
        counts = budget([one for batch in encode(model, samples) for one in batch.tokens])
    assert len(set(counts)) > 2
    alone = [
        score(model, [sample], GraphCover(keep=count))[0]
        for sample, count in zip(samples, counts, strict=True)
    ]
    assert score(model, samples, pruner) == alone
