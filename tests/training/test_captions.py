"""Pretraining on captions: phrases and regions, the loss against a slow version, a short run."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from typer.testing import CliRunner

from gprune.tinyvlm import load, make_scene
from gprune.tinyvlm.boxes import SIDE, bin_edges
from gprune.tinyvlm.contents import GRID
from gprune.tinyvlm.vocabulary import UNKNOWN, build_tokenizer
from gprune.training.accuracy import to_pixels, tower_tokens
from gprune.training.captions import PHRASE_KINDS, Captions, captions_of, phrases
from gprune.training.command import app
from gprune.training.data import Steps
from gprune.training.heads import CaptionHeads
from gprune.training.labels import dense_labels, patch_owners
from gprune.training.loop import Trainer
from gprune.training.model import Architecture, build_model
from gprune.training.packing import IGNORED
from gprune.training.recipe import Recipe

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


def test_a_caption_describes_exactly_the_contents():
    tokenizer = build_tokenizer()
    scenes = [make_scene("train", 4, index, crowded=index % 2 == 0) for index in range(6)]
    captions = captions_of(scenes, dense_labels(scenes), tokenizer)
    assert tokenizer.unk_token_id not in captions.words
    for scene, holds in zip(scenes, captions.holds, strict=True):
        described = [
            (PHRASE_KINDS[captions.kinds[i]], *tokenizer.convert_ids_to_tokens(words))
            for i in holds.nonzero()[:, 0].tolist()
            for words in [captions.words[i].tolist()]
        ]
        assert len(set(described)) == len(described)
        names = {f"{one} {other}" for kind, one, other in described if kind == "object"}
        assert names == {item.name for item in scene.objects}
        halves = {(one, other) for kind, one, other in described if kind == "background"}
        assert halves == set(zip(scene.tints, scene.patterns, strict=True))
        signs = {one for kind, one, _ in described if kind == "sign"}
        assert {sign.removeprefix("##") for sign in signs} == set(
            "".join(text.signs for text in scene.texts)
        )
        assert {sign for sign in signs if "#" not in sign} == {t.signs[0] for t in scene.texts}
    assert UNKNOWN not in {word for scene in scenes for _, *two in phrases(scene) for word in two}


def test_regions_are_the_patches_that_a_phrase_describes():
    """Compares with the scene: owners and boxes of its objects, and the sides of its border."""
    tokenizer = build_tokenizer()
    scenes = [make_scene("train", 4, index) for index in range(6)]
    captions = captions_of(scenes, dense_labels(scenes), tokenizer)
    assert not captions.regions[~captions.holds].any()
    boxes = 0
    for row, scene in enumerate(scenes):
        owners = torch.from_numpy(patch_owners(scene)).flatten()
        for column in captions.holds[row].nonzero()[:, 0].tolist():
            kind = PHRASE_KINDS[captions.kinds[column]]
            one, other = tokenizer.convert_ids_to_tokens(captions.words[column].tolist())
            region, edges = captions.regions[row, column], captions.edges[row, column].tolist()
            if kind == "object":
                named = [i for i, item in enumerate(scene.objects) if item.name == f"{one} {other}"]
                assert set(owners[region].tolist()) <= {-1, *named}
                if region.any() and len(named) == 1 and -1 not in owners[region]:
                    assert edges == bin_edges(scene.objects[named[0]].box)
                    boxes += 1
                elif len(named) > 1 and len(set(owners[region].tolist())) > 1:
                    assert edges == [IGNORED] * 4
            else:
                assert edges == [IGNORED] * 4
            if kind == "background":
                assert (owners[region] == -1).all()
                half = scene.tints.index(one)
                rows, columns = (region.view(GRID, GRID).nonzero() * SIDE / GRID).T
                along = columns if scene.layout == "columns" else rows
                unit = SIDE / GRID
                near = along + unit > scene.border if half else along < scene.border
                assert near.all()
    assert boxes > 10


def slow_loss(heads: CaptionHeads, projected, cls, words, captions: Captions) -> float:
    """Computes the loss one region and one pair at a time, in float64."""

    def log_softmax(logits: list[float], index: int) -> float:
        return logits[index] - math.log(sum(map(math.exp, logits)))

    unit = [
        (a.double() + b.double()) / (a.double() + b.double()).norm()
        for a, b in ((words[i], words[j]) for i, j in captions.words.tolist())
    ]
    scale = heads.log_scale.double().exp().tolist()
    costs: dict[object, list[float]] = {}
    for row, column in captions.holds.nonzero().tolist():
        region = captions.regions[row, column]
        if not region.any():
            continue
        mean = heads.norm(projected[row][region].mean(0)).double()
        kind = int(captions.kinds[column])
        same = [i for i, other in enumerate(captions.kinds.tolist()) if other == kind]
        logits = [scale[0] * float(mean @ unit[i] / mean.norm()) for i in same]
        costs.setdefault(kind, []).append(-log_softmax(logits, same.index(column)))
        for edge, step in enumerate(captions.edges[row, column].tolist()):
            if step != IGNORED:
                steps = [float(mean @ words[i].double()) for i in heads.edge_ids[edge]]
                costs.setdefault("edge", []).append(-log_softmax(steps, step))
    for row, column in itertools.product(*map(range, captions.holds.shape)):
        whole = heads.cls_projection(cls[row]).double()
        logit = scale[1] * float(whole @ unit[column] / whole.norm()) + heads.bias.item()
        holds = bool(captions.holds[row, column])
        cost = math.log1p(math.exp(-logit if holds else logit))
        costs.setdefault(f"whole {holds}", []).append(cost)
    return sum(sum(many) / len(many) for many in costs.values())


def test_the_loss_equals_the_slow_version():
    torch.manual_seed(0)
    heads = CaptionHeads(32, 48, build_tokenizer()).eval()
    with torch.no_grad():
        heads.log_scale.copy_(torch.tensor([1.2, 2.1]))
        heads.bias.fill_(-0.5)
    scenes = [make_scene("train", 4, index) for index in range(3)]
    captions = captions_of(scenes, dense_labels(scenes, 6), build_tokenizer())
    words = 0.2 * torch.randn(300, 48)
    projected, cls = torch.randn(5, 36, 48), torch.randn(5, 32)  # the last two have no captions
    with torch.no_grad():
        found = heads.loss(projected, cls, words, captions)
        expected = slow_loss(heads, projected, cls, words, captions)
        assert found.item() == pytest.approx(expected, rel=1e-4)
        assert 0 < heads.loss(projected, None, words, captions).item() < found.item()


def test_a_run_learns_from_captions(tmp_path):
    from rich.progress import Progress

    trainer = Trainer(tmp_path, RECIPE)
    held_out = Steps(RECIPE, "patches", 999, 1000)[0]
    before = trainer.loss("patches", held_out)["patch"].item()
    with Progress(disable=True) as progress:
        trainer.run("patches", RECIPE.patch_steps, progress, RECIPE.patch_steps)
    assert trainer.loss("patches", held_out)["patch"].item() < 0.9 * before
    shares = trainer.validate("patches")
    assert set(shares) == {*PHRASE_KINDS, "edges", "whole"}
    assert all(0 <= share <= 1 for share in shares.values())
    batch = Steps(RECIPE, "answers", 0, 1)[0]
    assert len(batch.captions.holds) == RECIPE.batch - RECIPE.easy_vqa_images
    assert set(trainer.loss("answers", batch)) == {"answer", "patch", "name"}
    again = Trainer(tmp_path, RECIPE)
    for trained, restored in zip(trainer.heads.parameters(), again.heads.parameters(), strict=True):
        assert torch.equal(trained, restored)


def test_the_cls_token_is_separate_from_the_patches():
    scene = make_scene("test", 0, 0)
    pixels = to_pixels([scene.draw(6)])
    for tower, has_cls in (("clip", True), ("siglip", False)):
        model = build_model(0, Architecture(tower, 6, 32, 1, 48, 2)).eval()
        with torch.no_grad():
            patches, cls = tower_tokens(model, pixels)
        assert patches.shape == (1, 36, 32)
        assert (cls is not None) == has_cls
    hidden = build_model(0, TINY).eval().model.vision_tower(pixels).last_hidden_state
    assert torch.equal(tower_tokens(build_model(0, TINY).eval(), pixels)[1], hidden[:, 0])


def test_a_copied_language_model_trains_in_stage_2_only(tmp_path):
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
    ("options", "message"),
    [
        (["--objective", "pixels"], "objective='pixels' must be one of patches, captions"),
        (["--language", "nowhere"], "folder 'nowhere' holds no model.safetensors"),
    ],
)
def test_bad_options(tmp_path, options, message):
    result = CliRunner().invoke(app, ["--out", str(tmp_path), *options])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_a_language_model_of_another_shape_is_refused(tmp_path):
    with pytest.raises(ValueError, match="language='tinyvlm' has a language model of another sh"):
        Trainer(tmp_path, Recipe(architecture=TINY, language="tinyvlm"))
