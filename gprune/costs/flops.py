"""Multiply-adds of the language model's prefill, and bytes of its key-value cache.

Papers count in different ways, so each number names its convention. All count multiply-adds, one
for a multiplication with its addition, as the papers do under the name FLOPs.

* ``fastv``: ``4nd² + 2n²d + 2ndm`` a layer (FastV, arXiv 2403.06764, §4.2): multi-head attention
  and a two-matrix MLP, whatever the model has. The field's common currency.
* ``linear``: the linear layers alone, with grouped-query attention and a gated MLP as they are:
  6.98 G a token for Llama-3-8B. Probably what G-Prune's paper reports (arXiv 2501.02268).
* ``exact``: ``linear`` plus causal attention, in which position i meets i keys.

None counts the embeddings, the output head or the vision tower, which pruning leaves as they are;
the vision tower's cost is given apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gprune.budget import kept_count


@dataclass(frozen=True)
class LanguageModelShape:
    """The sizes that cost depends on.

    Attributes:
        hidden_size: d.
        intermediate_size: m, width of the MLP.
        layers: number of decoder layers.
        heads: attention heads; None when only ``fastv`` is asked for.
        kv_heads: key and value heads; None: as many as ``heads``.
        head_dim: None: ``hidden_size / heads``.
        gated: whether the MLP has a gate, so three matrices instead of two.
    """

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    gated: bool = True

    def __post_init__(self) -> None:
        for name in ("hidden_size", "intermediate_size", "layers", "heads", "kv_heads", "head_dim"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.heads is not None and self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}")

    @classmethod
    def from_config(cls, config: Any) -> LanguageModelShape:
        """The sizes in a transformers config, of a whole model or of its language model."""
        text = config.get_text_config()
        heads = text.num_attention_heads
        return cls(
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            layers=text.num_hidden_layers,
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        )

    @property
    def query_width(self) -> int:
        """Width of all query heads together."""
        if self.heads is None or self.head_dim is None:
            return self.hidden_size
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key heads together."""
        if self.heads is None or self.kv_heads is None:
            return self.query_width
        return self.query_width * self.kv_heads // self.heads

    def kv_bytes(self, n: int, bytes_per_value: int = 2) -> int:
        """Bytes of the key-value cache of ``n`` tokens; 2 bytes a value are bf16 and float16."""
        return 2 * self.layers * self.kv_width * bytes_per_value * n


def fastv(shape: LanguageModelShape, n: int) -> int:
    """FastV's count for ``n`` tokens."""
    d, m = shape.hidden_size, shape.intermediate_size
    return shape.layers * (4 * n * d * d + 2 * n * n * d + 2 * n * d * m)


def linear(shape: LanguageModelShape, n: int) -> int:
    """The linear layers of ``n`` tokens: queries, keys, values, output and MLP."""
    d = shape.hidden_size
    attention = 2 * d * shape.query_width + 2 * d * shape.kv_width
    mlp = (3 if shape.gated else 2) * d * shape.intermediate_size
    return shape.layers * n * (attention + mlp)


def exact(shape: LanguageModelShape, n: int) -> int:
    """The linear layers, and queries by keys and weights by values under a causal mask."""
    pairs = n * (n + 1) // 2
    return linear(shape, n) + shape.layers * 2 * pairs * shape.query_width


CONVENTIONS: dict[str, Callable[[LanguageModelShape, int], int]] = {
    "fastv": fastv,
    "linear": linear,
    "exact": exact,
}


def vision_tower(config: Any) -> int:
    """Multiply-adds of a ViT tower for one image (or tile) of its size, patch embedding included.

    Pruning after the projector leaves this cost as it is.
    """
    vision = config.vision_config
    image, patch = (
        size if isinstance(size, int) else size[0]  # InternVL gives height and width
        for size in (vision.image_size, vision.patch_size)
    )
    n = (image // patch) ** 2
    d, m = vision.hidden_size, vision.intermediate_size
    patches = n * d * 3 * patch**2
    layer = 4 * n * d * d + 2 * n * n * d + 2 * n * d * m
    return patches + vision.num_hidden_layers * layer


@dataclass(frozen=True)
class Saving:
    """What a budget saves at prefill; ``flops_saved`` is the share, 0.64 for 64%.

    ``kept_tokens`` are those that reach the last layer.
    """

    convention: str
    visual_tokens: int
    text_tokens: int
    keep: float | int
    kept_tokens: int
    flops_full: int
    flops_pruned: int
    flops_saved: float
    kv_bytes_full: int
    kv_bytes_pruned: int


def saving(
    shape: LanguageModelShape,
    visual_tokens: int,
    text_tokens: int,
    keep: float | int,
    convention: str = "exact",
    bytes_per_value: int = 2,
    kept_tokens: int | Sequence[int] | None = None,
) -> Saving:
    """Prefill cost with and without pruning.

    Args:
        shape: the language model's sizes.
        visual_tokens: before pruning, of all images together.
        text_tokens: the rest of the prompt.
        keep: retention ratio in (0, 1], or a count.
        convention: one of `CONVENTIONS`.
        bytes_per_value: of the key-value cache.
        kept_tokens: how many were really kept, where images have several groups; or how many each
            layer sees, where a method drops them inside the language model
            (`gprune.pruners.DecoderPruner.schedule`, ``pruned.visual_by_layer``); by default
            ``kept_count(visual_tokens, keep)``.

    Raises:
        ValueError: unknown convention, a number out of range, or not one count a layer.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention={convention!r} must be one of {', '.join(CONVENTIONS)}")
    if visual_tokens < 1 or text_tokens < 0:
        raise ValueError(
            f"visual_tokens={visual_tokens} must be at least 1 and text_tokens={text_tokens} "
            "at least 0"
        )
    kept = kept_count(visual_tokens, keep) if kept_tokens is None else kept_tokens
    if isinstance(kept, int):
        parts, last = [(shape, kept)], kept
    elif len(kept) != shape.layers:
        raise ValueError(
            f"kept_tokens has {len(kept)} counts, expected one for each of the {shape.layers} "
            "layers"
        )
    else:
        parts = [(replace(shape, layers=layers), n) for n, layers in Counter(kept).items()]
        last = kept[-1]
    count = CONVENTIONS[convention]
    full = count(shape, visual_tokens + text_tokens)
    pruned = sum(count(part, n + text_tokens) for part, n in parts)
    return Saving(
        convention=convention,
        visual_tokens=visual_tokens,
        text_tokens=text_tokens,
        keep=keep,
        kept_tokens=last,
        flops_full=full,
        flops_pruned=pruned,
        flops_saved=1 - pruned / full,
        kv_bytes_full=shape.kv_bytes(visual_tokens + text_tokens, bytes_per_value),
        kv_bytes_pruned=sum(part.kv_bytes(n + text_tokens, bytes_per_value) for part, n in parts),
    )


def keep_for(
    target_saving: float,
    shape: LanguageModelShape,
    visual_tokens: int,
    text_tokens: int,
    convention: str = "exact",
) -> float:
    """The largest retention ratio that saves at least the share ``target_saving`` of the FLOPs.

    Raises:
        ValueError: the share is outside [0, 1), or more than keeping one token saves.
    """
    if not 0 <= target_saving < 1:
        raise ValueError(f"target_saving={target_saving} must lie in [0, 1): 0.64 is 64%")
    for kept in range(visual_tokens, 0, -1):
        result = saving(shape, visual_tokens, text_tokens, kept, convention)
        if result.flops_saved >= target_saving:
            # Rounded up to a whole part per million, so that the ratio keeps just this many.
            return -(-kept * 1_000_000 // visual_tokens) / 1_000_000
    raise ValueError(
        f"target_saving={target_saving} cannot be reached: keeping one of {visual_tokens} visual "
        f"tokens beside {text_tokens} text tokens saves {result.flops_saved:.4f}"
    )
