"""The adapter of a model family, with defaults for one raster of patches per image."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gprune.errors import UnsupportedModelError
from gprune.layouts.division import one_raster
from gprune.tokens import Group

# The argument of a call that holds the pixels of each modality.
PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


@dataclass(frozen=True, eq=False)
class Patches:
    """Per-patch values of one call of a vision encoder, for example attention or keys.

    Attributes:
        values: one row per patch (and CLS token), in the encoder's order, [b, patches, c].
        modality: ``image`` or ``video``.
        call: arguments of the encoding method.
        lengths: number of visual tokens of each image.
    """

    values: Tensor
    modality: str
    call: dict[str, Any]
    lengths: Sequence[int]


@dataclass(frozen=True)
class Family:
    """A model family: how its visual tokens are laid out, and what has been proven with it.

    Both engines read it. The methods that take a model call methods of that model; none imports
    transformers.

    Attributes:
        name: the ``model_type`` of its configs, as `gprune.families()` lists it.
        architectures: class names of the models with a language-modelling head.
        title: the name that people use.
        divided: which tokens are pruned together, for the table of families.
        tier: 1 passes every test, 2 the tests that apply, 3 is experimental.
        modalities: ``image``, ``video`` or both.
        prunes_in_decoder: whether methods that prune inside the language model are proven.
        takes_weights: whether methods that weight keys in attention are proven.
        takes_smaller_images: whether encoding images at another size is proven.
        served: whether the vLLM plugin serves it; `layout` then divides its images.
    """

    # Whether position ids have one row each for time, row and column (M-RoPE).
    multimodal_positions: ClassVar[bool] = False

    # Whether the language model takes projected features, so that tokens can be merged.
    takes_features: ClassVar[bool] = True

    # The encoder's layer that attends to objects, as a share of its depth: HiPrune's, the 9th of
    # CLIP's 24.
    object_depth: ClassVar[float] = 9 / 24

    # Whether text reads visual tokens by cross-attention; they are then not in the sequence.
    cross_attention: ClassVar[bool] = False

    name: str
    architectures: tuple[str, ...]
    title: str
    divided: str = "an image"
    tier: int = 1
    modalities: tuple[str, ...] = ("image",)
    prunes_in_decoder: bool = False
    takes_weights: bool = False
    takes_smaller_images: bool = False
    served: bool = False

    def tokens_per_image(self, config: Any) -> int | None:
        """Returns the visual tokens of an image (or tile); None if they depend on its size."""
        return None

    def encode(self, model: Any, modality: str, call: dict[str, Any]) -> Any:
        """Runs the vision encoder on the images or videos of a call, as `generate` does.

        Args:
            model: the model.
            modality: ``image`` or ``video``.
            call: arguments of the model's forward pass; not changed. The encoder gets those that
                `encoder_arguments` names.
        """
        encoder = getattr(model.base_model, f"get_{modality}_features")
        arguments = {name: call[name] for name in self.encoder_arguments(model, modality, call)}
        return encoder(**arguments, return_dict=True)

    def encoder_arguments(self, model: Any, modality: str, call: dict[str, Any]) -> set[str]:
        """Returns the names of the arguments in ``call`` that the encoder takes."""
        encoder = getattr(model.base_model, f"get_{modality}_features")
        return (set(inspect.signature(encoder).parameters) - {"kwargs"}) & call.keys()

    def check(self, call: dict[str, Any]) -> None:
        """Checks that the pixels of a call fit the arguments that describe them.

        Raises:
            ValueError: they do not fit.
        """

    def token_id(self, model: Any, modality: str) -> int:
        """Returns the token id of a modality's placeholder."""
        return getattr(model.config, f"{modality}_token_id")

    def features(self, model: Any, output: Any) -> list[Tensor]:
        """Returns the projected features of each image, each [n, d], in prompt order."""
        return list(output.pooler_output)

    def tower(self, model: Any) -> Any:
        """Returns the vision encoder."""
        base = model.base_model
        names = ("vision_tower", "visual", "vision_model")
        return next(getattr(base, name) for name in names if hasattr(base, name))

    def token_values(self, model: Any, patches: Patches) -> list[Tensor]:
        """Averages per-patch values over the patches that the model merges into each token.

        Returns:
            for each image values [n, c]; values of tokens in no group are meaningless.

        Raises:
            UnsupportedModelError: how the family merges patches into tokens is not implemented.
        """
        raise UnsupportedModelError(
            f"{self.title} turns patches into tokens in a way that gprune cannot map attention "
            "through yet; take a method that needs features alone, such as graph_cover"
        )

    def projector(self, model: Any, modality: str) -> Callable[[Tensor], Tensor] | None:
        """Returns the map from the encoder's features [k, c] to projected ones [k, d], row by row.

        None if the model mixes patches before or in the projector.
        """
        return None

    def grids(
        self, model: Any, positions: Tensor, placeholder: Tensor, lengths: Sequence[int]
    ) -> list[tuple[int, int, int] | None]:
        """Reads (frames, rows, columns) of each image off its position ids, None where impossible.

        Args:
            model: the model.
            positions: position ids of the call, [..., b, L].
            placeholder: mask of the modality's placeholders, bool [b, L].
            lengths: number of visual tokens of each image.
        """
        return [None] * len(lengths)

    def layout(
        self, tokens: int, rows: int, columns: int, device: torch.device | None = None
    ) -> list[Group]:
        """Divides the tokens of one image into groups, from counts alone.

        Args:
            tokens: visual tokens of the image.
            rows: of the raster (of a tile, or of the canvas of tiles).
            columns: of the same.
            device: of the groups' indices.
        """
        return one_raster(tokens, rows, columns, device=device)

    def groups(
        self, model: Any, modality: str, features: Tensor, grid: tuple[int, int, int] | None
    ) -> list[Group]:
        """Divides one image's features [n, d] into groups; rows in no group are always kept.

        Args:
            model: the model.
            modality: ``image`` or ``video``.
            features: projected features of the image or video.
            grid: an element of `grids`.

        Raises:
            ValueError: the features are not those of a whole image.
        """
        rows = torch.arange(len(features), device=features.device)
        return [Group(rows, None if grid is None else grid[1:])]

    def shorten(self, output: Any, kept: Sequence[Tensor], images: list[Tensor]) -> Any:
        """Returns a copy of an encoder output that holds pruned features.

        Args:
            output: of the encoder, not changed.
            kept: for each image the rows that stay, int64 [k]; they index whatever else the output
                holds per row.
            images: for each image the features of those rows, [k, d].
        """
        shortened = copy.copy(output)
        container = type(output.pooler_output)
        # A tensor holds images of equal size, which keep equally many rows.
        shortened.pooler_output = (
            torch.stack(images) if issubclass(container, Tensor) else container(images)
        )
        return shortened

    def default_positions(self, model: Any, call: dict[str, Any], past: int) -> Tensor:
        """Returns the position ids that the model uses when none are passed, [..., b, L].

        Args:
            model: the model.
            call: arguments of the forward pass.
            past: number of tokens in the KV cache.

        Returns:
            position ids; b may be 1, to be broadcast.
        """
        ids: Tensor = call["input_ids"]
        return torch.arange(past, past + ids.shape[1], device=ids.device).unsqueeze(0)
