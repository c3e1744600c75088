"""Excludes the module that needs atheris, which is not a dependency (see `make fuzz-guided`)."""

from __future__ import annotations

collect_ignore = ["guided.py"]
