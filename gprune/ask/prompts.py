"""From pictures and text to what a model is called with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

# What pictures come as. Pillow reads more, but by code that few use, and PostScript by a program.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")

# Half a gigabyte in RGB, where Pillow by itself stops too; processors shrink pictures to far less.
MOST_PIXELS = 178_956_970


def open_image(path: Path, most_pixels: int = MOST_PIXELS) -> Image.Image:
    """Reads a picture whole, so that a truncated one is found here, and turns it upright.

    Of an animated picture the first frame is taken.

    Args:
        path: of a file in one of `FORMATS`.
        most_pixels: more are refused before they are decoded.

    Raises:
        ValueError: it is absent, unreadable, truncated or absurdly large.
    """
    try:
        # From an open file: by its path, Pillow maps some turned TIFFs into memory wrongly.
        with path.open("rb") as file, Image.open(file, formats=FORMATS) as stored:
            width, height = stored.size
            if width * height > most_pixels:
                raise ValueError(
                    f"{width} x {height} pixels are more than {most_pixels}; make it smaller"
                )
            return ImageOps.exif_transpose(stored).convert("RGB")
    except FileNotFoundError:
        raise ValueError(f"image {str(path)!r} does not exist") from None
    except UnidentifiedImageError:
        formats = ", ".join(FORMATS)
        raise ValueError(f"image {str(path)!r} cannot be read: it is none of {formats}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"image {str(path)!r} cannot be read: {error}") from None


# Where the question stands in a template.
QUESTION = "{question}"


def check_template(template: str | None) -> None:
    """Raises ValueError for a template without a place for the question."""
    if template is not None and QUESTION not in template:
        raise ValueError(
            f"template={template!r} does not say where the question stands; write {QUESTION} there"
        )


def prompt_for(processor: Any, text: str, images: int, template: str | None = None) -> str:
    """The prompt in the model's chat format where it has one, else placeholders before the text.

    Args:
        processor: the model's.
        text: the question.
        images: how many pictures it is about.
        template: taken in place of the chat format; ``{question}`` stands for the question.
            Without a placeholder of the model's, one for each picture comes before it.

    Raises:
        ValueError: the template has no place for the question, or placeholders for another number
            of pictures.
    """
    check_template(template)
    if template is not None:
        image = str(processor.image_token)
        places = template.count(image)
        if places not in (0, images):
            raise ValueError(
                f"template={template!r} has {image} {places} times, and the question is about "
                f"{images} pictures; leave {image} out, and one for each is put before the template"
            )
        return (image * images if places == 0 else "") + template.replace(QUESTION, text)
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}] * images + [{"type": "text", "text": text}]
        turn = [{"role": "user", "content": content}]
        return str(processor.apply_chat_template(turn, add_generation_prompt=True))
    return str(processor.image_token) * images + text


def prepare(
    model: Any,
    processor: Any,
    asked: Sequence[tuple[list[Image.Image], str]],
    template: str | None = None,
) -> Any:
    """What ``model`` is called with to answer questions, each with its pictures, in one batch.

    ``template`` is that of `prompt_for`.
    """
    return processor(
        images=[image for images, _ in asked for image in images],
        text=[prompt_for(processor, text, len(images), template) for images, text in asked],
        padding=len(asked) > 1,  # one prompt needs no padding token
        return_tensors="pt",
    ).to(model.device, dtype=model.dtype)
