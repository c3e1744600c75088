"""Methods that compare tokens and question in CLIP's space."""

from __future__ import annotations

import pytest
import torch
import transformers as tf

from gprune import TRIM, CDPruner, TextCover, UnsupportedModelError
from gprune.hf import CLIPTextTower
from gprune.tinyvlm.vocabulary import build_tokenizer
from tests.hf.batches import make_batch
from tests.hf.models import IMAGE, SIDE, SMALL
from tests.hf.signal_specimens import SEEN, SIGLIP, build


@pytest.fixture(scope="module")
def clip():
    """Returns a random CLIP that fits the specimens' encoder, and the tiny VLM's tokenizer."""
    torch.manual_seed(0)
    words = build_tokenizer()
    config = tf.CLIPConfig(
        text_config={
            **SMALL,
            "vocab_size": len(words),
            "max_position_embeddings": 8,
            "bos_token_id": words.bos_token_id,
            "eos_token_id": words.eos_token_id,
        },
        vision_config={**SMALL, "image_size": 8 * SIDE, "patch_size": 8},
        projection_dim=12,
    )
    return tf.CLIPModel(config).eval(), words


@pytest.mark.parametrize("method", [TRIM, CDPruner, TextCover])
def test_text_tower(clip, method, monkeypatch):
    """Tokens and question are projected into CLIP's space; a long prompt is split into parts."""
    model = build(SEEN["llava_next"])
    batch = make_batch(SEEN["llava_next"], model, [1, 2])
    shown = []
    original = method.choose
    monkeypatch.setattr(
        method, "choose", lambda self, tokens, k: shown.append(tokens) or original(self, tokens, k)
    )
    tower = CLIPTextTower(*clip, clip[1])
    with method(0.5, text_tower=tower)(model) as pruned, torch.no_grad():
        model(**batch.inputs)
    assert [len(groups) for groups in pruned.kept] == [2, 4]
    with torch.no_grad():
        pixels = batch.pixels["pixel_values"][0][:1]  # the first image's thumbnail
        hidden = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1]
        seen = clip[0].visual_projection(clip[0].vision_model.post_layernorm(hidden[:, 1:]))
    assert torch.allclose(shown[0].aligned, seen[0], atol=1e-5)
    ids = batch.inputs["input_ids"][0]
    ids = ids[batch.inputs["attention_mask"][0].bool() & (ids != IMAGE)]
    words = clip[1].decode(ids, skip_special_tokens=True)
    count = len(clip[1](words, add_special_tokens=False)["input_ids"])
    assert shown[0].text.shape == (-(-count // 6), 12)
    assert not torch.equal(shown[0].text, shown[-1].text)


def test_text_tower_of_another_encoder(clip):
    tower = CLIPTextTower(*clip, clip[1])
    with (
        pytest.raises(UnsupportedModelError, match="siglip_vision_model"),
        TRIM(0.5, text_tower=tower)(build(SIGLIP)),
    ):
        pass
