"""What a pruner receives: the visual tokens of one group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from gprune.budget import GROUP_KINDS
from gprune.device import require_finite

# What a method can read besides the features: the field of `VisualTokens`, and its description.
SIGNALS = {
    "cls_attention": ("attention", "the attention of the vision encoder's CLS token"),
    "attention": ("attention", "the attention that tokens receive in the vision encoder"),
    "mean_attention": ("attention", "the mean attention that tokens receive in the vision encoder"),
    "object_attention": ("object_attention", "the attention in a middle layer of the encoder"),
    "joint_cls_attention": (
        "attention",
        "the CLS token's attention in the vision encoder's last layer, as one softmax of all heads",
    ),
    "keys": ("keys", "the keys of the vision encoder's attention"),
    "last_keys": ("keys", "the keys of the vision encoder's last layer"),
    "vision": ("vision", "the vision encoder's features before the projector"),
    "text": ("text", "embeddings of the question"),
}

# Fields with one row for each token, besides features and positions.
PER_TOKEN_FIELDS = ("attention", "object_attention", "keys", "vision", "aligned")


@dataclass(frozen=True, eq=False)
class VisualTokens:
    """Tokens that are pruned together: an image, a thumbnail, a canvas of tiles, or a frame.

    Attributes:
        features: projected visual features, after the projector and before the language model,
            [n, d], floating point.
        grid: (rows, columns) if the tokens form a raster in row-major order.
        positions: (row, column) of each token, [n, 2]; by default those of ``grid``, see
            `coordinates`.
        attention: attention that each token receives in the vision encoder, averaged over heads:
            from its CLS token, or the mean over all queries, [n].
        object_attention: mean attention that each token receives in a middle layer of it, [n].
        keys: keys of the tokens in the encoder's attention, [n, heads, c], or [n, c] of one head.
        vision: features of the encoder's layer that the projector takes, [n, c].
        text: embeddings of the question, [m, e].
        aligned: the tokens in the embedding space of ``text``, [n, e]; ``features`` if None.
        protected: bool [n]; true for tokens that are always kept. A pruner does not rank them, and
            they do not count against its budget.
        kind: ``image``, ``thumbnail``, ``canvas`` (of tiles), ``tile`` or ``frame``; budgets can
            differ by kind.

    Raises:
        TypeError: a signal is not a tensor, or the grid is not a pair of integers.
        ValueError: a shape does not fit, or the group is empty. Values are checked later, in
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
    vision: Tensor | None = None
    aligned: Tensor | None = None

    def __post_init__(self) -> None:
        if self.kind not in GROUP_KINDS:
            raise ValueError(f"kind={self.kind!r} must be one of {', '.join(GROUP_KINDS)}")
        self._check_features()
        n = len(self)
        if self.grid is not None:
            check_grid(self.grid, n)
        check_shape("positions", self.positions, [n, 2])
        check_shape("attention", self.attention, [n])
        check_shape("object_attention", self.object_attention, [n])
        check_shape("protected", self.protected, [n])
        if self.protected is not None and self.protected.dtype != torch.bool:
            raise ValueError(f"protected must be a bool tensor, got {self.protected.dtype}")
        check_keys(self.keys, n)
        check_rows("vision", self.vision, n)
        check_rows("aligned", self.aligned, n)
        self._check_text()

    def _check_features(self) -> None:
        check_tensor("features", self.features)
        shape = list(self.features.shape)
        if self.features.ndim != 2:
            raise ValueError(
                f"features must have shape [n, d], one group at a time; got shape {shape}"
            )
        if not self.features.is_floating_point():
            raise ValueError(f"features must be floating point, got {self.features.dtype}")
        if 0 in shape:
            raise ValueError(
                f"features of shape {shape} are empty: a group needs at least one token and one "
                "channel; leave the group out instead"
            )

    def _check_text(self) -> None:
        if self.text is None:
            return
        check_tensor("text", self.text)
        width = self.in_text_space().shape[1]
        if self.text.ndim != 2 or self.text.shape[1] != width or self.text.shape[0] < 1:
            raise ValueError(
                f"text must have shape [m, {width}] with m >= 1, got shape {list(self.text.shape)}"
            )

    def __len__(self) -> int:
        return self.features.shape[0]

    def check_values(self) -> None:
        """Checks that all values are finite; on an accelerator the error comes later.

        See `gprune.device`.

        Raises:
            ValueError: a value is NaN, infinite, or beyond float32's range.
        """
        for name in ("features", "positions", "text", *PER_TOKEN_FIELDS):
            values = getattr(self, name)
            if values is not None and values.is_floating_point():
                require_finite(values, name)

    def subset(self, rows: Tensor, grid: tuple[int, int] | None = None) -> VisualTokens:
        """Returns the tokens at ``rows``, int64 [k], as a group without protected tokens.

        Args:
            rows: indices of the tokens.
            grid: (rows, columns) of the raster that they form, or None.
        """

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
            vision=pick(self.vision),
            aligned=pick(self.aligned),
        )

    def in_text_space(self) -> Tensor:
        """Returns the tokens in the embedding space of ``text``, [n, e]."""
        return self.features if self.aligned is None else self.aligned

    def before_projector(self) -> Tensor:
        """Returns ``vision`` if it is there, else ``features``."""
        return self.features if self.vision is None else self.vision

    def joint_keys(self) -> Tensor:
        """Returns the keys of all heads side by side, [n, heads * c].

        Raises:
            ValueError: ``keys`` is missing.
        """
        return self._keys_by_head().flatten(1)

    def mean_keys(self) -> Tensor:
        """Returns the mean of the keys over heads, float32 [n, c].

        Raises:
            ValueError: ``keys`` is missing.
        """
        keys = self._keys_by_head().float()
        return keys[:, 0] if keys.shape[1] == 1 else keys.mean(1)

    def _keys_by_head(self) -> Tensor:
        """Returns the keys as [n, heads, c]."""
        if self.keys is None:
            raise ValueError("keys is missing; pass VisualTokens(..., keys=...)")
        return self.keys if self.keys.ndim == 3 else self.keys[:, None]

    def coordinates(self) -> Tensor:
        """Returns the (row, column) of each token, [n, 2]: ``positions``, or those of the grid.

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


@dataclass(frozen=True, eq=False)
class Group:
    """The rows of an image's (or video's) features that are pruned together.

    Attributes:
        rows: row indices into the features, int64 [n], ascending.
        grid: (rows, columns) of the raster that they form, or None.
        kind: one of `gprune.budget.GROUP_KINDS`.
    """

    rows: Tensor
    grid: tuple[int, int] | None
    kind: str = "image"


def check_grid(grid: tuple[int, int], n: int) -> None:
    """Checks that ``grid`` is a pair of integers whose product is ``n``.

    Raises:
        TypeError: it is not a pair of integers.
        ValueError: it does not have ``n`` cells.
    """
    pair = isinstance(grid, Sequence) and len(grid) == 2
    if not pair or not all(isinstance(size, Integral) for size in grid):
        raise TypeError(f"grid must be (rows, columns), two whole numbers; got {grid!r}")
    if min(grid) < 1 or grid[0] * grid[1] != n:
        raise ValueError(
            f"grid={grid} has {grid[0] * grid[1]} cells but features have {n} rows; pass the "
            "(rows, columns) of this group, or grid=None if it is not a raster"
        )


def check_tensor(name: str, value: Tensor) -> None:
    """Checks that a field is a tensor.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")


def check_rows(name: str, value: Tensor | None, n: int) -> None:
    """Checks that a field, if given, has shape [n, e] with e >= 1.

    Raises:
        TypeError, ValueError: it does not.
    """
    if value is None:
        return
    check_tensor(name, value)
    if value.ndim != 2 or value.shape[0] != n or value.shape[1] < 1:
        raise ValueError(f"{name} must have shape [{n}, e], got shape {list(value.shape)}")


def check_keys(keys: Tensor | None, n: int) -> None:
    """Checks that keys, if given, have shape [n, c] or [n, heads, c], nothing empty.

    Raises:
        TypeError, ValueError: they do not.
    """
    if keys is None:
        return
    check_tensor("keys", keys)
    if keys.ndim not in (2, 3) or keys.shape[0] != n or 0 in keys.shape:
        raise ValueError(
            f"keys must have shape [{n}, c] or [{n}, heads, c], got shape {list(keys.shape)}"
        )


def check_shape(name: str, value: Tensor | None, shape: list[int]) -> None:
    """Checks that a field, if given, has exactly the shape ``shape``.

    Raises:
        TypeError, ValueError: it does not.
    """
    if value is None:
        return
    check_tensor(name, value)
    if list(value.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got shape {list(value.shape)}")
