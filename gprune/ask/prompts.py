"""Turns images and questions into the inputs of a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from gprune.errors import plain_message

# The formats that are read. Pillow knows more, but decodes them by rarely used code, and PostScript
# by starting Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")

# Half a gigabyte in RGB, and Pillow's own limit; processors shrink images to far less.
MOST_PIXELS = 178_956_970


def open_image(path: Path, most_pixels: int = MOST_PIXELS) -> Image.Image:
    """Reads an image in RGB and turns it upright by its EXIF orientation.

    The whole file is decoded, so that a truncated one is found here. Of an animation the first
    frame is read.

    Args:
        path: a file in one of `FORMATS`.
        most_pixels: larger images are refused before they are decoded.

    Raises:
        ValueError: the file is absent, unreadable, truncated or too large.
    """
    try:
        # An open file, not its path: given a path, Pillow memory-maps some rotated TIFFs wrongly.
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
        raise ValueError(f"image {str(path)!r} cannot be read: {plain_message(error)}") from None


# The placeholder of the question in a template.
QUESTION = "{question}"


def check_template(template: str | None) -> None:
    """Checks that a template contains the placeholder of the question.

    Raises:
        ValueError: it does not.
    """
    if template is not None and QUESTION not in template:
        raise ValueError(
            f"template={template!r} has no placeholder for the question; write {QUESTION} there"
        )


def require_question(text: str) -> None:
    """Checks that a question is not empty.

    Raises:
        ValueError: it is, or has blanks only.
    """
    if not text.strip():
        raise ValueError("prompt is empty: ask a question, such as 'what is this?'")


def prompt_for(processor: Any, text: str, images: int, template: str | None = None) -> str:
    """Builds the prompt of a question, with one image placeholder for each image.

    Without a template the model's chat format is used; a processor without one gets the
    placeholders followed by the question.

    Args:
        processor: the model's.
        text: the question.
        images: number of images that the question is about.
        template: used in place of the chat format; ``{question}`` is replaced by the question. If
            it contains no image placeholder, one for each image is put before it.

    Raises:
        ValueError: the template has no ``{question}``, or image placeholders for another number of
            images.
    """
    check_template(template)
    if template is not None:
        image = str(processor.image_token)
        placeholders = template.count(image)
        if placeholders not in (0, images):
            raise ValueError(
                f"template={template!r} has {image} {placeholders} times, and the question is "
                f"about {images} pictures; leave {image} out, and one for each is put before the "
                "template"
            )
        prefix = image * images if placeholders == 0 else ""
        return prefix + template.replace(QUESTION, text)
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}] * images + [{"type": "text", "text": text}]
        turn = [{"role": "user", "content": content}]
        return str(processor.apply_chat_template(turn, add_generation_prompt=True))
    return str(processor.image_token) * images + text


def prepare(
    model: Any,
    processor: Any,
    questions: Sequence[tuple[list[Image.Image], str]],
    template: str | None = None,
) -> Any:
    """Builds the inputs of ``model`` for one batch of questions.

    Args:
        model: inputs are moved to its device and dtype.
        processor: the model's.
        questions: the images and the text of each.
        template: see `prompt_for`.

    Raises:
        ValueError: see `prompt_for`.
    """
    return processor(
        images=[image for images, _ in questions for image in images],
        text=[prompt_for(processor, text, len(images), template) for images, text in questions],
        padding=len(questions) > 1,  # one prompt needs no padding token
        return_tensors="pt",
    ).to(model.device, dtype=model.dtype)
