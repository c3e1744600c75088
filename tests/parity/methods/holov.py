"""How HoloV is asked."""

from gprune import HoloV, VisualTokens
from tests.parity.vectors_io import Outcome, Vector


def holov(vector: Vector) -> Outcome:
    """Asks for ``k`` tokens with the loss of the released code: zero rows where a run overflows.

    Where no run overflows, that is the default (`tests/pruners/test_holov.py`).
    """
    pruner = HoloV(
        vector.k,
        crops=vector.params["num_patches"],
        context_weight=vector.params["alpha"],
        lose_surplus=True,
    )
    features, attention = vector.tensors["features"], vector.tensors["cls_attention"].mean(0)
    found = pruner.reduce(VisualTokens(features, grid=vector.grid, attention=attention))
    zero_rows = int((found.appended_features(features) == 0).all(1).sum())
    return Outcome(found.kept.tolist(), facts={"zero_rows": zero_rows})


METHODS = {"holov": holov}
