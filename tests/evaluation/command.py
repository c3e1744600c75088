"""Runs `gprune eval`."""

from __future__ import annotations

from typer.testing import CliRunner

from gprune.cli import app


def evaluate(*arguments, model="tiny"):
    """Runs the command with these arguments; returns typer's result."""
    return CliRunner().invoke(app, ["eval", model, *map(str, arguments)])
