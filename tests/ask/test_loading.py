"""Loading models by name."""

from __future__ import annotations

import pytest
import torch

from gprune.ask.loading import TINY, load_model
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


def test_the_shipped_model_in_another_dtype():
    model, _ = load_model("tinyvlm", "cpu", "bfloat16")
    assert model.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="device='nowhere'"):
        load_model("tinyvlm", "nowhere", "float32")


def test_a_folder_with_a_shipped_name_is_loaded_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    with pytest.raises(ValueError, match=r"model '\./tiny' cannot be loaded"):
        load_model("./tiny", "cpu", "float32")
    load_model("tiny", "cpu", "float32")
