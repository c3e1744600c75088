"""The device of `make gpu`; set DEVICE=cpu to try the tests without a GPU."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(scope="session")
def device():
    chosen = torch.device(os.environ.get("DEVICE", "cuda"))
    if chosen.type == "cuda" and not torch.cuda.is_available():
        pytest.exit(
            "DEVICE=cuda finds no GPU, or this torch was built without CUDA; set DEVICE=cpu to run "
            "on the CPU",
            returncode=1,
        )
    before = torch.backends.cudnn.allow_tf32
    # Convolutions of vision towers are compared with float32.
    torch.backends.cudnn.allow_tf32 = False
    yield chosen
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def cuda(device):
    """Skips tests that show nothing on a CPU."""
    if device.type != "cuda":
        pytest.skip("only on a GPU")
    return device
