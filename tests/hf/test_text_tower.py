"""Methods that compare tokens and question in CLIP's space."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import transformers as tf

from gprune import TRIM, CDPruner, TextCover, UnsupportedModelError
from gprune.hf import CLIPTextTower
from gprune.proof.batches import make_batch
from gprune.proof.models import IMAGE, PAD, SIDE, SMALL, SPECIMENS
from gprune.pruners.relevance import relevance, text_product
from gprune.tinyvlm import load
from gprune.tinyvlm.scenes import make_scene
from gprune.tinyvlm.vocabulary import CHAT_TEMPLATE, build_tokenizer
from tests.hf.signal_specimens import SEEN, SIGLIP, build

# A template of words that the tiny tokenizer knows, with a system message.
WRAPPED = (
    "the image is left {% for m in messages %}"
    "{% if m['role'] == 'user' %}in the image "
    "{% for c in m['content'] if c['type'] == 'image' %}<image>{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}"
    " present yes {% else %}{{ m['content'][0]['text'] }}</s>{% endif %}{% endfor %}"
)


def random_clip(words, **vision):
    """Returns a random CLIP whose text encoder has the tokenizer's words and a context of 8."""
    torch.manual_seed(0)
    config = tf.CLIPConfig(
        text_config={
            **SMALL,
            "vocab_size": len(words),
            "max_position_embeddings": 8,
            "bos_token_id": words.bos_token_id,
            "eos_token_id": words.eos_token_id,
        },
        vision_config=vision,
        projection_dim=12,
    )
    return tf.CLIPModel(config).eval()


@pytest.fixture(scope="module")
def words():
    """Returns the tiny VLM's tokenizer, whose chat template puts nothing around a question."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture(scope="module")
def clip(words):
    """Returns a random CLIP that fits the specimens' encoder, and the tiny VLM's tokenizer."""
    return random_clip(words, **SMALL, image_size=8 * SIDE, patch_size=8), words


def record(method, monkeypatch):
    """Returns a list that fills with the tokens that a method gets."""
    shown = []
    original = method.choose
    monkeypatch.setattr(
        method, "choose", lambda self, tokens, k: shown.append(tokens) or original(self, tokens, k)
    )
    return shown


@torch.no_grad()
def embedded(clip, question):
    """Embeds a question of at most 6 words with transformers' own method."""
    model, words = clip
    ids = [*words(question)["input_ids"], words.eos_token_id]
    return model.get_text_features(input_ids=torch.tensor([ids])).pooler_output


@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize("method", [TRIM, CDPruner, TextCover])
def test_text_tower(clip, method, layer, monkeypatch):
    """Tokens of the features' layer are projected into CLIP's space; a long text is split."""
    model = build(SEEN["llava_next"]) if layer == -1 else SPECIMENS["llava_next"].build()
    model.config.vision_feature_layer = layer
    batch = make_batch(SEEN["llava_next"], model, [1, 2])
    shown = record(method, monkeypatch)
    tower = CLIPTextTower(*clip, clip[1])
    with method(0.5, text_tower=tower)(model) as pruned, torch.no_grad():
        model(**batch.inputs)
    assert [len(groups) for groups in pruned.kept] == [2, 4]
    with torch.no_grad():
        pixels = batch.pixels["pixel_values"][0][:1]  # the first image's thumbnail
        states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        hidden = states[layer]
        seen = clip[0].visual_projection(clip[0].vision_model.post_layernorm(hidden[:, 1:]))
    assert torch.allclose(shown[0].aligned, seen[0], atol=1e-5)
    ids = batch.inputs["input_ids"][0]
    ids = ids[batch.inputs["attention_mask"][0].bool() & (ids != IMAGE)]
    text = clip[1].decode(ids, skip_special_tokens=True)
    count = len(clip[1](text, add_special_tokens=False)["input_ids"])
    assert shown[0].text.shape == (-(-count // 6), 12)
    assert not torch.equal(shown[0].text, shown[-1].text)


def test_scores_in_clips_space(clip, monkeypatch):
    """CDPruner compares vectors of unit length, TRIM as they are; both turn the sign around."""
    model = build(SEEN["llava"])
    batch = make_batch(SEEN["llava"], model, [1])
    shown = record(TRIM, monkeypatch)
    with TRIM(0.5, text_tower=CLIPTextTower(*clip, clip[1]))(model), torch.no_grad():
        model(**batch.inputs)
    (tokens,) = shown
    cosines = F.cosine_similarity(tokens.aligned[:, None], tokens.text[None], dim=-1)
    assert torch.allclose(relevance(tokens), -cosines.mean(1), atol=1e-6)
    products = tokens.aligned @ tokens.text.T
    assert torch.allclose(text_product(tokens), products.mean(1), atol=1e-5)
    assert torch.equal(TRIM(0.5).logits(tokens), -text_product(tokens))


def test_the_bare_question_is_embedded(monkeypatch):
    """Of a prompt with a template's words and an earlier turn, the last question alone."""
    model, processor = load()
    vision = model.config.vision_config
    clip = (
        random_clip(processor.tokenizer, **vision.to_dict()),
        build_tokenizer(),
    )
    processor.chat_template = WRAPPED
    tower = CLIPTextTower(*clip, processor)
    image = make_scene("test", 0, 0).draw()
    question = "what color is the circle"
    shown = record(CDPruner, monkeypatch)
    for history in (
        [],
        [
            {"role": "user", "content": [{"type": "text", "text": "is it left"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "no"}]},
        ],
    ):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        prompt = processor.apply_chat_template([*history, {"role": "user", "content": content}])
        assert prompt.startswith("the image is left")
        inputs = processor(images=[image], text=[prompt], return_tensors="pt")
        with CDPruner(0.2, text_tower=tower)(model), torch.no_grad():
            model(**inputs)
        assert torch.allclose(shown[-1].text, embedded(clip, question), atol=1e-5)
        other = embedded(clip, "the image is left in the")
        assert not torch.allclose(shown[-1].text, other, atol=1e-3)


def test_a_prompt_in_another_form_is_refused(clip, monkeypatch):
    """Unless the caller gives the question, or a function that finds it."""
    words = build_tokenizer()  # without a template
    model = build(SEEN["llava"])
    batch = make_batch(SEEN["llava"], model, [1])
    with (
        TRIM(0.5, text_tower=CLIPTextTower(*clip, words))(model),
        pytest.raises(ValueError, match="question cannot be found in the prompt"),
    ):
        model(**batch.inputs)
    shown = record(TRIM, monkeypatch)
    question = "is the circle red"
    for given in (question, lambda text: question):
        tower = CLIPTextTower(*clip, words, question=given)
        with TRIM(0.5, text_tower=tower)(model), torch.no_grad():
            model(**batch.inputs)
        assert torch.allclose(shown[-1].text, embedded(clip, question), atol=1e-5)


def test_rows_without_images_need_no_question(clip):
    words = build_tokenizer()
    words.chat_template = WRAPPED
    model = build(SEEN["llava"])
    asked = words("the image is left in the image ", add_special_tokens=False)["input_ids"]
    turn = [*asked, *[IMAGE] * 16, *words("what color present yes")["input_ids"][1:]]
    turn = [index % 60 for index in turn]  # the model's vocabulary is smaller
    other = [5] * 4
    ids = torch.tensor([turn, [PAD] * (len(turn) - 4) + other])
    mask = (ids != PAD).long()
    pixels = torch.randn(1, 3, 8 * SIDE, 8 * SIDE)
    tower = CLIPTextTower(*clip, words, question=lambda text: "is it red")
    calls = []
    original = tower.embed_text
    object.__setattr__(tower, "embed_text", lambda ids: calls.append(ids) or original(ids))
    with TRIM(0.5, text_tower=tower)(model) as pruned, torch.no_grad():
        model(input_ids=ids, attention_mask=mask, pixel_values=pixels)
    assert len(calls) == 1
    assert [len(groups) for groups in pruned.kept] == [1, 0]


def test_text_tower_of_another_encoder(clip):
    tower = CLIPTextTower(*clip, clip[1])
    with (
        pytest.raises(UnsupportedModelError, match="siglip_vision_model"),
        TRIM(0.5, text_tower=tower)(build(SIGLIP)),
    ):
        pass
