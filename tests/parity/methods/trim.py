"""How TRIM is asked."""

from __future__ import annotations

from gprune import TRIM, VisualTokens
from tests.parity.vectors_io import Outcome, Vector


def trim(vector: Vector) -> Outcome:
    """Asks with the first text alone; the vector's count includes the additional row.

    A case without ``image_embeds`` means the features themselves.
    """
    tensors = vector.tensors
    tokens = VisualTokens(
        tensors["features"],
        grid=vector.grid,
        text=tensors["text_embeds"][:1],
        aligned=tensors.get("image_embeds", tensors["features"]),
    )
    found = TRIM("adaptive" if vector.k == "adaptive" else vector.k).reduce(tokens)
    return Outcome(found.kept.tolist(), None, found.appended_features(tokens.features))


METHODS = {"trim": trim}
