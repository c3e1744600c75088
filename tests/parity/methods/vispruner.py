"""How VisPruner is asked."""

from gprune import VisPruner, VisualTokens
from tests.parity.vectors_io import Outcome, Vector


def vispruner(vector: Vector) -> Outcome:
    """Asks for ``k`` tokens by features before the projector and the CLS token's attention."""
    tokens = VisualTokens(
        vector.tensors["features"],
        grid=vector.grid,
        vision=vector.tensors["vision"],
        attention=vector.tensors["cls_attention"].mean(0),
    )
    pruner = VisPruner(vector.k, important=vector.params["important_ratio"])
    return Outcome(pruner.select(tokens).tolist())


METHODS = {"vispruner": vispruner}
