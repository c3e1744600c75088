"""Encodes the images of a call and chooses which of their tokens to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gprune.device import raise_pending, require
from gprune.errors import UnsupportedModelError
from gprune.hf.calls import full_mask
from gprune.hf.records import KeptGroup
from gprune.hf.signals import VisionSignals
from gprune.layouts import PIXELS, Family
from gprune.pruners.base import Pruner
from gprune.pruners.image import GroupedImage, ReducedImage, reduce_images
from gprune.tokens import Group


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """One image (or video) as the language model would get it without pruning.

    Attributes:
        features: one row per placeholder, [n, d].
        grid: (frames, rows, columns), or None if the family does not report it.
        signals: what the method reads besides the features, see `GroupedImage`.
    """

    features: Tensor
    grid: tuple[int, int, int] | None
    signals: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class ImageChoice:
    """What a method chose of one image.

    Attributes:
        groups: the groups of the image.
        reduced: the rows that stay, and the kept indices of each group.
    """

    groups: Sequence[Group]
    reduced: ReducedImage

    @property
    def kept_count(self) -> int:
        """Number of tokens of the image that stay, read from shapes alone."""
        return len(self.reduced.rows)

    def records(self, image: int, modality: str = "image") -> list[KeptGroup]:
        """Returns a record of each group; ``image`` is the image's number in its prompt."""
        pairs = zip(self.groups, self.reduced.kept, strict=True)
        return [
            KeptGroup(indices, len(group.rows), group.grid, group.kind, image, modality)
            for group, indices in pairs
        ]


@dataclass(frozen=True, eq=False)
class Selection:
    """What a method chose of all images of one modality in one prefill.

    Attributes:
        modality: ``image`` or ``video``.
        placeholder: true at the placeholders in the call, bool [b, L].
        lengths: number of placeholders of each image.
        images: the choice for each image.
    """

    modality: str
    placeholder: Tensor
    lengths: list[int]
    images: list[ImageChoice]

    @property
    def kept_rows(self) -> list[Tensor]:
        """For each image the rows of its features that stay, int64 [k]."""
        return [image.reduced.rows for image in self.images]

    @property
    def dropped_count(self) -> int:
        """Number of visual tokens that are dropped, read from shapes alone."""
        return sum(self.lengths) - sum(image.kept_count for image in self.images)

    def dropped_mask(self) -> Tensor:
        """Returns a mask that is true at the placeholders to drop, bool [b, L]."""
        device = self.placeholder.device
        total = sum(self.lengths)
        stays = torch.zeros(total, dtype=torch.bool, device=device)
        start = 0
        for length, rows in zip(self.lengths, self.kept_rows, strict=True):
            stays[rows.to(device) + start] = True
            start += length
        rank = self.placeholder.flatten().cumsum(0).view_as(self.placeholder) - 1
        return self.placeholder & ~stays[rank.clamp(0, total - 1)]

    def log_member_counts(self, like: Tensor) -> Tensor:
        """Returns the logarithm of each placeholder's member count, [total].

        Args:
            like: tensor whose dtype and device the result has.
        """
        counts = [image.reduced.member_counts for image in self.images]
        return torch.cat([x for x in counts if x is not None]).to(like).log()

    def kept_by_row(self) -> list[list[KeptGroup]]:
        """Returns the records of the groups in each batch row."""
        rows: list[list[KeptGroup]] = [[] for _ in self.placeholder]
        next_image = [0] * len(rows)
        owners = batch_rows(self.placeholder, self.lengths)
        for row, choice in zip(owners, self.images, strict=True):
            rows[row] += choice.records(next_image[row], self.modality)
            next_image[row] += 1
        return rows


class TokenChooser:
    """Encodes images and runs a method on their tokens.

    Attributes:
        model: the model.
        pruner: the method.
        family: the layout of the model's family.
        vision: the hooks that record signals from the vision encoder.
    """

    def __init__(self, model: PreTrainedModel, pruner: Pruner, family: Family) -> None:
        """Checks that the model has the signals that the method reads.

        Raises:
            UnsupportedModelError: a signal is missing, or the method's text tower belongs to
                another vision encoder.
        """
        self.model, self.pruner, self.family = model, pruner, family
        self._tower: Any = getattr(pruner, "text_tower", None)
        required = [*pruner.signals, *(["vision"] if self._tower is not None else [])]
        depth = getattr(pruner, "object_depth", None) or family.object_depth
        self.vision = VisionSignals(model, family, required, depth, pruner.optional_signals)
        if self._tower is not None:
            self._tower.check(model)

    def encode(self, call: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        """Runs the vision encoder on the pixels of a call.

        Returns:
            the encoder output of each modality in the call, and the names of the arguments that
            the encoder used.
        """
        self.family.check(call)
        given = call.get("mm_encoder_outputs") or {}
        outputs: dict[str, Any] = {}
        used: set[str] = set()
        for modality in self.family.modalities:
            pixels = call.get(PIXELS[modality])
            if given.get(modality) is not None:
                outputs[modality] = given[modality]
            elif pixels is not None and len(pixels):
                outputs[modality] = self.family.encode(self.model, modality, call)
                used |= self.family.encoder_arguments(self.model, modality, call)
        return outputs, used

    def questions(self, call: dict[str, Any], past: int) -> list[Tensor] | None:
        """Embeds the text of each row of a call; None for methods that read no text.

        A text tower embeds the bare question, the language model all text of the row. Synchronises
        the host once per row, because the text's length must be known.

        Args:
            call: the arguments.
            past: logical length of the cache before the call.

        Returns:
            for each row [m, e]; with a text tower [0, 0] for a row without images.

        Raises:
            ValueError: the text tower does not find the question, see `CLIPTextTower`.
        """
        if "text" not in self.pruner.signals:
            return None
        ids = call["input_ids"]
        is_text = full_mask(call, past)[:, past:].bool()
        is_visual = torch.zeros_like(is_text)
        for modality in self.family.modalities:
            is_visual = is_visual | (ids == self.family.token_id(self.model, modality))
        is_text = is_text & ~is_visual
        if self._tower is None:
            embed = self.model.get_input_embeddings()
            return [embed(row[words]).detach() for row, words in zip(ids, is_text, strict=True)]
        # A row without images may have a prompt in which no question can be found.
        return [
            self._tower.embed_text(row[words]) if visual else torch.empty(0, 0)
            for row, words, visual in zip(ids, is_text, is_visual.any(1).tolist(), strict=True)
        ]

    def locate(
        self, ids: Tensor, positions: Tensor, modality: str, output: Any
    ) -> tuple[Tensor, list[tuple[Tensor, tuple[int, int, int] | None]]]:
        """Finds the placeholders of a modality and the images that fill them.

        Args:
            ids: of the call, int64 [b, L].
            positions: position ids, [..., b, L].
            modality: ``image`` or ``video``.
            output: of the vision encoder.

        Returns:
            the mask of placeholders, bool [b, L], and the features [n, d] and grid of each image.

        Raises:
            ValueError: the numbers of placeholders and of features differ.
        """
        images = self.family.features(self.model, output)
        lengths = [len(features) for features in images]
        placeholder = ids == self.family.token_id(self.model, modality)
        require(
            placeholder.sum() == sum(lengths),
            f"input_ids do not hold {sum(lengths)} {modality} placeholders, one for each feature "
            f"of {len(images)} {modality}s; pass the {modality}s of the prompt, in its order",
        )
        grids = self.family.grids(self.model, positions, placeholder, lengths)
        return placeholder, list(zip(images, grids, strict=True))

    def select(
        self,
        ids: Tensor,
        positions: Tensor,
        modality: str,
        output: Any,
        questions: list[Tensor] | None,
    ) -> Selection:
        """Chooses tokens of all images of one modality; arguments as `locate` and `questions`."""
        placeholder, located = self.locate(ids, positions, modality, output)
        lengths = [len(features) for features, _ in located]
        signals = self._signals(output, placeholder, lengths, questions)
        # Beams repeat an image's features as one object, so each object is pruned once; unless two
        # rows ask different questions about it.
        keys = [
            (id(features), id(own.get("text")))
            for (features, _), own in zip(located, signals, strict=True)
        ]
        images: dict[tuple[int, int], EncodedImage] = {}
        for key, (features, grid), own in zip(keys, located, signals, strict=True):
            images.setdefault(key, EncodedImage(features, grid, own))
        choices = self.choose(modality, list(images.values()))
        choice_of = dict(zip(images, choices, strict=True))
        return Selection(modality, placeholder, lengths, [choice_of[key] for key in keys])

    def choose(self, modality: str, images: Sequence[EncodedImage]) -> list[ImageChoice]:
        """Runs the method on every group of every image.

        Raises:
            UnsupportedModelError: the method merges, and the model takes no merged features.
        """
        grouped = [
            GroupedImage(
                image.features,
                self.family.groups(self.model, modality, image.features, image.grid),
                image.signals,
                project=self.family.projector(self.model, modality),
            )
            for image in images
        ]
        reduced = reduce_images(self.pruner, grouped)
        if any(image.merges for image in reduced) and not self.family.takes_features:
            raise UnsupportedModelError(
                f"{self.pruner.name} merges projected features, but {type(self.model).__name__} "
                "takes vision states and projects them itself; use a method that drops tokens, "
                "such as graph_cover"
            )
        return [
            ImageChoice(image.groups, result)
            for image, result in zip(grouped, reduced, strict=True)
        ]

    def _signals(
        self,
        output: Any,
        placeholder: Tensor,
        lengths: list[int],
        questions: list[Tensor] | None,
    ) -> list[dict[str, Tensor]]:
        """Returns for each image what the method reads besides its features."""
        recorded = self.vision.of(output)
        if questions is None and (recorded is None or len(recorded) == len(lengths)):
            return [{} for _ in lengths] if recorded is None else recorded
        rows = batch_rows(placeholder, lengths)
        signals: list[dict[str, Tensor]] = [{} for _ in lengths]
        if recorded is not None:
            encoded = encoded_image_of(rows, len(placeholder), len(recorded))
            signals = [dict(recorded[image]) for image in encoded]
        if questions is not None:
            for own, row in zip(signals, rows, strict=True):
                own["text"] = questions[row]
                if self._tower is not None:
                    own["aligned"] = self._tower.align(own["vision"])
        return signals


def batch_rows(placeholder: Tensor, lengths: Sequence[int]) -> list[int]:
    """Returns the batch row of each image; synchronises the host for more than one row.

    Args:
        placeholder: true at the placeholders, bool [b, L].
        lengths: number of placeholders of each image.
    """
    if len(placeholder) == 1:
        return [0] * len(lengths)
    counts = placeholder.sum(1).tolist()
    raise_pending()  # the results of pending checks have arrived with the counts
    rows: list[int] = []
    for row, count in enumerate(counts):
        while count > 0:
            count -= lengths[len(rows)]
            rows.append(row)
    return rows


def encoded_image_of(rows: Sequence[int], b: int, encoded: int) -> list[int]:
    """Returns which encoded image each image of a call is, since beams repeat batch rows.

    Args:
        rows: batch row of each image of the call.
        b: number of rows of the call; those of one prompt are adjacent.
        encoded: number of images that were encoded.
    """
    beams = len(rows) // encoded
    images: list[int] = []
    start = 0
    for row in range(b):
        count = rows.count(row)
        images += range(start, start + count)
        if (row + 1) % beams == 0:
            start += count
    return images
