"""The shipped tiny model, and a small JSONL task."""

from __future__ import annotations

import pytest

from gprune.tinyvlm import load
from tests.evaluation.questions import write_questions


@pytest.fixture(scope="module")
def tiny():
    """The tiny model and its processor, set up to generate in batches."""
    model, processor = load()
    processor.tokenizer.padding_side = "left"
    return model, processor


@pytest.fixture
def jsonl(tmp_path):
    """The file of `write_questions`."""
    return write_questions(tmp_path)
