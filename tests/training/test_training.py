"""Training runs: exact resumption of killed runs, the command, loading of the checkpoint."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from typer.testing import CliRunner

from gprune import UniformGridPruner
from gprune.tinyvlm import load, make_scene
from gprune.training.accuracy import Sample, held_out, score, to_pixels
from gprune.training.command import app
from gprune.training.loop import Trainer
from gprune.training.model import Architecture
from gprune.training.optimizer import schedule_factor
from tests.training.recipes import RECIPE, SMALL


def load_weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "state.safetensors")


def run(folder, patches, answers):
    """Trains both stages up to given steps, like a run that is killed there."""
    from rich.progress import Progress

    trainer = Trainer(folder, RECIPE)
    with Progress(disable=True) as progress:
        trainer.run("patches", RECIPE.patch_steps, progress, 2, stop_after=patches)
        trainer.run("answers", RECIPE.answer_steps, progress, 2, stop_after=answers)
    return trainer


def test_a_killed_run_resumes_exactly(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "validate", lambda self, stage: {})
    run(tmp_path / "whole", 4, 4)
    whole = load_weights(tmp_path / "whole")
    # Killed in the middle of each stage, and between them.
    for label, stops in (("middle", [(2, 0), (4, 2), (4, 4)]), ("between", [(4, 0), (4, 4)])):
        for patches, answers in stops:
            run(tmp_path / label, patches, answers)
        parts = load_weights(tmp_path / label)
        assert whole.keys() == parts.keys()
        for name in whole.keys() - {"progress"}:
            assert torch.equal(whole[name], parts[name]), (label, name)


def test_another_recipe_in_the_same_folder_is_refused(tmp_path):
    Trainer(tmp_path, RECIPE)
    result = CliRunner().invoke(app, ["--out", str(tmp_path), "--seed", "5"])
    assert result.exit_code == 2
    assert "holds a run with another recipe" in result.output


def test_one_command_trains_a_model_that_transformers_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "gprune.training.validation.held_out", lambda *a, **k: held_out("test", 2, 1)
    )
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
    with pytest.raises(FileNotFoundError, match=r"python -m gprune\.training --out FOLDER"):
        load(tmp_path)


def test_learning_rate_schedule():
    values = [schedule_factor(step, 100, 10) for step in range(100)]
    assert values[9] == 1
    assert values == [*sorted(values[:10]), *sorted(values[10:], reverse=True)]
    assert values[-1] == pytest.approx(0.01, abs=0.002)


def test_a_model_without_cls_trains_and_loads(tmp_path, monkeypatch):
    from rich.progress import Progress

    def few(split, scenes, easy_vqa, **options):
        return held_out(split, 2, 1, **options)

    monkeypatch.setattr("gprune.training.validation.held_out", few)
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
    validation = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])["validation"]
    assert {"shape", "sign", "edges", "centre"} <= set(validation)
    assert len(outcomes[0]) == len(samples[0].questions)


def test_bad_options(tmp_path):
    with pytest.raises(ValueError, match="text_layers=1 must be at least 2"):
        Architecture(text_layers=1)
    result = CliRunner().invoke(app, ["--out", str(tmp_path), "--tower", "resnet"])
    assert result.exit_code == 2
    assert "tower='resnet' must be one of clip, siglip" in " ".join(result.output.split())
    result = CliRunner().invoke(app, ["--out", str(tmp_path), "--attention", "flash"])
    assert result.exit_code == 2
    assert "attention='flash' must be one of sdpa, products" in " ".join(result.output.split())


def test_one_stage_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "gprune.training.validation.held_out", lambda *a, **k: held_out("test", 2, 1)
    )
    options = ["--patch-steps", "1", "--answer-steps", "1", "--batch", "5", "--scenes", "2"]
    options += ["--out", str(tmp_path), "--easy-vqa", "1"]
    result = CliRunner().invoke(app, [*options, "--stage", "patches"])
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "checkpoint").exists()
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    stages = [json.loads(line)["stage"] for line in (tmp_path / "log.jsonl").open()]
    assert stages == ["patches", "answers"]
    for wrong, message in (("answers", "stage='answers'"), (None, "device='warp'")):
        more = ["--stage", wrong] if wrong else ["--device", "warp"]
        result = CliRunner().invoke(app, [*options, *more])
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())
