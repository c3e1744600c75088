"""Products in true float32, with torch's precision settings since 2.9 and with those before."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch

from gprune.graph.products import product, true_float32
from tests.graph.features import features

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NEWER = hasattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision")


class OlderMatmul:
    """``torch.backends.cuda.matmul`` before torch 2.9, without ``fp32_precision``."""

    allow_tf32 = False


@pytest.fixture(params=["of_this_torch", "before_2.9"])
def settings(request, monkeypatch):
    """Takes the attributes of newer versions away; yields whether they are there.

    Restores torch's own setting, which the tests lower.
    """
    before = torch.get_float32_matmul_precision()
    older = request.param == "before_2.9"
    if older:
        backends = SimpleNamespace(
            mkldnn=SimpleNamespace(), cuda=SimpleNamespace(matmul=OlderMatmul())
        )
        monkeypatch.setattr(torch, "backends", backends)
    yield NEWER and not older
    monkeypatch.undo()
    torch.set_float32_matmul_precision(before)


def in_use(newer: bool, device: torch.device) -> str:
    """Returns the precision that torch computes products in, by the setting that decides it."""
    if not newer:
        return torch.get_float32_matmul_precision()
    backend = torch.backends.mkldnn if device.type == "cpu" else torch.backends.cuda
    return backend.matmul.fp32_precision


def low_precision_mm(newer: bool):
    """Returns a `torch.mm` that rounds to bfloat16 or TF32 wherever the settings allow it.

    Stands in for hardware whose kernels do; on others results are the same with any setting.
    """
    mm = torch.mm
    bits = {"bf16": 7, "medium": 7, "tf32": 10, "high": 10}

    def rounded(left, right, out=None):
        kept = bits.get(in_use(newer, left.device))
        if kept is not None:
            left, right = (
                (x.view(torch.int32) & -(1 << (23 - kept))).view(torch.float32)
                for x in (left, right.contiguous())
            )
        return mm(left, right, out=out)

    return rounded


@pytest.mark.parametrize("callers", ["highest", "high", "medium"])
def test_the_callers_precision_does_not_leak_in(settings, callers, monkeypatch):
    left, right = features(64, 96), features(32, 96, seed=1)
    wide = left.double() @ right.double().mT
    torch.set_float32_matmul_precision(callers)
    monkeypatch.setattr(torch, "mm", low_precision_mm(settings))
    error = (product(left, right.mT).double() - wide).abs().max()
    assert error < 1e-4  # 96 products of size one, summed in float32
    assert torch.get_float32_matmul_precision() == callers
    if callers != "highest":  # the stand-in would show a leak
        leaked = torch.mm(left, right.mT, out=torch.empty(64, 32))
        assert (leaked.double() - wide).abs().max() > 2e-3


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
@pytest.mark.parametrize("callers", ["highest", "high", "medium"])
def test_products_are_in_float32_and_the_callers_precision_is_restored(settings, callers, device):
    torch.set_float32_matmul_precision(callers)
    before = in_use(settings, device)
    with true_float32(device):
        assert in_use(settings, device) == ("ieee" if settings else "highest")
    assert in_use(settings, device) == before
    with pytest.raises(RuntimeError, match="stop"), true_float32(device):
        raise RuntimeError("stop")
    assert in_use(settings, device) == before
    assert torch.get_float32_matmul_precision() == callers


@pytest.mark.skipif(not NEWER, reason="needs torch 2.9")
@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_a_precision_set_for_one_backend_is_left_to_it(device):
    """torch refuses to read the process-wide precision after that, so it must not be asked."""
    backend = torch.backends.mkldnn if device.type == "cpu" else torch.backends.cuda
    before = backend.matmul.fp32_precision
    lower = "bf16" if device.type == "cpu" else "tf32"
    try:
        backend.matmul.fp32_precision = lower
        with true_float32(device):
            assert backend.matmul.fp32_precision == "ieee"
        assert backend.matmul.fp32_precision == lower
    finally:
        backend.matmul.fp32_precision = before


def test_both_settings_give_the_same_bits(monkeypatch):
    left, right = features(64, 96), features(32, 96, seed=1)
    expected = product(left, right.mT)
    backends = SimpleNamespace(mkldnn=SimpleNamespace(), cuda=SimpleNamespace(matmul=OlderMatmul()))
    monkeypatch.setattr(torch, "backends", backends)
    assert torch.equal(product(left, right.mT), expected)


def test_product_allocates_its_output_in_the_right_shape():
    left, right = features(7, 5), features(9, 5, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns if it resizes `out=`
        assert torch.equal(product(left, right.mT), left @ right.mT)


def test_autocast_does_not_lower_the_precision():
    left, right = features(64, 96), features(32, 96, seed=1)
    expected = product(left, right.mT)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(product(left, right.mT), expected)
