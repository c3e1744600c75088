"""The contract of methods that drop tokens before one layer, or before the language model."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from gprune.graph.norms import cache_chunks
from gprune.pruners.base import Pruner
from gprune.pruners.decoder import DecoderPruner, DecoderTokens, check_layers
from gprune.pruners.reduction import Reduction
from gprune.pruners.validation import check_number
from gprune.tokens import VisualTokens


@dataclass(frozen=True)
class OneLayerPruner(DecoderPruner):
    """A method that drops tokens before one layer, or with ``layer=0`` before the language model.

    Inside the language model it reads keys and hidden states, and all visual tokens of a prompt
    stand together. Before it, the method chooses within a group, by `Pruner.select`, and the
    projected features take the place of both; its `scope` is then ``group``.

    Attributes:
        keep: see `DecoderPruner`; with ``layer=0`` see `Pruner`.
        layer: number of the layer, counted from 0.

    Raises:
        TypeError: ``layer`` is no whole number; or ``keep`` is not a number, and ``layer`` is not
            0.
        ValueError: a parameter is out of range; or, when applied to a model, ``layer`` is not below
            its number of layers.
    """

    layer: int = 2

    def __post_init__(self) -> None:
        check_whole("layer", self.layer, 0)
        if self.layer:
            super().__post_init__()
            return
        # The class is a decoder method; an instance that prunes earlier is not.
        object.__setattr__(self, "scope", "group")
        Pruner.__post_init__(self)

    def stages(self, depth: int) -> tuple[int, ...]:
        return check_layers([self.layer], depth) if self.layer else ()

    def schedule(self, total: int, depth: int) -> list[int]:
        return super().schedule(total, depth) if self.layer else [self.final_count(total)] * depth

    def choose(self, tokens: VisualTokens, k: int) -> Reduction:
        if self.layer:
            name = type(self).__name__
            raise ValueError(
                f"{self.name} reads keys and hidden states inside the language model, so features "
                f"alone are not enough; use it as `with {name}(keep)(model):`, or take "
                f"{name}(keep, layer=0), which chooses from features before the language model"
            )
        return self.reduce_states(states_of_features(tokens), k)

    def drop(self, tokens: DecoderTokens, k: int) -> Reduction:
        return self.reduce_states(tokens, k)

    @abstractmethod
    def reduce_states(self, tokens: DecoderTokens, k: int) -> Reduction:
        """Reduces tokens by their keys and hidden states; what a method implements.

        Args:
            tokens: with the fields of `reads`; of features, see `states_of_features`.
            k: the budget, 1 to n.
        """


def check_whole(name: str, value: int, least: int) -> None:
    """Checks that ``value`` is a whole number of at least ``least``.

    Raises:
        TypeError: it is not an int.
        ValueError: it is less.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be a whole number")
    check_number(name, value, least)


def states_of_features(tokens: VisualTokens) -> DecoderTokens:
    """Returns the tokens of a group with features as keys and hidden states, and without text.

    Coordinates and rasters have the dtype of the group's positions.
    """
    features = tokens.features
    n, none = len(tokens), features[:0]
    if tokens.grid is None and tokens.positions is None:
        coordinates = rasters = torch.full((n, 2), -1, device=features.device)
    else:
        coordinates = tokens.coordinates()
        # The raster that the positions span, since a group with protected tokens has no grid.
        rasters = (coordinates.amax(0) - coordinates.amin(0) + 1).expand(n, 2)
    index = torch.arange(n, device=features.device)
    return DecoderTokens(
        features,
        None,
        n,
        keys=features,
        text_keys=none,
        text_hidden=none,
        normed=features,
        normed_text=none,
        coordinates=coordinates,
        rasters=rasters,
        groups=torch.zeros_like(index),
        columns=index,
    )


def required(tokens: DecoderTokens, field: str) -> Tensor:
    """Returns an optional field of ``tokens``.

    Raises:
        ValueError: it is missing.
    """
    values: Tensor | None = getattr(tokens, field)
    if values is None:
        raise ValueError(f"{field} is missing; pass DecoderTokens(..., {field}=...)")
    return values


def key_norms(keys: Tensor) -> Tensor:
    """Returns the L1 norm of each token's keys, float64 [n]; ``keys`` [n, c]."""
    norms = torch.empty(len(keys), dtype=torch.float64, device=keys.device)
    # In float64: float32 sums over many channels depend on the order of summation. By chunks in
    # one buffer it takes a quarter of the time.
    chunks = cache_chunks(keys)
    buffer = norms.new_empty(len(keys[chunks[0]]), keys.shape[1])
    for chunk in chunks:
        norms[chunk] = torch.linalg.vector_norm(buffer.copy_(keys[chunk]), ord=1, dim=1)
    return norms
