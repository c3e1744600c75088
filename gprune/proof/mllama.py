"""A tiny random Mllama and batches for it, which differ from those of other families."""

from __future__ import annotations

from typing import Any

import torch

from gprune.proof.batches import noise
from gprune.proof.images import BOS, BREAK, IMAGE, PAD, SIDE
from gprune.proof.specimens import TEXT, builder

PATCHES = SIDE * SIDE + 1  # the first is CLS
TILES = 4


def mllama(dtype: torch.dtype = torch.float32, attention: str = "sdpa", **settings: Any) -> Any:
    """Builds Mllama, which cross-attends to images of up to four tiles."""
    return builder(
        "MllamaForConditionalGeneration",
        "MllamaConfig",
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 4,
            "intermediate_size": 64,
            "vision_output_dim": 96,
            "image_size": 8 * SIDE,
            "patch_size": 8,
            "max_num_tiles": 4,
            "intermediate_layers_indices": [0, 1],
            "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4]],
        },
        text_config=TEXT | {"num_hidden_layers": 4, "cross_attention_layers": [1, 3], **settings},
        image_token_index=IMAGE,
    )(dtype, attention)


def make(
    rows: list[list[int]], seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Makes a left-padded batch as the processor does; words before an image do not see it."""
    generator = torch.Generator().manual_seed(seed)
    pixels = noise(seed, dtype)
    most = max(map(len, rows))
    ids = []
    for row in rows:
        words = torch.randint(4, BREAK, (3 + len(row), 3), generator=generator).tolist()
        ids.append([BOS, *words[0]] + [token for word in words[3:] for token in [IMAGE, *word]])
    width = max(map(len, ids))
    if not most:
        padded = torch.tensor([[PAD] * (width - len(row)) + row for row in ids])
        return {"input_ids": padded, "attention_mask": (padded != PAD).long()}
    across = torch.zeros(len(rows), width, most, TILES, dtype=torch.long)
    exists = torch.zeros(len(rows), most, TILES, dtype=torch.long)
    for index, (row, tiles) in enumerate(zip(ids, rows, strict=True)):
        start = width - len(row)
        places = [start + place for place, token in enumerate(row) if token == IMAGE]
        for image, (count, place) in enumerate(zip(tiles, places, strict=True)):
            across[index, place:, image, :count] = 1
            exists[index, image, :count] = 1
    exists[:, :, 0] = 1  # the processor gives a missing image one tile
    padded = torch.tensor([[PAD] * (width - len(row)) + row for row in ids])
    shape = (len(rows), most, TILES, 3, 8 * SIDE, 8 * SIDE)
    return {
        "input_ids": padded,
        "attention_mask": (padded != PAD).long(),
        "pixel_values": pixels(*shape) * exists[..., None, None, None],
        "aspect_ratio_ids": exists.sum(-1),
        "aspect_ratio_mask": exists,
        "cross_attention_mask": across,
    }
