"""Packed questions: the same answers as one question at a time."""

from __future__ import annotations

import pytest
import torch

from gprune import UniformGridPruner, VisualTokens
from gprune.tinyvlm import make_scene
from gprune.tinyvlm.contents import GRID
from gprune.tinyvlm.questions import Question
from gprune.tinyvlm.vocabulary import build_tokenizer
from gprune.training.accuracy import Sample, to_pixels, vision_features
from gprune.training.model import build_model, build_processor
from gprune.training.packing import IGNORED, decode_answers, grade_answers, pack, packed_logits


@pytest.fixture(scope="module")
def model():
    return build_model(0).eval()


@pytest.mark.parametrize("keep", [1.0, 0.3])
def test_packed_questions_are_answered_as_if_alone(model, keep):
    """Compares with `generate` on one question at a time, pruned by the hook."""
    processor = build_processor()
    scenes = [make_scene("test", 5, index) for index in range(3)]
    samples = [Sample(scene.draw(), scene.ask()) for scene in scenes]
    pruner = UniformGridPruner(keep)
    packed = pack([sample.questions for sample in samples], processor.tokenizer, GRID**2)
    with torch.no_grad():
        features = vision_features(model, to_pixels([sample.image for sample in samples]))
        features = model.model.multi_modal_projector(features)
        if keep == 1.0:
            logits = packed_logits(model, features, packed)
        else:
            kept = torch.stack(
                [pruner.select(VisualTokens(x, grid=(GRID, GRID))) for x in features]
            )
            kept_features = torch.stack([x[k] for x, k in zip(features, kept, strict=True)])
            logits = packed_logits(model, kept_features, packed, kept)
    outcomes = grade_answers(logits.argmax(-1), packed, processor.tokenizer)
    for row, sample in enumerate(samples):
        for segment, question in enumerate(sample.questions):
            prompt = f"<image>{question.question}"
            answer = processor.tokenizer.encode(question.answer, add_special_tokens=False)
            inputs = processor(images=[sample.image], text=[prompt], return_tensors="pt")
            ids = torch.cat([inputs["input_ids"], torch.tensor([answer])], 1)
            with pruner(model), torch.no_grad():
                alone = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0]
                generated = model.generate(**inputs, do_sample=False, max_new_tokens=8)
            own = logits[row][packed.segments[row] == segment]
            assert (alone[-len(own) :] - own).abs().max() < 1e-4
            new = generated[0, inputs["input_ids"].shape[1] :].tolist()
            whole = [*answer, model.config.text_config.eos_token_id]
            assert outcomes[row][segment] == (new[: len(whole)] == whole)


def test_a_box_is_decoded_from_the_models_own_tokens(monkeypatch):
    """Each edge is predicted after the edges that the model predicted, not those of the answer."""
    tokenizer = build_tokenizer()
    edges = tokenizer.convert_tokens_to_ids(["left5", "top6", "right9", "bottom11"])
    successor = dict(zip(edges, [*edges[1:], tokenizer.eos_token_id], strict=True))
    question = Question("box", "where is the red circle?", "left4 top6 right9 bottom12")
    other = Question("count", "how many shapes are there?", "3")

    def fake_logits(model, features, packed, kept=None, member_counts=None):
        logits = torch.zeros(*packed.ids.shape, len(tokenizer))
        for row, column in (packed.labels != IGNORED).nonzero().tolist():
            token = int(packed.ids[row, column])
            logits[row, column, successor.get(token, edges[0])] = 1
        return logits

    monkeypatch.setattr("gprune.training.packing.packed_logits", fake_logits)
    packed = pack([[other, question]], tokenizer, 4)
    predicted = decode_answers(None, torch.zeros(1, 4, 8), packed)
    assert predicted[0][packed.answer_mask(0, 1)].tolist() == [*edges, tokenizer.eos_token_id]
    # IoU of (5, 6, 9, 11) with (4, 6, 9, 12) is 20 / 30.
    assert grade_answers(predicted, packed, tokenizer) == [[False, True]]
    far = Question("box", question.question, "left20 top6 right28 bottom12")
    packed = pack([[other, far]], tokenizer, 4)
    predicted = decode_answers(None, torch.zeros(1, 4, 8), packed)
    assert grade_answers(predicted, packed, tokenizer) == [[False, False]]
