"""Calls commands as a terminal would."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from gprune.cli import app
from gprune.tinyvlm.model import checkpoint_folder

TINY = str(checkpoint_folder())


def call(*arguments):
    """Runs a command and raises what it raised, unless that is an exit."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def as_json(*arguments):
    """Runs a command with ``--json`` and parses its only output."""
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)  # one object and nothing else
