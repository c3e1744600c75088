"""Signals of the vision encoder and the question equal those of the eager model."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import transformers as tf
from transformers.modeling_outputs import BaseModelOutputWithPooling

import gprune
from gprune import SCOPE, TRIM, CDPruner, GPrune, UnsupportedModelError, VisionZip
from gprune.hf.encoder_attention import FUSED, PROJECTED
from gprune.hf.signals import feature_layer
from gprune.layouts import family_of, has_cls
from gprune.proof.batches import GREEDY, Batch, add_video, make_batch
from gprune.proof.models import IMAGE, SPECIMENS, VIDEO
from gprune.pruners.base import ScorePruner
from tests.hf.signal_specimens import CORE, SEEN, build


@dataclass(frozen=True)
class Watch(ScorePruner):
    """Records the tokens that it gets."""

    name: ClassVar[str] = "watch"
    signals: ClassVar[tuple[str, ...]] = ("attention", "object_attention", "keys", "text")
    object_depth: ClassVar[float] = 0.5
    shown: list = dataclasses.field(default_factory=list)

    def score(self, tokens):
        self.shown.append(tokens)
        return tokens.attention


@dataclass(frozen=True)
class WatchMean(Watch):
    signals: ClassVar[tuple[str, ...]] = ("mean_attention",)


def vision_layers(model):
    tower = family_of(model).tower(model)
    return [m for m in tower.modules() if type(m).__name__ in PROJECTED + FUSED]


@pytest.fixture(scope="module", params=list(SEEN))
def specimen(request):
    return SEEN[request.param]


def eager_weights(model, monkeypatch, encode):
    """Returns the eager kernel's weights [heads, q, n] of each attention module."""
    layers = vision_layers(model)
    code = sys.modules[type(layers[0]).__module__]
    kernel = code.eager_attention_forward
    seen: dict[int, list[torch.Tensor]] = {}

    def recording(module, *args, **kwargs):
        output, weights = kernel(module, *args, **kwargs)
        seen.setdefault(id(module), []).extend(weights)
        return output, weights

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(code, "eager_attention_forward", recording)
        encode()
    return [seen[id(layer)] for layer in layers]


def sources(model, modality, pixels):
    """Finds by gradients which patches each token is made of, bool [n, all patches] per image."""
    family = family_of(model)
    tower, layers = family.tower(model), vision_layers(model)
    config = getattr(tower, "config", None)
    leaves = []

    def leaf_of(value):
        generator = torch.Generator().manual_seed(0)
        leaves.append(torch.randn(value.shape, generator=generator).requires_grad_())
        return leaves[-1]

    if hasattr(tower, "blocks"):
        hook = tower.blocks[-1].register_forward_hook(lambda m, args, out: leaf_of(out))
    else:

        def replaced(module, args, output):
            leaf = leaf_of(output.last_hidden_state)
            states = (leaf,) * (len(layers) + 1)
            return BaseModelOutputWithPooling(last_hidden_state=leaf, hidden_states=states)

        hook = tower.register_forward_hook(replaced)
    assert config is not None
    try:
        with torch.enable_grad():
            output = family.encode(model, modality, dict(pixels))
    finally:
        hook.remove()
    found = []
    for features in family.features(model, output):
        rows = []
        for token in features:
            weight = torch.linspace(1, 2, len(token))  # a plain sum has no gradient behind a norm
            (grad,) = torch.autograd.grad(
                (token * weight).sum(), leaves, retain_graph=True, allow_unused=True
            )
            rows.append(torch.zeros_like(leaves[0]) if grad is None else grad)
        moved = torch.stack(rows).abs().sum(-1).flatten(1)
        # Gradients that are zero up to rounding are no sources.
        found.append(moved > 1e-6 * moved.amax(1, keepdim=True).clamp(min=1e-12))
    return found


def received(weights, cls):
    """Returns the attention that each patch receives, [patches], from weights of spans."""
    if cls:
        return torch.cat([span[:, 0].mean(0) for span in weights])
    return torch.cat([span.mean((0, 1)) for span in weights])


def expected_of(values, images):
    """Returns each token's mean over its patches, [tokens of all groups], without newlines."""
    return torch.cat(
        [(image.float() @ values / image.sum(1).clamp(min=1))[image.any(1)] for image in images]
    )


def shown_attention(model, inputs, pruner):
    with pruner(model), torch.no_grad():
        model(**inputs)
    return pruner.shown


def check_against_eager(specimen, inputs_of, modality, monkeypatch):
    eager, fast = build(specimen, "eager"), build(specimen)
    inputs, pixels = inputs_of(eager)
    images = sources(eager, modality, pixels)
    family = family_of(eager)
    every = eager_weights(eager, monkeypatch, lambda: family.encode(eager, modality, dict(pixels)))
    cls = has_cls(family.tower(eager))

    def check(shown, signal, values):
        shown = [t for t in shown if (t.kind == "frame") == (modality == "video")]
        got = torch.cat([getattr(tokens, signal) for tokens in shown])
        want = expected_of(values, images)
        assert got.shape == want.shape
        assert (got - want).abs().max() <= 1e-5
        assert got.std() > 1e-4  # equal values would pass by chance

    chosen = every[feature_layer(eager.config, len(every))]
    middle = received(every[round(0.5 * len(every)) - 1], False)
    for model in (eager, fast):
        pruner = Watch(0.5)
        check(shown_attention(model, inputs, pruner), "attention", received(chosen, cls))
        check(pruner.shown, "object_attention", middle)
    if cls:
        mean = shown_attention(fast, inputs, WatchMean(0.5))
        check(mean, "attention", received(chosen, False))


def test_attention_is_that_of_the_eager_model(specimen, monkeypatch):
    def inputs_of(model):
        batch = make_batch(specimen, model, [0, 2])
        return batch.inputs, batch.pixels

    check_against_eager(specimen, inputs_of, "image", monkeypatch)


VIDEOS = [name for name, specimen in SEEN.items() if specimen.video is not None]


@pytest.mark.parametrize("name", [name for name in VIDEOS if name != "glm4v"])
def test_attention_of_videos_is_that_of_the_eager_model(name, monkeypatch):
    def inputs_of(model):
        batch, _ = add_video(SEEN[name], model, make_batch(SEEN[name], model, [1]))
        return batch.inputs, batch.video

    check_against_eager(SEEN[name], inputs_of, "video", monkeypatch)


def test_attention_is_output_attentions():
    """Compares with transformers' own argument, for an encoder that has it."""
    model = build(SEEN["llava"], "eager")
    batch = make_batch(SEEN["llava"], model, [1, 1])
    with torch.no_grad():
        output = model.model.vision_tower(batch.pixels["pixel_values"], output_attentions=True)
    shown = shown_attention(model, batch.inputs, Watch(0.5))
    for image, tokens in enumerate(shown):
        want = output.attentions[-1][image, :, 0, 1:].mean(0)
        assert (tokens.attention - want).abs().max() <= 1e-5


@pytest.mark.parametrize(("chosen", "layer"), [(-1, 1), (-2, 0), (2, 1), (1, 0), ([-2, -1], 1)])
def test_the_layer_is_that_of_the_features(chosen, layer):
    config = tf.LlavaConfig()
    config.vision_feature_layer = chosen
    assert feature_layer(config, 2) == layer


def test_another_layer_in_the_call_is_refused():
    model = build(SEEN["llava"])
    batch = make_batch(SEEN["llava"], model, [1])
    with VisionZip(0.5)(model), pytest.raises(ValueError, match="vision_feature_layer=-2 differs"):
        model(**batch.inputs, vision_feature_layer=-2)


def test_keys_are_those_of_the_layer():
    model = build(SEEN["llava"])
    batch = make_batch(SEEN["llava"], model, [1])
    seen = []
    layer = vision_layers(model)[-1]
    hook = layer.k_proj.register_forward_hook(lambda m, args, out: seen.append(out))
    shown = shown_attention(model, batch.inputs, Watch(0.5))
    hook.remove()
    assert shown[0].keys.shape == (16, 4, 8)  # by head
    assert torch.allclose(shown[0].keys.flatten(1), seen[0][0, 1:], atol=1e-6)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", [*CORE, "vipllava", "idefics3", "glm4v"])
def test_every_image_has_its_own_attention_and_question(name, beams):
    """Compares a left-padded batch with beams, through `generate`, with single rows."""
    specimen = SEEN[name]
    model = build(specimen)
    layout = [2, 0, 1] if specimen.beams or beams == 1 else [1, 0, 1]
    batch = make_batch(specimen, model, layout)
    together, alone = Watch(0.5), Watch(0.5)
    with together(model):
        model.generate(**batch.inputs, max_new_tokens=1, do_sample=False, num_beams=beams)
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"].bool()
    rows = [row for row, images in enumerate(batch.rows) for _ in range(beams) if images]
    order = []
    for row in dict.fromkeys(rows):
        order += [row] * beams
    expected = []
    for row in order:
        own = Batch(specimen, {}, [batch.rows[row]], [])
        inputs = {
            "input_ids": ids[row : row + 1, mask[row]],
            "attention_mask": mask[row : row + 1, mask[row]].long(),
            **own.pixels,
        }
        inputs |= specimen.token_types(inputs["input_ids"])
        before = len(alone.shown)
        with alone(model), torch.no_grad():
            model(**inputs)
        expected += alone.shown[before:]
        words = inputs["input_ids"][0]
        words = words[(words != IMAGE) & (words != VIDEO)]
        question = model.get_input_embeddings()(words)
        assert all(torch.equal(tokens.text, question) for tokens in alone.shown[before:])
    assert len(together.shown) == len(expected)
    for got, want in zip(together.shown, expected, strict=True):
        assert torch.equal(got.text, want.text)
        assert (got.attention - want.attention).abs().max() <= 1e-5
        assert (got.keys - want.keys).abs().max() <= 1e-4


METHODS = [name for name in gprune.methods() if gprune.make(name, keep=1.0).signals]


def hooks_of(model):
    modules = list(model.modules())
    return [[*m._forward_pre_hooks, *m._forward_hooks] for m in modules]


def serves(model, name):
    try:
        with gprune.make(name, keep=0.5)(model):
            return True
    except UnsupportedModelError:
        return False


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CORE)
def test_keep_one_is_bit_identical_and_nothing_is_left(name, method):
    model = build(SEEN[name])
    batch = make_batch(SEEN[name], model, [2, 0, 1])
    if not serves(model, method):
        assert not has_cls(family_of(model).tower(model))
        return
    kernel = model.config._attn_implementation
    with torch.no_grad():
        plain = model(**batch.inputs).logits
        expected = model.generate(**batch.inputs, **GREEDY)
        before = hooks_of(model)  # transformers registers its own at the first call
        with gprune.make(method, keep=1.0)(model):
            assert torch.equal(model(**batch.inputs).logits, plain)
            actual = model.generate(**batch.inputs, **GREEDY)
            assert model.config._attn_implementation == kernel
    assert torch.equal(actual.sequences, expected.sequences)
    assert all(map(torch.equal, actual.logits, expected.logits))
    assert hooks_of(model) == before
    assert not {"get_image_features", "get_video_features"} & vars(model.base_model).keys()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CORE)
def test_a_row_is_pruned_as_if_alone(name, method):
    specimen = SEEN[name]
    model = build(specimen)
    if not serves(model, method):
        return
    batch = make_batch(specimen, model, [1, 2])
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"].bool()
    pruner = gprune.make(method, keep=0.4)
    with pruner(model) as pruned, torch.no_grad():
        logits = model(**batch.inputs).logits[:, -1]
        together = pruned.kept
        for row in range(2):
            own = Batch(specimen, {}, [batch.rows[row]], [])
            inputs = {
                "input_ids": ids[row : row + 1, mask[row]],
                "attention_mask": mask[row : row + 1, mask[row]].long(),
                **own.pixels,
            }
            inputs |= specimen.token_types(inputs["input_ids"])
            last = model(**inputs).logits[0, -1]
            for one, other in zip(pruned.kept[0], together[row], strict=True):
                assert torch.equal(one.indices, other.indices)
            assert (last - logits[row]).abs().max() <= 1e-4


def test_nothing_is_hooked_for_methods_that_read_features():
    model = build(SEEN["llava"])
    with GPrune(0.5)(model):
        assert "get_image_features" not in vars(model.base_model)
        assert not any(m._forward_pre_hooks for m in family_of(model).tower(model).modules())
    with CDPruner(0.5)(model):  # which reads only the question
        assert "get_image_features" not in vars(model.base_model)


@pytest.mark.parametrize("name", ["llava_onevision_siglip", "qwen2_5_vl"])
def test_an_encoder_without_cls_token_is_refused(name):
    with (
        pytest.raises(UnsupportedModelError, match="has no CLS token"),
        SCOPE(0.5)(build(SEEN[name])),
    ):
        pass


def test_an_unknown_encoder_is_refused():
    model = SPECIMENS["pixtral"].build()
    with (
        pytest.raises(UnsupportedModelError, match="cannot be recomputed"),
        VisionZip(0.5)(model),
    ):
        pass


def test_features_encoded_outside_are_refused():
    model = build(SEEN["llava"])
    batch = make_batch(SEEN["llava"], model, [1])
    with torch.no_grad():
        output = model.model.get_image_features(**batch.pixels, return_dict=True)
    with VisionZip(0.5)(model), pytest.raises(ValueError, match="encode inside the `with` block"):
        model(**batch.text, mm_encoder_outputs={"image": output})
    with VisionZip(0.5)(model), torch.no_grad():
        output = model.model.get_image_features(**batch.pixels, return_dict=True)
        model(**batch.text, mm_encoder_outputs={"image": output})


def test_one_image_two_questions():
    """The same features in two rows are pruned twice, once for each question."""
    model = build(SEEN["llava"])
    batch = make_batch(SEEN["llava"], model, [1, 1])
    with torch.no_grad():
        output = model.model.get_image_features(**batch.pixels, return_dict=True)
    output.pooler_output = [output.pooler_output[0]] * 2
    pruner = TRIM(0.25)
    with pruner(model) as pruned, torch.no_grad():
        model(**batch.text, mm_encoder_outputs={"image": output})
    first, second = (row[0].indices.tolist() for row in pruned.kept)
    assert first != second
