"""What a question points at, and the attention that is held to it while training."""

from __future__ import annotations

import pytest
import torch

from gprune.tinyvlm import make_scene
from gprune.tinyvlm.model import Architecture, build_model
from gprune.tinyvlm.scenes import COLORS, QUESTION_TYPES, SHAPES
from gprune.tinyvlm.vocabulary import build_tokenizer
from gprune.training import grounding
from gprune.training.accuracy import to_pixels, vision_features
from gprune.training.labels import dense
from gprune.training.packing import pack, packed_logits

NAMING = ("color", "shape", "exist", "relation", "object", "box", "bigger", "same_color")
SCENES = [make_scene("train", 7, index) for index in range(60)]
ARCHITECTURE = Architecture(grid=8, vision_width=32, vision_layers=1, text_layers=2)


def pointed_at(scene, question):
    """Read off the words: a colour means all that have it, the word after it narrows it down."""
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


def test_questions_say_what_they_point_at():
    kinds = set()
    for scene in SCENES:
        for question in scene.ask(times=3):
            absent = question.kind == "exist" and question.answer == "no"
            naming = question.kind in NAMING and not absent
            assert question.about == (pointed_at(scene, question) if naming else ())
            kinds |= {question.kind} if question.about else set()
    assert kinds == set(NAMING)
    assert set(NAMING) < set(QUESTION_TYPES)


def test_packing_finds_the_words():
    tokenizer = build_tokenizer()
    packed = pack([scene.ask(times=2) for scene in SCENES], tokenizer, 64)
    expected = [
        (row, word, pointed)
        for row, asked in enumerate(packed.questions)
        for question in asked
        for word, pointed in question.about
    ]
    found = []
    for row, token, ends, pointed in packed.names:
        before, word = tokenizer.convert_ids_to_tokens(packed.ids[row, token - 1 : token + 1])
        assert ends == (before in COLORS)
        assert packed.segments[row, token] == packed.segments[row, token - 1]
        found.append((row, word, pointed))
    assert found == expected


@pytest.fixture(scope="module")
def example():
    """A model, what its attention layers saw, the questions and who owns the patches."""
    model = build_model(0, ARCHITECTURE).eval()
    scenes = [scene for scene in SCENES if len(scene.objects) > 3][:3]
    packed = pack([scene.ask() for scene in scenes], build_tokenizer(), 64)
    owners = dense(scenes, 8).owners
    with torch.no_grad(), grounding.watched(model) as seen:
        features = vision_features(model, to_pixels([scene.draw(8) for scene in scenes]))
        features = model.model.multi_modal_projector(features)
        packed_logits(model, features, packed)
    return model, seen, features, packed, owners


def test_the_loss_is_that_of_the_attention_transformers_computes(example):
    """Against the attention weights of the eager implementation."""
    model, seen, features, packed, owners = example
    weights = []

    def note(module, args, kwargs, output):
        weights.append(output[1])

    handles = [
        layer.self_attn.register_forward_hook(note, with_kwargs=True)
        for layer in model.model.language_model.layers
    ]
    model.set_attn_implementation("eager")
    with torch.no_grad():
        packed_logits(model, features, packed)
    model.set_attn_implementation("sdpa")
    for handle in handles:
        handle.remove()
    joining, looking = [], []
    for row, token, ends, pointed in packed.names:
        mine = torch.isin(owners[row], torch.tensor(pointed))
        if not mine.any():  # too small for a patch of its own
            continue
        for head in range(grounding.HEADS):
            patches = weights[grounding.LOOKING][row, head, 65 + token, 1:65]
            looking.append(-(patches[mine].sum() / patches.sum()).log())
            if ends:
                text = weights[grounding.JOINING][row, head, 65 + token, 65:]
                joining.append(-(text[token - 1] / text.sum()).log())
    expected = torch.stack(looking).mean() + torch.stack(joining).mean()
    with torch.no_grad():
        actual = grounding.loss(model, seen, packed, owners)
    assert torch.allclose(actual, expected, atol=1e-5)
    assert len(joining) > 10


def test_holding_attention_teaches_looking_up(example):
    model, _, features, packed, owners = example
    model = build_model(1, ARCHITECTURE)
    optimizer = torch.optim.Adam(model.model.language_model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        with grounding.watched(model) as seen:
            packed_logits(model, features, packed)
        loss = grounding.loss(model, seen, packed, owners)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_nothing_named_costs_nothing(example):
    model, seen, _, _, owners = example
    packed = pack([SCENES[0].ask(["count"])], build_tokenizer(), 64)
    assert grounding.loss(model, seen, packed, owners) == 0
    only_shapes = pack([SCENES[0].ask(["color"], 3)], build_tokenizer(), 64)
    assert not any(ends for _, _, ends, _ in only_shapes.names)


def test_hooks_are_taken_off(example):
    model = example[0]
    for layer in model.model.language_model.layers:
        assert not layer.self_attn._forward_pre_hooks


def test_heads_start_as_look_ups_of_what_is_alike():
    model = build_model(2, ARCHITECTURE)
    words = torch.nn.functional.normalize(torch.randn(40, 192), dim=1) * 192**0.5
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        assert torch.equal(attention.q_proj.weight, attention.k_proj.weight)
        query, key = attention.q_proj(words), attention.k_proj(words)
        logits = (query @ key.T).detach() * attention.scaling
        assert (logits.argmax(1) == torch.arange(40)).all()
