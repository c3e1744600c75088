"""How G-Prune is asked."""

from gprune import GPrune, VisualTokens
from tests.parity.vectors_io import Outcome, Vector


def gprune(vector: Vector) -> Outcome:
    """Asks for ``k`` tokens with the settings the released code ran with."""
    pruner = GPrune(
        vector.k,
        threshold=vector.params["threshold"],
        temperature=vector.params["temperature"],
        iterations=vector.params["iterations"],
    )
    tokens = VisualTokens(vector.tensors["features"], grid=vector.grid)
    return Outcome(pruner.select(tokens).tolist())


METHODS = {"gprune": gprune}
