"""The training: packing equals asking alone, a killed run resumes exactly, the result loads."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

from gprune import CoverBudget, GPrune, GraphCover, UniformGridPruner, VisualTokens
from gprune.tinyvlm import easyvqa, load, make_scene
from gprune.tinyvlm.model import Architecture, build_model, build_processor, sinusoids
from gprune.tinyvlm.scenes import GRID, HUES, IMAGE_SIZE, MARKS, Question
from gprune.tinyvlm.vocabulary import UNKNOWN, build_tokenizer, unknown_words
from gprune.training.accuracy import (
    Sample,
    by_type,
    encode,
    held_out,
    score,
    to_pixels,
    vision_features,
)
from gprune.training.labels import KIND_WORDS, dense
from gprune.training.packing import IGNORED, answered, pack, packed_logits, said
from gprune.training.train import PatchHeads, Recipe, Steps, Trainer, app, cosine

RECIPE = Recipe(
    batch=3,
    patch_steps=4,
    answer_steps=4,
    warmup=2,
    easy_vqa_images=1,
)


@pytest.fixture(scope="module")
def model():
    return build_model(0).eval()


@pytest.mark.parametrize("keep", [1.0, 0.3])
def test_packed_questions_are_answered_as_if_alone(model, keep):
    """Against transformers' own generate on one question at a time, through the hook."""
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
            places = torch.stack(
                [pruner.select(VisualTokens(x, grid=(GRID, GRID))) for x in features]
            )
            few = torch.stack([x[p] for x, p in zip(features, places, strict=True)])
            logits = packed_logits(model, few, packed, places)
    outcomes = answered(logits.argmax(-1), packed, processor.tokenizer)
    for row, sample in enumerate(samples):
        for segment, question in enumerate(sample.questions):
            prompt = f"<image>{question.question}"
            answer = processor.tokenizer.encode(question.answer, add_special_tokens=False)
            inputs = processor(images=[sample.image], text=[prompt], return_tensors="pt")
            ids = torch.cat([inputs["input_ids"], torch.tensor([answer])], 1)
            with pruner(model), torch.no_grad():
                alone = model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0]
                generated = model.generate(**inputs, do_sample=False, max_new_tokens=8)
            mine = logits[row][packed.segments[row] == segment]
            assert (alone[-len(mine) :] - mine).abs().max() < 1e-4
            new = generated[0, inputs["input_ids"].shape[1] :].tolist()
            whole = [*answer, model.config.text_config.eos_token_id]
            assert outcomes[row][segment] == (new[: len(whole)] == whole)


def test_score_counts_by_type(model):
    samples = held_out("test", scenes=4, easy_vqa=2)
    outcomes = score(model, samples, GPrune(0.5))
    assert [len(results) for results in outcomes] == [len(sample.questions) for sample in samples]
    asked = Counter(question.kind for sample in samples for question in sample.questions)
    assert {kind: len(results) for kind, results in by_type(samples, outcomes).items()} == asked


def test_pictures_with_different_budgets_are_scored_as_alone():
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


def test_every_word_is_known():
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


def test_easy_vqa_splits_are_apart():
    train, validation = easyvqa.indices("train"), easyvqa.indices("validation")
    assert not set(train) & set(validation)
    assert len(train) + len(validation) == 4000
    assert len(easyvqa.indices("test")) == 1000
    assert easyvqa.image("test", 0).size == (IMAGE_SIZE, IMAGE_SIZE)


def test_training_pixels_are_the_processors():
    processor = build_processor()
    for picture in (make_scene("test", 0, 0).draw(), easyvqa.image("test", 3)):
        inputs = processor(images=[picture], text=["<image>"], return_tensors="pt")
        assert torch.allclose(inputs["pixel_values"], to_pixels([picture]), atol=1e-6)


def test_batches_follow_from_the_step(tmp_path):
    one = Steps(RECIPE, "answers", 0, 4)[3]
    other = Steps(RECIPE, "answers", 3, 4)[0]
    assert torch.equal(one.pixels, other.pixels)
    assert torch.equal(one.packed.ids, other.packed.ids)
    for labels in (one.labels.kinds, one.labels.hues, one.labels.marks, one.labels.edges):
        assert (labels[-1] == IGNORED).all()  # easy-VQA has no dense labels
    assert (one.labels.kinds[0] >= 0).all()


def test_digits_after_the_first_have_words_of_their_own():
    scene = next(s for i in range(20) if (s := make_scene("train", 3, i)).texts)
    labels = dense([scene])
    assert labels.kinds.shape == labels.hues.shape == labels.marks.shape == (1, GRID**2)
    digits = scene.texts[0].signs
    for place, (mark, digit) in enumerate(zip(("first", "second", "third"), digits, strict=True)):
        found = {KIND_WORDS[kind] for kind in labels.kinds[labels.marks == MARKS.index(mark)]}
        assert found == {digit if place == 0 else f"##{digit}"}


def test_patch_logits_are_the_nearness_of_words(model):
    """A patch that is projected on a word's embedding is read as that word."""
    heads = PatchHeads(model.config.text_config.hidden_size)
    words = torch.nn.functional.normalize(torch.randn(model.config.text_config.vocab_size, 192))
    order = torch.randperm(len(KIND_WORDS))
    projected = words[heads.kind_ids][order][None]
    kinds, hues, marks = heads(projected, words)
    assert torch.equal(kinds.argmax(-1)[0], order)
    assert hues.shape == (1, len(KIND_WORDS), len(HUES))
    assert marks.shape == (1, len(KIND_WORDS), len(MARKS))
    assert heads(words[heads.color_ids][None], words)[1].argmax(-1).tolist()[0] == list(range(10))


def test_position_embeddings_start_from_sinusoids(model):
    table = model.model.vision_tower.embeddings.position_embedding.weight
    wanted = sinusoids(GRID, table.shape[1])
    alike = torch.nn.functional.cosine_similarity(table[1:], wanted)
    assert alike.min() > 0.9


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "state.safetensors")


def run(folder, patches, answers):
    """Trains up to a point, as a run that is killed there does."""
    from rich.progress import Progress

    trainer = Trainer(folder, RECIPE)
    with Progress(disable=True) as progress:
        trainer.run("patches", RECIPE.patch_steps, progress, 2, stop_after=patches)
        trainer.run("answers", RECIPE.answer_steps, progress, 2, stop_after=answers)
    return trainer


def test_a_killed_run_resumes_exactly(tmp_path, monkeypatch):
    for name in ("see", "answer"):
        monkeypatch.setattr(Trainer, name, lambda self: {})
    run(tmp_path / "whole", 4, 4)
    whole = weights(tmp_path / "whole")
    # Killed in the middle of each stage, and between them.
    for label, stops in (("middle", [(2, 0), (4, 2), (4, 4)]), ("between", [(4, 0), (4, 4)])):
        for patches, answers in stops:
            run(tmp_path / label, patches, answers)
        parts = weights(tmp_path / label)
        assert whole.keys() == parts.keys()
        for name in whole.keys() - {"progress"}:
            assert torch.equal(whole[name], parts[name]), (label, name)


def test_another_recipe_in_the_same_folder_is_refused(tmp_path):
    Trainer(tmp_path, RECIPE)
    result = CliRunner().invoke(app, ["--out", str(tmp_path), "--seed", "5"])
    assert result.exit_code == 2
    assert "holds a run with another recipe" in result.output


def test_one_command_trains_a_model_that_transformers_loads(tmp_path, monkeypatch):
    monkeypatch.setattr("gprune.training.train.held_out", lambda *a, **k: held_out("test", 2, 1))
    options = ["--patch-steps", "2", "--answer-steps", "2", "--batch", "5", "--save-every", "1"]
    options += ["--scenes", "2", "--easy-vqa", "1"]
    result = CliRunner().invoke(app, ["--out", str(tmp_path), *options])
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(r["stage"], r["step"]) for r in records] == [
        ("patches", 1),
        ("patches", 2),
        ("answers", 1),
        ("answers", 2),
    ]
    assert records[-1]["validation"]["count"] >= 0
    model, processor = load(tmp_path / "checkpoint")
    assert model.dtype == torch.float32
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "checkpoint", dtype="auto")
    assert stock.dtype == torch.bfloat16
    assert type(stock).__name__ == "LlavaForConditionalGeneration"
    assert type(AutoProcessor.from_pretrained(tmp_path / "checkpoint")) is type(processor)


def test_absent_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gprune\.tinyvlm\.train"):
        load(tmp_path)


def test_sinusoids_tell_places_apart_and_neighbours_alike():
    table = torch.nn.functional.normalize(sinusoids(14, 128), dim=1)
    alike = (table @ table.T).view(14, 14, 14, 14)
    assert alike.view(196, 196).fill_diagonal_(0).max() < 0.98
    assert alike[5, 5, 5, 6] > alike[5, 5, 5, 8] > alike[5, 5, 5, 13]
    assert torch.allclose(alike[5, 5, 5, 6], alike[5, 5, 6, 5])


def test_learning_rate():
    values = [cosine(step, 100, 10) for step in range(100)]
    assert values[9] == 1
    assert values == [*sorted(values[:10]), *sorted(values[10:], reverse=True)]
    assert values[-1] == pytest.approx(0.01, abs=0.002)


SMALL = Recipe(
    architecture=Architecture("siglip", grid=6, vision_width=32, vision_layers=1, text_layers=2),
    asked=2,
    most_asked=5,
    batch=3,
    patch_steps=1,
    answer_steps=1,
    easy_vqa_images=1,
)


def test_a_small_batch():
    batch = Steps(SMALL, "answers", 0, 1)[0]
    assert batch.pixels.shape == (3, 3, 48, 48)
    assert [len(asked) for asked in batch.packed.questions[:2]] == [5, 5]
    assert batch.labels.edges.shape == (3, 36, 4)
    assert (batch.labels.edges[:2] >= 0).any()
    assert batch.labels.edges.max() < 32


def test_a_model_without_cls_trains_and_loads(tmp_path, monkeypatch):
    from rich.progress import Progress

    def few(split, scenes, easy_vqa, **options):
        return held_out(split, 2, 1, **options)

    monkeypatch.setattr("gprune.training.train.held_out", few)
    trainer = Trainer(tmp_path, SMALL)
    with Progress(disable=True) as progress:
        trainer.run("patches", 1, progress, 1)
        trainer.run("answers", 1, progress, 1)
    trainer.finish(scenes=2, easy_vqa=1)
    assert "siglip vision tower" in (tmp_path / "checkpoint" / "README.md").read_text()
    model, processor = load(tmp_path / "checkpoint")
    assert model.config.vision_config.model_type == "siglip_vision_model"
    scene = make_scene("test", 0, 0)
    samples = [Sample(scene.draw(6), scene.ask())]
    inputs = processor(images=[samples[0].image], text=["<image>where?"], return_tensors="pt")
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == 36
    assert torch.allclose(inputs["pixel_values"], to_pixels([samples[0].image]), atol=1e-6)
    outcomes = score(model, samples, UniformGridPruner(0.5))
    seen = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])["validation"]
    assert {"shape", "sign", "edges", "centre"} <= set(seen)
    assert len(outcomes[0]) == len(samples[0].questions)


def test_a_box_is_read_as_the_model_says_it(monkeypatch):
    """Each edge is said after those the model said before, whatever the answer holds."""
    tokenizer = build_tokenizer()
    edges = tokenizer.convert_tokens_to_ids(["left5", "top6", "right9", "bottom11"])
    successor = dict(zip(edges, [*edges[1:], tokenizer.eos_token_id], strict=True))
    question = Question("box", "where is the red circle?", "left4 top6 right9 bottom12")
    other = Question("count", "how many shapes are there?", "3")

    def fake(model, features, packed, places=None, stands=None):
        logits = torch.zeros(*packed.ids.shape, len(tokenizer))
        for row, column in (packed.labels != IGNORED).nonzero().tolist():
            read = int(packed.ids[row, column])
            logits[row, column, successor.get(read, edges[0])] = 1
        return logits

    monkeypatch.setattr("gprune.training.packing.packed_logits", fake)
    packed = pack([[other, question]], tokenizer, 4)
    given = said(None, torch.zeros(1, 4, 8), packed)
    mine = (packed.segments[0] == 1) & (packed.labels[0] != IGNORED)
    assert given[0][mine].tolist() == [*edges, tokenizer.eos_token_id]
    # IoU of (5, 6, 9, 11) with (4, 6, 9, 12) is 20 / 30.
    assert answered(given, packed, tokenizer) == [[False, True]]
    far = Question("box", question.question, "left20 top6 right28 bottom12")
    packed = pack([[other, far]], tokenizer, 4)
    assert answered(said(None, torch.zeros(1, 4, 8), packed), packed, tokenizer) == [[False, False]]


def test_bad_options(tmp_path):
    with pytest.raises(ValueError, match="text_layers=1 must be at least 2"):
        Architecture(text_layers=1)
    result = CliRunner().invoke(app, ["--out", str(tmp_path), "--tower", "resnet"])
    assert result.exit_code == 2
    assert "tower='resnet' must be one of clip, siglip" in " ".join(result.output.split())
    result = CliRunner().invoke(app, ["--out", str(tmp_path), "--attention", "flash"])
    assert result.exit_code == 2
    assert "attention='flash' must be one of sdpa, products" in " ".join(result.output.split())


def test_a_batch_goes_to_a_device_whole():
    """On the meta device, which holds no values: nothing of it may stay behind."""
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


def test_one_stage_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("gprune.training.train.held_out", lambda *a, **k: held_out("test", 2, 1))
    options = ["--patch-steps", "1", "--answer-steps", "1", "--batch", "5", "--scenes", "2"]
    options += ["--out", str(tmp_path), "--easy-vqa", "1"]
    result = CliRunner().invoke(app, [*options, "--stage", "patches"])
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "checkpoint").exists()
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    stages = [json.loads(line)["stage"] for line in (tmp_path / "log.jsonl").open()]
    assert stages == ["patches", "answers"]
    for wrong, says in (("answers", "stage='answers'"), (None, "device='warp'")):
        more = ["--stage", wrong] if wrong else ["--device", "warp"]
        result = CliRunner().invoke(app, [*options, *more])
        assert result.exit_code == 2
        assert says in " ".join(result.output.split())
