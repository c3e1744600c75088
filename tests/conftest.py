"""Property tests draw new examples on every run; in CI the same ones, so that it cannot flicker."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
