"""Prunes a model's visual tokens by rewriting its outermost call, once, at prefill.

A pre-hook on the model with its language-modelling head encodes the images, lets the pruner choose,
and shortens ids, mask, position ids and features together. The model then builds its masks and
scatters its features from the shortened call as from any other, so nothing inside it changes. The
text after an image keeps its original position ids: it is numbered as if nothing had been removed.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from gprune.device import raise_pending, require
from gprune.errors import UnsupportedModelError
from gprune.hf.cache import PrunedCache, mark_pruned
from gprune.hf.signals import VisionSignals, replaced
from gprune.hf.versions import require_tested_transformers
from gprune.layouts import PIXELS, Family, Group, family_of
from gprune.pruners.base import Pruner, assembled, standing_for
from gprune.pruners.decoder import DecoderPruner
from gprune.pruners.downsampling import Downsampling
from gprune.tokens import VisualTokens

# Attention kernels whose results were compared with a masked full-length model; FlashAttention with
# stand-ins for its kernels, on the CPU.
FLASH = ("flash_attention_2", "flash_attention_3")
ATTENTION = ("eager", "sdpa", *FLASH)

# How kept tokens and the text after them are numbered.
POSITIONS = ("original", "compact")

# Arguments that tell text from images, one value a position.
TYPES = ("token_type_ids", "mm_token_type_ids")

_active: weakref.WeakSet[PreTrainedModel] = weakref.WeakSet()


@dataclass(frozen=True, eq=False)
class KeptGroup:
    """What was kept of one group of visual tokens.

    Attributes:
        indices: kept tokens of the group, int64 [k], ascending.
        size: how many tokens the group had.
        grid: (rows, columns) of its raster, or None.
        kind: what it is: ``image``, ``thumbnail``, ``canvas``, ``tile`` or ``frame``.
        image: which image (or video) of its prompt it belongs to, from 0.
        modality: ``image`` or ``video``.
    """

    indices: Tensor
    size: int
    grid: tuple[int, int] | None
    kind: str
    image: int
    modality: str = "image"


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """One image (or video) as the language model would get it.

    Attributes:
        features: a row for each of its placeholders, [n, d].
        grid: frames, rows and columns, where its family tells.
        signals: what a method reads beside the features.
    """

    features: Tensor
    grid: tuple[int, int, int] | None
    signals: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class ImageChoice:
    """What was chosen of one image.

    Attributes:
        rows: rows of its features that stay, int64 [k], ascending.
        features: those rows, with what a merging method made of them, [k, d].
        groups: kept indices, size, grid and kind of each group.
        stands: how many tokens each row of the image's features stands for, those that go
            included, float32 [n]; None where the method does not ask for it.
    """

    rows: Tensor
    features: Tensor
    groups: list[tuple[Tensor, int, tuple[int, int] | None, str]]
    stands: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Selection:
    """What was chosen of one modality at one prefill.

    Attributes:
        modality: ``image`` or ``video``.
        placeholder: where the call has its placeholders, bool [b, L].
        lengths: rows of each image's features.
        images: what was chosen of each image.
    """

    modality: str
    placeholder: Tensor
    lengths: list[int]
    images: list[ImageChoice]

    @property
    def kept_rows(self) -> list[Tensor]:
        """For each image the rows of its features that stay."""
        return [image.rows for image in self.images]

    @property
    def dropped_count(self) -> int:
        """How many visual tokens go, known without reading a tensor."""
        return sum(self.lengths) - sum(len(rows) for rows in self.kept_rows)

    def dropped(self) -> Tensor:
        """True at the placeholders that go, bool [b, L]."""
        device = self.placeholder.device
        total = sum(self.lengths)
        stays = torch.zeros(total, dtype=torch.bool, device=device)
        start = 0
        for length, rows in zip(self.lengths, self.kept_rows, strict=True):
            stays[rows.to(device) + start] = True
            start += length
        rank = self.placeholder.flatten().cumsum(0).view_as(self.placeholder) - 1
        return self.placeholder & ~stays[rank.clamp(0, total - 1)]

    def weights(self, like: Tensor) -> Tensor:
        """The logarithm of how many tokens each one stands for, of all images in order, [m]."""
        counts = [image.stands for image in self.images if image.stands is not None]
        return torch.cat(counts).to(like).log()

    def by_row(self) -> list[list[KeptGroup]]:
        """The groups dealt out to the rows of the batch whose placeholders they fill."""
        rows: list[list[KeptGroup]] = [[] for _ in self.placeholder]
        numbers = [0] * len(rows)
        owners = rows_of(self.placeholder, self.lengths)
        for row, chosen in zip(owners, self.images, strict=True):
            groups = chosen.groups
            rows[row] += [KeptGroup(*group, numbers[row], self.modality) for group in groups]
            numbers[row] += 1
        return rows


@dataclass(frozen=True, eq=False)
class Plan:
    """How one prefill is shortened.

    Attributes:
        order: original column of each remaining one, int64 [b, p].
        real: false where a remaining column is padding that pruning put there, bool [b, p].
        past: logical length of the cache before the call.
        length: columns of the call before shortening.
        before: how many visual tokens were dropped up to each column, int64 [b, L].
    """

    order: Tensor
    real: Tensor
    past: int
    length: int
    before: Tensor


class PlannedOutputs(dict[str, Any]):
    """Encoder outputs of a shortened call that carry its plan from the pre-hook to the post-hook.

    The call itself is the only place that two threads using one model do not share.
    """

    plan: Plan


class PrunedModel:
    """A model under pruning; what ``with pruner(model) as pruned`` gives.

    Attributes:
        model: the model, unchanged but for two hooks.
        pruner: the method.
        positions: ``original`` or ``compact``.
        family: the adapter of the model's family.
        kept_mask: bool [batch, original sequence length] of the latest prefill, true where the
            position reached the language model; None before the first. Padding counts as not
            reaching it where rows of a batch were shortened together.
        visual_by_layer: for each row of the latest prefill the visual tokens in each layer of the
            language model; None for methods before it, after which all layers have as many.
    """

    visual_by_layer: list[list[int]] | None = None

    def __init__(self, model: PreTrainedModel, pruner: Pruner, positions: str) -> None:
        self.model = model
        self.pruner = pruner
        self.positions = positions
        self.family: Family = family_of(model)
        self.kept_mask: Tensor | None = None
        self._selections: list[Selection] = []
        self._tower: Any = getattr(pruner, "text_tower", None)
        signals = (*pruner.signals, "vision") if self._tower is not None else pruner.signals
        depth = getattr(pruner, "object_depth", 1.0)
        self.vision = VisionSignals(model, self.family, signals, depth)
        if self._tower is not None:
            self._tower.check(model)
        self._parameters = list(inspect.signature(model.forward).parameters)

    @property
    def kept(self) -> list[list[KeptGroup]]:
        """For each row of the latest prefill's batch its groups, in the order of the prompt.

        Where a row has images and videos, the images come first.
        """
        if self.kept_mask is None:
            return []
        rows: list[list[KeptGroup]] = [[] for _ in self.kept_mask]
        for selection in self._selections:
            for row, groups in zip(rows, selection.by_row(), strict=True):
                row += groups
        return rows

    @property
    def dropped(self) -> list[int]:
        """How many visual tokens of each row of the latest prefill's batch were dropped."""
        return [sum(group.size - len(group.indices) for group in row) for row in self.kept]

    def inside(self) -> AbstractContextManager[None]:
        """What else is changed in the model while it is pruned; here, nothing."""
        return nullcontext()

    def before(
        self, model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The forward pre-hook: returns the call to make instead."""
        call = {**dict(zip(self._parameters, args, strict=False)), **kwargs}
        if call.get("input_ids") is None:
            raise ValueError(
                "input_ids is missing: inputs_embeds alone do not tell which positions are visual "
                "tokens; pass input_ids with pixel_values instead"
            )
        cache = call.get("past_key_values")
        if isinstance(cache, PrunedCache):
            two_dimensional(call.get("attention_mask"))
            if cache.weights is not None:
                self._require_weights()
        past = 0 if cache is None else int(cache.get_seq_length())
        visual, used = self._encoded(call)
        positions: Any = call.get("position_ids")
        if positions is None and (visual or isinstance(cache, PrunedCache)):
            # While the call still has the grids that they may depend on.
            positions = self.family.default_positions(model, call, past)
        for name in used:
            del call[name]
        if isinstance(cache, PrunedCache):
            cache.translated = True
            if self.positions == "compact":
                positions = positions - cache.gone[:, None]
        if visual:
            self._prefill(call, cache, past, positions, visual)
        else:
            self._continue_text(call, cache, past, positions)
        return (), call

    def after(
        self, model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """The forward hook: tells the cache what the prefill dropped."""
        outputs = kwargs.get("mm_encoder_outputs")
        cache = kwargs.get("past_key_values")
        if cache is None:
            cache = find_cache(output)
        if isinstance(cache, PrunedCache):
            cache.translated = False
        if output is None or cache is None or not isinstance(outputs, PlannedOutputs):
            return  # the call failed, keeps no cache, or was not shortened
        plan = outputs.plan
        origin = torch.where(plan.real, plan.order + plan.past, -1)
        used = kwargs["attention_mask"][:, -plan.order.shape[1] :].bool()
        gone = plan.before[:, -1]
        if isinstance(cache, PrunedCache):
            gone = gone + cache.gone
        if plan.past:
            before = kwargs["attention_mask"][:, : -plan.order.shape[1]].bool()
            origin = torch.cat([past_origin(cache, before, plan.past), origin], 1)
            used = torch.cat([before, used], 1)
        mark_pruned(cache, origin, used, gone, plan.past + plan.length)

    def _encoded(self, call: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
        """The encoder output of each modality in the call, and the arguments that encoding used."""
        self.family.check(call)
        given = call.get("mm_encoder_outputs") or {}
        visual: dict[str, Any] = {}
        used: set[str] = set()
        for modality in self.family.modalities:
            pixels = call.get(PIXELS[modality])
            if given.get(modality) is not None:
                visual[modality] = given[modality]
            elif pixels is not None and len(pixels):
                visual[modality] = self.family.encode(self.model, modality, call)
                used |= self.family.encoder_arguments(self.model, modality, call)
        return visual, used

    def _continue_text(
        self, call: dict[str, Any], cache: Cache | None, past: int, positions: Tensor | None
    ) -> None:
        """A decoding step or a turn without images."""
        ids = call["input_ids"]
        if isinstance(cache, PrunedCache):
            call["position_ids"] = positions
            self._without_dropped(call, cache, past)
        elif past == 0:
            for modality in self.family.modalities:
                require(
                    (ids != self.family.token_id(self.model, modality)).all(),
                    f"input_ids hold {modality} placeholders but no {modality} came with the call; "
                    f"pass the {modality}s that the prompt names",
                )
            self.kept_mask = torch.ones_like(ids, dtype=torch.bool)
            self._selections = []

    @staticmethod
    def _without_dropped(call: dict[str, Any], cache: PrunedCache, past: int) -> None:
        """Leaves of what a call, itself whole, says of its history what the cache still has."""
        new = call["input_ids"].shape[1]
        call["attention_mask"] = cache.physical_mask(call.get("attention_mask"), new)
        for name in TYPES:
            types = call.get(name)
            if types is not None and types.shape[1] == past + new:
                call[name] = cache.physical(types, 0)

    def _prefill(
        self,
        call: dict[str, Any],
        cache: Cache | None,
        past: int,
        positions: Tensor,
        visual: dict[str, Any],
    ) -> None:
        """Chooses what to keep and shortens ``call`` in place."""
        ids = call["input_ids"]
        questions = self._questions(call, past) if "text" in self.pruner.signals else None
        selections = [
            self._choose(ids, positions, modality, output, questions)
            for modality, output in visual.items()
        ]
        self._selections = selections
        outputs = {**(call.get("mm_encoder_outputs") or {}), **visual}
        call["mm_encoder_outputs"] = outputs
        if not any(selection.dropped_count for selection in selections):
            # Nothing goes: the model sees its own call, so what it computes is bit-identical.
            self.kept_mask = torch.ones_like(ids, dtype=torch.bool)
            call["position_ids"] = positions
            if isinstance(cache, PrunedCache):
                self._without_dropped(call, cache, past)
            return
        mask = self._mask(call, past)
        call["position_ids"] = positions
        outputs = PlannedOutputs(outputs)
        for selection in selections:
            output = outputs[selection.modality]
            outputs[selection.modality] = self.family.shorten(
                output, selection.kept_rows, [image.features for image in selection.images]
            )
        outputs.plan = self._plan(selections, mask, past)
        call["mm_encoder_outputs"] = outputs
        self._shorten(call, outputs.plan, mask, cache)

    def _questions(self, call: dict[str, Any], past: int) -> list[Tensor]:
        """For each row embeddings of its text, [m, e], of what the call brings.

        How long they are is read back: methods that ask for text wait for it once a row.
        """
        ids = call["input_ids"]
        words = self._mask(call, past)[:, past:].bool()
        for modality in self.family.modalities:
            words = words & (ids != self.family.token_id(self.model, modality))
        embed = self.model.get_input_embeddings() if self._tower is None else self._tower.question
        return [embed(row[keep]).detach() for row, keep in zip(ids, words, strict=True)]

    def _signals(
        self,
        output: Any,
        placeholder: Tensor,
        lengths: list[int],
        questions: list[Tensor] | None,
    ) -> list[dict[str, Tensor]]:
        """What the method reads of each image beside its features."""
        seen = self.vision.of(output)
        if questions is None and (seen is None or len(seen) == len(lengths)):
            return [{} for _ in lengths] if seen is None else seen
        rows = rows_of(placeholder, lengths)
        signals: list[dict[str, Tensor]] = [{} for _ in lengths]
        if seen is not None:
            origin = before_expansion(rows, len(placeholder), len(seen))
            signals = [dict(seen[image]) for image in origin]
        if questions is not None:
            for own, row in zip(signals, rows, strict=True):
                own["text"] = questions[row]
                if self._tower is not None:
                    own["aligned"] = self._tower.aligned(own.pop("vision"))
        return signals

    def _located(
        self, ids: Tensor, positions: Tensor, modality: str, output: Any
    ) -> tuple[Tensor, list[tuple[Tensor, tuple[int, int, int] | None]]]:
        """Where a modality's placeholders are, bool [b, L], and each image's features and grid."""
        images = self.family.features(self.model, output)
        lengths = [len(features) for features in images]
        placeholder = ids == self.family.token_id(self.model, modality)
        require(
            placeholder.sum() == sum(lengths),
            f"input_ids have another number of {modality} placeholders than the {len(images)} "
            f"{modality}s have features ({sum(lengths)}); pass those that the prompt names, in its "
            "order",
        )
        grids = self.family.grids(self.model, positions, placeholder, lengths)
        return placeholder, list(zip(images, grids, strict=True))

    def _choose(
        self,
        ids: Tensor,
        positions: Tensor,
        modality: str,
        output: Any,
        questions: list[Tensor] | None,
    ) -> Selection:
        """Runs the pruner on every group of every image of one modality."""
        placeholder, located = self._located(ids, positions, modality, output)
        lengths = [len(features) for features, _ in located]
        signals = self._signals(output, placeholder, lengths, questions)
        # Beams repeat an image's features as one object: what is chosen for it is chosen once. But
        # two rows can ask different things about one image.
        keys = [
            (id(features), id(own.get("text")))
            for (features, _), own in zip(located, signals, strict=True)
        ]
        images: dict[tuple[int, int], EncodedImage] = {}
        for key, (features, grid), own in zip(keys, located, signals, strict=True):
            images.setdefault(key, EncodedImage(features, grid, own))
        choices = self._choose_images(modality, list(images.values()))
        chosen = dict(zip(images, choices, strict=True))
        return Selection(modality, placeholder, lengths, [chosen[key] for key in keys])

    def _choose_images(self, modality: str, images: Sequence[EncodedImage]) -> list[ImageChoice]:
        """Runs the pruner on every group of every image, all in one go for methods that can."""
        divided = [
            self.family.groups(self.model, modality, image.features, image.grid) for image in images
        ]
        reduced = self.pruner.reduce_images(
            [
                [self._shown(image, group) for group in groups]
                for image, groups in zip(images, divided, strict=True)
            ]
        )
        return [
            self._chosen(image.features, groups, of_groups)
            for image, groups, of_groups in zip(images, divided, reduced, strict=True)
        ]

    @staticmethod
    def _shown(image: EncodedImage, group: Group) -> VisualTokens:
        """What the pruner is shown of a group."""
        signals = {name: of_rows(name, x, group.rows) for name, x in image.signals.items()}
        features = image.features[group.rows].detach()
        return VisualTokens(features, grid=group.grid, kind=group.kind, **signals)

    def _chosen(
        self,
        features: Tensor,
        divided: list[Group],
        reduced: list[tuple[Tensor, Tensor | None]],
    ) -> ImageChoice:
        """What stays of one image's features [n, d], by what was chosen of its groups."""
        if any(members is not None for _, members in reduced):
            self._require_merging()
        rows, whole = assembled(features, [group.rows for group in divided], reduced)
        groups = [
            (indices, len(group.rows), group.grid, group.kind)
            for group, (indices, _) in zip(divided, reduced, strict=True)
        ]
        if not self.pruner.proportional:
            return ImageChoice(rows, whole[rows], groups)
        stands = whole.new_ones(len(whole), dtype=torch.float32)
        for group, (indices, members) in zip(divided, reduced, strict=True):
            stands[group.rows[indices]] = standing_for(indices, members)
        return ImageChoice(rows, whole[rows], groups, stands)

    def _require_weights(self) -> None:
        """Raises ValueError where a cache's keys count for several and the method's do not."""
        if not self.pruner.proportional:
            raise ValueError(
                "past_key_values was pruned by a method whose tokens count for those they stand "
                f"for, which {self.pruner.name} would forget; continue it inside "
                "`with WeightedCover(keep)(model):`, or start from an empty cache"
            )

    def _require_merging(self) -> None:
        """Raises UnsupportedModelError where the model cannot be given means."""
        if not self.family.takes_features:
            raise UnsupportedModelError(
                f"{self.pruner.name} merges projected features, but {type(self.model).__name__} "
                "takes vision states and projects them itself; take a method that drops tokens, "
                "such as graph_cover"
            )

    @staticmethod
    def _mask(call: dict[str, Any], past: int) -> Tensor:
        """The call's 2-D mask over past and new positions; ones where there is none."""
        ids, mask = call["input_ids"], two_dimensional(call.get("attention_mask"))
        if mask is None:
            return ids.new_ones(len(ids), past + ids.shape[1])
        if mask.shape[1] != past + ids.shape[1]:
            raise ValueError(
                f"attention_mask has {mask.shape[1]} columns, expected {past + ids.shape[1]}: one "
                f"for each of the {past} positions in the cache and of the {ids.shape[1]} new ones"
            )
        return mask

    def _plan(self, selections: list[Selection], mask: Tensor, past: int) -> Plan:
        """Which columns remain, rows aligned to the right so that each ends with its last token."""
        dropped = torch.zeros_like(selections[0].placeholder)
        for selection in selections:
            dropped |= selection.dropped()
        keep = ~dropped
        b, length = keep.shape
        if b > 1:
            # Padding goes too, or the row with the most of it would set the length for all. The
            # new length is a shape, which the host has to know: the one read of a batched prefill.
            keep = keep & mask[:, past:].bool()
            remaining = int(keep.sum(1).max())
            raise_pending()  # that read has waited for the verdicts too
        else:
            remaining = length - sum(selection.dropped_count for selection in selections)
        self.kept_mask = keep
        order, real = aligned_right(keep, remaining)
        return Plan(order, real, past, length, dropped.long().cumsum(1))

    def _shorten(self, call: dict[str, Any], plan: Plan, mask: Tensor, cache: Cache | None) -> None:
        """Gathers every per-position argument; always leaves an explicit 2-D mask."""
        if isinstance(call.get("logits_to_keep"), Tensor):
            raise ValueError(
                "logits_to_keep as a tensor names positions that pruning moves; pass an int, or "
                "read pruned.kept_mask and index the logits afterwards"
            )
        b = len(mask)

        def gather(values: Tensor, fill: int) -> Tensor:
            # [..., b, L] with leading dimensions (M-RoPE has three positions a token)
            shape = (*values.shape[:-2], b)
            values = values.expand(*shape, values.shape[-1])
            index = plan.order.expand(*shape, plan.order.shape[1])
            return values.gather(-1, index).masked_fill(~plan.real, fill)

        taken = {self.family.token_id(self.model, name) for name in self.family.modalities}
        call["input_ids"] = gather(call["input_ids"], padding_id(self.model.config, taken))
        positions = call["position_ids"]
        if self.positions == "compact":
            positions = self._compacted(positions, plan)
        call["position_ids"] = gather(positions, 0)
        new = gather(mask[:, plan.past :], 0)
        old = mask[:, : plan.past]
        if isinstance(cache, PrunedCache):
            old = cache.physical(old, 0)
        # Without a mask, gaps in position ids read as several sequences packed in one row.
        call["attention_mask"] = torch.cat([old, new], 1)
        self._mark_as_one_sequence(call, cache, plan, old.shape[1])
        if call.get("labels") is not None:
            call["labels"] = gather(call["labels"], -100)
        for name in TYPES:
            types = call.get(name)
            if types is None:
                continue
            if types.shape[1] < plan.length:
                # Assisted decoding passes those of the prompt, without the first candidates.
                types = torch.nn.functional.pad(types, (0, plan.length - types.shape[1]))
            # Those of the whole history come where a model reads them from its start (Gemma 3).
            old = types[:, : -plan.length]
            if old.shape[1] and isinstance(cache, PrunedCache):
                old = cache.physical(old, 0)
            call[name] = torch.cat([old, gather(types[:, -plan.length :], 0)], 1)

    def _compacted(self, positions: Tensor, plan: Plan) -> Tensor:
        """Position ids [..., b, L] without gaps where tokens are dropped."""
        return positions - plan.before

    def _mark_as_one_sequence(
        self, call: dict[str, Any], cache: Cache | None, plan: Plan, past: int
    ) -> None:
        """Tells FlashAttention where the row of a batch of one begins and ends.

        It would else read gaps in position ids as the seams of sequences packed in one row.
        """
        text = self.model.config.get_text_config()
        b, length = plan.order.shape
        if text._attn_implementation not in FLASH or b > 1:
            return
        if past and any(getattr(cache, "is_sliding", ())):
            raise ValueError(
                "past_key_values has sliding-window layers, whose lengths FlashAttention cannot be "
                "told together with those of the others; load the model with "
                "attn_implementation='sdpa' to bring pictures in later turns"
            )
        for side, size in (("q", length), ("k", past + length)):
            ends = torch.tensor([0, size], dtype=torch.int32, device=plan.order.device)
            call[f"cu_seq_lens_{side}"], call[f"max_length_{side}"] = ends, size


def two_dimensional(mask: Any) -> Tensor | None:
    """A call's mask, if it has one.

    Raises:
        ValueError: it is not a 2-D tensor.
    """
    if mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
        raise ValueError(
            "attention_mask must be a 2-D tensor, which loses the columns of what is dropped; pass "
            "the tokenizer's, one column a position"
        )
    return mask


def aligned_right(keep: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The columns that stay, each row's in order and at its end.

    Args:
        keep: which columns stay, bool [b, L].
        length: how many columns there will be: the most that any row keeps.

    Returns:
        the old column of each new one, int64 [b, length], and whether it is one that stays or fills
        a row that keeps fewer, bool [b, length].
    """
    order = torch.sort(keep.to(torch.uint8), dim=1, stable=True).indices[:, -length:]
    return order, keep.gather(1, order)


def rows_of(placeholder: Tensor, lengths: Sequence[int]) -> list[int]:
    """The row of the batch that each image belongs to, whose placeholders [b, L] it fills."""
    if len(placeholder) == 1:
        return [0] * len(lengths)
    counts = placeholder.sum(1).tolist()
    raise_pending()  # that read has waited for the verdicts too
    rows: list[int] = []
    image = 0
    for row, places in enumerate(counts):
        while places > 0:
            rows.append(row)
            places -= lengths[image]
            image += 1
    return rows


def before_expansion(rows: Sequence[int], b: int, encoded: int) -> list[int]:
    """Which encoded image each image of a call is, where beams repeat the rows of a batch.

    Args:
        rows: the row that each image of the call belongs to.
        b: rows of the call, those of one prompt next to each other.
        encoded: images that were encoded.
    """
    beams = len(rows) // encoded
    origin: list[int] = []
    start = 0
    for row in range(b):
        count = rows.count(row)
        origin += range(start, start + count)
        if (row + 1) % beams == 0:
            start += count
    return origin


def of_rows(name: str, values: Tensor, rows: Tensor) -> Tensor:
    """A signal of an image for some of its tokens; text is of all."""
    if name == "text":
        return values
    part = values[rows]
    return part.squeeze(1) if name.endswith("attention") else part


def find_cache(output: Any) -> Cache | None:
    """The cache in a model's output, which is a ModelOutput or a tuple."""
    if output is None:
        return None
    values = output if isinstance(output, tuple) else output.values()
    return next((value for value in values if isinstance(value, Cache)), None)


def past_origin(cache: Cache, before: Tensor, past: int) -> Tensor:
    """Logical position of every slot that a cache held before this call, [b, physical past]."""
    if not isinstance(cache, PrunedCache):
        return torch.arange(past, device=before.device).expand(len(before), -1)
    decoded = torch.arange(cache.logical, past, device=before.device)
    return torch.cat([cache.origin, decoded.expand(len(before), -1)], 1)


def padding_id(config: Any, taken: set[int]) -> int:
    """A token id for padding that is no placeholder, of which ``taken`` has the ids.

    The mask hides it, so any id of the vocabulary does.
    """
    text = config.get_text_config()
    for source in (config, text):
        pad = getattr(source, "pad_token_id", None)
        if isinstance(pad, int) and 0 <= pad < text.vocab_size and pad not in taken:
            return pad
    return next(index for index in range(len(taken) + 1) if index not in taken)


def whole_prefills(model: PreTrainedModel, family: Family) -> Any:
    """`generate` that refuses chunked prefill, which would show the pruner parts of an image, and
    grids of other pictures.
    """
    generate = model.generate

    @functools.wraps(generate)
    def checked(*args: Any, **kwargs: Any) -> Any:
        family.check(kwargs)  # here pixels are encoded before the hook sees them
        config = kwargs.get("generation_config") or (args[1] if len(args) > 1 else None)
        config = config or model.generation_config
        size = kwargs.get("prefill_chunk_size", getattr(config, "prefill_chunk_size", None))
        if size is not None:
            raise ValueError(
                f"prefill_chunk_size={size} would choose tokens chunk by chunk instead of image by "
                "image; leave it unset: a pruned prefill is short already"
            )
        return generate(*args, **kwargs)

    return checked


def mask_left_to_the_model(
    config: Any, inputs_embeds: Any, attention_mask: Tensor | None, *args: Any, **kwargs: Any
) -> Tensor | None:
    """In place of `create_masks_for_generate`: hands on the 2-D mask.

    For a static cache `generate` builds 4-D masks before it calls the model, of the unpruned
    length. The model builds the same ones from the 2-D mask once the hook has shortened it.
    """
    return attention_mask


def require_uncompiled(model: PreTrainedModel, pruner: Pruner) -> None:
    """Raises UnsupportedModelError where compiled code would pass a method's hooks by in silence.

    What torch.compile has traced does not look for hooks that come to its inner modules later.
    """
    if any(module._compiled_call_impl is not None for module in model.modules()):
        raise UnsupportedModelError(
            f"{pruner.name} works between the language model's layers, where code that "
            "torch.compile has made passes it by; load the model without compiling it, or take a "
            "method before the language model, such as graph_cover"
        )


def pruned_model(model: PreTrainedModel, pruner: Pruner, positions: str) -> PrunedModel:
    """A model under pruning, of the kind that the method and the family need.

    Raises:
        ValueError: ``positions`` is not possible for the method.
        UnsupportedModelError: the family, or what is in it, is not supported.
    """
    if isinstance(pruner, DecoderPruner):
        # Imported here: they build on this module.
        from gprune.hf.decoder import DecoderPrunedModel

        return DecoderPrunedModel(model, pruner, positions)
    if isinstance(pruner, Downsampling):
        from gprune.hf.downsampling import DownsampledModel

        return DownsampledModel(model, pruner)
    if pruner.proportional:
        from gprune.hf.weighted import WeightedPrunedModel

        return WeightedPrunedModel(model, pruner, positions)
    if family_of(model).cross_attention:
        from gprune.hf.cross import CrossPrunedModel

        return CrossPrunedModel(model, pruner, positions)
    return PrunedModel(model, pruner, positions)


@contextmanager
def prune(
    model: PreTrainedModel, pruner: Pruner, positions: str = "original"
) -> Iterator[PrunedModel]:
    """Prunes ``model`` inside a ``with`` block; ``pruner(model)`` is the short form.

    Args:
        model: with its language-modelling head.
        pruner: the method.
        positions: ``original`` or ``compact``, see `Pruner.__call__`.

    Raises:
        ValueError: ``positions`` is neither, or cannot be compact for a model with M-RoPE.
        UnsupportedVersionError: the installed transformers has not been tested.
        UnsupportedModelError: the family, or the attention implementation, is not supported.
        RuntimeError: the model is being pruned already.
    """
    require_tested_transformers()
    if positions not in POSITIONS:
        raise ValueError(f"positions={positions!r} must be one of {', '.join(POSITIONS)}")
    pruned = pruned_model(model, pruner, positions)
    if positions == "compact" and pruned.family.multimodal_positions:
        raise ValueError(
            "positions='compact' would move the rows and columns that M-RoPE numbers in "
            f"{type(model).__name__}; take positions='original'"
        )
    for name, config in (("model", model.config), ("text", model.config.get_text_config())):
        if config._attn_implementation not in ATTENTION:
            raise UnsupportedModelError(
                f"attn_implementation={config._attn_implementation!r} of the {name} config has not "
                "been proven with pruned positions yet; load the model with "
                "attn_implementation='sdpa'"
            )
    if model in _active:
        raise RuntimeError(
            "model is being pruned already: pruning cannot be nested; leave the outer `with` first"
        )
    before = model.register_forward_pre_hook(pruned.before, with_kwargs=True)
    # Called after a failure too, so that the cache is left as a model without hooks must see it.
    after = model.register_forward_hook(pruned.after, with_kwargs=True, always_call=True)
    _active.add(model)
    try:
        with (
            pruned.vision.watching(),
            replaced(model, "generate", whole_prefills(model, pruned.family)),
            replaced(model, "create_masks_for_generate", mask_left_to_the_model),
            pruned.inside(),
        ):
            yield pruned
        raise_pending()
    finally:
        before.remove()
        after.remove()
        _active.discard(model)
