"""From pictures and text to what a model is called with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps


def open_image(path: Path) -> Image.Image:
    """Reads a picture whole, so that a truncated one is found here, and turns it upright.

    Raises:
        ValueError: it is absent, unreadable, truncated or absurdly large.
    """
    try:
        with Image.open(path) as stored:
            return ImageOps.exif_transpose(stored).convert("RGB")
    except FileNotFoundError:
        raise ValueError(f"image {str(path)!r} does not exist") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"image {str(path)!r} cannot be read: {error}") from None


def prompt_for(processor: Any, text: str, images: int) -> str:
    """The prompt in the model's chat format where it has one, else placeholders before the text."""
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}] * images + [{"type": "text", "text": text}]
        turn = [{"role": "user", "content": content}]
        return str(processor.apply_chat_template(turn, add_generation_prompt=True))
    return str(processor.image_token) * images + text


def prepare(model: Any, processor: Any, asked: Sequence[tuple[list[Image.Image], str]]) -> Any:
    """What ``model`` is called with to answer questions, each with its pictures, in one batch."""
    return processor(
        images=[image for images, _ in asked for image in images],
        text=[prompt_for(processor, text, len(images)) for images, text in asked],
        padding=len(asked) > 1,  # one prompt needs no padding token
        return_tensors="pt",
    ).to(model.device, dtype=model.dtype)
