"""How VisionZip is asked."""

from __future__ import annotations

from gprune import VisionZip, VisualTokens
from tests.parity.vectors_io import Outcome, Vector


def visionzip(vector: Vector) -> Outcome:
    """Asks for ``k`` tokens, the CLS token not counted, of the features before the projector."""
    tensors = vector.tensors
    heads = vector.params["heads"]
    tokens = VisualTokens(
        tensors["vision"],
        grid=vector.grid,
        attention=tensors["cls_attention"].mean(0),
        keys=tensors["keys"][1:].unflatten(1, (heads, -1)),
    )
    assert isinstance(vector.k, int)
    found = VisionZip(vector.k).reduce(tokens)
    assert found.weights is not None
    changed = found.changed(len(tokens))
    kept = found.kept.tolist()
    targets = found.kept[changed].tolist()
    facts = {}
    if len(targets) == vector.params["contextual"]:  # else to some target none came
        facts = {"targets": targets, "dominant": found.kept[~changed].tolist()}
    return Outcome(kept, found.features(tokens.features), facts=facts)


METHODS = {"visionzip": visionzip}
