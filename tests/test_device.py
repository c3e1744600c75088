"""Checks that do not stall: on an accelerator the report comes later, but it comes."""

from __future__ import annotations

import pytest
import torch

from gprune import device as checks


class Event:
    """Stands in for a device event: has happened once ``ready`` is set or it is waited for."""

    ready = False

    def __init__(self, **options):
        pass

    def record(self):
        pass

    def query(self):
        return self.ready

    def synchronize(self):
        self.ready = True


class OnDevice:
    """Stands in for a bool scalar on an accelerator; reading it directly would be a stall."""

    device = torch.device("cuda")

    def __init__(self, value):
        self.value = torch.tensor(value)

    def to(self, device, non_blocking):
        assert device == "cpu"
        assert non_blocking
        return self.value

    def __bool__(self):
        raise AssertionError("the host waited for the device")


@pytest.fixture(autouse=True)
def fake_events(monkeypatch):
    monkeypatch.setattr(torch, "Event", Event)
    yield
    checks._queue().clear()


def test_on_cpu_at_once():
    checks.require(torch.tensor(True), "fine")
    with pytest.raises(ValueError, match=r"^broken$"):
        checks.require(torch.tensor(False), "broken")


def test_on_a_device_later():
    checks.require(OnDevice(False), "broken")
    checks.require(OnDevice(True), "fine")  # nothing has arrived yet
    with pytest.raises(ValueError, match=r"^broken$"):
        checks.raise_pending()
    checks.raise_pending()  # reported once


def test_on_a_device_at_the_next_check_that_finds_it_arrived():
    checks.require(OnDevice(False), "broken")
    checks._queue()[0].event.ready = True
    with pytest.raises(ValueError, match=r"^broken$"):
        checks.require(OnDevice(True), "fine")


def test_good_ones_leave_nothing():
    for _ in range(3):
        checks.require(OnDevice(True), "fine")
    checks.raise_pending()
    assert not checks._queue()
