"""The files that a visitor can download: a picture of all answers, and their numbers."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from gprune import viz
from gprune.ask.comparison import Comparison, MethodResult

# In pixels: the width of a picture, the space between two, the size of text and of a line.
WIDTH, SPACE, TEXT, LINE = 512, 24, 20, 28
INK, PAPER = (20, 24, 32), (255, 255, 255)
# Characters of a text in the picture; the numbers have it in full.
LONGEST_TEXT = 160


def comparison_json(comparison: Comparison) -> bytes:
    """Returns the numbers and the answers as JSON."""
    return json.dumps(comparison.to_dict(), ensure_ascii=False).encode()


def comparison_png(comparison: Comparison) -> bytes:
    """Returns a PNG: a column for what the model sees and for each method, with its answer.

    Score maps stand below the kept tokens. Drawn with Pillow: matplotlib needs seconds for it.
    """
    seen = ["what the model sees", f"all tokens: {comparison.answer_full}"]
    texts = [seen, *(result_lines(one) for one in comparison.results)]
    pictures = [[viz.enlarged(comparison.view)]]
    pictures += [
        [picture for picture in (one.overlay, one.scores) if picture is not None]
        for one in comparison.results
    ]
    settings = comparison.settings
    title = f"{settings.question}  ({comparison.model}, keep {settings.keep:g})"
    file = io.BytesIO()
    columns_picture(title, texts, pictures).save(file, "PNG")
    return file.getvalue()


def result_lines(result: MethodResult) -> list[str]:
    """Returns the texts above a method's pictures."""
    if result.saving is None:
        return [result.method, result.refusal or ""]
    kept = f"{result.method}: {result.saving.kept_tokens} of {result.saving.visual_tokens} tokens"
    return [kept, f"answer: {result.answer}"]


def columns_picture(
    title: str, texts: Sequence[Sequence[str]], pictures: Sequence[Sequence[Image.Image]]
) -> Image.Image:
    """Draws columns beside each other, with a title above them.

    Args:
        title: the title.
        texts: the texts of each column, each of which begins a line.
        pictures: the pictures of each column, below its texts.
    """
    columns = [[line for text in each for line in wrapped(text)] for each in texts]
    scaled = [[fitted(one) for one in each] for each in pictures]
    width = SPACE + len(columns) * (WIDTH + SPACE)
    title_lines = wrapped(title, width - 2 * SPACE)
    text_top = SPACE + LINE * len(title_lines) + SPACE // 2
    first_top = text_top + LINE * max(len(lines) for lines in columns) + SPACE // 2
    height = first_top + max(sum(one.height + SPACE for one in each) for each in scaled)
    result = Image.new("RGB", (width, height), PAPER)
    draw_lines(result, title_lines, (SPACE, SPACE))
    for index, (lines, column) in enumerate(zip(columns, scaled, strict=True)):
        left, top = SPACE + index * (WIDTH + SPACE), first_top
        draw_lines(result, lines, (left, text_top))
        for picture in column:
            result.paste(picture, (left, top))
            top += picture.height + SPACE
    return result


def fitted(picture: Image.Image) -> Image.Image:
    """Returns a picture `WIDTH` pixels wide."""
    return picture.resize((WIDTH, max(1, round(WIDTH * picture.height / picture.width))))


def draw_lines(image: Image.Image, lines: Sequence[str], corner: tuple[int, int]) -> None:
    """Writes lines of text into an image, in place, from its ``corner`` (x, y) on."""
    pen = ImageDraw.Draw(image)
    for index, line in enumerate(lines):
        place = (corner[0], corner[1] + index * LINE)
        pen.text(place, line, fill=INK, font=ImageFont.load_default(TEXT))


def wrapped(text: str, width: int = WIDTH) -> list[str]:
    """Divides a text into lines of at most ``width`` pixels, between words where it can."""
    font = ImageFont.load_default(TEXT)
    text = " ".join(text.split())
    if len(text) > LONGEST_TEXT:
        text = f"{text[: LONGEST_TEXT - 3]}..."
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        lines.append("")
        for sign in word:
            if font.getlength(lines[-1] + sign) > width:
                lines.append("")
            lines[-1] += sign
    return [line for line in lines if line]
