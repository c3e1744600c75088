"""Fixtures: a tiny model of every supported family."""

from __future__ import annotations

import pytest

from gprune.proof.models import SPECIMENS


@pytest.fixture(scope="module", params=list(SPECIMENS))
def specimen(request):
    """Every specimen of tiers 1 and 2."""
    return SPECIMENS[request.param]


@pytest.fixture(scope="module")
def model(specimen):
    """The specimen's model in float32 with SDPA; tests leave it unchanged."""
    return specimen.build()
