"""Batches that stress the hook, and the full-length reference it is held against."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gprune import Pruner, VisualTokens
from gprune.layouts import family_of
from tests.hf.models import BOS, BREAK, IMAGE, PAD, Image, Noise, Specimen

STEPS = 4
GREEDY = {
    "max_new_tokens": STEPS,
    "do_sample": False,
    "return_dict_in_generate": True,
    "output_logits": True,
}


def noise(seed: int, dtype: torch.dtype = torch.float32) -> Noise:
    """A source of random tensors."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator).to(dtype)


@dataclass
class Batch:
    """A left-padded batch.

    Attributes:
        specimen: the family.
        inputs: what the model is called with.
        rows: the images of each row.
        lengths: placeholders of each image.
        video: the video of a batch of one row.
    """

    specimen: Specimen
    inputs: dict[str, Tensor]
    rows: list[list[Image]]
    lengths: list[int]
    video: Image = field(default_factory=dict)

    @property
    def pixels(self) -> Image:
        """The part of the inputs that the encoders take."""
        return self.specimen.collate(self.rows) | self.video

    @property
    def text(self) -> dict[str, Tensor]:
        """The inputs without what the encoders take."""
        return {name: value for name, value in self.inputs.items() if name not in self.pixels}

    def positions(self, model: Any) -> Tensor:
        """Position ids [..., b, L] as `generate` numbers them, padding apart."""
        ids, mask = self.inputs["input_ids"], self.inputs["attention_mask"]
        if not hasattr(model.base_model, "get_rope_index"):
            return (mask.cumsum(-1) - 1).clamp(min=0) + self.specimen.first_position
        positions, _ = model.base_model.get_rope_index(
            ids,
            **self.specimen.token_types(ids, bool(self.video)),
            image_grid_thw=self.pixels.get("image_grid_thw"),
            video_grid_thw=self.pixels.get("video_grid_thw"),
            attention_mask=mask,
        )
        return positions


@torch.no_grad()
def feature_length(specimen: Specimen, model: Any, image: Image) -> int:
    """How many placeholders an image needs, found by encoding it."""
    output = model.base_model.get_image_features(**specimen.collate([[image]]), return_dict=True)
    return sum(len(features) for features in specimen.features(model, output))


def make_batch(
    specimen: Specimen,
    model: Any,
    images: list[int],
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """One row for each entry of ``images``, which says how many images the row has."""
    generator = torch.Generator().manual_seed(seed + 100)
    pixels = noise(seed, dtype)

    def words(count: int) -> list[int]:
        return torch.randint(4, BREAK, (count,), generator=generator).tolist()

    rows: list[list[int]] = []
    dealt: list[list[Image]] = []
    lengths: list[int] = []
    for count in images:
        row, own = [BOS, *words(2)], []
        for _ in range(count):
            image = specimen.image(pixels, seed + len(lengths))
            lengths.append(feature_length(specimen, model, image))
            row += specimen.prompt(image, lengths[-1]) + words(3)
            own.append(image)
        rows.append(row + words(4))
        dealt.append(own)
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return finish_batch(specimen, ids, mask, dealt, lengths)


def finish_batch(
    specimen: Specimen, ids: Tensor, mask: Tensor, rows: list[list[Image]], lengths: list[int]
) -> Batch:
    """Adds what the family's processor adds to ids, mask and images."""
    inputs = {"input_ids": ids, "attention_mask": mask}
    inputs |= specimen.collate(rows) | specimen.token_types(ids)
    return Batch(specimen, inputs, rows, lengths)


@torch.no_grad()
def add_video(specimen: Specimen, model: Any, batch: Batch) -> tuple[Batch, int]:
    """A batch of one row with a video before its last words, and the video's number of frames."""
    assert specimen.video is not None
    video, frames = specimen.video(noise(0))
    output = model.base_model.get_video_features(**video, return_dict=True)
    length = sum(len(features.flatten(0, -2)) for features in output.pooler_output)
    if specimen.frame_break:
        frame = [*specimen.frame_break, *[specimen.video_id] * (length // frames)]
        prompt = frame * frames
    else:
        prompt = [specimen.video_id] * length
    ids = batch.inputs["input_ids"]
    ids = torch.cat([ids[:, :-3], torch.tensor([prompt]), ids[:, -3:]], 1)
    longer = finish_batch(specimen, ids, torch.ones_like(ids), batch.rows, batch.lengths)
    longer.inputs |= video | specimen.token_types(ids, video=True)
    longer.video = video
    return longer, frames


@torch.no_grad()
def merged_outputs(model: Any, batch: Batch, pruner: Pruner) -> tuple[Any, list[Tensor]]:
    """What a merging method makes of a batch's images, at full length.

    Returns:
        the encoder's output with means in the place of kept features, and for each image how many
        tokens each of its rows stands for, [n].
    """
    adapter = family_of(model)
    encoded = model.base_model.get_image_features(**batch.pixels, return_dict=True)
    images, counts = [], []
    for number, features in enumerate(adapter.features(model, encoded)):
        grid = None
        if adapter.multimodal_positions:
            grid = tuple(
                (batch.pixels["image_grid_thw"][number] // torch.tensor([1, 2, 2])).tolist()
            )
        whole, stands = features.clone(), torch.ones(len(features))
        for group in adapter.groups(model, "image", features, grid):
            tokens = VisualTokens(features[group.rows], grid=group.grid, kind=group.kind)
            indices, means = pruner.reduce(tokens)
            whole[group.rows[indices]] = means
            (_, members), *_ = pruner.reduce_groups([tokens])
            for place, index in enumerate(indices.tolist()):
                stands[group.rows[index]] = sum(into == place for into in members.tolist())
        images.append(whole)
        counts.append(stands)
    everything = [torch.arange(len(image)) for image in images]
    return adapter.shorten(encoded, everything, images), counts


@torch.no_grad()
def masked_greedy(model: Any, batch: Batch, kept_mask: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The reference: the full-length model, dropped tokens masked out of every layer, no cache.

    Returns:
        tokens [b, steps] and the logits that chose them, [b, steps, vocabulary].
    """
    ids, real = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    positions = batch.positions(model)
    visible = real * kept_mask
    types = batch.specimen.token_types(ids, bool(batch.video))
    chosen, logits = [], []
    for _ in range(steps):
        output = model(
            input_ids=ids,
            attention_mask=visible,
            position_ids=positions,
            use_cache=False,
            **types,
            **batch.pixels,
        )
        last = output.logits[:, -1]
        token = last.argmax(-1, keepdim=True)
        chosen.append(token)
        logits.append(last)
        ids = torch.cat([ids, token], 1)
        visible = torch.cat([visible, torch.ones_like(token)], 1)
        positions = torch.cat([positions, positions[..., -1:] + 1], -1)
        new = torch.full_like(token, batch.specimen.generated_type)
        types = {name: torch.cat([values, new], 1) for name, values in types.items()}
    return torch.cat(chosen, 1), torch.stack(logits, 1)


@torch.no_grad()
def shortened_greedy(
    model: Any, batch: Batch, kept_mask: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """The reference where masking is not dropping: embeddings of the kept positions, one row.

    Returns:
        tokens [1, steps] and the logits that chose them, [1, steps, vocabulary].
    """
    ids, kept = batch.inputs["input_ids"], kept_mask[0]
    embeds = model.get_input_embeddings()(ids)
    output = model.base_model.get_image_features(**batch.pixels, return_dict=True)
    embeds[ids == IMAGE] = torch.cat(list(batch.specimen.features(model, output)))
    embeds = embeds[:, kept]
    positions = batch.positions(model)[..., kept]
    types = {name: value[:, kept] for name, value in batch.specimen.token_types(ids).items()}
    chosen, logits = [], []
    for _ in range(steps):
        mask = torch.ones(embeds.shape[:2], dtype=torch.long)
        last = model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
            **types,
        ).logits[:, -1]
        token = last.argmax(-1, keepdim=True)
        chosen.append(token)
        logits.append(last)
        embeds = torch.cat([embeds, model.get_input_embeddings()(token)], 1)
        positions = torch.cat([positions, positions[..., -1:] + 1], -1)
        new = torch.full_like(token, batch.specimen.generated_type)
        types = {name: torch.cat([values, new], 1) for name, values in types.items()}
    return torch.cat(chosen, 1), torch.stack(logits, 1)
