"""Recomputed attention of the language model equals that of the eager kernel."""

from __future__ import annotations

import pytest
import torch
import transformers as tf

from gprune import FastV
from gprune.hf.decoder.attention import attention_of, keys_of
from gprune.proof.batches import GREEDY, STEPS, make_batch
from gprune.proof.models import IMAGE, SPECIMENS, TEXT, builder
from tests.hf.decoder.reference import Reference
from tests.hf.layerwise import Change, embedded, greedy, run

LANGUAGE_MODELS = {
    "qwen2": lambda: tf.Qwen2Config(**TEXT),
    "qwen3": lambda: tf.Qwen3Config(**TEXT, head_dim=12),
    "mistral": lambda: tf.MistralConfig(**TEXT, head_dim=8, sliding_window=None),
}


def llava_with(text):
    return builder(
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        vision_config=lambda: SPECIMENS["llava"].build().config.vision_config,
        text_config=LANGUAGE_MODELS[text],
        image_token_id=IMAGE,
        vision_feature_layer=-1,
        image_seq_length=16,
    )


def check_scores(model, eager, batch):
    """Compares recomputed attention and keys with the eager kernel's weights and the cache."""
    embeds, real = embedded(eager, batch), batch.inputs["attention_mask"].bool()
    inputs, cached = [], []

    def record(index, hidden, reader):
        if index:
            cached.append(reader.keys())
        inputs.append(hidden)
        return Change(torch.zeros_like(real), hidden)

    positions = batch.positions(eager)
    _, weights = run(eager, embeds, real, positions, record)
    decoder = model.get_decoder()
    embeddings = tuple(
        part.expand(len(real), -1, -1) for part in decoder.rotary_emb(embeds, positions)
    )
    length = real.shape[1]
    queries = [torch.tensor([length - 3, length - 1])] * len(real)
    for layer, hidden, full in zip(decoder.layers, inputs, weights, strict=True):
        found = attention_of(layer, hidden, embeddings, queries, real)
        for row, scores in enumerate(found):
            assert scores.dtype == torch.float32
            assert (scores - full[row].mean(0)[queries[row]]).abs().max() <= 1e-6
    for layer, hidden, keys in zip(decoder.layers, inputs, cached, strict=False):
        assert (keys_of(layer, hidden, embeddings) - keys.transpose(1, 2)).abs().max() <= 1e-6


@torch.no_grad()
def test_attention_is_what_eager_would_return(specimen, model, eager):
    check_scores(model, eager, make_batch(specimen, model, [2, 0, 1]))


@pytest.mark.parametrize("text", list(LANGUAGE_MODELS))
@torch.no_grad()
def test_other_language_models(text):
    build, specimen = llava_with(text), SPECIMENS["llava"]
    model, eager = build(), build(attention="eager")
    batch = make_batch(specimen, model, [2, 0, 1])
    check_scores(model, eager, batch)
    pruner = FastV(0.3)
    with pruner(model) as pruned:
        output = model.generate(**batch.inputs, **GREEDY)
    reference = Reference(eager, pruner, batch)
    tokens, logits, _ = greedy(eager, batch, STEPS, reference)
    assert torch.equal(pruned.kept_mask, reference.kept_mask())
    assert torch.equal(output.sequences[:, -STEPS:], tokens)
    assert torch.stack(output.logits, 1).sub(logits).abs().max() <= 1e-5


@torch.no_grad()
def test_attention_is_what_output_attentions_gives():
    """Checks the layer-by-layer model of these tests against the model's own output."""
    specimen = SPECIMENS["llava"]
    eager = specimen.build(attention="eager")
    batch = make_batch(specimen, eager, [1])
    given = eager(**batch.inputs, output_attentions=True).attentions
    embeds, real = embedded(eager, batch), batch.inputs["attention_mask"].bool()
    _, weights = run(
        eager,
        embeds,
        real,
        batch.positions(eager),
        lambda i, h, reader: Change(torch.zeros_like(real), h),
    )
    assert all((a - b).abs().max() <= 1e-6 for a, b in zip(given, weights, strict=True))
