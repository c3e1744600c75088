"""How HiPrune is asked."""

from gprune import HiPrune, VisualTokens
from tests.parity.vectors_io import Outcome, Vector


def hiprune(vector: Vector) -> Outcome:
    """Asks for ``k`` tokens by the attention of two layers."""
    tokens = VisualTokens(
        vector.tensors["features"],
        grid=vector.grid,
        attention=vector.tensors["attention_deep"],
        object_attention=vector.tensors["attention_shallow"],
    )
    return Outcome(HiPrune(vector.k, buffered=vector.params["alpha"]).select(tokens).tolist())


METHODS = {"hiprune": hiprune}
