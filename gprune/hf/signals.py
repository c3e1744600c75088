"""Records what methods read of the vision encoder besides the projected features.

Attention is recomputed only for the one layer that a method needs; for methods that need features
alone nothing is hooked.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gprune.errors import UnsupportedModelError
from gprune.hf.encoder_attention import FUSED, PROJECTED, AttentionInputs, attention_inputs
from gprune.hf.overrides import override_method
from gprune.layouts import Family, Patches, has_cls
from gprune.tokens import SIGNALS

# Signals that are recorded from the layer whose features the model takes.
FEATURE_LAYER_SIGNALS = {"cls_attention", "attention", "mean_attention", "keys"}

# Signals that are recorded from the last layer, whatever layer the model takes features from.
LAST_LAYER_SIGNALS = {"joint_cls_attention", "last_keys"}

# Signals that need a CLS token.
CLS_SIGNALS = {"cls_attention", "joint_cls_attention"}


class VisionSignals:
    """Hooks a model's vision encoder inside a ``with`` block and records what a method reads.

    Attributes:
        required: the signals that the method needs, keys of `gprune.tokens.SIGNALS`.
        names: these, and the optional ones that the encoder has.
    """

    def __init__(
        self,
        model: Any,
        family: Family,
        names: Sequence[str],
        object_depth: float,
        optional: Sequence[str] = (),
    ) -> None:
        """Finds the layers to hook.

        Args:
            model: the model.
            family: its layout.
            names: the signals to record; ``text`` is ignored.
            object_depth: where ``object_attention`` is read, as a share of the encoder's depth.
            optional: further signals, recorded where ``names`` could be.

        Raises:
            UnsupportedModelError: the model has no such signal; the message says why.
            ValueError: two signals are one field of the tokens.
        """
        self.model, self.family = model, family
        self.required = [name for name in names if name != "text"]
        self.names = [*self.required]
        self._local = threading.local()
        optional = [name for name in optional if name not in names]
        if optional and (self.required or has_known_attention(family.tower(model))):
            self.names += optional
        check_fields(self.names)
        if not self.names:
            return
        tower = family.tower(model)
        layers = attention_layers(tower, family.title)
        self._cls = has_cls(tower)
        if CLS_SIGNALS & set(self.names):
            require_cls(model, tower)
        self._layer = layers[feature_layer(model.config, len(layers))]
        self._last_layer = layers[-1]
        self._object_layer = layers[max(round(object_depth * len(layers)), 1) - 1]
        self._block = parent_of(self._layer, tower)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Registers the hooks; removes them on exit."""
        if not self.names:
            yield
            return
        base = self.model.base_model
        with ExitStack() as stack:
            for modality in self.family.modalities:
                name = f"get_{modality}_features"
                encode = self._recorded(getattr(base, name), modality)
                stack.enter_context(override_method(base, name, encode))
            for handle in self._register_hooks():
                stack.callback(handle.remove)
            yield

    def _register_hooks(self) -> list[Any]:
        """Registers the hooks that the signals need; returns their handles."""
        handles: list[Any] = []
        if FEATURE_LAYER_SIGNALS & set(self.names):
            hook = self._record_attention
            handles.append(self._layer.register_forward_pre_hook(hook, with_kwargs=True))
        if LAST_LAYER_SIGNALS & set(self.names):
            hook = self._record_last_layer
            handles.append(self._last_layer.register_forward_pre_hook(hook, with_kwargs=True))
        if "object_attention" in self.names:
            hook = self._record_object_attention
            handles.append(self._object_layer.register_forward_pre_hook(hook, with_kwargs=True))
        if "vision" in self.names:
            handles.append(self._block.register_forward_hook(self._record_features))
        return handles

    def _recorded(self, encode: Callable[..., Any], modality: str) -> Callable[..., Any]:
        """Wraps an encoding method; its output gets an attribute ``signals``."""
        signature = inspect.signature(encode)

        @functools.wraps(encode)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            if self._records() is not None:
                return encode(*args, **kwargs)  # Qwen3-VL encodes videos as images
            call = signature.bind(*args, **kwargs).arguments
            self._check_layer(call)
            records: dict[str, Tensor] = {}
            self._local.records = records  # thread-local: other threads may encode too
            self._local.heads = 1
            try:
                output = encode(*args, **kwargs)
            finally:
                self._local.records = None
            if hasattr(output, "pooler_output"):
                output.signals = self.names, self._per_image(modality, records, call, output)
            return output

        return recorded

    def _check_layer(self, call: dict[str, Any]) -> None:
        """Checks that a call takes features from the layer that is hooked.

        Raises:
            ValueError: it does not.
        """
        configured = getattr(self.model.config, "vision_feature_layer", None)
        layer = call.get("vision_feature_layer")
        if layer is not None and layer != configured:
            raise ValueError(
                f"vision_feature_layer={layer} differs from the config's {configured}, whose "
                "attention is recorded; set model.config.vision_feature_layer before pruning"
            )

    def of(self, output: Any) -> list[dict[str, Tensor]] | None:
        """Returns the signals of each image in an encoder output; None if there are none.

        An output from outside the ``with`` block has no optional signals either.

        Raises:
            ValueError: the output was encoded outside, and the method needs a signal.
        """
        names, records = getattr(output, "signals", ((), []))
        if self.names and names == self.names:
            return records
        if self.required:
            raise ValueError(
                f"mm_encoder_outputs come without {' and '.join(self.required)}, which the method "
                "needs: encode inside the `with` block, or pass the pixels"
            )
        return None

    @torch.no_grad()
    def _per_image(
        self, modality: str, records: dict[str, Tensor], call: Any, output: Any
    ) -> list[dict[str, Tensor]]:
        """Converts values per patch to values per token, [n, c], for each image."""
        values = torch.cat(list(records.values()), -1)  # [b, patches, channels]
        lengths = [len(features) for features in self.family.features(self.model, output)]
        patches = Patches(values, modality, call, lengths)
        images = self.family.token_values(self.model, patches)
        assert [len(image) for image in images] == lengths  # of the same patches
        widths = [part.shape[-1] for part in records.values()]
        signals = [
            dict(zip(records, torch.split(image, widths, -1), strict=True)) for image in images
        ]
        for own in signals:
            if "keys" in own:
                own["keys"] = own["keys"].reshape(len(own["keys"]), self._local.heads, -1)
        return signals

    def _records(self) -> dict[str, Tensor] | None:
        """Returns the records of the encoding that this thread is running, or None."""
        return getattr(self._local, "records", None)

    @torch.no_grad()
    def _record_attention(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Records attention and keys of the feature layer; a forward pre-hook."""
        records = self._records()
        if records is None:
            return
        inputs = attention_inputs(module, args, kwargs)
        if "keys" in self.names:
            self._record_keys(records, inputs)
        if "mean_attention" in self.names or ("attention" in self.names and not self._cls):
            records["attention"] = inputs.mean_received()
        elif "attention" in self.names or "cls_attention" in self.names:
            records["attention"] = inputs.first_query()

    def _record_keys(self, records: dict[str, Tensor], inputs: AttentionInputs) -> None:
        """Records keys, heads side by side, and the number of heads."""
        self._local.heads = inputs.key.shape[1]
        records["keys"] = inputs.key.transpose(1, 2).flatten(2).float()

    @torch.no_grad()
    def _record_last_layer(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Records joint attention and keys of the last layer; a forward pre-hook."""
        records = self._records()
        if records is None:
            return
        inputs = attention_inputs(module, args, kwargs)
        if "last_keys" in self.names:
            self._record_keys(records, inputs)
        if "joint_cls_attention" in self.names:
            records["attention"] = inputs.joint_first_query()

    @torch.no_grad()
    def _record_object_attention(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Records mean attention of the object layer; a forward pre-hook."""
        records = self._records()
        if records is not None:
            inputs = attention_inputs(module, args, kwargs)
            records["object_attention"] = inputs.mean_received()

    def _record_features(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Records the features of the feature layer's block; a forward hook."""
        records = self._records()
        if records is not None:
            hidden = output[0] if isinstance(output, tuple) else output
            # Encoders that pack images into one sequence have no batch dimension.
            records["vision"] = hidden.detach().float().view(-1, *hidden.shape[-2:])


def require_cls(model: Any, tower: Any) -> None:
    """Checks that a model's vision encoder has a CLS token.

    Raises:
        UnsupportedModelError: it has not.
    """
    if not has_cls(tower):
        raise UnsupportedModelError(
            f"the vision encoder of {type(model).__name__} ({type(tower).__name__}) has no CLS "
            "token, whose attention the method ranks by; use visionzip, vispruner or holov, "
            "which rank by the attention received from all tokens there"
        )


def check_fields(names: Sequence[str]) -> None:
    """Checks that no two signals are one field of `gprune.tokens.VisualTokens`.

    Raises:
        ValueError: two are.
    """
    signals: dict[str, str] = {}
    for name in names:
        field, _ = SIGNALS[name]
        other = signals.setdefault(field, name)
        if other != name:
            raise ValueError(
                f"signals {other} and {name} are both the tokens' {field}; declare one of them"
            )


def has_known_attention(tower: Any) -> bool:
    """Returns whether the attention of a vision encoder can be recomputed."""
    return any(type(module).__name__ in PROJECTED + FUSED for module in tower.modules())


def parent_of(module: nn.Module, tower: nn.Module) -> nn.Module:
    """Returns the module of a vision encoder that another is part of."""
    names = {id(part): name for name, part in tower.named_modules()}
    return tower.get_submodule(names[id(module)].rpartition(".")[0])


def attention_layers(tower: Any, title: str) -> list[Any]:
    """Returns the attention modules of a vision encoder, in order.

    Args:
        tower: the vision encoder.
        title: of the family, for the message.

    Raises:
        UnsupportedModelError: none of them can be recomputed.
    """
    layers = [m for m in tower.modules() if type(m).__name__ in PROJECTED + FUSED]
    if not layers:
        raise UnsupportedModelError(
            f"{title} has a vision encoder ({type(tower).__name__}) whose attention cannot be "
            "recomputed yet; use a method that needs features alone, such as graph_cover"
        )
    return layers


def feature_layer(config: Any, layers: int) -> int:
    """Returns the index of the layer whose features the model takes; of several, the last.

    Hidden states are numbered from the embeddings, so there is one more than there are layers.
    """
    chosen = getattr(config, "vision_feature_layers", getattr(config, "vision_feature_layer", -1))
    numbers = [chosen] if isinstance(chosen, int) else chosen
    return max(max(number % (layers + 1) for number in numbers) - 1, 0)
