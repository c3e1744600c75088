"""What methods read of the vision encoder beside the projected features.

Attention is computed again for the one layer that a method needs, from that layer's own input, in
float32. The model itself runs as it was loaded, with SDPA or FlashAttention, and where a method
needs features alone nothing is computed at all.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gprune.errors import UnsupportedModelError
from gprune.layouts import Family, Patches, has_cls

# Attention modules whose weights were compared with those that the eager kernel returns: with
# projections apart, and with one for queries, keys and values that are then rotated.
PROJECTED = (
    "CLIPAttention",
    "SiglipAttention",
    "InternVLVisionAttention",
    "Idefics3VisionAttention",
    "SmolVLMVisionAttention",
)
FUSED = (
    "VisionAttention",
    "Qwen2_5_VLVisionAttention",
    "Qwen3VLVisionAttention",
    "Qwen3VLMoeVisionAttention",
    "Glm4vVisionAttention",
)

# Queries whose attention is in memory at a time.
BLOCK = 1024


class VisionSignals:
    """Watches a model's vision encoder inside a ``with`` block for what a method reads of it.

    Attributes:
        names: the signals, of `gprune.tokens.SIGNALS`, and ``vision``: features of the layer that
            the model takes, before its projector.

    Raises:
        UnsupportedModelError: the model has no such signal; the message says why.
    """

    def __init__(self, model: Any, family: Family, names: Sequence[str], object_depth: float):
        self.model, self.family = model, family
        self.names = [name for name in names if name != "text"]
        self._local = threading.local()
        if not self.names:
            return
        tower = family.tower(model)
        layers = [
            module for module in tower.modules() if type(module).__name__ in PROJECTED + FUSED
        ]
        if not layers:
            raise UnsupportedModelError(
                f"{family.title} has a vision encoder ({type(tower).__name__}) whose attention "
                "cannot be computed again yet; take a method that needs features alone, such as "
                "graph_cover"
            )
        self._cls = has_cls(tower)
        if "cls_attention" in self.names and not self._cls:
            raise UnsupportedModelError(
                f"the vision encoder of {type(model).__name__} ({type(tower).__name__}) has no CLS "
                "token, whose attention the method ranks by; take visionzip, vispruner or holov, "
                "which rank by the attention received from all tokens there"
            )
        self._layer = layers[feature_layer(model.config, len(layers))]
        self._object_layer = layers[max(round(object_depth * len(layers)), 1) - 1]
        names_of = {id(module): name for name, module in tower.named_modules()}
        self._block = tower.get_submodule(names_of[id(self._layer)].rpartition(".")[0])

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Registers the hooks, and takes them away again."""
        if not self.names:
            yield
            return
        base = self.model.base_model
        with ExitStack() as stack:
            for name in {f"get_{modality}_features" for modality in self.family.modalities}:
                stack.enter_context(replaced(base, name, self._watched(base, name)))
            handles = []
            if {"cls_attention", "attention", "mean_attention", "keys"} & set(self.names):
                hook = self._attention
                handles.append(self._layer.register_forward_pre_hook(hook, with_kwargs=True))
            if "object_attention" in self.names:
                hook = self._object_attention
                handles.append(self._object_layer.register_forward_pre_hook(hook, with_kwargs=True))
            if "vision" in self.names:
                handles.append(self._block.register_forward_hook(self._features))
            for handle in handles:
                stack.callback(handle.remove)
            yield

    def _watched(self, base: Any, name: str) -> Any:
        """The encoding method, whose output gets what the hooks saw as ``signals``."""
        encode = getattr(base, name)
        signature = inspect.signature(encode)
        modality = name.split("_")[1]

        @functools.wraps(encode)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if getattr(self._local, "seen", None) is not None:
                return encode(*args, **kwargs)  # Qwen3-VL encodes videos as images
            call = signature.bind(*args, **kwargs).arguments
            usual = getattr(self.model.config, "vision_feature_layer", None)
            layer = call.get("vision_feature_layer")
            if layer is not None and layer != usual:
                raise ValueError(
                    f"vision_feature_layer={layer} differs from the config's {usual}, whose "
                    "attention is watched; set model.config.vision_feature_layer before pruning"
                )
            seen: dict[str, Tensor] = {}
            self._local.seen = seen  # the call is this thread's alone
            try:
                output = encode(*args, **kwargs)
            finally:
                self._local.seen = None
            if hasattr(output, "pooler_output"):
                output.signals = self.names, self._per_image(modality, seen, call, output)
            return output

        return watched

    def of(self, output: Any) -> list[dict[str, Tensor]] | None:
        """What was seen of each image when ``output`` was encoded; None where nothing is needed.

        Raises:
            ValueError: it was encoded outside of the block.
        """
        if not self.names:
            return None
        names, seen = getattr(output, "signals", ((), []))
        if names != self.names:
            raise ValueError(
                f"mm_encoder_outputs come without {' and '.join(self.names)}, which the method "
                "needs: encode inside the `with` block, or pass the pixels"
            )
        return seen

    @torch.no_grad()
    def _per_image(
        self, modality: str, seen: dict[str, Tensor], call: Any, output: Any
    ) -> list[dict[str, Tensor]]:
        """Deals what was seen of patches out to the tokens of each image."""
        values = torch.cat(list(seen.values()), -1)  # [b, patches, channels]
        lengths = [len(features) for features in self.family.features(self.model, output)]
        patches = Patches(values, modality, call, lengths)
        images = self.family.per_token(self.model, patches)
        assert [len(image) for image in images] == lengths  # of the same patches
        widths = [part.shape[-1] for part in seen.values()]
        return [dict(zip(seen, torch.split(image, widths, -1), strict=True)) for image in images]

    @torch.no_grad()
    def _attention(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen = getattr(self._local, "seen", None)
        if seen is None:
            return
        query, key, spans, mask = attention_inputs(module, args, kwargs)
        if "keys" in self.names:
            seen["keys"] = key.transpose(1, 2).flatten(2).float()
        if "mean_attention" in self.names or ("attention" in self.names and not self._cls):
            seen["attention"] = mean_received(module, query, key, spans, mask)
        elif "attention" in self.names or "cls_attention" in self.names:
            weights = softmax_weights(module, query[:, :, :1], key, first_row(mask))
            seen["attention"] = weights.mean(1).transpose(1, 2)  # [b, patches, 1]

    @torch.no_grad()
    def _object_attention(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        seen = getattr(self._local, "seen", None)
        if seen is not None:
            seen["object_attention"] = mean_received(
                module, *attention_inputs(module, args, kwargs)
            )

    def _features(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen = getattr(self._local, "seen", None)
        if seen is not None:
            hidden = output[0] if isinstance(output, tuple) else output
            seen["vision"] = hidden.detach().float()


def feature_layer(config: Any, layers: int) -> int:
    """Index of the layer that the features come from; of several, the last.

    Hidden states are numbered from the embeddings, one more than there are layers.
    """
    chosen = getattr(config, "vision_feature_layers", getattr(config, "vision_feature_layer", -1))
    numbers = [chosen] if isinstance(chosen, int) else chosen
    return max(max(number % (layers + 1) for number in numbers) - 1, 0)


def attention_inputs(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor, list[int], Tensor | None]:
    """What an attention module computes its weights from.

    Returns:
        queries and keys, [b, heads, n, c];
        lengths of the spans that see themselves alone;
        the mask to add to the logits, or None.
    """
    call = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    own: Any = module
    hidden = call["hidden_states"].detach()
    if type(module).__name__ in FUSED:
        width = (len(hidden), 3, own.num_heads, -1)
        query, key = own.qkv(hidden).reshape(width).unbind(1)[:2]  # [n, heads, c]
        query, key = (rotated(x, *call["position_embeddings"]) for x in (query, key))
        spans = call["cu_seqlens"].diff().tolist()
        return query.transpose(0, 1)[None], key.transpose(0, 1)[None], spans, None
    query, key = own.q_proj(hidden), own.k_proj(hidden)
    if hasattr(own, "q_norm"):
        query, key = own.q_norm(query), own.k_norm(key)
    query, key = (x.unflatten(-1, (own.num_heads, -1)).transpose(1, 2) for x in (query, key))
    return query, key, [hidden.shape[1]], additive(call.get("attention_mask"))


def rotated(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embeddings, in float32, [n, heads, c]; ``cos`` and ``sin`` [n, c]."""
    wide = values.float()
    first, second = wide.chunk(2, -1)
    turned = torch.cat([-second, first], -1)
    return (wide * cos.unsqueeze(-2).float() + turned * sin.unsqueeze(-2).float()).to(values.dtype)


def additive(mask: Tensor | None) -> Tensor | None:
    """An attention mask as what is added to logits, [b, 1, 1 or n, n]."""
    if mask is None:
        return None
    if mask.ndim == 2:  # of FlashAttention: which keys there are
        mask = mask[:, None, None].bool()
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)
    return mask.float()


def first_row(mask: Tensor | None) -> Tensor | None:
    """The part of a mask that the first query sees."""
    return None if mask is None else mask[:, :, :1]


def softmax_weights(module: Any, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """Attention weights of queries [b, heads, q, c] over keys [b, heads, n, c], float32."""
    scale = module.scaling if hasattr(module, "scaling") else module.scale
    logits = query.float() @ key.float().mT * scale
    return torch.softmax(logits if mask is None else logits + mask, -1)


def mean_received(
    module: nn.Module, query: Tensor, key: Tensor, spans: Sequence[int], mask: Tensor | None
) -> Tensor:
    """The mean over heads and queries of the attention that each token receives, [b, n, 1]."""
    parts = []
    sizes = list(spans)
    for queries, keys in zip(torch.split(query, sizes, 2), torch.split(key, sizes, 2), strict=True):
        n = queries.shape[2]
        received = queries.new_zeros(len(queries), n, dtype=torch.float32)
        for start in range(0, n, BLOCK):
            rows = slice(start, start + BLOCK)
            part = mask if mask is None or mask.shape[2] == 1 else mask[:, :, rows]
            received += softmax_weights(module, queries[:, :, rows], keys, part).sum((1, 2))
        parts.append(received / (n * queries.shape[1]))
    return torch.cat(parts, 1).unsqueeze(-1)


@contextmanager
def replaced(model: Any, name: str, method: Any) -> Iterator[None]:
    """Puts ``method`` in the place of a method of one model, and takes it away again."""
    own = vars(model).get(name)
    setattr(model, name, method)
    try:
        yield
    finally:
        if own is None:
            delattr(model, name)
        else:
            setattr(model, name, own)
