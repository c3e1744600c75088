"""Builds untrained tiny VLMs: configuration, initial weights and processor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipVisionConfig,
)

from gprune.tinyvlm.contents import GRID, PATCH_SIZE
from gprune.tinyvlm.model import load
from gprune.tinyvlm.vocabulary import CHAT_TEMPLATE, IMAGE, build_tokenizer

TOWERS = ("clip", "siglip")
# Amplitude of the sinusoids added to the initial position embeddings.
POSITION_SCALE = 0.3
# Standard deviation of the initial query and key projections, see `tie_queries_and_keys`.
QUERY_STD = 0.06


@dataclass(frozen=True)
class Architecture:
    """The sizes of a tiny VLM; the defaults are those of the shipped models.

    Attributes:
        tower: vision tower: ``clip`` has a CLS token, ``siglip`` has none.
        grid: patches per side; the language model receives all of them.
        vision_width: hidden size of the tower.
        vision_layers: layers of the tower.
        text_width: hidden size of the language model.
        text_layers: layers of the language model.
        rope_theta: base of its rotary embeddings. A larger base lets more of a head compare token
            contents regardless of their positions.

    Raises:
        ValueError: ``tower`` is unknown, or ``text_layers`` is below 2.
    """

    tower: str = "clip"
    grid: int = GRID
    vision_width: int = 160
    vision_layers: int = 5
    text_width: int = 192
    text_layers: int = 5
    rope_theta: float = 1e6

    def __post_init__(self) -> None:
        if self.tower not in TOWERS:
            raise ValueError(f"tower={self.tower!r} must be one of {', '.join(TOWERS)}")
        if self.text_layers < 2:
            raise ValueError(
                f"text_layers={self.text_layers} must be at least 2: the first joins the words of "
                "a name, the second looks the name up (gprune.training.grounding)"
            )

    @property
    def has_cls(self) -> bool:
        """Whether the tower has a CLS token; the language model never receives it."""
        return self.tower == "clip"

    @property
    def feature_select_strategy(self) -> str:
        """LLaVA's name for dropping the CLS token (``default``) or keeping every token."""
        return "default" if self.has_cls else "full"


def vision_config(architecture: Architecture) -> CLIPVisionConfig | SiglipVisionConfig:
    """Returns the configuration of the vision tower."""
    sizes: dict[str, Any] = {
        "hidden_size": architecture.vision_width,
        "intermediate_size": 4 * architecture.vision_width,
        "num_hidden_layers": architecture.vision_layers,
        "num_attention_heads": architecture.vision_width // 32,
        "image_size": architecture.grid * PATCH_SIZE,
        "patch_size": PATCH_SIZE,
    }
    if architecture.has_cls:
        return CLIPVisionConfig(**sizes, projection_dim=architecture.vision_width)
    return SiglipVisionConfig(**sizes, vision_use_head=False)


def build_config(architecture: Architecture) -> LlavaConfig:
    """Returns the configuration of the whole model."""
    tokenizer = build_tokenizer()
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=architecture.text_width,
        intermediate_size=architecture.text_width * 8 // 3,
        num_hidden_layers=architecture.text_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": architecture.rope_theta},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    return LlavaConfig(
        vision_config=vision_config(architecture),
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=architecture.grid**2,
        vision_feature_layer=-1,
        vision_feature_select_strategy=architecture.feature_select_strategy,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )


def build_model(
    seed: int, architecture: Architecture | None = None
) -> LlavaForConditionalGeneration:
    """Builds a freshly initialised model; the same seed gives the same weights."""
    architecture = architecture or Architecture()
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(build_config(architecture))
    # With random position embeddings the tower hardly learns to use positions: it learns which
    # contents are present, not where. The CLS token is the first row and gets no sinusoid.
    with torch.no_grad():
        table = model.model.vision_tower.embeddings.position_embedding.weight
        positions = sinusoids(architecture.grid, table.shape[1])
        table[-len(positions) :] += POSITION_SCALE * positions
    tie_queries_and_keys(model)
    config = model.generation_config
    config.max_new_tokens = 8
    config.pad_token_id = model.config.text_config.pad_token_id
    config.bos_token_id = model.config.text_config.bos_token_id
    config.eos_token_id = model.config.text_config.eos_token_id
    return model


def copy_language_model(model: LlavaForConditionalGeneration, checkpoint: str) -> None:
    """Copies the language model of a trained checkpoint into ``model``, in place.

    The vision tower and the projector keep their weights, as in large VLMs that start from a
    pretrained language model.

    Args:
        model: receives the weights.
        checkpoint: folder of a tiny VLM, or one of ``gprune.tinyvlm.model.SHIPPED``.

    Raises:
        ValueError: the two language models have different shapes.
        FileNotFoundError: the folder holds no checkpoint.
    """
    trained, _ = load(checkpoint)
    source = trained.model.language_model.state_dict()
    target = model.model.language_model.state_dict()
    if {name: x.shape for name, x in source.items()} != {
        name: x.shape for name, x in target.items()
    }:
        raise ValueError(
            f"language={checkpoint!r} has a language model of another shape; take a checkpoint "
            "with the same text_width, text_layers and vocabulary"
        )
    # The output head shares the word embeddings, so it is copied too.
    model.model.language_model.load_state_dict(source)


def tie_queries_and_keys(model: LlavaForConditionalGeneration) -> None:
    """Initialises the query and key projections of each layer with the same random matrix.

    Every head then attends to similar tokens from the first step on: the word "red" to red patches.
    From two independent matrices this has to be found by chance: shapes were looked up after a
    hundred steps, colors not after thousands.
    """
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            attention = layer.self_attn
            nn.init.normal_(attention.q_proj.weight, std=QUERY_STD)
            attention.k_proj.weight.copy_(attention.q_proj.weight)


def sinusoids(side: int, width: int) -> Tensor:
    """Returns sine-cosine embeddings of rows and columns, float32 [side * side, width]."""
    count = width // 4
    frequency = torch.pi * 2 ** (torch.arange(count) * 4 / count) / (2 * side)
    phase = torch.arange(side)[:, None] * frequency  # [side, width / 4]
    wave = torch.cat([phase.sin(), phase.cos()], 1)
    rows = wave[:, None].expand(side, side, -1)
    columns = wave[None].expand(side, side, -1)
    table = torch.cat([rows, columns], -1).reshape(side * side, width)
    return table - table.mean(0)


def build_processor(architecture: Architecture | None = None) -> LlavaProcessor:
    """Builds the processor: resizes pictures to the tower's size, one placeholder per patch."""
    architecture = architecture or Architecture()
    pixels = architecture.grid * PATCH_SIZE
    image_processor = CLIPImageProcessorPil(
        size={"height": pixels, "width": pixels},
        do_center_crop=False,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=build_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy=architecture.feature_select_strategy,
        num_additional_image_tokens=int(architecture.has_cls),
        chat_template=CHAT_TEMPLATE,
    )
