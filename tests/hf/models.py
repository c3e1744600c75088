"""Tiny random models of the supported families, and batches that stress them."""

from __future__ import annotations

from dataclasses import dataclass, field
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
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

IMAGE, PAD, BOS, VIDEO = 3, 0, 1, 59
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
        # A generated placeholder would ask for another image.
        model.lm_head.weight[[IMAGE, VIDEO]] = 0
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
        image_seq_length=SIDE * SIDE,
        attn_implementation=attention,
    )
    config.vision_feature_layers = [-1, 1]  # the name that old and new transformers understand
    return _finish(VipLlavaForConditionalGeneration(config), dtype)


def llava_onevision(dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    side = 8 * SIDE
    config = LlavaOnevisionConfig(
        vision_config=_vision(),
        text_config=_text(),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        vision_aspect_ratio="anyres_max_2",  # some canvases are scaled down to two tiles
        image_grid_pinpoints=[[side, 2 * side], [2 * side, side], [2 * side, 2 * side]],
        attn_implementation=attention,
    )
    return _finish(LlavaOnevisionForConditionalGeneration(config), dtype)


def _qwen(
    kind: Any, settings: Any, vision: dict[str, Any], dtype: torch.dtype, attention: str
) -> Any:
    torch.manual_seed(0)
    text = _text().to_dict()
    text.pop("model_type")
    text.pop("head_dim")
    # Head dimension 8: half of it is dealt out to time, rows and columns.
    text["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": 100.0,
        "mrope_section": [2, 1, 1],
    }
    config = settings(
        vision_config={
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            **vision,
        },
        text_config=text,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        attn_implementation=attention,
    )
    return _finish(kind(config), dtype)


def qwen2_vl(dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> Any:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4}
    return _qwen(Qwen2VLForConditionalGeneration, Qwen2VLConfig, vision, dtype, attention)


def qwen2_5_vl(dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> Any:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "out_hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    return _qwen(Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig, vision, dtype, attention)


BUILDERS = {
    "llava": llava,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "internvl": internvl,
    "vipllava": vipllava,
}
QWEN = ("qwen2_vl", "qwen2_5_vl")
TILED = ("llava_next", "llava_onevision")
Image = dict[str, Tensor]  # what the processor makes of one image


def make_images(name: str, count: int, seed: int, dtype: torch.dtype) -> list[Image]:
    """Random pixels of ``count`` images, of different shapes where the family has them."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    images: list[Image] = []
    for index in range(count):
        if name in TILED:
            # (height, width) that unpad to canvases of different sizes
            shapes = [(30, 50), (61, 29), (64, 64), (20, 64)]
            shape = torch.tensor([shapes[(seed + index) % len(shapes)]])
            images.append(
                {"pixel_values": noise(1, 5, 3, 8 * SIDE, 8 * SIDE), "image_sizes": shape}
            )
        elif name in QWEN:
            grids = [(1, 6, 10), (1, 8, 4), (1, 4, 12)]  # before merging two by two
            grid = torch.tensor([grids[(seed + index) % len(grids)]])
            patches = noise(int(grid.prod()), 3 * 2 * 4 * 4)
            images.append({"pixel_values": patches, "image_grid_thw": grid})
        else:
            side = 16 * SIDE if name == "internvl" else 8 * SIDE
            images.append({"pixel_values": noise(1, 3, side, side)})
    return images


def collate(images: list[Image]) -> Image:
    """Several images as the model takes them."""
    return {key: torch.cat([image[key] for image in images]) for key in images[0]} if images else {}


@torch.no_grad()
def image_lengths(model: Any, images: Image) -> list[int]:
    """How many placeholders each image needs, found by encoding it."""
    if not images:
        return []
    output = model.base_model.get_image_features(**images, return_dict=True)
    return [len(features) for features in output.pooler_output]


def make_video(name: str, seed: int = 0) -> tuple[Image, int]:
    """A random video, and how many frames the language model sees of it."""
    generator = torch.Generator().manual_seed(seed)
    if name in QWEN:
        grid = torch.tensor([[3, 6, 4]])
        patches = torch.randn(int(grid.prod()), 3 * 2 * 4 * 4, generator=generator)
        return {"pixel_values_videos": patches, "video_grid_thw": grid}, 3
    frames = torch.randn(1, 3, 3, 8 * SIDE, 8 * SIDE, generator=generator)
    return {"pixel_values_videos": frames}, 3


@dataclass
class Batch:
    """A left-padded batch.

    Attributes:
        inputs: what the model is called with.
        rows: the images of each row.
        lengths: placeholders of each image.
    """

    inputs: dict[str, Tensor]
    rows: list[list[Image]]
    lengths: list[int]
    video: Image = field(default_factory=dict)

    @property
    def pixels(self) -> Image:
        """The part of the inputs that the encoder takes."""
        return collate([image for row in self.rows for image in row]) | self.video

    def positions(self, model: Any) -> Tensor:
        """Position ids [..., b, L] as `generate` numbers them, padding apart."""
        mask = self.inputs["attention_mask"]
        if not hasattr(model.base_model, "get_rope_index"):
            return (mask.cumsum(-1) - 1).clamp(min=0)
        positions, _ = model.base_model.get_rope_index(
            self.inputs["input_ids"],
            mm_token_type_ids=token_types(self.inputs["input_ids"]),
            image_grid_thw=self.pixels.get("image_grid_thw"),
            video_grid_thw=self.pixels.get("video_grid_thw"),
            attention_mask=mask,
        )
        return positions


def make_batch(
    name: str, model: Any, images: list[int], seed: int = 0, dtype: torch.dtype = torch.float32
) -> Batch:
    """One row for each entry of ``images``, which says how many images the row has."""
    generator = torch.Generator().manual_seed(seed + 100)

    def words(count: int) -> list[int]:
        return torch.randint(4, VIDEO, (count,), generator=generator).tolist()

    made = make_images(name, sum(images), seed, dtype)
    lengths = image_lengths(model, collate(made))
    remaining, image = iter(lengths), iter(made)
    rows, dealt = [], []
    for count in images:
        row = [BOS, *words(2)]
        for _ in range(count):
            row += [IMAGE] * next(remaining) + words(3)
        rows.append(row + words(4))
        dealt.append([next(image) for _ in range(count)])
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return finish_batch(name, ids, mask, dealt, lengths)


def finish_batch(
    name: str, ids: Tensor, mask: Tensor, rows: list[list[Image]], lengths: list[int]
) -> Batch:
    """Adds what the family's processor adds to ids, mask and images."""
    inputs = {"input_ids": ids, "attention_mask": mask}
    inputs |= collate([image for row in rows for image in row])
    if name in QWEN:
        inputs["mm_token_type_ids"] = token_types(ids)
    return Batch(inputs, rows, lengths)


def token_types(ids: Tensor) -> Tensor:
    """0 for text, 1 for images, 2 for videos."""
    return (ids == IMAGE).int() + 2 * (ids == VIDEO).int()


@torch.no_grad()
def add_video(name: str, model: Any, batch: Batch) -> tuple[Batch, int]:
    """A batch of one row with a video before its last words, and the video's number of frames."""
    video, frames = make_video(name)
    output = model.base_model.get_video_features(**video, return_dict=True)
    length = sum(len(features) for features in output.pooler_output)
    ids = batch.inputs["input_ids"]
    ids = torch.cat([ids[:, :-3], torch.full((1, length), VIDEO), ids[:, -3:]], 1)
    longer = finish_batch(name, ids, torch.ones_like(ids), batch.rows, batch.lengths)
    longer.inputs |= video
    longer.video = video
    return longer, frames


@torch.no_grad()
def masked_greedy(model: Any, batch: Batch, kept_mask: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The reference: the full-length model, dropped tokens masked out of every layer, no cache.

    Returns:
        tokens [b, steps] and the logits that chose them, [b, steps, vocabulary].
    """
    ids, real = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    positions = batch.positions(model)
    visible = real * kept_mask
    chosen, logits = [], []
    for _ in range(steps):
        output = model(
            input_ids=ids,
            attention_mask=visible,
            position_ids=positions,
            use_cache=False,
            **batch.pixels,
        )
        last = output.logits[:, -1]
        token = last.argmax(-1, keepdim=True)
        chosen.append(token)
        logits.append(last)
        ids = torch.cat([ids, token], 1)
        visible = torch.cat([visible, torch.ones_like(token)], 1)
        positions = torch.cat([positions, positions[..., -1:] + 1], -1)
    return torch.cat(chosen, 1), torch.stack(logits, 1)
