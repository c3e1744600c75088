"""Tiny random checkpoints of the models that the guides name, with processors.

Pictures are processed as for the real checkpoint, so that counts of visual tokens are the real
ones. Widths and depths are tiny, weights are random, and a tokenizer of few words splits at spaces.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers

SPECIAL = [
    *("<pad>", "<s>", "</s>", "<unk>", "<image>", "<video>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    *("<|im_start|>", "<|im_end|>"),
]
WORDS = [*SPECIAL, *(f"w{index}" for index in range(52))]
ID = {word: index for index, word in enumerate(WORDS)}

TEXT = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "pad_token_id": ID["<pad>"],
    "bos_token_id": ID["<s>"],
    "eos_token_id": ID["</s>"],
    "tie_word_embeddings": False,
}
# The turns of Qwen2.5-VL's template, without its default system message.
CHATML = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} "
    "{% for c in m['content'] if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %} {{ c['text'] }}{% endfor %} <|im_end|> "
    "{% endfor %}{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
VICUNA = (
    "{% for m in messages %}{{ m['role'] | upper }}: "
    "{% for c in m['content'] if c['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }} {% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


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


class ImagesOnly(tf.Qwen2_5_VLProcessor):
    """Qwen2.5-VL's processor without one for videos, which torchvision would be needed for."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """Accepts anything as the processor of videos."""
        if argument_name == "video_processor":
            return None
        return super().check_argument_for_proper_class(argument_name, argument)


def qwen2_5_vl() -> tuple[Any, Any]:
    """Returns Qwen2.5-VL, whose patches have 14 pixels and merge two by two."""
    config = tf.Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "out_hidden_size": TEXT["hidden_size"],
            "fullatt_block_indexes": [1],
        },
        text_config=TEXT
        | {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [2, 1, 1],
            }
        },
        image_token_id=ID["<|image_pad|>"],
        video_token_id=ID["<|video_pad|>"],
        vision_start_token_id=ID["<|vision_start|>"],
        vision_end_token_id=ID["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    processor = ImagesOnly(
        image_processor=tf.Qwen2VLImageProcessorPil(),
        tokenizer=tokenizer(image_token="<|image_pad|>", video_token="<|video_pad|>"),
        video_processor=SimpleNamespace(merge_size=2, model_input_names=[]),
        chat_template=CHATML,
    )
    return tf.Qwen2_5_VLForConditionalGeneration(config), processor


def llava() -> tuple[Any, Any]:
    """Returns LLaVA-1.5, whose pictures have 336 x 336 pixels and 576 tokens."""
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=336,
            patch_size=14,
        ),
        text_config=tf.LlamaConfig(**TEXT),
        image_token_id=ID["<image>"],
        tie_word_embeddings=False,
    )
    size = {"height": 336, "width": 336}
    processor = tf.LlavaProcessor(
        image_processor=tf.CLIPImageProcessorPil(
            size={"shortest_edge": 336}, crop_size=size, do_center_crop=True
        ),
        tokenizer=tokenizer(image_token="<image>"),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=VICUNA,
    )
    return tf.LlavaForConditionalGeneration(config), processor


# By the names that the guides use.
MODELS = {
    "Qwen/Qwen2.5-VL-3B-Instruct": qwen2_5_vl,
    "llava-hf/llava-1.5-7b-hf": llava,
}


def make_checkpoint(name: str, folder: Path) -> Any:
    """Writes a random checkpoint in place of a named one; returns its processor."""
    torch.manual_seed(0)
    model, processor = MODELS[name]()
    model.generation_config.pad_token_id = ID["<pad>"]
    model.generation_config.eos_token_id = None  # always generate max_new_tokens
    with torch.no_grad():
        for key, weight in model.named_parameters():
            # With the default weights attention is nearly uniform, which would hide mistakes.
            if weight.ndim == 2 and "embed" not in key:
                weight.mul_(6)
        model.lm_head.weight[: len(SPECIAL)] = 0  # a generated placeholder would need an image
    model.save_pretrained(folder)
    return processor
