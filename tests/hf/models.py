"""Tiny random models of the supported families, and batches that stress them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

IMAGE, PAD, BOS = 3, 0, 1
WORDS = 60
SIDE = 4  # patches a side: 16 tokens an image or tile


def _vision() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=8 * SIDE,
        patch_size=8,
    )


def _text() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=WORDS,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=2,
    )


def _finish(model: Any, dtype: torch.dtype) -> Any:
    model.generation_config.eos_token_id = None  # run to the length asked for
    model.generation_config.pad_token_id = PAD
    # Larger weights than the default: attention that is nearly uniform would hide mistakes.
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embed" not in name:
                weight.mul_(6)
        # A generated image placeholder would ask for another image.
        model.lm_head.weight[IMAGE] = 0
    return model.eval().to(dtype)


def llava(dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=_vision(),
        text_config=_text(),
        image_token_id=IMAGE,
        vision_feature_layer=-1,
        image_seq_length=SIDE * SIDE,
        attn_implementation=attention,
    )
    return _finish(LlavaForConditionalGeneration(config), dtype)


def llava_next(dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    side = 8 * SIDE
    config = LlavaNextConfig(
        vision_config=_vision(),
        text_config=_text(),
        image_token_id=IMAGE,
        vision_feature_layer=-1,
        image_grid_pinpoints=[[side, 2 * side], [2 * side, side], [2 * side, 2 * side]],
        image_seq_length=SIDE * SIDE,
        attn_implementation=attention,
    )
    return _finish(LlavaNextForConditionalGeneration(config), dtype)


def internvl(dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    vision = InternVLVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=[16 * SIDE, 16 * SIDE],  # merged two by two
        patch_size=[8, 8],
    )
    config = InternVLConfig(
        vision_config=vision,
        text_config=_text(),
        image_token_id=IMAGE,
        image_seq_length=SIDE * SIDE,
        tie_word_embeddings=False,
        attn_implementation=attention,
    )
    return _finish(InternVLForConditionalGeneration(config), dtype)


def vipllava(dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    config = VipLlavaConfig(
        vision_config=_vision(),
        text_config=_text(),
        image_token_index=IMAGE,
        vision_feature_layer=[-1, 1],
        image_seq_length=SIDE * SIDE,
        attn_implementation=attention,
    )
    return _finish(VipLlavaForConditionalGeneration(config), dtype)


BUILDERS = {
    "llava": llava,
    "llava_next": llava_next,
    "internvl": internvl,
    "vipllava": vipllava,
}


def image_lengths(model: Any, images: dict[str, Tensor]) -> list[int]:
    """How many placeholders each image needs, found by encoding it."""
    with torch.no_grad():
        output = model.base_model.get_image_features(**images, return_dict=True)
    return [len(features) for features in output.pooler_output]


def make_images(name: str, count: int, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Random pixels of ``count`` images; for LLaVA-NeXT of different shapes."""
    generator = torch.Generator().manual_seed(seed)
    side = 16 * SIDE if name == "internvl" else 8 * SIDE
    if name != "llava_next":
        return {"pixel_values": torch.randn(count, 3, side, side, generator=generator).to(dtype)}
    # (height, width) that unpad to canvases of different sizes
    sizes = [(30, 50), (61, 29), (64, 64), (20, 64)]
    tiles = torch.randn(count, 5, 3, side, side, generator=generator).to(dtype)
    shapes = torch.tensor([sizes[(seed + i) % len(sizes)] for i in range(count)])
    return {"pixel_values": tiles, "image_sizes": shapes}


@dataclass
class Batch:
    """A left-padded batch: ``inputs`` for the model, ``images`` per row, ``lengths`` per image."""

    inputs: dict[str, Tensor]
    images: list[int]
    lengths: list[int]


def make_batch(
    name: str, model: Any, images: list[int], seed: int = 0, dtype: torch.dtype = torch.float32
) -> Batch:
    """One row for each entry of ``images``, which says how many images the row has."""
    generator = torch.Generator().manual_seed(seed + 100)

    def words(count: int) -> list[int]:
        return torch.randint(4, WORDS, (count,), generator=generator).tolist()

    inputs = make_images(name, sum(images), seed, dtype) if sum(images) else {}
    lengths = image_lengths(model, inputs) if inputs else []
    remaining = iter(lengths)
    rows = []
    for count in images:
        row = [BOS, *words(2)]
        for _ in range(count):
            row += [IMAGE] * next(remaining) + words(3)
        rows.append(row + words(4))
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return Batch({"input_ids": ids, "attention_mask": mask, **inputs}, images, lengths)


@torch.no_grad()
def masked_greedy(model: Any, batch: Batch, kept_mask: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The reference: the full-length model, dropped tokens masked out of every layer, no cache.

    Returns:
        tokens [b, steps] and the logits that chose them, [b, steps, vocabulary].
    """
    inputs = dict(batch.inputs)
    ids, real = inputs.pop("input_ids"), inputs.pop("attention_mask")
    positions = (real.cumsum(-1) - 1).clamp(min=0)
    visible = real * kept_mask
    chosen, logits = [], []
    for _ in range(steps):
        output = model(
            input_ids=ids,
            attention_mask=visible,
            position_ids=positions,
            use_cache=False,
            **inputs,
        )
        last = output.logits[:, -1]
        token = last.argmax(-1, keepdim=True)
        chosen.append(token)
        logits.append(last)
        ids = torch.cat([ids, token], 1)
        visible = torch.cat([visible, torch.ones_like(token)], 1)
        positions = torch.cat([positions, positions[:, -1:] + 1], 1)
    return torch.cat(chosen, 1), torch.stack(logits, 1)
