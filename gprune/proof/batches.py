"""Batches of images and text, and the full-length references that pruning is compared with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gprune.proof import shortened
from gprune.proof.models import BOS, BREAK, PAD, Image, Noise, Specimen
from gprune.proof.reference import Kept, full_length
from gprune.proof.running import STEPS

GREEDY = {
    "max_new_tokens": STEPS,
    "do_sample": False,
    "return_dict_in_generate": True,
    "output_logits": True,
}


def noise(seed: int, dtype: torch.dtype = torch.float32) -> Noise:
    """Returns a source of random tensors."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator).to(dtype)


@dataclass
class Batch:
    """A left-padded batch.

    Attributes:
        specimen: the family.
        inputs: arguments of the model.
        rows: the images of each row.
        lengths: number of placeholders of each image.
        video: the video of a batch of one row; else empty.
    """

    specimen: Specimen
    inputs: dict[str, Tensor]
    rows: list[list[Image]]
    lengths: list[int]
    video: Image = field(default_factory=dict)

    @property
    def pixels(self) -> Image:
        """The inputs of the encoders."""
        return self.specimen.collate(self.rows) | self.video

    @property
    def text(self) -> dict[str, Tensor]:
        """The other inputs."""
        return {name: value for name, value in self.inputs.items() if name not in self.pixels}

    def positions(self, model: Any) -> Tensor:
        """Returns position ids [..., b, L] as `generate` numbers them, except at padding."""
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
    """Encodes an image; returns the number of its placeholders."""
    output = model.base_model.get_image_features(**specimen.collate([[image]]), return_dict=True)
    return sum(len(features) for features in specimen.features(model, output))


def make_batch(
    specimen: Specimen,
    model: Any,
    images: list[int],
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Batch:
    """Makes a batch with one row for each entry of ``images``, the number of images in the row."""
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
    """Makes a batch of ids, mask and images, with the family's further inputs."""
    inputs = {"input_ids": ids, "attention_mask": mask}
    inputs |= specimen.collate(rows) | specimen.token_types(ids)
    return Batch(specimen, inputs, rows, lengths)


@torch.no_grad()
def add_video(specimen: Specimen, model: Any, batch: Batch) -> tuple[Batch, int]:
    """Inserts a video before the last words of a batch of one row; returns the number of frames."""
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
def forward(model: Any, batch: Batch, **options: Any) -> Any:
    """Calls the model once with a batch and further arguments."""
    return model(**batch.inputs, **options)


def masked_greedy(model: Any, batch: Batch, kept_mask: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Decodes with the full-length model, dropped tokens masked out of every layer, no cache.

    Returns:
        tokens [b, steps] and the logits that chose them, [b, steps, vocabulary].
    """
    run = full_length(model, batch.inputs, Kept(kept_mask.bool()), steps)
    return run.tokens, run.logits


def shortened_greedy(
    model: Any, batch: Batch, kept_mask: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Decodes from embeddings of the kept positions, where masking differs from dropping; one row.

    Returns:
        tokens [1, steps] and the logits that chose them, [1, steps, vocabulary].
    """
    run = shortened.shortened_greedy(model, batch.inputs, kept_mask, steps)
    return run.tokens, run.logits
