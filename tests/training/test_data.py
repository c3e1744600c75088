"""Training data: vocabulary, easy-VQA, batches and labels."""

from __future__ import annotations

from dataclasses import replace

import torch

from gprune.tinyvlm import easyvqa, make_scene
from gprune.tinyvlm.contents import GRID, IMAGE_SIZE
from gprune.tinyvlm.vocabulary import UNKNOWN, build_tokenizer, unknown_words
from gprune.training.accuracy import to_pixels
from gprune.training.data import Steps
from gprune.training.labels import KIND_WORDS, PATCH_MARKS, dense_labels
from gprune.training.model import build_processor
from gprune.training.packing import IGNORED
from tests.training.recipes import RECIPE, SMALL


def test_the_vocabulary_has_every_word():
    tokenizer = build_tokenizer()
    for index in range(200):
        for item in make_scene("train", 9, index).ask(times=3):
            assert UNKNOWN not in tokenizer.tokenize(f"{item.question} {item.answer}")
            ids = tokenizer.encode(item.answer, add_special_tokens=False)
            assert tokenizer.decode(ids) == item.answer
    for split in ("train", "test"):
        for index in easyvqa.indices(split)[:200]:
            for item in easyvqa.ask(split, index, 99):
                assert UNKNOWN not in tokenizer.tokenize(f"{item.question} {item.answer}")
    assert unknown_words(tokenizer, "What color is the Dog, please?") == ["dog", ",", "please"]
    assert tokenizer.tokenize("ktx") == ["k", "##t", "##x"]
    assert tokenizer.tokenize("left31") == ["left31"]


def test_easy_vqa_splits_are_disjoint():
    train, validation = easyvqa.indices("train"), easyvqa.indices("validation")
    assert not set(train) & set(validation)
    assert len(train) + len(validation) == 4000
    assert len(easyvqa.indices("test")) == 1000
    assert easyvqa.image("test", 0).size == (IMAGE_SIZE, IMAGE_SIZE)


def test_training_pixels_agree_with_the_processor():
    processor = build_processor()
    for picture in (make_scene("test", 0, 0).draw(), easyvqa.image("test", 3)):
        inputs = processor(images=[picture], text=["<image>"], return_tensors="pt")
        assert torch.allclose(inputs["pixel_values"], to_pixels([picture]), atol=1e-6)


def test_batches_depend_on_the_step_alone(tmp_path):
    one = Steps(RECIPE, "answers", 0, 4)[3]
    other = Steps(RECIPE, "answers", 3, 4)[0]
    assert torch.equal(one.pixels, other.pixels)
    assert torch.equal(one.packed.ids, other.packed.ids)
    for labels in (one.labels.kinds, one.labels.hues, one.labels.marks, one.labels.edges):
        assert (labels[-1] == IGNORED).all()  # easy-VQA has no dense labels
    assert (one.labels.kinds[0] >= 0).all()


def test_later_signs_are_labelled_with_continuation_words():
    scene = next(s for i in range(20) if (s := make_scene("train", 3, i)).texts)
    labels = dense_labels([scene])
    assert labels.kinds.shape == labels.hues.shape == labels.marks.shape == (1, GRID**2)
    signs = scene.texts[0].signs
    for order, (mark, sign) in enumerate(zip(("first", "second", "third"), signs, strict=True)):
        found = {KIND_WORDS[kind] for kind in labels.kinds[labels.marks == PATCH_MARKS.index(mark)]}
        assert found == {sign if order == 0 else f"##{sign}"}


def test_a_small_batch():
    batch = Steps(SMALL, "answers", 0, 1)[0]
    assert batch.pixels.shape == (3, 3, 48, 48)
    assert [len(questions) for questions in batch.packed.questions[:2]] == [5, 5]
    assert batch.labels.edges.shape == (3, 36, 4)
    assert (batch.labels.edges[:2] >= 0).any()
    assert batch.labels.edges.max() < 32


def test_all_tensors_of_a_batch_move_to_a_device():
    """Uses the meta device."""
    recipe = replace(SMALL, objective="captions")
    batch = Steps(recipe, "answers", 0, 1)[0].to(torch.device("meta"))
    assert batch.pixels.is_meta
    for part in (batch.labels, batch.captions, batch.packed):
        tensors = [value for value in vars(part).values() if isinstance(value, torch.Tensor)]
        assert len(tensors) >= 4
        assert all(tensor.is_meta for tensor in tensors)
    assert batch.packed.questions
    plain = Steps(SMALL, "patches", 0, 1)[0].to(torch.device("meta"))
    assert plain.packed is None
    assert plain.captions is None
