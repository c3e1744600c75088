"""An accelerator that holds no values: what is asked of one has to wait, so nothing may be.

PyTorch's fake tensors have shapes, types and a device, and go through every operation but one that
needs a value on the host, which raises. Their device is one that PyTorch knows from Python alone
(CUDA's fake tensors need a build with CUDA), and operations that mix it with the CPU raise, as they
would on a GPU. That registers a backend for the whole process: these tests have one of their own.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration

import gprune
from gprune import device as checks

# transformers compares numbers of placeholders and features on the host, unless it is told not to.
os.environ["TRANSFORMERS_DISABLE_TORCH_CHECK"] = "1"

DEVICE = "pretended"
OURS = str(Path(gprune.__file__).parent)

make_tensor = torch.tensor


class Event:
    """A moment of the accelerator, which does not come."""

    def __init__(self, **options):
        pass

    def record(self):
        pass

    def query(self):
        return False


def tensor(data, *arguments, device=None, **options):
    """`torch.tensor`, which from the host's memory to an accelerator waits for what is queued."""
    made = make_tensor(data, *arguments, **options)
    if device is None or torch.device(device).type != DEVICE:
        return made
    if sys._getframe(1).f_code.co_filename.startswith(OURS):
        raise RuntimeError("torch.tensor(..., device=...) waits for the accelerator")
    return torch.empty(made.shape, dtype=made.dtype, device=device).copy_(made)


@pytest.fixture(scope="session", autouse=True)
def backend():
    """Makes the device known."""
    backend_registration._setup_privateuseone_for_python_backend(DEVICE)
    # Fake tensors of a single value carry it along, and operations on it are carried out.
    library = torch.library.Library("aten", "IMPL")
    library.impl(
        "empty_strided",
        lambda size, stride, **options: torch.empty_strided(size, stride, device="meta"),
        "PrivateUse1",
    )
    return library


class Pretended:
    """Puts tensors and models on the device; within ``mode`` they can be used."""

    def __init__(self):
        self.mode = FakeTensorMode()

    def tensor(self, value: torch.Tensor) -> torch.Tensor:
        fake = self.mode.from_tensor(value.detach())
        with self.mode:
            return fake.to(DEVICE)

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        with self.mode:
            return torch.empty(shape, dtype=dtype, device=DEVICE)

    def model(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model itself, all of its parameters and buffers replaced."""
        for module in model.modules():
            for name, value in module._parameters.items():
                if value is not None:
                    moved = self.tensor(value)
                    with self.mode:
                        module._parameters[name] = torch.nn.Parameter(moved, requires_grad=False)
            for name, value in module._buffers.items():
                if value is not None:
                    module._buffers[name] = self.tensor(value)
        return model


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setattr(torch, "Event", Event)
    monkeypatch.setattr(torch, "tensor", tensor)
    yield Pretended()
    checks._queue().clear()  # verdicts that nobody can read
