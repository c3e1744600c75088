"""Tiny random checkpoints of the served families with processors, in the format of vLLM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers

from gprune.serving.proof.checkpoints import copy_for_vllm, rename_tower
from gprune.tinyvlm.model import checkpoint_folder

SPECIAL = [
    *("<pad>", "<s>", "</s>", "<unk>", "<image>", "<video>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    *("<img>", "</img>", "<IMG_CONTEXT>"),
]
WORDS = [*SPECIAL, *(f"w{index}" for index in range(51))]
ID = {word: index for index, word in enumerate(WORDS)}

SIDE = 4  # visual tokens per side of an image, thumbnail or tile
TOWER = {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {
    "vocab_size": len(WORDS),
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "pad_token_id": ID["<pad>"],
    "bos_token_id": ID["<s>"],
    "eos_token_id": ID["</s>"],
    "tie_word_embeddings": False,
}
QWEN_TEXT = TEXT | {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 4, 4]}
}
QWEN_IDS = {
    "image_token_id": ID["<|image_pad|>"],
    "video_token_id": ID["<|video_pad|>"],
    "vision_start_token_id": ID["<|vision_start|>"],
    "vision_end_token_id": ID["<|vision_end|>"],
}
QWEN_TOWER = {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2, "depth": 2}
PIXELS = {"shortest_edge": 8 * 8 * 4, "longest_edge": 8 * 8 * 60}
PINPOINTS = [[8 * SIDE, 16 * SIDE], [16 * SIDE, 8 * SIDE], [16 * SIDE, 16 * SIDE]]


def tokenizer(**tokens: str) -> tf.PreTrainedTokenizerFast:
    """Returns a tokenizer that splits at spaces; ``tokens`` are attributes for the processor."""
    backend = Tokenizer(models.WordLevel(ID, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[4:],
        extra_special_tokens=tokens,
        padding_side="left",
    )


def clip(side: int = SIDE) -> tf.CLIPVisionConfig:
    return tf.CLIPVisionConfig(**TOWER, hidden_size=32, image_size=8 * side, patch_size=8)


def llava() -> tuple[Any, Any]:
    config = tf.LlavaConfig(
        vision_config=clip(),
        text_config=tf.LlamaConfig(**TEXT),
        image_token_id=ID["<image>"],
        vision_feature_layer=-1,
        image_seq_length=SIDE * SIDE,
        tie_word_embeddings=False,
    )
    size = {"height": 8 * SIDE, "width": 8 * SIDE}
    processor = tf.LlavaProcessor(
        image_processor=tf.CLIPImageProcessor(size=size, crop_size=size, do_center_crop=False),
        tokenizer=tokenizer(image_token="<image>"),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return tf.LlavaForConditionalGeneration(config), processor


def llava_next() -> tuple[Any, Any]:
    config = tf.LlavaNextConfig(
        vision_config=clip(),
        text_config=tf.LlamaConfig(**TEXT),
        image_token_id=ID["<image>"],
        vision_feature_layer=-1,
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=SIDE * SIDE,
        tie_word_embeddings=False,
    )
    processor = tf.LlavaNextProcessor(
        image_processor=tf.LlavaNextImageProcessor(
            size={"shortest_edge": 8 * SIDE},
            crop_size={"height": 8 * SIDE, "width": 8 * SIDE},
            image_grid_pinpoints=PINPOINTS,
        ),
        tokenizer=tokenizer(image_token="<image>"),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return tf.LlavaNextForConditionalGeneration(config), processor


def llava_onevision() -> tuple[Any, Any]:
    tower = tf.SiglipVisionConfig(
        **TOWER, hidden_size=32, image_size=8 * SIDE, patch_size=8, vision_use_head=False
    )
    config = tf.LlavaOnevisionConfig(
        vision_config=tower,
        text_config=tf.Qwen2Config(**TEXT),
        image_token_index=ID["<image>"],
        video_token_index=ID["<video>"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=PINPOINTS,
        tie_word_embeddings=False,
    )
    size = {"height": 8 * SIDE, "width": 8 * SIDE}
    processor = tf.LlavaOnevisionProcessor(
        image_processor=tf.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=PINPOINTS),
        tokenizer=tokenizer(image_token="<image>", video_token="<video>"),
        video_processor=tf.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=SIDE * SIDE,
        vision_feature_select_strategy="full",
    )
    return tf.LlavaOnevisionForConditionalGeneration(config), processor


def qwen(model: str, tower: dict[str, Any], **text: Any) -> tuple[Any, Any]:
    """Makes a Qwen-VL model and processor; ``model`` is the prefix of the class names."""
    config = getattr(tf, f"{model}Config")(
        vision_config=QWEN_TOWER | tower,
        text_config=QWEN_TEXT | text,
        **QWEN_IDS,
        tie_word_embeddings=False,
    )
    patches = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2, "size": PIXELS}
    videos = "Qwen3VLVideoProcessor" if model == "Qwen3VL" else "Qwen2VLVideoProcessor"
    processor = getattr(tf, f"{model}Processor")(
        image_processor=tf.Qwen2VLImageProcessor(**patches),
        tokenizer=tokenizer(image_token="<|image_pad|>", video_token="<|video_pad|>"),
        video_processor=getattr(tf, videos)(**patches),
    )
    return getattr(tf, f"{model}ForConditionalGeneration")(config), processor


def qwen2_vl() -> tuple[Any, Any]:
    return qwen("Qwen2VL", {"embed_dim": 32, "hidden_size": 64, "num_heads": 4})


MERGED = {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 64, "num_heads": 4}


def qwen2_5_vl() -> tuple[Any, Any]:
    return qwen("Qwen2_5_VL", {**MERGED, "window_size": 16, "fullatt_block_indexes": [1]})


def qwen3_vl() -> tuple[Any, Any]:
    tower = {
        **MERGED,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
        "depth": 3,
    }
    rope = QWEN_TEXT["rope_parameters"] | {"mrope_interleaved": True}
    return qwen("Qwen3VL", tower, rope_parameters=rope)


def internvl() -> tuple[Any, Any]:
    pixels = 16 * SIDE  # patches of 8 pixels, merged two by two
    config = tf.InternVLConfig(
        vision_config=tf.InternVLVisionConfig(
            **TOWER, hidden_size=32, image_size=[pixels, pixels], patch_size=[8, 8]
        ),
        text_config=tf.Qwen2Config(**TEXT),
        image_token_id=ID["<IMG_CONTEXT>"],
        image_seq_length=SIDE * SIDE,
        tie_word_embeddings=False,
    )
    size = {"height": pixels, "width": pixels}
    processor = tf.InternVLProcessor(
        image_processor=tf.GotOcr2ImageProcessor(size=size, min_patches=1, max_patches=4),
        tokenizer=tokenizer(
            start_image_token="<img>",
            end_image_token="</img>",
            context_image_token="<IMG_CONTEXT>",
            video_token="<video>",
        ),
        video_processor=tf.InternVLVideoProcessor(size=size),
        image_seq_length=SIDE * SIDE,
    )
    return tf.InternVLForConditionalGeneration(config), processor


@dataclass(frozen=True)
class Served:
    """A family under test.

    Attributes:
        build: makes model and processor.
        image: placeholder text of an image in a prompt.
    """

    build: Callable[[], tuple[Any, Any]]
    image: str = "<image>"


QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"

FAMILIES = {
    "llava": Served(llava),
    "llava_next": Served(llava_next),
    "llava_onevision": Served(llava_onevision),
    "qwen2_vl": Served(qwen2_vl, QWEN_IMAGE),
    "qwen2_5_vl": Served(qwen2_5_vl, QWEN_IMAGE),
    "qwen3_vl": Served(qwen3_vl, QWEN_IMAGE),
    "internvl": Served(internvl, "<IMG_CONTEXT>"),
}


def make_checkpoint(name: str, folder: Path) -> Path:
    """Writes a random checkpoint of a family."""
    torch.manual_seed(0)
    model, processor = FAMILIES[name].build()
    model.generation_config.eos_token_id = None  # always generate max_new_tokens
    with torch.no_grad():
        for key, weight in model.named_parameters():
            # With the default weights attention is nearly uniform, which would hide mistakes.
            if weight.ndim == 2 and "embed" not in key:
                weight.mul_(6)
        model.lm_head.weight[: len(SPECIAL)] = 0  # a generated placeholder would need an image
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    rename_tower(folder)
    return folder


def tiny_vlm(folder: Path) -> Path:
    """Copies the shipped tiny VLM in the format of vLLM."""
    return copy_for_vllm(checkpoint_folder(), folder)
