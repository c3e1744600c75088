"""Mentions in questions, and the loss that supervises attention to the named objects."""

from __future__ import annotations

import pytest
import torch

from gprune.tinyvlm import make_scene
from gprune.tinyvlm.contents import COLORS, SHAPES
from gprune.tinyvlm.questions import QUESTION_TYPES
from gprune.tinyvlm.vocabulary import build_tokenizer
from gprune.training import grounding
from gprune.training.accuracy import to_pixels, vision_features
from gprune.training.labels import dense_labels
from gprune.training.model import Architecture, build_model
from gprune.training.packing import pack, packed_logits

NAMING = ("color", "shape", "exist", "relation", "object", "box", "bigger", "same_color")
SCENES = [make_scene("train", 7, index) for index in range(60)]
ARCHITECTURE = Architecture(grid=8, vision_width=32, vision_layers=1, text_layers=2)


def expected_mentions(scene, question):
    """Derives the mentions from the text: a colour, then the shape that narrows it down."""
    found = []
    words = question.question.rstrip("?").split()
    for before, word in zip(["", *words], words, strict=False):
        if word in COLORS:
            objects = [i for i, o in enumerate(scene.objects) if o.color == word]
        elif word in SHAPES or word == "object":
            objects = [
                i
                for i, o in enumerate(scene.objects)
                if word in (o.shape, "object") and (before not in COLORS or o.color == before)
            ]
        else:
            continue
        found.append((word, tuple(objects)))
    return tuple(found)


def test_mentions_of_questions():
    kinds = set()
    for scene in SCENES:
        for question in scene.ask(times=3):
            absent = question.kind == "exist" and question.answer == "no"
            naming = question.kind in NAMING and not absent
            assert question.mentions == (expected_mentions(scene, question) if naming else ())
            kinds |= {question.kind} if question.mentions else set()
    assert kinds == set(NAMING)
    assert set(NAMING) < set(QUESTION_TYPES)


def test_packing_finds_the_words():
    tokenizer = build_tokenizer()
    packed = pack([scene.ask(times=2) for scene in SCENES], tokenizer, 64)
    expected = [
        (row, word, objects)
        for row, questions in enumerate(packed.questions)
        for question in questions
        for word, objects in question.mentions
    ]
    found = []
    for row, token, ends_name, objects in packed.mentions:
        before, word = tokenizer.convert_ids_to_tokens(packed.ids[row, token - 1 : token + 1])
        assert ends_name == (before in COLORS)
        assert packed.segments[row, token] == packed.segments[row, token - 1]
        found.append((row, word, objects))
    assert found == expected


@pytest.fixture(scope="module")
def example():
    """Returns a model, its attention inputs, features, packed questions and patch owners."""
    model = build_model(0, ARCHITECTURE).eval()
    scenes = [scene for scene in SCENES if len(scene.objects) > 3][:3]
    packed = pack([scene.ask() for scene in scenes], build_tokenizer(), 64)
    owners = dense_labels(scenes, 8).owners
    with torch.no_grad(), grounding.record_attention_inputs(model) as inputs:
        features = vision_features(model, to_pixels([scene.draw(8) for scene in scenes]))
        features = model.model.multi_modal_projector(features)
        packed_logits(model, features, packed)
    return model, inputs, features, packed, owners


def test_the_loss_agrees_with_the_attention_weights_of_transformers(example):
    """Uses the attention weights that the eager implementation returns."""
    model, inputs, features, packed, owners = example
    weights = []

    def record(module, args, kwargs, output):
        weights.append(output[1])

    handles = [
        layer.self_attn.register_forward_hook(record, with_kwargs=True)
        for layer in model.model.language_model.layers
    ]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        packed_logits(model, features, packed)
    model.set_attn_implementation("sdpa")
    for handle in handles:
        handle.remove()
    join, lookup = [], []
    for row, token, ends_name, objects in packed.mentions:
        mask = torch.isin(owners[row], torch.tensor(objects))
        if not mask.any():  # too small to own a patch
            continue
        for head in range(grounding.HEADS):
            patches = weights[grounding.LOOKUP_LAYER][row, head, 65 + token, 1:65]
            lookup.append(-(patches[mask].sum() / patches.sum()).log())
            if ends_name:
                text = weights[grounding.JOIN_LAYER][row, head, 65 + token, 65:]
                join.append(-(text[token - 1] / text.sum()).log())
    expected = torch.stack(lookup).mean() + torch.stack(join).mean()
    with torch.no_grad():
        actual = grounding.loss(model, inputs, packed, owners)
    assert torch.allclose(actual, expected, atol=1e-5)
    assert len(join) > 10


def test_the_loss_trains_attention(example):
    model, _, features, packed, owners = example
    model = build_model(1, ARCHITECTURE)
    optimizer = torch.optim.Adam(model.model.language_model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        with grounding.record_attention_inputs(model) as inputs:
            packed_logits(model, features, packed)
        loss = grounding.loss(model, inputs, packed, owners)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_the_loss_is_zero_without_mentions(example):
    model, inputs, _, _, owners = example
    packed = pack([SCENES[0].ask(["count"])], build_tokenizer(), 64)
    assert grounding.loss(model, inputs, packed, owners) == 0
    only_shapes = pack([SCENES[0].ask(["color"], 3)], build_tokenizer(), 64)
    assert not any(mention.ends_name for mention in only_shapes.mentions)


def test_hooks_are_removed(example):
    model = example[0]
    for layer in model.model.language_model.layers:
        assert not layer.self_attn._forward_pre_hooks


def test_heads_initially_attend_to_similar_tokens():
    model = build_model(2, ARCHITECTURE)
    words = torch.nn.functional.normalize(torch.randn(40, 192), dim=1) * 192**0.5
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        assert torch.equal(attention.q_proj.weight, attention.k_proj.weight)
        query, key = attention.q_proj(words), attention.k_proj(words)
        logits = (query @ key.T).detach() * attention.scaling
        assert (logits.argmax(1) == torch.arange(40)).all()
