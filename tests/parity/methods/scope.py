"""How SCOPE is asked."""

from gprune import SCOPE, VisualTokens
from tests.parity.vectors_io import Outcome, Vector


def scope(vector: Vector) -> Outcome:
    """Asks for ``k`` tokens by features before the projector and the CLS token's attention."""
    tokens = VisualTokens(
        vector.tensors["features"],
        grid=vector.grid,
        vision=vector.tensors["vision"],
        attention=vector.tensors["cls_attention"].mean(0),
    )
    return Outcome(SCOPE(vector.k, power=vector.params["alpha"]).select(tokens).tolist())


METHODS = {"scope": scope}
