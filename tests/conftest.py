"""Property tests draw new examples on every run; in CI the same ones, so that it cannot flicker."""

from __future__ import annotations

import os

from hypothesis import Phase, settings

settings.register_profile("ci", derandomize=True)
# `make mutants`: the same examples for every mutant, and no search for the smallest that fails.
settings.register_profile(
    "mutants", derandomize=True, database=None, max_examples=25, phases=[Phase.generate]
)
if os.environ.get("CI"):
    settings.load_profile("ci")
