"""Batch inference over a folder of images: Ray Data with vLLM and gprune's plugin.

python -m examples.ray_data --model llava-hf/llava-1.5-7b-hf --images photos --out answers.jsonl

Ray Data reads the folder, and each engine that it starts answers batches of rows. Needs vLLM and
ray[data,serve] (`make test-vllm` installs them for CPUs). On a cluster, run `ray start` on the
nodes and set --engines to the number of engines; every node must reach the images, the model and
the output (on a shared file system, or s3:// paths for images and output).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

from gprune.ask.prompts import prompt_for
from gprune.serving.command import config_overrides
from gprune.serving.settings import ServerSettings

QUESTION = "what is the background color ?"


def answer(
    images: Path,
    model: str,
    settings: ServerSettings,
    question: str = QUESTION,
    engines: int = 1,
    gpus: int = 1,
    **engine: Any,
) -> list[dict[str, Any]]:
    """Asks one question of every image in a folder.

    Args:
        images: the folder.
        model: a Hub id or a folder.
        settings: method and keep.
        question: asked of each image.
        engines: number of copies of the model; Ray distributes the images over them.
        gpus: number of GPUs of each engine; 0 runs it on CPUs.
        engine: other options of vLLM's engine.

    Returns:
        The path, the answer and the number of prompt tokens of every image.
    """
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig
    from transformers import AutoConfig, AutoProcessor

    options: dict[str, Any] = {
        "hf_overrides": config_overrides(AutoConfig.from_pretrained(model), settings),
        "tensor_parallel_size": max(gpus, 1),
        **engine,
    }
    placement = None
    if not gpus:
        placement = {"bundles": [{"CPU": 1}]}
        options["distributed_executor_backend"] = "mp"
    config = vLLMEngineProcessorConfig(
        model_source=model,
        engine_kwargs=options,
        concurrency=engines,
        batch_size=32,
        placement_group_config=placement,
        # Prompts are complete and the engine tokenizes them. A stage that is off saves a process.
        chat_template_stage={"enabled": False},
        tokenize_stage={"enabled": False},
        detokenize_stage={"enabled": False},
    )
    prompt = prompt_for(AutoProcessor.from_pretrained(model), question, 1)

    def to_request(row: dict[str, Any]) -> dict[str, Any]:
        return {
            "path": row["path"],
            "prompt": prompt,
            "multimodal_data": {"image": Image.fromarray(row["image"])},
            "sampling_params": {"temperature": 0, "max_tokens": 32},
        }

    def to_answer(row: dict[str, Any]) -> dict[str, Any]:
        return {
            "path": row["path"],
            "answer": row["generated_text"].strip(),
            "prompt_tokens": row["num_input_tokens"],
        }

    rows = ray.data.read_images(str(images), mode="RGB", include_paths=True)
    return build_processor(config, preprocess=to_request, postprocess=to_answer)(rows).take_all()


def main(
    model: Annotated[str, typer.Option(help="A Hub id or a folder.")],
    images: Annotated[Path, typer.Option(help="A folder of images.")],
    question: Annotated[str, typer.Option(help="The question about each image.")] = QUESTION,
    method: Annotated[str, typer.Option(help="A name from `gprune methods`.")] = "recommended",
    keep: Annotated[float, typer.Option(help="Share of the visual tokens to keep.")] = 0.36,
    engines: Annotated[int, typer.Option(min=1, help="Copies of the model.")] = 1,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of each engine; 0 for CPUs.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Write answers as JSON lines.")] = None,
) -> None:
    """Answer a question about every image in a folder."""
    rows = answer(images, model, ServerSettings(keep, method), question, engines, gpus)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if out is None:
        print(lines, end="")
    else:
        out.write_text(lines)


if __name__ == "__main__":
    typer.run(main)
