"""Reading images upright, whole and within limits, and building prompts."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from gprune.ask.prompts import open_image, prompt_for

ORIENTATION = 0x0112


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(("tiff", mode) for mode in ("L", "RGB", "CMYK")),
        *(("jpg", mode) for mode in ("L", "RGB", "CMYK")),
        *(("png", mode) for mode in ("L", "RGB")),
        *(("webp", mode) for mode in ("L", "RGB")),
    ],
)
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_upright_in_every_format(tmp_path, kind, mode, orientation):
    """The bright quarter of an image that is stored rotated is read where it was before."""
    upright = Image.new("L", (80, 60), 40)
    upright.paste(220, (0, 0, 40, 30))
    back = {1: 0, 3: 180, 6: 90, 8: 270}[orientation]  # degrees against the clock
    stored = upright.rotate(back, expand=True).convert("RGB").convert(mode)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"turned.{kind}"
    stored.save(path, exif=exif, **({} if kind == "tiff" else {"quality": 95}))
    read = open_image(path)
    assert read.mode == "RGB"
    assert read.size == (80, 60)
    np.testing.assert_allclose(
        np.asarray(read.convert("L"), int), np.asarray(upright, int), atol=40
    )


def test_photographs_are_turned_upright(tmp_path):
    """Cameras store their orientation: 6 means a quarter turn to the left."""
    stored = Image.new("RGB", (40, 20), "red")
    stored.paste((0, 0, 255), (0, 0, 20, 20))  # the left half is blue
    exif = stored.getexif()
    exif[0x0112] = 6
    stored.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    upright = open_image(tmp_path / "turned.jpg")
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5))[2] > 200  # blue on top
    assert upright.getpixel((10, 35))[0] > 200


def test_the_first_frame_of_an_animation(tmp_path):
    red, blue = (Image.new("RGB", (8, 8), color) for color in ("red", "blue"))
    red.save(tmp_path / "moving.gif", save_all=True, append_images=[blue])
    assert open_image(tmp_path / "moving.gif").getpixel((4, 4)) == (255, 0, 0)


def test_limits_and_files_that_are_no_images(tmp_path):
    Image.new("1", (100, 100)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match=r"large\.png.*100 x 100 pixels are more than 9999"):
        open_image(tmp_path / "large.png", most_pixels=9999)
    assert open_image(tmp_path / "large.png", most_pixels=10_000).size == (100, 100)
    # Pillow would hand it to Ghostscript.
    (tmp_path / "script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(ValueError, match="cannot be read: it is none of PNG"):
        open_image(tmp_path / "script.png")
    with pytest.raises(ValueError, match="cannot be read"):
        open_image(tmp_path)


BARE = SimpleNamespace(image_token="<img>", chat_template=None)


@pytest.mark.parametrize(
    ("template", "images", "expected"),
    [
        (None, 2, "<img><img>what {is} it?"),
        ("Q: {question} A:", 1, "<img>Q: what {is} it? A:"),
        ("Q: {question} A:", 2, "<img><img>Q: what {is} it? A:"),
        ("Q: <img>{question} A:", 1, "Q: <img>what {is} it? A:"),
        ("<img> and <img>: {question} {answer}", 2, "<img> and <img>: what {is} it? {answer}"),
    ],
)
def test_templates(template, images, expected):
    assert prompt_for(BARE, "what {is} it?", images, template) == expected


def test_a_template_replaces_the_chat_format():
    def fail(*arguments, **options):
        raise AssertionError("the chat format was used")

    chat = SimpleNamespace(image_token="<img>", chat_template="{{x}}", apply_chat_template=fail)
    assert prompt_for(chat, "what?", 1, "{question}") == "<img>what?"
    with pytest.raises(AssertionError):
        prompt_for(chat, "what?", 1)


@pytest.mark.parametrize("template", ["", "Q: {} A:", "{Question}"])
def test_templates_without_the_question(template):
    with pytest.raises(ValueError, match=r"write \{question\} there"):
        prompt_for(BARE, "what?", 1, template)


@pytest.mark.parametrize("images", [1, 3])
def test_templates_with_placeholders_for_other_images(images):
    with pytest.raises(ValueError, match=f"has <img> 2 times.* about {images} pictures"):
        prompt_for(BARE, "what?", images, "<img><img>{question}")
