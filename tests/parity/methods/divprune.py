"""How DivPrune is asked."""

from gprune import DivPrune, VisualTokens
from tests.parity.vectors_io import Outcome, Vector


def divprune(vector: Vector) -> Outcome:
    """Asks for ``k`` tokens of the projected features."""
    tokens = VisualTokens(vector.tensors["features"], grid=vector.grid)
    return Outcome(DivPrune(vector.k).select(tokens).tolist())


METHODS = {"divprune": divprune}
