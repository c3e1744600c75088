"""How VLM-Pruner is asked."""

import torch

from gprune import VisualTokens, VLMPruner
from gprune.pruners.decoder import DecoderTokens
from tests.parity.vectors_io import Outcome, Vector


def vlm_pruner(vector: Vector) -> Outcome:
    """Asks for ``k`` tokens, and for fewer where the released passes end early.

    Without keys, features stand for keys and hidden states, before the language model.
    """
    features, params = vector.tensors["features"], vector.params
    within = vector.variant == "keys"
    pruner = VLMPruner(
        vector.k,
        layer=2 if within else 0,
        pivots=params["pivots"],
        threshold=params["threshold"],
        batch=params["token_batch"],
        channels=params["channels"],
        fill=False,
    )
    if within:
        reduction = pruner.drop(states(vector), vector.k)
    else:
        reduction = pruner.reduce(VisualTokens(features, grid=vector.grid))
    return Outcome(reduction.kept.tolist(), merged=reduction.features(features))


def states(vector: Vector) -> DecoderTokens:
    """Returns the tokens inside the language model, in one raster."""
    features, grid = vector.tensors["features"], vector.grid
    assert grid is not None
    n = len(features)
    return DecoderTokens(
        features,
        None,
        n,
        keys=vector.tensors["keys"],
        coordinates=torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])),
        rasters=torch.tensor(grid).expand(n, 2),
        groups=torch.zeros(n, dtype=torch.int64),
    )


METHODS = {"vlm_pruner": vlm_pruner}
