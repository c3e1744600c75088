"""A transformers pipeline with pruning, on the tiny model that gprune ships.

python -m examples.pipeline
"""

from __future__ import annotations

from transformers import pipeline

from gprune import make
from gprune.tinyvlm import load
from gprune.tinyvlm.scenes import make_scene


def main() -> None:
    """Ask through the pipeline, with and without pruning."""
    model, processor = load()
    ask = pipeline("image-text-to-text", model=model, processor=processor)
    scene = make_scene("test", seed=0, index=1)
    question = scene.ask(["background_color"])[0]
    content = [
        {"type": "image", "image": scene.draw()},
        {"type": "text", "text": question.question},
    ]
    messages = [{"role": "user", "content": content}]
    full = ask(text=messages, return_full_text=False)
    with make("recommended", keep=0.36)(ask.model) as pruned:
        short = ask(text=messages, return_full_text=False)
    print(f"{question.question} expected: {question.answer}")
    print(f"full: {full[0]['generated_text']}, pruned: {short[0]['generated_text']}")
    print(f"{len(pruned.kept[0][0].indices)} of {pruned.kept[0][0].size} tokens kept")


if __name__ == "__main__":
    main()
