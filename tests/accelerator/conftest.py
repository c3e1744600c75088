"""A fake accelerator whose tensors hold no values, so that reading one raises.

PyTorch's fake tensors have shapes, dtypes and a device. They go through every operation except
those that need a value on the host, which raise. Their device is a backend registered from Python
(CUDA's fake tensors need a build with CUDA), and operations that mix it with the CPU raise, as they
would on a GPU. The backend is registered for the whole process, so these tests run in a process of
their own.
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
from gprune.device import pending_checks

# Otherwise transformers compares numbers of placeholders and features on the host.
os.environ["TRANSFORMERS_DISABLE_TORCH_CHECK"] = "1"

DEVICE = "pretended"
PACKAGE = str(Path(gprune.__file__).parent)

make_tensor = torch.tensor


class Event:
    """An event of the accelerator that never completes."""

    def __init__(self, **options):
        pass

    def record(self):
        pass

    def query(self):
        return False


def tensor(data, *arguments, device=None, **options):
    """`torch.tensor`; refuses uses in gprune that copy to the device, because they synchronise."""
    made = make_tensor(data, *arguments, **options)
    if device is None or torch.device(device).type != DEVICE:
        return made
    if sys._getframe(1).f_code.co_filename.startswith(PACKAGE):
        raise RuntimeError("torch.tensor(..., device=...) synchronises the accelerator")
    return torch.empty(made.shape, dtype=made.dtype, device=device).copy_(made)


@pytest.fixture(scope="session", autouse=True)
def backend():
    """Registers the device with PyTorch."""
    backend_registration._setup_privateuseone_for_python_backend(DEVICE)
    # PyTorch runs operations on fake tensors of a single value, which carry that value.
    library = torch.library.Library("aten", "IMPL")
    library.impl(
        "empty_strided",
        lambda size, stride, **options: torch.empty_strided(size, stride, device="meta"),
        "PrivateUse1",
    )
    return library


class Pretended:
    """Moves tensors and models to the device; use them inside ``mode``."""

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
        """Replaces all parameters and buffers of a model in place; returns the model."""
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
    pending_checks().clear()  # whose results cannot be read
