"""How ToMe is asked."""

from gprune import ToMe, VisualTokens
from tests.parity.vectors_io import Outcome, Vector


def tome(vector: Vector) -> Outcome:
    """Asks for ``k`` merged tokens of the projected features."""
    features = vector.tensors["features"]
    found = ToMe(vector.k).reduce(VisualTokens(features, grid=vector.grid))
    assert found.members is not None
    facts = {"sizes": found.member_counts().int().tolist(), "members": found.members.tolist()}
    return Outcome(found.kept.tolist(), found.features(features), facts=facts)


METHODS = {"tome": tome}
