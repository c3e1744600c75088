"""How the methods that prune whole videos are asked."""

from gprune import EVS, VidCom2, VisualTokens
from gprune.pruners.video import VideoPruner
from tests.parity.vectors_io import Outcome, Vector


def kept_of_frames(pruner: VideoPruner, vector: Vector) -> list[list[int]]:
    """Returns the kept tokens of each frame."""
    frames = [
        VisualTokens(frame, grid=vector.grid, kind="frame") for frame in vector.tensors["frames"]
    ]
    return [reduction.kept.tolist() for reduction in pruner.reduce_groups(frames)]


def through_video(kept: list[list[int]], vector: Vector) -> list[int]:
    """Returns kept tokens of frames as indices that run through the video."""
    n = vector.tensors["frames"].shape[1]
    return [frame * n + token for frame, tokens in enumerate(kept) for token in tokens]


def evs(vector: Vector) -> Outcome:
    """Asks for what is left of a pruned share ``q``, counted in floating point as vLLM does."""
    pruner = EVS(1 - vector.params["q"], float_count=True)
    return Outcome(through_video(kept_of_frames(pruner, vector), vector))


def vidcom2(vector: Vector) -> Outcome:
    """Asks for a share of the video's tokens."""
    kept = kept_of_frames(VidCom2(vector.params["base_scale"]), vector)
    return Outcome(through_video(kept, vector), facts={"counts": [len(frame) for frame in kept]})


METHODS = {"evs": evs, "vidcom2": vidcom2}
