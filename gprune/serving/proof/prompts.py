"""The prompts of a proof, and how long they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from gprune.budget import Keep, kept_count
from gprune.proof.answers import Prompt
from gprune.serving.families import served_family

# The prompt for the prefix cache has at least so many tokens of text, a few blocks of the cache.
CACHED_TEXT = 96
TURNED = (
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_180,
)


def picture(seed: int, width: int, height: int, block: int = 9) -> Image.Image:
    """Draws blocks of ``block`` pixels in random colours: some patches differ, some are alike."""
    generator = np.random.default_rng(seed)
    shape = (math.ceil(height / block), math.ceil(width / block), 3)
    blocks = generator.integers(0, 256, shape, np.uint8)
    return Image.fromarray(blocks.repeat(block, 0).repeat(block, 1)[:height, :width])


def several(images: Sequence[Image.Image], count: int) -> list[Image.Image]:
    """Returns ``count`` different pictures: the images, then turned and mirrored ones.

    Raises:
        ValueError: two of them are the same, as those of a picture in one colour.
    """
    turned = [image.transpose(turn) for turn in TURNED for image in images]
    pictures = [*images, *turned][:count]
    if len({(picture.size, picture.tobytes()) for picture in pictures}) < count:
        raise ValueError(
            f"{len(images)} images give fewer than {count} different pictures when turned and "
            "mirrored; pass more images, or some with more in them"
        )
    return pictures


def write_prompt(processor: Any, parts: Sequence[str | None]) -> str:
    """Writes a prompt in the model's chat format; None stands for an image.

    A processor without one gets the parts one after the other.
    """
    if getattr(processor, "chat_template", None):
        content = [
            {"type": "image"} if part is None else {"type": "text", "text": part} for part in parts
        ]
        turn = [{"role": "user", "content": content}]
        return str(processor.apply_chat_template(turn, add_generation_prompt=True))
    return " ".join(str(processor.image_token) if part is None else part for part in parts)


def make_prompts(processor: Any, images: Sequence[Image.Image], question: str) -> list[Prompt]:
    """Builds prompts with images in every place; the last has a long text, for the prefix cache.

    Args:
        processor: the model's.
        images: one or more; turned and mirrored if they are too few.
        question: the text.

    Raises:
        ValueError: see `several`.
    """
    first, second, third, fourth, fifth = several(images, 5)
    tokens = len(processor.tokenizer(question, add_special_tokens=False)["input_ids"])
    long = " ".join([question] * math.ceil(CACHED_TEXT / max(tokens, 1)))

    def prompt(*parts: str | None, images: Sequence[Image.Image] = ()) -> Prompt:
        return Prompt(write_prompt(processor, parts), images)

    return [
        prompt(None, question, images=[first]),
        prompt(None, question, None, question, images=[second, third]),
        prompt(question),
        prompt(question, None, images=[fourth]),
        prompt(None, long, images=[fifth]),
    ]


@dataclass(frozen=True)
class PromptLength:
    """The length of a prompt before pruning: all tokens, and the visual ones among them."""

    tokens: int
    visual: int

    def pruned(self, keep: Keep) -> int:
        """Returns about how long the prompt is after pruning."""
        half = self.visual // 2
        kept = kept_count(self.visual, keep) if isinstance(keep, int | float) else half
        return self.tokens - self.visual + kept


def prompt_lengths(config: Any, processor: Any, prompts: Sequence[Prompt]) -> list[PromptLength]:
    """Returns the lengths of prompts; ``config`` is the model's."""
    placeholder = image_token(config)
    lengths = []
    for prompt in prompts:
        images = list(prompt.images) or None
        ids = processor(images=images, text=[prompt.text], return_tensors="pt")["input_ids"][0]
        lengths.append(PromptLength(len(ids), int((ids == placeholder).sum())))
    return lengths


def image_token(config: Any) -> int:
    """Returns the token id of an image's placeholders; ``config`` is the model's."""
    return served_family(config).token_id(SimpleNamespace(config=config), "image")
