"""How DART is asked."""

import torch

from gprune import DART, VisualTokens
from gprune.pruners.decoder import DecoderTokens
from gprune.pruners.one_layer import states_of_features
from tests.parity.vectors_io import Outcome, Vector


def dart(vector: Vector) -> Outcome:
    """Asks for the released number and order of turns.

    Without keys, features stand for keys and hidden states, before the language model.
    """
    features, params = vector.tensors["features"], vector.params
    within = vector.variant != "features"
    pruner = DART(
        vector.k,
        layer=2 if within else 0,
        pivots=params["pivot_image_token"],
        text_pivots=params["pivot_text_token"],
        turns="set",
        overspend=True,
    )
    if within:
        tokens = states(vector)
        kept = pruner.drop(tokens, pruner.count(0, 1, tokens)).kept
    else:
        tokens = states_of_features(VisualTokens(features, grid=vector.grid))
        kept = pruner.select(VisualTokens(features, grid=vector.grid))
    pivots = pruner.find_pivots(tokens, vector.k)
    places = [*pivots.visual.tolist(), *(len(features) + pivots.text).tolist()]
    facts = {
        "pivot_order": [places[turn] for turn in pivots.order.tolist()],
        "image_pivots": pivots.visual.tolist(),
        "text_pivots": pivots.text.tolist(),
    }
    return Outcome(kept.tolist(), facts=facts)


def states(vector: Vector) -> DecoderTokens:
    """Returns the tokens inside the language model; their image starts at ``image_start``."""
    tensors = vector.tensors
    features = tensors["features"]
    return DecoderTokens(
        features,
        None,
        len(features),
        keys=tensors["keys"],
        text_keys=tensors["text_keys"],
        normed=features,
        normed_text=tensors["text_hidden"],
        columns=vector.raw["image_start"] + torch.arange(len(features)),
    )


METHODS = {"dart": dart}
