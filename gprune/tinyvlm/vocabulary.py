"""The tiny VLM's prompt format: a tokenizer with a closed vocabulary, and the chat template.

Nothing is downloaded. Digits and letters after the first are WordPiece continuations (``##7``), so
that a text is one token per sign, yet decodes to ``472`` rather than to ``4 7 2``. Each bin of each
edge of a box is a word, such as ``left3``.
"""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from gprune.tinyvlm.boxes import BINS, EDGES
from gprune.tinyvlm.contents import COLORS, DIGITS, LETTERS, PATTERNS, SHAPES, SIDES, TINTS

PAD, BOS, EOS, UNKNOWN, IMAGE = "<pad>", "<s>", "</s>", "<unk>", "<image>"

# A turn is the picture, then the question; an answer ends with the end-of-sequence token.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)

# Words of the questions about scenes, then of the third-party easy-VQA set.
SCENE_WORDS = (
    "a above an are at background below color how image in is left many number object of "
    "pattern right shape shapes the there what written yes no ?"
)
EASY_VQA_WORDS = "contain does not present"
MORE_SCENE_WORDS = "letters bigger than and same where"


def words() -> list[str]:
    """Returns the vocabulary in the order of its token ids.

    The shipped checkpoints depend on this order.
    """
    names = [*SHAPES, *COLORS, *TINTS, *PATTERNS, *SIDES["columns"], *SIDES["rows"]]
    question_words = f"{SCENE_WORDS} {EASY_VQA_WORDS}".split()
    digits = [*DIGITS, *(f"##{digit}" for digit in DIGITS)]
    first = [PAD, BOS, EOS, UNKNOWN, IMAGE, *names, *question_words, *digits]
    letters = [*LETTERS, *(f"##{letter}" for letter in LETTERS)]
    edges = [f"{edge}{step}" for edge in EDGES for step in range(BINS)]
    return list(dict.fromkeys([*first, *MORE_SCENE_WORDS.split(), *letters, *edges]))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Builds a tokenizer that lower-cases, splits at spaces and punctuation, and prepends BOS."""
    vocabulary = {word: index for index, word in enumerate(words())}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=[IMAGE],
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        model_max_length=1024,
    )


def unknown_words(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    """Returns the words of ``text`` that are not in the vocabulary."""
    split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text.lower())
    words = [word for word, _ in split if word not in tokenizer.all_special_tokens]
    return [word for word in words if UNKNOWN in tokenizer.tokenize(word)]


def require_known(tokenizer: PreTrainedTokenizerFast, question: str) -> None:
    """Checks that every word of ``question`` is in the vocabulary.

    Raises:
        ValueError: a word is unknown.
    """
    unknown = unknown_words(tokenizer, question)
    if unknown:
        raise ValueError(
            f"question has words that the tiny model does not know: {', '.join(unknown)}; ask "
            "about shapes, colors, numbers or the background: what color is the circle?"
        )
