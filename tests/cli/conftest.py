"""Fixtures of the command tests."""

from __future__ import annotations

import pytest

from gprune.cli.console import console
from gprune.tinyvlm import make_scene


@pytest.fixture
def picture(tmp_path):
    """The file of a scene."""
    path = tmp_path / "scene.png"
    make_scene("test", 0, 5).draw().save(path)
    return path


@pytest.fixture
def wide_console(monkeypatch):
    """A console of 200 columns: each row of a table stands on one line."""
    monkeypatch.setattr(console, "width", 200)
