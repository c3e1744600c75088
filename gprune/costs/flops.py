"""Counts the multiply-adds of the language model's prefill and the bytes of its KV cache.

Papers count in different ways, so each number names its convention. All conventions count
multiply-adds (one multiplication with its addition), which the papers call FLOPs.

* ``fastv``: ``4nd² + 2n²d + 2ndm`` per layer (FastV, arXiv 2403.06764, §4.2): multi-head attention
  and an MLP of two matrices, whatever the model has. Most papers report this count.
* ``linear``: the linear layers alone, with the model's grouped-query attention and gated MLP:
  6.98 G per token for Llama-3-8B. Probably what G-Prune's paper reports (arXiv 2501.02268).
* ``exact``: ``linear`` plus causal attention, in which position i attends to i keys.

No convention counts the embeddings, the output head or the vision tower, because pruning does not
change them; `vision_tower_flops` gives the cost of the tower.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gprune.budget import kept_count


@dataclass(frozen=True)
class LanguageModelShape:
    """Sizes of a language model that its prefill cost depends on.

    Attributes:
        hidden_size: d, width of the hidden states.
        intermediate_size: m, width of the MLP.
        layers: number of decoder layers.
        heads: attention heads; may be None for the convention ``fastv``.
        kv_heads: key and value heads; ``heads`` if None.
        head_dim: width of a head; ``hidden_size / heads`` if None.
        gated: whether the MLP has a gate, hence three matrices instead of two.

    Raises:
        ValueError: a size is below 1, or ``heads`` is not a multiple of ``kv_heads``.
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
        """Reads the sizes from a transformers config of a whole model or of its language model."""
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
        """Total width of the query heads."""
        if self.heads is None or self.head_dim is None:
            return self.hidden_size
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Total width of the key heads, which is that of the value heads."""
        if self.heads is None or self.kv_heads is None:
            return self.query_width
        return self.query_width * self.kv_heads // self.heads

    def kv_bytes(self, n: int, bytes_per_value: int = 2) -> int:
        """Returns the KV-cache bytes of ``n`` tokens; a bfloat16 or float16 value has 2 bytes."""
        return 2 * self.layers * self.kv_width * bytes_per_value * n


def fastv(shape: LanguageModelShape, n: int) -> int:
    """Counts multiply-adds of ``n`` tokens with FastV's formula."""
    d, m = shape.hidden_size, shape.intermediate_size
    return shape.layers * (4 * n * d * d + 2 * n * n * d + 2 * n * d * m)


def linear(shape: LanguageModelShape, n: int) -> int:
    """Counts multiply-adds of the linear layers: queries, keys, values, output and MLP."""
    d = shape.hidden_size
    attention = 2 * d * shape.query_width + 2 * d * shape.kv_width
    mlp = (3 if shape.gated else 2) * d * shape.intermediate_size
    return shape.layers * n * (attention + mlp)


def exact(shape: LanguageModelShape, n: int) -> int:
    """Counts multiply-adds of the linear layers and of attention under a causal mask."""
    pairs = n * (n + 1) // 2
    return linear(shape, n) + shape.layers * 2 * pairs * shape.query_width


CONVENTIONS: dict[str, Callable[[LanguageModelShape, int], int]] = {
    "fastv": fastv,
    "linear": linear,
    "exact": exact,
}


def vision_tower_flops(config: Any) -> int:
    """Counts multiply-adds of a ViT tower for one image or tile of the tower's input size.

    The patch embedding is included. Pruning after the projector does not change this cost.
    """
    vision = config.vision_config
    image, patch = (
        size if isinstance(size, int) else size[0]  # InternVL stores height and width
        for size in (vision.image_size, vision.patch_size)
    )
    n = (image // patch) ** 2
    d, m = vision.hidden_size, vision.intermediate_size
    patches = n * d * 3 * patch**2
    layer = 4 * n * d * d + 2 * n * n * d + 2 * n * d * m
    return patches + vision.num_hidden_layers * layer


@dataclass(frozen=True)
class Saving:
    """Prefill cost with and without pruning.

    Attributes:
        convention: how multiply-adds are counted, one of `CONVENTIONS`.
        visual_tokens: visual tokens before pruning.
        text_tokens: the other tokens of the prompt.
        keep: the budget.
        kept_tokens: visual tokens that reach the last layer.
        flops_full: multiply-adds without pruning.
        flops_pruned: multiply-adds with pruning.
        flops_saved: the share that pruning saves, 0.64 for 64%.
        kv_bytes_full: KV-cache bytes without pruning.
        kv_bytes_pruned: KV-cache bytes with pruning.
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


# Over 40 lines because of its arguments and the ten fields of its result.
def saving(
    shape: LanguageModelShape,
    visual_tokens: int,
    text_tokens: int,
    keep: float | int,
    convention: str = "exact",
    bytes_per_value: int = 2,
    kept_tokens: int | Sequence[int] | None = None,
) -> Saving:
    """Counts the prefill cost with and without pruning.

    Args:
        shape: the language model's sizes.
        visual_tokens: visual tokens of all images before pruning.
        text_tokens: the other tokens of the prompt.
        keep: share in (0, 1], or a count.
        convention: one of `CONVENTIONS`.
        bytes_per_value: bytes of a value in the KV cache.
        kept_tokens: visual tokens that remain: one count for all layers, or one count per layer if
            the method prunes inside the language model (`gprune.pruners.DecoderPruner.schedule`,
            ``pruned.visual_by_layer``). By default ``kept_count(visual_tokens, keep)``, which can
            differ from the real count if an image has several groups.

    Raises:
        ValueError: the convention is unknown, a number is out of range, or the number of counts
            is not the number of layers.
    """
    check_prompt(convention, visual_tokens, text_tokens)
    kept = kept_count(visual_tokens, keep) if kept_tokens is None else kept_tokens
    stages = layer_stages(shape, kept)
    count = CONVENTIONS[convention]
    full = count(shape, visual_tokens + text_tokens)
    pruned = sum(count(part, n + text_tokens) for part, n in stages)
    return Saving(
        convention=convention,
        visual_tokens=visual_tokens,
        text_tokens=text_tokens,
        keep=keep,
        kept_tokens=kept if isinstance(kept, int) else kept[-1],
        flops_full=full,
        flops_pruned=pruned,
        flops_saved=1 - pruned / full,
        kv_bytes_full=shape.kv_bytes(visual_tokens + text_tokens, bytes_per_value),
        kv_bytes_pruned=sum(part.kv_bytes(n + text_tokens, bytes_per_value) for part, n in stages),
    )


def check_prompt(convention: str, visual_tokens: int, text_tokens: int) -> None:
    """Raises ValueError if the convention is unknown or a token count is out of range."""
    if convention not in CONVENTIONS:
        raise ValueError(f"convention={convention!r} must be one of {', '.join(CONVENTIONS)}")
    if visual_tokens < 1 or text_tokens < 0:
        raise ValueError(
            f"visual_tokens={visual_tokens} must be at least 1 and text_tokens={text_tokens} "
            "at least 0"
        )


def layer_stages(
    shape: LanguageModelShape, kept: int | Sequence[int]
) -> list[tuple[LanguageModelShape, int]]:
    """Groups decoder layers by the number of visual tokens that they process.

    Args:
        shape: the language model's sizes.
        kept: visual tokens in every layer, or one count per layer.

    Returns:
        the shape of the layers of each group, and their visual tokens.

    Raises:
        ValueError: the number of counts is not the number of layers.
    """
    if isinstance(kept, int):
        return [(shape, kept)]
    if len(kept) != shape.layers:
        raise ValueError(
            f"kept_tokens has {len(kept)} counts, expected one for each of the {shape.layers} "
            "layers"
        )
    return [(replace(shape, layers=layers), n) for n, layers in Counter(kept).items()]


def keep_for(
    target_saving: float,
    shape: LanguageModelShape,
    visual_tokens: int,
    text_tokens: int,
    convention: str = "exact",
) -> float:
    """Returns the largest share of tokens to keep that saves at least ``target_saving``.

    Args:
        target_saving: share of the prefill multiply-adds to save, in [0, 1).
        shape: the language model's sizes.
        visual_tokens: visual tokens before pruning.
        text_tokens: the other tokens of the prompt.
        convention: one of `CONVENTIONS`.

    Raises:
        ValueError: the target is outside [0, 1), or keeping a single token saves less.
    """
    if not 0 <= target_saving < 1:
        raise ValueError(f"target_saving={target_saving} must be in [0, 1): write 0.64 for 64%")
    for kept in range(visual_tokens, 0, -1):
        result = saving(shape, visual_tokens, text_tokens, kept, convention)
        if result.flops_saved >= target_saving:
            # Rounded up to parts per million: kept_count floors, and must give `kept`.
            return -(-kept * 1_000_000 // visual_tokens) / 1_000_000
    raise ValueError(
        f"target_saving={target_saving} cannot be reached: keeping one of {visual_tokens} visual "
        f"tokens beside {text_tokens} text tokens saves {result.flops_saved:.4f}"
    )
