"""Runs the training command."""

from gprune.training.command import app

if __name__ == "__main__":
    app(prog_name="python -m gprune.training")
