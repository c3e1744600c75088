"""Checks that do not stall: on an accelerator the error comes later, but it comes."""

from __future__ import annotations

import pytest
import torch

from gprune.device import pending_checks, raise_pending, require


class Event:
    """Replaces a device event: it has completed once ``ready`` is set or it is waited for."""

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
    """Replaces a bool scalar on an accelerator; reading it directly would stall the host."""

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
    pending_checks().clear()


def test_raises_at_once_on_a_cpu():
    require(torch.tensor(True), "fine")
    with pytest.raises(ValueError, match=r"^broken$"):
        require(torch.tensor(False), "broken")


def test_raises_later_on_a_device():
    require(OnDevice(False), "broken")
    require(OnDevice(True), "fine")  # no result has arrived yet
    with pytest.raises(ValueError, match=r"^broken$"):
        raise_pending()
    raise_pending()  # raises once


def test_raises_at_the_next_check_after_the_result_has_arrived():
    require(OnDevice(False), "broken")
    pending_checks()[0].event.ready = True
    with pytest.raises(ValueError, match=r"^broken$"):
        require(OnDevice(True), "fine")


def test_passed_checks_leave_an_empty_queue():
    for _ in range(3):
        require(OnDevice(True), "fine")
    raise_pending()
    assert not pending_checks()
