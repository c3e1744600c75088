"""The bare question is found in prompts of many templates, and nothing else is taken for it."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gprune.hf import CLIPTextTower
from gprune.hf.questions import KNOWN_FORMATS, TurnFormat, find_message, template_formats

# The shapes of templates that LLaVA models have, written for this test.
TEXT = "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}"
IMAGES = "{% for c in m['content'] if c['type'] == 'image' %}<image>\n{% endfor %}"
REPLY = "{% if add_generation_prompt %}"
TEMPLATES = {
    "vicuna": (
        "{% for m in messages %}"
        "{% if m['role'] != 'system' %}{{ m['role'].upper() }}: {% endif %}"
        + IMAGES
        + TEXT
        + " {% endfor %}"
        + REPLY
        + "ASSISTANT:{% endif %}"
    ),
    "vicuna with a system message": (
        "<s>A chat between a curious human and an AI. The AI answers the human's questions. "
        "{% for m in messages %}{% if m['role'] == 'user' %}USER: "
        + IMAGES
        + TEXT
        + " {% elif m['role'] == 'assistant' %}ASSISTANT: "
        + TEXT
        + "</s>{% endif %}{% endfor %}"
        + REPLY
        + "ASSISTANT:{% endif %}"
    ),
    "chatml": (
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n"
        "{% endif %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        + IMAGES
        + TEXT
        + "<|im_end|>\n{% endfor %}"
        + REPLY
        + "<|im_start|>assistant\n{% endif %}"
    ),
    "chatml without line ends": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }} "
        + IMAGES
        + TEXT
        + "<|im_end|>{% endfor %}"
        + REPLY
        + "<|im_start|>assistant\n{% endif %}"
    ),
    "mistral": (
        "<s>{% for m in messages %}{% if m['role'] == 'user' %}[INST] "
        + IMAGES
        + TEXT
        + " [/INST]{% elif m['role'] == 'assistant' %} "
        + TEXT
        + "</s>{% endif %}{% endfor %}"
    ),
    "a system message inside of the first turn": (
        "<s>{% for m in messages %}{% if m['role'] == 'user' %}[INST] "
        "{% if loop.first %}<<SYS>>\nYou help.\n<</SYS>>\n\n{% endif %}"
        + IMAGES
        + TEXT
        + " [/INST]{% elif m['role'] == 'assistant' %} "
        + TEXT
        + "</s>{% endif %}{% endfor %}"
    ),
    "nothing": (
        "{% for m in messages %}"
        + IMAGES
        + TEXT
        + "{% if m['role'] == 'assistant' %}</s>{% endif %}{% endfor %}"
    ),
}
# Those with a system message of the caller's own.
WITH_SYSTEM = ("vicuna", "chatml", "chatml without line ends")
QUESTIONS = (
    "What is this?",
    "Is 5 < 6 here?\nAnswer with a single word.",
    "  what does USER: or [INST] say, and <<who>> is the user ?",
    "¿Qué hay? 图里有什么",
)
SPECIAL = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<image>"]


def byte_tokenizer() -> Tokenizer:
    """Returns a tokenizer of single bytes, which decodes exactly."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({sign: i for i, sign in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def metaspace_tokenizer() -> Tokenizer:
    """Returns a tokenizer of single signs that puts a space first, as SentencePiece does."""
    signs = "".join(chr(i) for i in range(33, 127)) + "▁\n¿é图里有什么"
    vocabulary = {sign: i for i, sign in enumerate(signs)}
    tokenizer = Tokenizer(models.BPE({**vocabulary, "<unk>": len(signs)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return tokenizer


def lower_case_tokenizer() -> Tokenizer:
    tokenizer = byte_tokenizer()
    tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def wrapped(tokenizer: Tokenizer, template: str | None = None) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[3:],
    )
    fast.chat_template = template
    return fast


def ids_of(tokenizer: PreTrainedTokenizerFast, prompt: str) -> torch.Tensor:
    """Returns the ids of a prompt without image placeholders."""
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return torch.tensor([i for i in ids if i != tokenizer.convert_tokens_to_ids("<image>")])


def message(role: str, text: str, images: int = 0, image_last: bool = False) -> dict:
    content = [{"type": "image"}] * images
    content.insert(0 if image_last else images, {"type": "text", "text": text})
    return {"role": role, "content": content}


def same(found: str, question: str, lower: bool = False) -> bool:
    """Returns whether two questions are equal except for whitespace (and case)."""
    words = question.lower() if lower else question
    return found.split() == words.split() and found == found.strip()


@pytest.mark.parametrize("make", [byte_tokenizer, metaspace_tokenizer, lower_case_tokenizer])
@pytest.mark.parametrize("name", list(TEMPLATES))
def test_the_question_is_found_in_every_template(name, make):
    tokenizer = wrapped(make(), TEMPLATES[name])
    tower = CLIPTextTower(None, None, tokenizer)
    assert tower.formats
    systems = [[], [message("system", "Be brief. Use no USER words.")]]
    for question, system in itertools.product(QUESTIONS, systems):
        if system and name not in WITH_SYSTEM:
            continue
        last = message("user", question, images=2)
        histories = [[], [message("user", "And that?", 1), message("assistant", "It is red.")]]
        if name == "a system message inside of the first turn":
            histories.append(histories[1] * 2)
        for history, reply in itertools.product(histories, (True, False)):
            turns = [*system, *history, last]
            prompt = tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=reply
            )
            if not reply and name.startswith("vicuna"):
                continue  # there only the beginning of the reply ends a message
            found = tower.question_of(ids_of(tokenizer, prompt))
            assert same(found, question, make is lower_case_tokenizer), prompt


def test_the_format_of_llava_1_5_is_known_without_a_template():
    tokenizer = wrapped(metaspace_tokenizer())
    tower = CLIPTextTower(None, None, tokenizer)
    assert tower.formats == []
    for prompt in (
        "<s>USER: <image><image>\nWhat is this?\nAnswer briefly. ASSISTANT:",
        "<s>A chat between a human and an AI. USER: <image>\nWhat is this?\nAnswer briefly. "
        "ASSISTANT:",
        "<s>USER: <image>\nAnd that? ASSISTANT: Red.</s>USER: What is this?\nAnswer briefly. "
        "ASSISTANT:",
        "<s>USER: What is this?\nAnswer briefly. <image> ASSISTANT:",
        "<s>USER: <image>\nWhat is this?\nAnswer briefly. ASSISTANT: A cat.",  # with an answer
        "###Human: <image>\nWhat is this?\nAnswer briefly.###Assistant:",
        "<s>[INST] <image>\nWhat is this?\nAnswer briefly. [/INST]",
        "<|im_start|>user\n<image>\nWhat is this?\nAnswer briefly.<|im_end|>",
    ):
        assert same(tower.question_of(ids_of(tokenizer, prompt)), "What is this?\nAnswer briefly.")


@pytest.mark.parametrize(
    ("template", "prompt", "trouble"),
    [
        (None, "<s><image>\nWhat is this?", "does not have the form of the chat template"),
        (TEMPLATES["chatml"], "<image>\nWhat?\nShort.", "does not have the form"),
        (TEMPLATES["chatml"], "<|im_start|>user\nWhat is", "does not have the form"),
        (TEMPLATES["chatml"], "<|im_start|>user\n<image><|im_end|>", "which has no text"),
        (TEMPLATES["nothing"], "<s><image>", "which has no text"),
    ],
)
def test_a_prompt_without_a_question_is_refused(template, prompt, trouble):
    tokenizer = wrapped(byte_tokenizer(), template)
    ids = ids_of(tokenizer, prompt)
    with pytest.raises(ValueError, match=rf"question cannot be found .*{trouble}.*question=\.\.\."):
        CLIPTextTower(None, None, tokenizer).question_of(ids)
    given = CLIPTextTower(None, None, tokenizer, question="What is it?")
    assert given.question_of(ids) == "What is it?"
    seen = []
    computed = CLIPTextTower(None, None, tokenizer, lambda text: seen.append(text) or "Mine")
    assert computed.question_of(ids) == "Mine"
    assert not any(token in seen[0] for token in SPECIAL)


class Processor:
    """A processor whose tokenizer has no template of its own."""

    def __init__(self, tokenizer, template):
        self.tokenizer, self.chat_template = tokenizer, template

    def apply_chat_template(self, turns, **options):
        return self.tokenizer.apply_chat_template(
            turns, chat_template=self.chat_template, **options
        )


def test_a_processor_has_the_template():
    tokenizer = wrapped(byte_tokenizer())
    processor = Processor(tokenizer, TEMPLATES["chatml"])
    assert template_formats(processor) == [
        TurnFormat("<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n")
    ]
    assert template_formats(tokenizer) == []


def test_templates_for_strings_and_templates_that_fail():
    strings = "{% for m in messages %}Q: {{ m['content'] }}\n{% endfor %}A:"
    assert template_formats(wrapped(byte_tokenizer(), strings)) == [TurnFormat("Q: ", "\nA:")]
    once = (
        "{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}"
        "Ask {{ messages[0]['content'] }} now"
    )
    assert template_formats(wrapped(byte_tokenizer(), once)) == [TurnFormat("Ask ", " now")]
    never = "{{ raise_exception('never') }}"
    assert template_formats(wrapped(byte_tokenizer(), never)) == []


def test_the_last_message_is_taken():
    text = "Q: one A: x Q: two A: y Q: three"
    assert find_message(text, [TurnFormat("Q:", "A:")]) == "two"
    assert find_message(text, [TurnFormat("Q:", "")]) == "three"
    assert find_message(text, [TurnFormat("", "A:")]) == "Q: one"
    assert find_message(text, [TurnFormat("", "")]) == text
    assert find_message(text, [TurnFormat("", ""), TurnFormat("A:", "")]) == "y Q: three"
    assert find_message(text, [TurnFormat("B:", "A:")]) is None
    assert find_message("", [TurnFormat("", "")]) == ""
    assert find_message("Q: A:", [TurnFormat("Q:", "A:")]) == ""


@given(
    question=st.text(st.characters(codec="utf-8", exclude_characters="<>|[]#:"), min_size=1),
    history=st.integers(0, 2),
    format=st.sampled_from(KNOWN_FORMATS),
)
@settings(deadline=None, max_examples=100)
def test_any_text_is_found(question, history, format):
    """Whitespace may differ between template and prompt."""
    turn = f" {format.before}\n" + "{}" + f"{format.after} \n"
    prompt = turn.format("before") * history + turn.format(question)
    found = find_message(prompt, [format])
    assert found is not None
    assert found.split() == question.split()
