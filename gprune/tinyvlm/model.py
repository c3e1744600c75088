"""The tiny VLM itself: a small LLaVA in transformers' own classes, without custom code."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from gprune.tinyvlm.scenes import GRID, IMAGE_SIZE, PATCH_SIZE
from gprune.tinyvlm.vocabulary import IMAGE, build_tokenizer

# Amplitude of the sinusoids that position embeddings start from.
PLACE_SCALE = 0.3

# One turn is the picture, then the question; the answer ends with the end-of-sequence token.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)


def build_config() -> LlavaConfig:
    """The architecture: 14x14 = 196 visual tokens of width 192."""
    tokenizer = build_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=128,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=GRID**2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )


def build_model(seed: int) -> LlavaForConditionalGeneration:
    """A freshly initialised model; the same seed gives the same weights."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(build_config())
    # A tower that starts from random position embeddings hardly learns to use them: it sees what
    # is there, not where. Row 0 is the CLS token.
    with torch.no_grad():
        table = model.model.vision_tower.embeddings.position_embedding.weight
        table[1:] += PLACE_SCALE * sinusoids(GRID, table.shape[1])
    config = model.generation_config
    config.max_new_tokens = 8
    config.pad_token_id = model.config.text_config.pad_token_id
    config.bos_token_id = model.config.text_config.bos_token_id
    config.eos_token_id = model.config.text_config.eos_token_id
    return model


def sinusoids(side: int, width: int) -> Tensor:
    """Sine-cosine embeddings of a raster's rows and columns, float32 [side * side, width]."""
    count = width // 4
    frequency = torch.pi * 2 ** (torch.arange(count) * 4 / count) / (2 * side)
    phase = torch.arange(side)[:, None] * frequency  # [side, width / 4]
    wave = torch.cat([phase.sin(), phase.cos()], 1)
    rows = wave[:, None].expand(side, side, -1)
    columns = wave[None].expand(side, side, -1)
    table = torch.cat([rows, columns], -1).reshape(side * side, width)
    return table - table.mean(0)


def build_processor() -> LlavaProcessor:
    """Pictures of any size in, 112x112 pixels and 196 placeholder tokens out."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    image_processor = CLIPImageProcessorPil(
        size=size,
        do_center_crop=False,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=build_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's CLS token
        chat_template=CHAT_TEMPLATE,
    )


def checkpoint_folder() -> Path:
    """Where the shipped checkpoint lies in the installed package."""
    return Path(str(resources.files("gprune.tinyvlm") / "checkpoint"))


def load(folder: str | Path | None = None, **options: Any) -> tuple[Any, Any]:
    """The tiny VLM and its processor, in evaluation mode.

    Args:
        folder: a checkpoint that ``gprune.tinyvlm.train`` wrote; the shipped one when absent.
        options: passed on to ``AutoModelForImageTextToText.from_pretrained``; the weights are
            stored in bf16 and computed in float32 unless ``dtype`` says otherwise.
    """
    source = Path(folder) if folder is not None else checkpoint_folder()
    if not (source / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"folder {str(source)!r} holds no model.safetensors; train a model with "
            "'python -m gprune.tinyvlm.train --out FOLDER'"
        )
    options.setdefault("dtype", torch.float32)
    model = AutoModelForImageTextToText.from_pretrained(
        source, local_files_only=True, **options
    ).eval()
    return model, AutoProcessor.from_pretrained(source, local_files_only=True)
