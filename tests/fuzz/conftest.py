"""Leaves out what needs atheris, which is no dependency (see `make fuzz-guided`)."""

from __future__ import annotations

collect_ignore = ["guided.py"]
