"""Finds the question in a prompt: what a chat template puts around a user's message is left out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

# Messages of a conversation that is rendered to see what a template puts around them.
ASKED, REPLIED, NEXT = "firstquestion", "onereply", "nextquestion"


@dataclass(frozen=True)
class TurnFormat:
    """What a prompt has before and after a user's message. Whitespace does not count.

    Attributes:
        before: its first occurrence begins a message; "" if a prompt begins with the message.
        after: its next occurrence ends the message; "" if a prompt ends with the message.
    """

    before: str
    after: str

    def find(self, text: str) -> tuple[int, int] | None:
        """Returns begin and end of the last message in a text without whitespace, or None."""
        before, after = without_whitespace(self.before), without_whitespace(self.after)
        if not after:
            start = text.rfind(before) if before else 0
            return None if start < 0 else (start + len(before), len(text))
        found, position = None, 0
        while (start := text.find(before, position)) >= 0:
            begin = start + len(before)
            end = text.find(after, begin)
            if end < 0:
                break
            found, position = (begin, end), end + len(after)
            if not before:
                break
        return found


# The formats of LLaVA models, for tokenizers without a chat template.
KNOWN_FORMATS = (
    TurnFormat("<|im_start|>user", "<|im_end|>"),
    TurnFormat("<|start_header_id|>user<|end_header_id|>", "<|eot_id|>"),
    TurnFormat("[INST]", "[/INST]"),
    TurnFormat("###Human:", "###Assistant:"),
    TurnFormat("USER:", "ASSISTANT:"),
)


def without_whitespace(text: str) -> str:
    """Returns a text without its whitespace, in which tokenizers differ from templates."""
    return "".join(text.split())


def find_message(text: str, formats: Iterable[TurnFormat]) -> str | None:
    """Returns the last message of a user in a prompt, or None if no format matches.

    Of several matches the one that ends last is taken, and of these the shortest.
    """
    index = [i for i, sign in enumerate(text) if not sign.isspace()]
    condensed = "".join(text[i] for i in index)
    matches = [match for format in formats if (match := format.find(condensed)) is not None]
    if not matches:
        return None
    begin, end = max(matches, key=lambda match: (match[1], match[0]))
    return text[index[begin] : index[end - 1] + 1] if begin < end else ""


def template_formats(processor: Any) -> list[TurnFormat]:
    """Returns what a chat template puts around a user's message; empty if there is no template.

    Renders conversations of one and of two turns. What stands before both questions is the
    beginning of a turn; a system message stands only before the first.

    Args:
        processor: a processor or tokenizer.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    for owner in (processor, tokenizer):
        if getattr(owner, "chat_template", None):
            render = renderer(owner)
            if render is not None:
                return rendered_formats(render, tokenizer)
    return []


# Renders user's and assistant's messages in turn; the flag adds the beginning of a reply.
Render = Callable[[list[str], bool], str]


def renderer(owner: Any) -> Render | None:
    """Returns a function that renders conversations, or None if a template cannot render one."""

    def as_parts(text: str) -> Any:
        return [{"type": "text", "text": text}]

    def as_string(text: str) -> Any:
        return text

    for content in (as_parts, as_string):

        def render(
            messages: list[str], reply: bool, content: Callable[[str], Any] = content
        ) -> str:
            turns = [
                {"role": ("user", "assistant")[number % 2], "content": content(text)}
                for number, text in enumerate(messages)
            ]
            return str(
                owner.apply_chat_template(turns, tokenize=False, add_generation_prompt=reply)
            )

        if renders(render):
            return render
    return None


def renders(render: Render) -> bool:
    """Returns whether a template takes messages in this form and puts them out as they are."""
    try:
        text = render([ASKED], True)
    except Exception:  # a template may raise anything for what it does not take
        return False
    written_as_data = "'text'" in text or '"text"' in text
    return text.count(ASKED) == 1 and not written_as_data


def rendered_formats(render: Render, tokenizer: Any) -> list[TurnFormat]:
    """Returns the formats of a template; see `template_formats`."""
    first, _, end = render([ASKED], False).partition(ASKED)
    if not end.strip():
        # Only the beginning of the reply shows where the message ends.
        end = render([ASKED], True).partition(ASKED)[2]
    try:
        later = render([ASKED, REPLIED, NEXT], True).partition(REPLIED)[2].partition(NEXT)[0]
    except Exception:  # a template may refuse a second turn
        later = first
    special = [*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()]
    shared = common_ending(first, later, special)
    if shared.strip():
        befores = [shared]
    else:
        # Nothing begins every turn: a special token before the first message is no part of one.
        befores = [first if without(first, special).strip() else "", later]
    return [
        TurnFormat(retokenized(before, tokenizer), retokenized(end, tokenizer))
        for before in dict.fromkeys(befores)
    ]


def retokenized(text: str, tokenizer: Any) -> str:
    """Returns a text as it looks after encoding and decoding, for example in lower case."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return str(tokenizer.decode(ids, skip_special_tokens=False)) if ids else ""


def common_ending(first: str, second: str, special: Iterable[str]) -> str:
    """Returns the longest ending that two texts share, in whole words, signs and special tokens."""
    tokens = sorted({re.escape(token) for token in special if token}, key=len, reverse=True)
    units = re.compile("|".join([*tokens, r"\w+", r"[^\w\s]"]))
    start = len(first)
    pairs = zip(
        reversed(list(units.finditer(first))), reversed(list(units.finditer(second))), strict=False
    )
    for one, other in pairs:
        if one.group() != other.group():
            break
        start = one.start()
    return first[start:]


def without(text: str, special: Iterable[str]) -> str:
    """Returns a text with spaces in place of special tokens."""
    for token in sorted(special, key=len, reverse=True):
        if token:
            text = text.replace(token, " ")
    return text
