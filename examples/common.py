"""Shared code of the examples: loads a checkpoint or a tiny random model, and answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from gprune import Pruner

ImageOption = Annotated[Path | None, typer.Option(help="An image, for a real checkpoint.")]
VideoOption = Annotated[Path | None, typer.Option(help="A video, for a real checkpoint.")]
TinyOption = Annotated[
    bool, typer.Option("--tiny", help="Use a tiny random model of the family; no download.")
]
DeviceOption = Annotated[str, typer.Option(help="Device, for example cpu or cuda.")]


def ask(
    checkpoint: str,
    specimen: str,
    pruner: Pruner,
    prompt: str,
    tiny: bool,
    device: str = "cpu",
    image: Path | None = None,
    video: Path | None = None,
) -> None:
    """Answers with and without pruning and prints the number of kept tokens.

    Args:
        checkpoint: folder or Hub id of a real checkpoint.
        specimen: name of the random model, used if ``tiny``.
        pruner: the method.
        prompt: the question, for a real checkpoint.
        tiny: whether to use the random model.
        device: of the real checkpoint.
        image: for a real checkpoint.
        video: for a real checkpoint; the random model gets a random one in its place.
    """
    if tiny:
        model, inputs = random_model(specimen, with_video=video is not None)
        processor = None
    else:
        model, processor, inputs = real_model(checkpoint, prompt, device, image, video)
    options = {"max_new_tokens": 8 if tiny else 128, "do_sample": False}
    full = model.generate(**inputs, **options)
    with pruner(model) as pruned:
        short = model.generate(**inputs, **options)
        kept = pruned.kept[0]
    length = inputs["input_ids"].shape[1]
    for label, output in (("full", full), ("pruned", short)):
        ids = output[0, length:]
        answer = ids.tolist() if processor is None else processor.decode(ids, True)
        print(f"{label}: {answer}")
    for group in kept:
        print(f"{group.modality} {group.image}, {group.kind}: {len(group.indices)} of {group.size}")


def random_model(specimen: str, with_video: bool) -> tuple[Any, dict[str, torch.Tensor]]:
    """Builds a tiny random model and the inputs for an image (and a video)."""
    from gprune.proof.batches import add_video, make_batch
    from gprune.proof.models import SPECIMENS

    family = SPECIMENS[specimen]
    model = family.build()
    batch = make_batch(family, model, [1])
    if with_video:
        batch, _ = add_video(family, model, batch)
    return model, batch.inputs


def real_model(
    checkpoint: str, prompt: str, device: str, image: Path | None, video: Path | None
) -> tuple[Any, Any, Any]:
    """Loads a checkpoint and its processor, and builds the inputs of a prompt."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    if image is None and video is None:
        raise typer.BadParameter("pass --image or --video, or --tiny for a random model")
    processor = AutoProcessor.from_pretrained(checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype="auto").to(device)
    content: list[dict[str, str]] = [{"type": "text", "text": prompt}]
    if video is not None:
        content.insert(0, {"type": "video", "path": str(video)})
    if image is not None:
        content.insert(0, {"type": "image", "path": str(image)})
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    return model, processor, inputs.to(device, dtype=model.dtype)
