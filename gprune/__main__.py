"""``python -m gprune`` is the ``gprune`` command."""

from gprune.cli import main

main()
