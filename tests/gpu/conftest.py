"""The device of `make gpu`; DEVICE=cpu tries the tests themselves where there is no GPU."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(scope="session")
def device():
    place = torch.device(os.environ.get("DEVICE", "cuda"))
    if place.type == "cuda" and not torch.cuda.is_available():
        pytest.exit("no GPU is here, or this torch was built without CUDA", returncode=1)
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = (
        False  # convolutions of vision towers are compared with float32
    )
    yield place
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def cuda(device):
    """For what a CPU has nothing to show of."""
    if device.type != "cuda":
        pytest.skip("only on a GPU")
    return device
