"""Saves random models with their processors to folders, from which commands load them."""

from __future__ import annotations

from pathlib import Path

from gprune.proof.models import SPECIMENS


def save_llava_next(folder: Path) -> None:
    """Saves a LLaVA-NeXT without a chat template, with the tiny model's vocabulary."""
    # A processor finds its parts by their names in transformers, so this class has to be loaded.
    from transformers import CLIPImageProcessorPil, LlavaNextProcessor  # noqa: F401
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )

    from gprune.tinyvlm.vocabulary import build_tokenizer

    tokenizer = build_tokenizer()
    model = SPECIMENS["llava_next"].build()
    model.config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    model.resize_token_embeddings(len(tokenizer))
    model.config.architectures = ["LlavaNextForConditionalGeneration"]
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        image_grid_pinpoints=model.config.image_grid_pinpoints,
    )
    processor = LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
