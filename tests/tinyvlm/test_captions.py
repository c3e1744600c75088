"""Pretraining on captions: which phrases hold, the loss beside an obvious one, what is learned."""

from __future__ import annotations

import math

import pytest
import torch
from typer.testing import CliRunner

from gprune.tinyvlm import load, make_scene
from gprune.tinyvlm.accuracy import to_pixels, tower_tokens
from gprune.tinyvlm.captions import TOLD, CaptionHeads, Captions, captions_of, phrases
from gprune.tinyvlm.model import Architecture, build_model
from gprune.tinyvlm.train import Recipe, Steps, Trainer, app
from gprune.tinyvlm.vocabulary import UNKNOWN, build_tokenizer

TINY = Architecture(grid=6, vision_width=32, vision_layers=1, text_width=48, text_layers=2)
RECIPE = Recipe(
    architecture=TINY,
    objective="captions",
    batch=4,
    patch_steps=16,
    patch_rate=3e-3,
    warmup=2,
    easy_vqa_images=1,
)


def test_a_caption_tells_what_is_there_and_nothing_else():
    tokenizer = build_tokenizer()
    scenes = [make_scene("train", 4, index, crowded=index % 2 == 0) for index in range(6)]
    captions = captions_of(scenes, tokenizer)
    assert tokenizer.unk_token_id not in captions.words
    for scene, holds in zip(scenes, captions.holds, strict=True):
        told = [
            (TOLD[captions.told[i]], *tokenizer.convert_ids_to_tokens(captions.words[i].tolist()))
            for i in holds.nonzero()[:, 0].tolist()
        ]
        assert len(set(told)) == len(told)
        names = {f"{one} {other}" for kind, one, other in told if kind == "object"}
        assert names == {item.name for item in scene.objects}
        halves = {(one, other) for kind, one, other in told if kind == "background"}
        assert halves == set(zip(scene.tints, scene.patterns, strict=True))
        signs = {one for kind, one, _ in told if kind == "sign"}
        assert {sign.removeprefix("##") for sign in signs} == set(
            "".join(text.signs for text in scene.texts)
        )
        assert {sign for sign in signs if "#" not in sign} == {t.signs[0] for t in scene.texts}
    assert UNKNOWN not in {word for scene in scenes for _, *two in phrases(scene) for word in two}


def slow_loss(heads: CaptionHeads, projected, cls, words, captions: Captions) -> float:
    """One pair at a time, in float64."""
    factor, summand = heads.factor.double().exp(), heads.summand.double()
    total = 0.0
    for by_cls in (False, True):
        for kind in captions.told.unique():
            for wanted in (True, False):
                costs = []
                for row, column in (captions.holds == wanted).nonzero().tolist():
                    if captions.told[column] != kind:
                        continue
                    one, other = (words[i].double() for i in captions.words[column])
                    phrase = (one + other) / (one + other).norm()
                    if by_cls:
                        seen = [heads.summary(cls[row]).double()]
                    else:
                        seen = list(heads.norm(projected[row]).double())
                    near = [(factor[int(by_cls)] * (x @ phrase) / x.norm()).item() for x in seen]
                    odds = sum(map(math.exp, near)) * math.exp(summand[int(by_cls)].item())
                    costs.append(math.log(1 + odds) - (math.log(odds) if wanted else 0))
                total += sum(costs) / max(1, len(costs))
    return total


def test_the_loss_is_that_of_every_pair():
    torch.manual_seed(0)
    heads = CaptionHeads(32, 48)
    with torch.no_grad():
        heads.factor.copy_(torch.tensor([1.2, 2.1]))
        heads.summand.copy_(torch.tensor([-3.0, -0.5]))
    scenes = [make_scene("train", 4, index) for index in range(3)]
    captions = captions_of(scenes, build_tokenizer())
    words = torch.randn(300, 48)
    projected, cls = torch.randn(5, 9, 48), torch.randn(5, 32)  # two more without captions
    found = heads.loss(projected, cls, words, captions)
    assert found.item() == pytest.approx(
        slow_loss(heads, projected, cls, words, captions), rel=1e-4
    )
    by_patches = heads.loss(projected, None, words, captions)
    assert 0 < by_patches.item() < found.item()


def test_a_run_learns_from_captions_alone(tmp_path):
    """The patches' labels and the questions have no part in stage 1."""
    from rich.progress import Progress

    trainer = Trainer(tmp_path, RECIPE)
    held_out = Steps(RECIPE, "patches", 999, 1000)[0]
    before = trainer.loss("patches", held_out)["patch"].item()
    with Progress(disable=True) as progress:
        trainer.run("patches", RECIPE.patch_steps, progress, RECIPE.patch_steps)
    assert trainer.loss("patches", held_out)["patch"].item() < 0.9 * before
    seen = trainer.see()
    assert set(seen) == {f"{told}_{by}" for told in TOLD for by in ("patches", "cls")}
    assert all(0 <= share <= 1 for share in seen.values())
    batch = Steps(RECIPE, "answers", 0, 1)[0]
    assert len(batch.captions.holds) == RECIPE.batch - RECIPE.easy_vqa_images
    assert set(trainer.loss("answers", batch)) == {"answer", "patch", "name"}
    again = Trainer(tmp_path, RECIPE)
    for mine, theirs in zip(trainer.heads.parameters(), again.heads.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_cls_token_is_apart_from_the_patches():
    scene = make_scene("test", 0, 0)
    pixels = to_pixels([scene.draw(6)])
    for tower, has in (("clip", True), ("siglip", False)):
        model = build_model(0, Architecture(tower, 6, 32, 1, 48, 2)).eval()
        with torch.no_grad():
            patches, cls = tower_tokens(model, pixels)
        assert patches.shape == (1, 36, 32)
        assert (cls is not None) == has
    hidden = build_model(0, TINY).eval().model.vision_tower(pixels).last_hidden_state
    assert torch.equal(tower_tokens(build_model(0, TINY).eval(), pixels)[1], hidden[:, 0])


def test_a_language_model_goes_on_learning_under_a_new_tower(tmp_path):
    from rich.progress import Progress

    recipe = Recipe(
        architecture=Architecture("siglip", 6, 32, 1),
        language="tinyvlm",
        batch=3,
        patch_steps=1,
        answer_steps=1,
        warmup=1,
        easy_vqa_images=1,
    )
    shipped = load()[0].model.language_model.state_dict()
    trainer = Trainer(tmp_path, recipe)
    with Progress(disable=True) as progress:
        trainer.run("patches", 1, progress, 1)
        learned = trainer.model.model.language_model.state_dict()
        assert all(torch.equal(shipped[name], x) for name, x in learned.items())
        trainer.run("answers", 1, progress, 1)
    learned = trainer.model.model.language_model.state_dict()
    assert not any(torch.equal(shipped[name], x) for name, x in learned.items() if x.ndim > 1)
    head = trainer.model.lm_head.weight
    assert head is trainer.model.get_input_embeddings().weight


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--objective", "pixels"], "objective='pixels' must be one of patches, captions"),
        (["--language", "nowhere"], "folder 'nowhere' holds no model.safetensors"),
    ],
)
def test_bad_options(tmp_path, options, says):
    result = CliRunner().invoke(app, ["--out", str(tmp_path), *options])
    assert result.exit_code == 2
    assert says in " ".join(result.output.split())


def test_a_language_model_of_another_shape_is_refused(tmp_path):
    with pytest.raises(ValueError, match="language='tinyvlm' has a language model of another sh"):
        Trainer(tmp_path, Recipe(architecture=TINY, language="tinyvlm"))
