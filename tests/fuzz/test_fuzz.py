"""Runs some cases of each kind; `make fuzz` runs many more."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.__main__ import CHECKS

COUNTS = {"groups": 400, "videos": 100, "decoder": 100, "rasters": 60}
COUNTS |= {"images": 100, "jsonl": 60, "links": 60, "commands": 60, "keeps": 60}
COUNTS["serving"] = 100


@pytest.mark.parametrize("kind", CHECKS)
def test_hostile_input(kind):
    strategy, check = CHECKS[kind]
    quick = settings(
        max_examples=COUNTS[kind], deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    quick(given(strategy)(check))()
