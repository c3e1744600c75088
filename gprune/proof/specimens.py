"""The description of a family under test, and the parts that tiny models share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as tf
from torch import Tensor

from gprune.proof.images import (
    BOS,
    IMAGE,
    PAD,
    SIDE,
    VIDEO,
    WORDS,
    Image,
    Noise,
    one_run,
    patches,
    stacked,
)


@dataclass(frozen=True)
class Specimen:
    """A family under test.

    Attributes:
        name: of the family, or of a variant.
        build: returns the model; takes dtype and attention implementation.
        image: returns an image, given a source of noise and a number that selects its shape.
        video: returns a video and the number of frames that the language model sees.
        types: the argument that tells text from images: its name, and a function that returns its
            values, given ids and the mask of video placeholders.
        prompt: returns the ids of an image in the prompt, given the number of its features.
        frame_break: ids between the frames of a video; empty if frames are adjacent.
        video_id: placeholder of videos.
        collate: joins the images of all rows of a batch.
        tiles: returns the number of images that the hook sees in one image.
        groups: number of groups in each of these.
        shared: whether beams share an image's features, so that they are pruned once.
        first_position: position id of the first token.
        generated_type: value of the ``types`` argument for a generated token.
        turns: whether a later turn may have images.
        history: whether the ``types`` argument of a later turn covers all turns.
        beams: whether beam search works for rows of several images (transformers' code for GLM-4V
            mixes the images up).
        whole: whether a part of an image can be distinguished from a whole image.
        features: returns the projected features of each image in an encoder output.
    """

    name: str
    build: Callable[..., Any]
    image: Callable[[Noise, int], Image]
    video: Callable[[Noise], tuple[Image, int]] | None = None
    types: tuple[str, Callable[[Tensor, Tensor], Tensor]] | None = None
    prompt: Callable[[Image, int], list[int]] = one_run
    frame_break: tuple[int, ...] = ()
    video_id: int = VIDEO
    collate: Callable[[list[list[Image]]], Image] = stacked
    tiles: Callable[[Image], int] = lambda image: 1
    groups: int = 1
    shared: bool = True
    first_position: int = 0
    generated_type: int = 0
    turns: bool = True
    history: bool = False
    beams: bool = True
    whole: bool = True
    features: Callable[[Any, Any], Any] = lambda model, output: output.pooler_output

    def token_types(self, ids: Tensor, video: bool = False) -> dict[str, Tensor]:
        """Returns the argument that tells text from images; ``video``: the batch has a video."""
        if self.types is None:
            return {}
        name, values = self.types
        videos = (ids == self.video_id) if video else torch.zeros_like(ids, dtype=torch.bool)
        return {name: values(ids, videos)}


def modality(ids: Tensor, videos: Tensor) -> Tensor:
    """Returns 0 for text, 1 for images, 2 for videos."""
    return torch.where(videos, 2, (ids == IMAGE).int())


def prefix(ids: Tensor, videos: Tensor) -> Tensor:
    """Returns 0 for the whole prompt, which has bidirectional attention in PaliGemma."""
    return torch.zeros_like(ids)


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


TEXT = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": 2,
}


def clip_config() -> tf.CLIPVisionConfig:
    return tf.CLIPVisionConfig(**SMALL, image_size=8 * SIDE, patch_size=8)


def siglip_config(image_size: int, patch_size: int = 8) -> tf.SiglipVisionConfig:
    return tf.SiglipVisionConfig(
        **SMALL,
        image_size=image_size,
        patch_size=patch_size,
        vision_use_head=False,
    )


def llama_config() -> tf.LlamaConfig:
    return tf.LlamaConfig(**TEXT)


def prepare_weights(model: Any, dtype: torch.dtype) -> Any:
    model.generation_config.eos_token_id = None  # generate to the requested length
    model.generation_config.pad_token_id = PAD
    # Default weights are too small: nearly uniform attention would hide errors.
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.numel() == 1:
                weight.fill_(0.7)  # Mllama's gates are zero by default
            elif weight.ndim == 2 and not weight.any():
                weight.normal_(std=0.1)  # Gemma 3's projector is zero by default
            elif weight.ndim == 2 and "embed" not in name:
                weight.mul_(6)
        # A generated placeholder would require another image.
        model.get_output_embeddings().weight[[IMAGE, VIDEO]] = 0
    # Llama 4's vision tower has a complex buffer; a cast would discard its imaginary part.
    return model.eval() if dtype == torch.float32 else model.eval().to(dtype)


def builder(model: str, config: str, **settings: Any) -> Callable[..., Any]:
    """Returns a function that builds a transformers model from settings of its config."""

    def build(
        dtype: torch.dtype = torch.float32,
        attention: str = "sdpa",
        sliding_window: int | None = None,
    ) -> Any:
        torch.manual_seed(0)
        made = {key: value() if callable(value) else value for key, value in settings.items()}
        if sliding_window is not None:
            made["text_config"].sliding_window = sliding_window
        tied = {"tie_word_embeddings": False}  # the output layer is edited, the input is not
        return prepare_weights(
            getattr(tf, model)(getattr(tf, config)(**made, **tied, attn_implementation=attention)),
            dtype,
        )

    return build


PINPOINTS = [[8 * SIDE, 16 * SIDE], [16 * SIDE, 8 * SIDE], [16 * SIDE, 16 * SIDE]]


# Half of the head dimension, 8, is divided among time, rows and columns.
MROPE = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 1, 1]}


qwen_image, qwen_video = patches(4)


MERGED = {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64, "num_heads": 4}


QWEN_VISION = {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
