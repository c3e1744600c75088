"""How CDPruner is asked."""

from gprune import CDPruner, VisualTokens
from tests.parity.vectors_io import Outcome, Vector


def cdpruner(vector: Vector) -> Outcome:
    """Asks for ``k`` tokens: similarity of features, relevance in CLIP's joint space.

    A case without ``image_embeds`` means the features themselves.
    """
    tensors = vector.tensors
    tokens = VisualTokens(
        tensors["features"],
        grid=vector.grid,
        text=tensors["text_embeds"],
        aligned=tensors.get("image_embeds", tensors["features"]),
    )
    return Outcome(CDPruner(vector.k).select(tokens).tolist())


METHODS = {"cdpruner": cdpruner}
