"""The checkpoint in transformers that `gprune prove --engine vllm` compares with. No vLLM."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import gprune
from gprune.proof.answers import Answer, Choice, Prompt, Question, difference
from gprune.proof.checkpoint import Checkpoint, OnGivenFeatures, reply_in_transformers
from gprune.pruners.image import reduce_images
from gprune.tinyvlm.model import checkpoint_folder
from gprune.tinyvlm.scenes import make_scene

KEEP = 0.25


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint(str(checkpoint_folder()))


def scene_prompt(count: int) -> Prompt:
    scenes = [make_scene("test", 3, index) for index in range(count)]
    return Prompt(
        f"{'<image>' * count}{scenes[0].ask()[0].question}", [scene.draw() for scene in scenes]
    )


def groups_of(checkpoint: Checkpoint, prompt: Prompt) -> tuple[Any, ...]:
    """Returns the features of each image, as another engine would report them."""
    pixels = checkpoint.inputs(prompt)["pixel_values"]
    with torch.no_grad():
        features = checkpoint.model.model.get_image_features(pixel_values=pixels).pooler_output
    return tuple(one.numpy() for one in features)


@pytest.mark.parametrize("name", ["graph_cover", "gprune", "tome"])
def test_a_reply_follows_the_tokens_and_features_that_it_is_given(
    checkpoint: Checkpoint, name: str
) -> None:
    prompt, method = scene_prompt(2), gprune.make(name, keep=KEEP)
    expected, kept = checkpoint.run(prompt, method, 4)
    choice = Choice(kept, groups_of(checkpoint, prompt))
    reply = checkpoint.reply(Question(prompt, KEEP, expected, choice), method)
    assert np.array_equal(reply.kept, kept)
    assert reply.feature_error < 1e-6
    found = difference([reply.answer], [expected])
    assert (found.same, found.steps, found.prompts) == (4, 4, ())
    assert found.largest < 1e-5
    assert reply.answer.followed == expected.tokens
    # Along other tokens every step is still answered.
    other = Answer((5, 6, 7, 8), expected.top, expected.prompt)
    along = checkpoint.reply(Question(prompt, KEEP, other, choice), method).answer
    assert along.followed == other.tokens
    assert along.tokens != other.tokens


def test_the_method_runs_on_the_given_features_and_the_model_on_its_own(
    checkpoint: Checkpoint,
) -> None:
    prompt, method = scene_prompt(1), gprune.GraphCover(KEEP)
    expected, kept = checkpoint.run(prompt, method, 2)
    (features,) = groups_of(checkpoint, prompt)
    turned = Choice(kept, (features[::-1].copy(),))
    reply = checkpoint.reply(Question(prompt, KEEP, expected, turned), method)
    assert reply.kept.sum() == kept.sum()
    assert not np.array_equal(reply.kept, kept)
    assert reply.feature_error > 0.5


def test_groups_that_do_not_fit_are_refused(checkpoint: Checkpoint) -> None:
    prompt, method = scene_prompt(2), gprune.GraphCover(KEEP)
    expected, kept = checkpoint.run(prompt, method, 1)
    features = groups_of(checkpoint, prompt)
    for groups in (features[:1], (*features, features[0]), tuple(one[:-1] for one in features)):
        question = Question(prompt, KEEP, expected, Choice(kept, groups))
        with pytest.raises(ValueError, match="group"):
            checkpoint.reply(question, method)


def test_text_alone_and_unpruned_prompts(checkpoint: Checkpoint) -> None:
    text = Prompt("is it red?")
    answer, kept = checkpoint.run(text, gprune.GraphCover(KEEP), 2)
    assert kept.size == 0
    assert checkpoint.reply(Question(text, None, answer), None).answer.tokens == answer.tokens
    whole, everything = checkpoint.run(scene_prompt(1), None, 1)
    assert everything.all()
    pruned, kept = checkpoint.run(scene_prompt(1), gprune.GraphCover(KEEP), 1)
    assert whole.prompt - pruned.prompt == (~kept).sum() == 192


def test_a_checkpoint_is_loaded_and_asked_by_name() -> None:
    prompt, method = scene_prompt(1), gprune.GraphCover(KEEP)
    folder = str(checkpoint_folder())
    answer, kept = Checkpoint(folder).run(prompt, method, 2)
    asked = [(Question(prompt, KEEP, answer), method), (Question(prompt, None, answer), None)]
    pruned, whole = reply_in_transformers(folder, "float32", "cpu", asked)
    assert pruned.answer.tokens == answer.tokens
    assert np.array_equal(pruned.kept, kept)
    assert whole.kept.all()


def test_given_features_are_used_in_the_order_of_the_prompt() -> None:
    from gprune.pruners.image import GroupedImage
    from gprune.tokens import Group

    torch.manual_seed(0)
    images = [torch.randn(12, 8), torch.randn(6, 8)]
    rows = [[torch.arange(6), torch.arange(6, 12)], [torch.arange(6)]]
    groups = [[Group(one, None) for one in image] for image in rows]
    given = [torch.randn(6, 8) for _ in range(3)]
    method = gprune.GPrune(2)
    wrapped = OnGivenFeatures(2, method, [one.numpy() for one in given])
    pairs = zip(images, groups, strict=True)
    reduced = reduce_images(wrapped, [GroupedImage(*pair) for pair in pairs])
    kept = [indices.tolist() for image in reduced for indices in image.kept]
    assert kept == [method.select(gprune.VisualTokens(one)).tolist() for one in given]
    assert torch.equal(reduced[1].features, images[1][reduced[1].rows])
    assert len(wrapped.errors) == 3
