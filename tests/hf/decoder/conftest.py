"""Fixtures: models of the families that can be pruned inside the language model."""

from __future__ import annotations

import pytest

from gprune.layouts import families_with
from gprune.proof.models import SPECIMENS


@pytest.fixture(scope="module", params=families_with("prunes_in_decoder"))
def specimen(request):
    """Every specimen of these families."""
    return SPECIMENS[request.param]


@pytest.fixture(scope="module")
def eager(specimen):
    """The specimen's model with the eager kernel, which returns attention weights."""
    return specimen.build(attention="eager")
