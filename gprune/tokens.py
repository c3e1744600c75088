"""What a pruner sees of one group of visual tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from gprune.budget import KINDS
from gprune.device import require_finite

# What methods can read beside the features: the field that holds it, and what it is.
SIGNALS = {
    "cls_attention": ("attention", "the attention of the vision encoder's CLS token"),
    "attention": ("attention", "the attention that tokens receive in the vision encoder"),
    "mean_attention": ("attention", "the mean attention that tokens receive in the vision encoder"),
    "object_attention": ("object_attention", "the attention in a middle layer of the encoder"),
    "keys": ("keys", "the keys of the vision encoder's attention"),
    "text": ("text", "embeddings of the question"),
}

# Signals with one row for each token.
PER_TOKEN = ("attention", "object_attention", "keys", "aligned")


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """One group: tokens that are pruned together (an image, a thumbnail, a tile canvas, a frame).

    Attributes:
        features: projected visual features, after the projector and before the language model,
            [n, d], floating point.
        grid: (rows, columns) when the tokens form a raster, rows first.
        positions: where each token lies, [n, 2]; derived from ``grid`` by `coordinates`.
        attention: attention that each token received in the vision encoder, averaged over heads:
            from its CLS token, or the mean over all of its tokens, [n].
        object_attention: the mean that each token received in a middle layer of it, [n].
        keys: of the tokens in that encoder's attention, [n, c].
        text: embeddings of the question, [m, e].
        aligned: the tokens in the space of ``text``, [n, e]; where absent, ``features`` are.
        protected: bool [n]; true for tokens that are always kept. They are no candidates: a pruner
            neither ranks them nor counts them against its budget.
        kind: ``image``, ``thumbnail``, ``canvas`` (of tiles), ``tile`` or ``frame``; budgets can
            differ by it.

    Raises:
        TypeError: a signal is no tensor, or the grid no pair of whole numbers.
        ValueError: a shape does not fit, or the group is empty. Values are checked in
            `Pruner.select`, see `check_values`.
    """

    features: Tensor
    grid: tuple[int, int] | None = None
    positions: Tensor | None = None
    attention: Tensor | None = None
    text: Tensor | None = None
    protected: Tensor | None = None
    kind: str = "image"
    object_attention: Tensor | None = None
    keys: Tensor | None = None
    aligned: Tensor | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r} must be one of {', '.join(KINDS)}")
        self._require_tensor("features", self.features)
        shape = list(self.features.shape)
        if self.features.ndim != 2:
            raise ValueError(
                f"features must have shape [n, d], one group at a time; got shape {shape}"
            )
        if not self.features.is_floating_point():
            raise ValueError(f"features must be floating point, got {self.features.dtype}")
        n, d = shape
        if n == 0 or d == 0:
            raise ValueError(
                f"features of shape {shape} are empty: a group needs at least one token and one "
                "channel; leave the group out instead"
            )
        if self.grid is not None:
            self._require_grid(self.grid, n)
        self._require_shape("positions", self.positions, [n, 2])
        self._require_shape("attention", self.attention, [n])
        self._require_shape("object_attention", self.object_attention, [n])
        self._require_shape("protected", self.protected, [n])
        if self.protected is not None and self.protected.dtype != torch.bool:
            raise ValueError(f"protected must be a bool tensor, got {self.protected.dtype}")
        for name in ("keys", "aligned"):
            self._require_rows(name, getattr(self, name), n)
        width = d if self.aligned is None else self.aligned.shape[1]
        if self.text is None:
            return
        self._require_tensor("text", self.text)
        if self.text.ndim != 2 or self.text.shape[1] != width or self.text.shape[0] < 1:
            raise ValueError(
                f"text must have shape [m, {width}] with m >= 1, got shape {list(self.text.shape)}"
            )

    @staticmethod
    def _require_grid(grid: tuple[int, int], n: int) -> None:
        pair = isinstance(grid, Sequence) and len(grid) == 2
        if not pair or not all(isinstance(size, Integral) for size in grid):
            raise TypeError(f"grid must be (rows, columns), two whole numbers; got {grid!r}")
        if min(grid) < 1 or grid[0] * grid[1] != n:
            raise ValueError(
                f"grid={grid} has {grid[0] * grid[1]} cells but features have {n} rows; pass the "
                "(rows, columns) of this group, or grid=None when it is no raster"
            )

    @staticmethod
    def _require_tensor(name: str, value: Tensor) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")

    @classmethod
    def _require_rows(cls, name: str, value: Tensor | None, n: int) -> None:
        if value is None:
            return
        cls._require_tensor(name, value)
        if value.ndim != 2 or value.shape[0] != n or value.shape[1] < 1:
            raise ValueError(f"{name} must have shape [{n}, e], got shape {list(value.shape)}")

    @classmethod
    def _require_shape(cls, name: str, value: Tensor | None, shape: list[int]) -> None:
        if value is None:
            return
        cls._require_tensor(name, value)
        if list(value.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got shape {list(value.shape)}")

    def __len__(self) -> int:
        return self.features.shape[0]

    def check_values(self) -> None:
        """Requires finite values; on an accelerator the report comes later (see `gprune.device`).

        Raises:
            ValueError: NaN or infinite values, or some beyond float32's range.
        """
        for name in ("features", "positions", "text", *PER_TOKEN):
            values = getattr(self, name)
            if values is not None and values.is_floating_point():
                require_finite(values, name)

    def subset(self, rows: Tensor, grid: tuple[int, int] | None = None) -> VisualTokens:
        """The tokens at ``rows`` [k] alone, of which ``grid`` may be the raster; not protected."""

        def pick(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[rows]

        positions = self.positions if self.grid is None else self.coordinates()
        return VisualTokens(
            self.features[rows],
            grid=grid,
            positions=pick(positions),
            text=self.text,
            kind=self.kind,
            attention=pick(self.attention),
            object_attention=pick(self.object_attention),
            keys=pick(self.keys),
            aligned=pick(self.aligned),
        )

    def in_text_space(self) -> Tensor:
        """The tokens where they can be compared with ``text``, [n, e]."""
        return self.features if self.aligned is None else self.aligned

    def coordinates(self) -> Tensor:
        """Positions [n, 2] as (row, column): those given, else those of the grid.

        Raises:
            ValueError: there are neither positions nor a grid.
        """
        if self.positions is not None:
            return self.positions
        if self.grid is None:
            raise ValueError("positions and grid are both missing; pass one of them")
        rows, columns = self.grid
        index = torch.arange(rows * columns, device=self.features.device)
        return torch.stack([index // columns, index % columns], 1)
