"""Pictures of what a model sees and what was kept."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from gprune.ask.pictures import model_view


@pytest.mark.parametrize("shape", [(12, 48), (1, 12, 48)])
def test_models_that_take_patches_get_the_image_itself(shape):
    """Qwen's patches come in one row, those of Gemma 4 and LFM2-VL image by image."""
    picture = Image.new("RGB", (9, 9))
    outcome = SimpleNamespace(inputs={"pixel_values": torch.zeros(shape)})
    assert model_view(None, outcome, picture) is picture


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 2, 3, 4, 5)])
def test_models_that_take_pixels_get_them_denormalized(shape):
    image_processor = SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    outcome = SimpleNamespace(inputs={"pixel_values": torch.ones(shape)})
    shown = model_view(SimpleNamespace(image_processor=image_processor), outcome, None)
    assert shown.size == (5, 4)
    assert shown.getpixel((0, 0)) == (255, 255, 255)
