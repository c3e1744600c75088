"""Untrained models: initial weights and heads."""

from __future__ import annotations

import pytest
import torch

from gprune.tinyvlm.contents import GRID
from gprune.training.heads import PatchHeads
from gprune.training.labels import KIND_WORDS, PATCH_HUES, PATCH_MARKS
from gprune.training.model import build_model, sinusoids


@pytest.fixture(scope="module")
def model():
    return build_model(0).eval()


def test_patch_logits_score_word_embeddings(model):
    """A patch that is projected onto the embedding of a word is labelled with that word."""
    heads = PatchHeads(model.config.text_config.hidden_size)
    words = torch.nn.functional.normalize(torch.randn(model.config.text_config.vocab_size, 192))
    order = torch.randperm(len(KIND_WORDS))
    projected = words[heads.kind_ids][order][None]
    kinds, hues, marks = heads(projected, words)
    assert torch.equal(kinds.argmax(-1)[0], order)
    assert hues.shape == (1, len(KIND_WORDS), len(PATCH_HUES))
    assert marks.shape == (1, len(KIND_WORDS), len(PATCH_MARKS))
    assert heads(words[heads.color_ids][None], words)[1].argmax(-1).tolist()[0] == list(range(10))


def test_position_embeddings_start_from_sinusoids(model):
    table = model.model.vision_tower.embeddings.position_embedding.weight
    expected = sinusoids(GRID, table.shape[1])
    cosines = torch.nn.functional.cosine_similarity(table[1:], expected)
    assert cosines.min() > 0.9


def test_sinusoids_distinguish_positions_and_resemble_neighbours():
    table = torch.nn.functional.normalize(sinusoids(14, 128), dim=1)
    cosines = (table @ table.T).view(14, 14, 14, 14)
    assert cosines.view(196, 196).fill_diagonal_(0).max() < 0.98
    assert cosines[5, 5, 5, 6] > cosines[5, 5, 5, 8] > cosines[5, 5, 5, 13]
    assert torch.allclose(cosines[5, 5, 5, 6], cosines[5, 5, 6, 5])
