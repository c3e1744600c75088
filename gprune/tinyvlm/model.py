"""The tiny VLM itself: a small LLaVA in transformers' own classes, without custom code."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    SiglipVisionConfig,
)

from gprune.tinyvlm.scenes import GRID, PATCH_SIZE
from gprune.tinyvlm.vocabulary import IMAGE, build_tokenizer

# Amplitude of the sinusoids that position embeddings start from.
PLACE_SCALE = 0.3
# Standard deviation of the projections that queries and keys start from, see `start_look_ups`.
LOOK_UP_SCALE = 0.06

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


TOWERS = ("clip", "siglip")
# The checkpoints in the package: the folder of each.
SHIPPED = {"tinyvlm": "checkpoint", "tinyvlm-siglip": "checkpoint_siglip"}


@dataclass(frozen=True)
class Architecture:
    """How a tiny VLM is built; the defaults are the shipped ones'.

    Attributes:
        tower: ``clip``, with a CLS token, or ``siglip``, without.
        grid: patches a side, all of which reach the language model.
        vision_width: of the tower's tokens.
        vision_layers: of the tower.
        text_width: of the language model's tokens.
        text_layers: of the language model.
        rope_theta: base of its rotary embeddings; the larger, the more of a head can compare what
            tokens mean wherever they stand.

    Raises:
        ValueError: ``tower`` is neither, or ``text_layers`` is below 2.
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
                f"text_layers={self.text_layers} must be at least 2: one brings a name together, "
                "the next looks it up (gprune.training.grounding)"
            )

    @property
    def with_cls(self) -> bool:
        """Whether the tower has a CLS token, which the language model does not get."""
        return self.tower == "clip"


def build_config(architecture: Architecture) -> LlavaConfig:
    """The configuration in transformers' terms."""
    tokenizer = build_tokenizer()
    shape = {
        "hidden_size": architecture.vision_width,
        "intermediate_size": 4 * architecture.vision_width,
        "num_hidden_layers": architecture.vision_layers,
        "num_attention_heads": architecture.vision_width // 32,
        "image_size": architecture.grid * PATCH_SIZE,
        "patch_size": PATCH_SIZE,
    }
    vision: CLIPVisionConfig | SiglipVisionConfig
    if architecture.with_cls:
        vision = CLIPVisionConfig(**shape, projection_dim=architecture.vision_width)
    else:
        vision = SiglipVisionConfig(**shape, vision_use_head=False)
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
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=architecture.grid**2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default" if architecture.with_cls else "full",
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )


def build_model(
    seed: int, architecture: Architecture | None = None
) -> LlavaForConditionalGeneration:
    """A freshly initialised model; the same seed gives the same weights."""
    architecture = architecture or Architecture()
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(build_config(architecture))
    # A tower that starts from random position embeddings hardly learns to use them: it sees what
    # is there, not where. The CLS token, which comes first, has no place.
    with torch.no_grad():
        table = model.model.vision_tower.embeddings.position_embedding.weight
        places = sinusoids(architecture.grid, table.shape[1])
        table[-len(places) :] += PLACE_SCALE * places
    start_look_ups(model)
    config = model.generation_config
    config.max_new_tokens = 8
    config.pad_token_id = model.config.text_config.pad_token_id
    config.bos_token_id = model.config.text_config.bos_token_id
    config.eos_token_id = model.config.text_config.eos_token_id
    return model


def take_language(model: LlavaForConditionalGeneration, checkpoint: str) -> None:
    """Gives a model the language model of a trained one, as large models start from one that talks.

    The vision tower and the projector stay as they are.

    Args:
        model: takes the weights.
        checkpoint: folder of a tiny VLM, or one of ``SHIPPED``.

    Raises:
        ValueError: its language model has another shape.
        FileNotFoundError: the folder holds no checkpoint.
    """
    other, _ = load(checkpoint)
    theirs = other.model.language_model.state_dict()
    ours = model.model.language_model.state_dict()
    if {name: x.shape for name, x in theirs.items()} != {name: x.shape for name, x in ours.items()}:
        raise ValueError(
            f"language={checkpoint!r} has a language model of another shape; take a checkpoint "
            "with the same text_width, text_layers and vocabulary"
        )
    # The head that gives logits shares the word embeddings.
    model.model.language_model.load_state_dict(theirs)


def start_look_ups(model: LlavaForConditionalGeneration) -> None:
    """Lets every attention head of the language model start as a look-up of what is alike.

    With one random matrix for queries and keys a token attends to those like it from the first step
    on, "red" to what is red. From two independent matrices that has to be found by chance: shapes
    were looked up after a hundred steps, colors not after thousands.
    """
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            attention = layer.self_attn
            nn.init.normal_(attention.q_proj.weight, std=LOOK_UP_SCALE)
            attention.k_proj.weight.copy_(attention.q_proj.weight)


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


def build_processor(architecture: Architecture | None = None) -> LlavaProcessor:
    """Pictures of any size in, those of the tower and a placeholder for each patch out."""
    architecture = architecture or Architecture()
    pixels = architecture.grid * PATCH_SIZE
    size = {"height": pixels, "width": pixels}
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
        vision_feature_select_strategy="default" if architecture.with_cls else "full",
        num_additional_image_tokens=int(architecture.with_cls),
        chat_template=CHAT_TEMPLATE,
    )


def checkpoint_folder(name: str = "tinyvlm") -> Path:
    """Where a shipped checkpoint lies in the installed package.

    Args:
        name: one of ``SHIPPED``.

    Raises:
        ValueError: it is none of them.
    """
    if name not in SHIPPED:
        raise ValueError(f"name={name!r} must be one of {', '.join(SHIPPED)}")
    return Path(str(resources.files("gprune.tinyvlm") / SHIPPED[name]))


def folder_of(checkpoint: str | Path | None) -> Path:
    """Where a checkpoint lies: a folder, or a name of ``SHIPPED``; ``tinyvlm`` when absent."""
    name = "tinyvlm" if checkpoint is None else str(checkpoint)
    return checkpoint_folder(name) if name in SHIPPED else Path(name)


def load(folder: str | Path | None = None, **options: Any) -> tuple[Any, Any]:
    """The tiny VLM and its processor, in evaluation mode.

    Args:
        folder: a checkpoint that ``gprune.training.train`` wrote, or one of ``SHIPPED``;
            ``tinyvlm`` when absent.
        options: passed on to ``AutoModelForImageTextToText.from_pretrained``; the weights are
            stored in bf16 and computed in float32 unless ``dtype`` says otherwise.
    """
    source = folder_of(folder)
    if not (source / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"folder {str(source)!r} holds no model.safetensors; train a model with "
            "'python -m gprune.training.train --out FOLDER'"
        )
    options.setdefault("dtype", torch.float32)
    model = AutoModelForImageTextToText.from_pretrained(
        source, local_files_only=True, **options
    ).eval()
    return model, AutoProcessor.from_pretrained(source, local_files_only=True)
