"""Weighted methods keep the tokens of the plain methods, and count every dropped token once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gprune import (
    GPrune,
    GraphCover,
    VisualTokens,
    WeightedCover,
    WeightedGPrune,
    kept_count,
)
from gprune.tinyvlm import load, make_scene
from gprune.training.accuracy import Sample, score


@st.composite
def groups(draw):
    rows, columns = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    centres = torch.randn(draw(st.integers(1, 5)), 6, generator=generator)
    which = torch.randint(len(centres), (rows * columns,), generator=generator)
    spread = draw(st.sampled_from([0.0, 0.1, 1.0]))
    features = centres[which] + spread * torch.randn(rows * columns, 6, generator=generator)
    protected = None
    if draw(st.booleans()):
        protected = torch.rand(rows * columns, generator=generator) < 0.2
    return VisualTokens(features, grid=(rows, columns), protected=protected)


@settings(deadline=None)
@given(
    groups(),
    st.sampled_from([0.1, 0.36, 0.9, 1.0, 1, 3]),
    st.sampled_from([(WeightedCover, GraphCover), (WeightedGPrune, GPrune)]),
)
def test_tokens_are_those_of_the_plain_method_and_every_token_is_a_member(tokens, keep, methods):
    weighted, plain = methods
    found = weighted(keep).reduce_groups([tokens])[0]
    kept = found.kept
    assert torch.equal(kept, plain(keep).select(tokens))
    counts = found.member_counts()
    assert counts.sum() == len(tokens)
    assert (counts >= 1).all()
    if tokens.protected is None:
        assert len(kept) == kept_count(len(tokens), keep)
        distance = GraphCover(1).distance(tokens)
        for token, member in enumerate(found.members.tolist()):
            own = distance[token, kept]
            assert own[member] == own.min() or kept[member] == token
    else:
        assert (counts[torch.isin(kept, tokens.protected.nonzero()[:, 0])] == 1).all()


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_packed_scoring_agrees_with_generate(positions):
    """One pass with weights in the mask gives the same answers as the hook, one by one."""
    model, processor = load()
    pruner = WeightedCover(0.06)
    scenes = [make_scene("test", 0, index) for index in range(3)]
    samples = [Sample(scene.draw(), scene.ask()) for scene in scenes]
    outcomes = score(model, samples, pruner, compact=positions == "compact")
    seen = set()
    for sample, results in zip(samples, outcomes, strict=True):
        for question, good in zip(sample.questions, results, strict=True):
            inputs = processor(
                images=[sample.image], text=[f"<image>{question.question}"], return_tensors="pt"
            )
            with pruner(model, positions=positions), torch.no_grad():
                ids = model.generate(**inputs, do_sample=False, max_new_tokens=8)
            new = ids[0, inputs["input_ids"].shape[1] :]
            answer = processor.decode(new, skip_special_tokens=True)
            if question.kind != "box":  # a box can be right without being equal
                assert good == (answer == question.answer), question
                seen.add(good)
    assert seen == {True, False}
