"""Some cases of each kind; `make fuzz` runs many more."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.__main__ import KINDS

COUNTS = {"groups": 400, "videos": 100, "inside": 100, "rasters": 60}
COUNTS |= {"images": 100, "jsonl": 60, "links": 60, "commands": 60, "keeps": 60}
COUNTS["serving"] = 100


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_input(kind):
    strategy, check = KINDS[kind]
    quick = settings(
        max_examples=COUNTS[kind], deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    quick(given(strategy)(check))()
