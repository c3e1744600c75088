"""The tiny VLM's tokenizer: a closed vocabulary of words, built without downloading anything.

Digits and letters after the first are WordPiece continuations (``##7``): a text is read sign by
sign, yet decodes to ``472`` rather than to ``4 7 2``. Each step of each edge of a box is a word.
"""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from gprune.tinyvlm.scenes import (
    BINS,
    COLORS,
    DIGITS,
    EDGES,
    LETTERS,
    PATTERNS,
    SHAPES,
    SIDES,
    TINTS,
)

PAD, BOS, EOS, UNKNOWN, IMAGE = "<pad>", "<s>", "</s>", "<unk>", "<image>"

# The words of the questions that `scenes` asks, then those of the third-party easy-VQA set.
SCENE_WORDS = (
    "a above an are at background below color how image in is left many number object of "
    "pattern right shape shapes the there what written yes no ?"
)
EASY_VQA_WORDS = "contain does not present"
MORE_SCENE_WORDS = "letters bigger than and same where"


def words() -> list[str]:
    """The vocabulary in the order of its ids, which the shipped checkpoints depend on."""
    named = [*SHAPES, *COLORS, *TINTS, *PATTERNS, *SIDES["columns"], *SIDES["rows"]]
    asked = f"{SCENE_WORDS} {EASY_VQA_WORDS}".split()
    digits = [*DIGITS, *(f"##{digit}" for digit in DIGITS)]
    first = [PAD, BOS, EOS, UNKNOWN, IMAGE, *named, *asked, *digits]
    letters = [*LETTERS, *(f"##{letter}" for letter in LETTERS)]
    edges = [f"{edge}{step}" for edge in EDGES for step in range(BINS)]
    return list(dict.fromkeys([*first, *MORE_SCENE_WORDS.split(), *letters, *edges]))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A fast tokenizer that lower-cases, splits at spaces and punctuation, and begins with BOS."""
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
    """The words of ``text`` that the tokenizer has no token for."""
    split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text.lower())
    words = [word for word, _ in split if word not in tokenizer.all_special_tokens]
    return [word for word in words if UNKNOWN in tokenizer.tokenize(word)]


def require_known(tokenizer: PreTrainedTokenizerFast, question: str) -> None:
    """Raises ValueError if ``question`` has words that the tiny model never saw."""
    unknown = unknown_words(tokenizer, question)
    if unknown:
        raise ValueError(
            f"question has words that the tiny model does not know: {', '.join(unknown)}; ask "
            "about shapes, colors, numbers or the background: what color is the circle?"
        )
