"""Loading models for the commands and the page."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from gprune.ask.answers import TINY, load_model, shown_to
from gprune.tinyvlm import load


@pytest.mark.parametrize("name", TINY)
def test_the_shipped_models_by_their_names(name):
    model, processor = load_model(name, "cpu", "float32")
    expected, other = load(None if name == "tiny" else name)
    assert not model.training
    assert model.dtype == torch.float32
    weights = expected.state_dict()
    assert all(torch.equal(weights.pop(key), value) for key, value in model.state_dict().items())
    assert not weights
    assert processor.chat_template == other.chat_template


def test_the_shipped_model_is_loaded_as_asked():
    model, _ = load_model("tinyvlm", "cpu", "bfloat16")
    assert model.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="device='nowhere'"):
        load_model("tinyvlm", "nowhere", "float32")


def test_a_folder_of_that_name_is_asked_for_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    with pytest.raises(ValueError, match=r"model '\./tiny' cannot be loaded"):
        load_model("./tiny", "cpu", "float32")
    load_model("tiny", "cpu", "float32")


@pytest.mark.parametrize("shape", [(12, 48), (1, 12, 48)])
def test_models_that_take_patches_are_shown_the_picture(shape):
    """Qwen's come in one row, Gemma 4's and LFM2-VL's image by image."""
    picture = Image.new("RGB", (9, 9))
    outcome = SimpleNamespace(inputs={"pixel_values": torch.zeros(shape)})
    assert shown_to(None, outcome, picture) is picture


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 2, 3, 4, 5)])
def test_models_that_take_pixels_are_shown_what_they_see(shape):
    image_processor = SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    outcome = SimpleNamespace(inputs={"pixel_values": torch.ones(shape)})
    shown = shown_to(SimpleNamespace(image_processor=image_processor), outcome, None)
    assert shown.size == (5, 4)
    assert shown.getpixel((0, 0)) == (255, 255, 255)
