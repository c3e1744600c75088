"""Signals of the encoder's last layer, and its features before the projector."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from gprune import TRIM, GPrune, PruMerge, UnsupportedModelError
from gprune.hf.signals import VisionSignals, feature_layer
from gprune.layouts import FAMILIES, family_of, has_cls
from gprune.proof.batches import add_video, forward, make_batch
from gprune.proof.models import SPECIMENS
from gprune.pruners.base import ScorePruner
from tests.hf.quantised import Int8Linear, quantise
from tests.hf.signal_specimens import SEEN, SIGLIP, build
from tests.hf.test_signals import sources, vision_layers

PROJECTED = ("llava", "llava_siglip", "llava_next", "llava_onevision", "llava_next_video")


@dataclass(frozen=True)
class Watch(ScorePruner):
    """Records the tokens that it gets."""

    name: ClassVar[str] = "watch"
    optional_signals: ClassVar[tuple[str, ...]] = ("vision",)
    shown: list = dataclasses.field(default_factory=list)

    def score(self, tokens):
        self.shown.append(tokens)
        return tokens.features.float().sum(1)


@dataclass(frozen=True)
class WatchLast(Watch):
    signals: ClassVar[tuple[str, ...]] = ("joint_cls_attention", "last_keys")


def built(name, layer=-2, **options):
    """Returns a model of its own that takes features of another layer."""
    specimen = SIGLIP if name == SIGLIP.name else SPECIMENS[name]
    model = specimen.build(**options)
    if isinstance(getattr(model.config, "vision_feature_layer", None), int):
        model.config.vision_feature_layer = layer
    if hasattr(model.config, "vision_aspect_ratio"):
        model.config.vision_aspect_ratio = "anyres_max_9"  # a scaled canvas mixes patches
    return specimen, model


def expected_of(values, images):
    """Returns the mean over each token's patches [tokens of all groups, c], without newlines."""
    rows = [image[image.any(1)].float() for image in images]
    return torch.cat([row @ values / row.sum(1, keepdim=True) for row in rows])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["llava", "llava_next", "vipllava", "internvl"])
def test_the_last_layers_attention_and_keys(name, attention):
    """Compares with the last layer's own projections, in float64, all heads as one."""
    specimen, model = built(name, attention=attention)
    batch = make_batch(specimen, model, [1])
    layer = vision_layers(model)[-1]
    seen = {}
    hooks = [
        layer.get_submodule(part).register_forward_hook(
            lambda module, args, output, part=part: seen.__setitem__(part, output)
        )
        for part in ("q_proj", "k_proj")
    ]
    pruner = WatchLast(0.5)
    with pruner(model), torch.no_grad():
        model(**batch.inputs)
    for hook in hooks:
        hook.remove()
    query, key = (seen[part].double() for part in ("q_proj", "k_proj"))
    if hasattr(layer, "q_norm"):
        query, key = layer.q_norm(query.float()).double(), layer.k_norm(key.float()).double()
    width = key.shape[-1]
    weights = torch.softmax((query[:, :1] @ key.mT)[:, 0] / width**0.5, -1)  # [b, 1 + patches]
    values = torch.cat([weights[..., None], key], -1).flatten(0, 1).float()
    images = sources(model, "image", batch.pixels)
    got = torch.cat([torch.cat([t.attention[:, None], t.joint_keys()], 1) for t in pruner.shown])
    want = expected_of(values, images)
    assert got.shape == want.shape
    assert (got - want).abs().max() <= 1e-5
    assert got[:, 0].std() > 1e-4
    assert pruner.shown[0].keys.shape[1:] == (4, width // 4)
    if name in ("llava", "llava_next"):
        # The CLS token's own share is left out; the rest is not brought to 1.
        first = pruner.shown[0].attention.sum()
        assert torch.allclose(first, 1 - weights[0, 0].float(), atol=1e-5)


@pytest.mark.parametrize("modality", ["image", "video"])
@pytest.mark.parametrize("name", list(SEEN))
def test_vision_is_the_mean_of_the_layers_output(name, modality):
    specimen, model = SEEN[name], build(SEEN[name])
    if modality == "video" and (specimen.video is None or name == "glm4v"):
        return
    batch = make_batch(specimen, model, [1])
    pixels = batch.pixels
    if modality == "video":
        batch, _ = add_video(specimen, model, batch)
        pixels = batch.video
    family = family_of(model)
    layers = vision_layers(model)
    attention = layers[feature_layer(model.config, len(layers))]
    block = next(m for m in family.tower(model).modules() if attention in m.children())
    outputs = []
    hook = block.register_forward_hook(
        lambda module, args, output: outputs.append(
            output[0] if isinstance(output, tuple) else output
        )
    )
    with torch.no_grad():
        family.encode(model, modality, dict(pixels))
    hook.remove()
    values = torch.cat([output.flatten(0, -2) for output in outputs])
    pruner = Watch(0.5)
    with pruner(model), torch.no_grad():
        model(**batch.inputs)
    shown = [t for t in pruner.shown if (t.kind == "frame") == (modality == "video")]
    got = torch.cat([t.vision for t in shown])
    want = expected_of(values, sources(model, modality, pixels))
    assert got.shape == want.shape
    assert (got - want).abs().max() <= 1e-6 * want.abs().max()


@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize("name", [*PROJECTED, SIGLIP.name])
def test_projecting_vision_gives_the_features(name, layer):
    """Without the CLS token, and packed as the features are, so that rows agree one by one."""
    specimen, model = built(name, layer)
    pruner = Watch(0.5)
    batch = make_batch(specimen, model, [2])
    with pruner(model), torch.no_grad():
        model(**batch.inputs)
        project = family_of(model).projector(model, "image")
        for tokens in pruner.shown:
            assert torch.equal(project(tokens.vision), tokens.features)
    if name == "llava":
        tower = model.model.vision_tower
        with torch.no_grad():
            states = tower(batch.pixels["pixel_values"], output_hidden_states=True).hidden_states
        for tokens, hidden in zip(pruner.shown, states[layer], strict=True):
            assert torch.equal(tokens.vision, hidden[1:])


def test_only_projectors_that_work_row_by_row_are_used():
    found = {
        (name, modality)
        for name, specimen in SPECIMENS.items()
        for model in [specimen.build()]
        for modality in family_of(model).modalities
        if family_of(model).projector(model, modality) is not None
    }
    assert found == {(name, "image") for name in PROJECTED}
    assert {"vipllava", "pixtral"} <= set(SPECIMENS)
    assert {family.name for family in FAMILIES} >= set(PROJECTED) - {"llava_siglip"}
    model = SPECIMENS["llava"].build()
    model.config.vision_feature_layer = [-2, -1]
    assert family_of(model).projector(model, "image") is None


def test_the_projector_takes_the_models_dtype():
    model = SPECIMENS["llava"].build(dtype=torch.bfloat16)
    project = family_of(model).projector(model, "image")
    with torch.no_grad():
        assert project(torch.randn(3, 32)).dtype == torch.bfloat16


def test_the_projector_of_a_quantised_model():
    """Its weights are integers."""
    specimen = SPECIMENS["llava"]
    model = quantise(specimen.build(), Int8Linear)
    batch = make_batch(specimen, model, [1])
    pruner = Watch(0.5)
    with pruner(model), torch.no_grad():
        model(**batch.inputs)
        project = family_of(model).projector(model, "image")
        (tokens,) = pruner.shown
        assert torch.allclose(project(tokens.vision), tokens.features, atol=1e-5)


def test_optional_signals_are_left_out_where_they_cannot_be_recorded():
    specimen = SPECIMENS["pixtral"]
    model = specimen.build()
    pruner = Watch(0.5)
    with pruner(model) as pruned:
        forward(model, make_batch(specimen, model, [1]))
        assert pruned.chooser.vision.names == []
    assert [tokens.vision for tokens in pruner.shown] == [None]
    with (
        pytest.raises(UnsupportedModelError, match="cannot be recomputed"),
        WatchLast(0.5)(model),
    ):
        pass


def test_features_encoded_outside_come_without_optional_signals():
    model = build(SEEN["llava"])
    batch = make_batch(SEEN["llava"], model, [1])
    with torch.no_grad():
        output = model.model.get_image_features(**batch.pixels, return_dict=True)
    pruner = TRIM(0.5)
    with pruner(model) as pruned, torch.no_grad():
        model(**batch.text, mm_encoder_outputs={"image": output})
        merged = pruned.selections[0].images[0].reduced
    kept = merged.rows[:-1]
    assert merged.rows.tolist()[-1] == 15
    dropped = torch.ones(16, dtype=torch.bool).index_fill(0, kept, False)
    mean = output.pooler_output[0][dropped].mean(0)
    assert torch.allclose(merged.features[-1], mean, atol=1e-5)
    with (
        PruMerge(0.5)(model),
        pytest.raises(ValueError, match="come without joint_cls_attention and last_keys, which"),
    ):
        model(**batch.text, mm_encoder_outputs={"image": output})


def test_two_signals_of_one_field_are_refused():
    model = build(SEEN["llava"])
    family = family_of(model)
    with pytest.raises(ValueError, match="keys and last_keys are both the tokens' keys"):
        VisionSignals(model, family, ["attention", "keys"], 1.0, ["last_keys"])
    same = VisionSignals(model, family, ["vision", "text"], 1.0, ["vision"])
    assert same.names == ["vision"]


def test_an_encoder_without_cls_token_is_refused():
    model = build(SIGLIP)
    assert not has_cls(family_of(model).tower(model))
    with pytest.raises(UnsupportedModelError, match="has no CLS token"), PruMerge(0.5)(model):
        pass


def test_nothing_is_recorded_for_methods_that_read_features():
    model = build(SEEN["llava"])
    with GPrune(0.5)(model) as pruned:
        assert pruned.chooser.vision.names == []
