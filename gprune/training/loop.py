"""The training loop: two stages, resumable at any saved step.

Stage ``patches`` teaches the vision tower and the projector what each patch shows, mostly on
crowded scenes, in the words of the language model: a projected patch must be nearest to the
embeddings of the words for its content and its colour. Looking up a word of the question among the
patches, and reading out the word of a patch, then work the same way for all words. With objective
``captions``, it matches regions with phrases instead (`gprune.training.captions`).

Stage ``answers`` trains everything on question answering. The objective of stage 1 remains as a
small auxiliary loss, and another supervises two attention heads (`gprune.training.grounding`).

Both stages draw their data by step number from the seed, so a killed run that is started again
continues from its last saved step and sees the same data as an uninterrupted one.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gprune.tinyvlm.model import load
from gprune.tinyvlm.vocabulary import build_tokenizer
from gprune.training import card, grounding
from gprune.training.accuracy import tower_tokens
from gprune.training.data import Batch, Steps
from gprune.training.heads import CaptionHeads, PatchHeads
from gprune.training.model import build_model, build_processor, copy_language_model
from gprune.training.optimizer import build_optimizer, set_learning_rate
from gprune.training.packing import IGNORED, packed_logits
from gprune.training.recipe import Recipe
from gprune.training.state import claim_folder, load_state, restore_moments, save_state
from gprune.training.validation import validate_answers, validate_vision

LOG_FILE = "log.jsonl"


def build_heads(recipe: Recipe) -> PatchHeads | CaptionHeads:
    """Builds the heads of the recipe's objective."""
    architecture = recipe.architecture
    if recipe.objective == "patches":
        return PatchHeads(architecture.text_width)
    return CaptionHeads(architecture.vision_width, architecture.text_width, build_tokenizer())


class Trainer:
    """One run in one folder: state, log and finally the checkpoint.

    Args:
        folder: of the run; an unfinished run in it is resumed.
        recipe: its hyperparameters.
        device: where training runs; validation runs on the CPU.

    Raises:
        ValueError: the folder holds a run with another recipe, or the language model of
            ``recipe.language`` has another shape.
        FileNotFoundError: ``recipe.language`` is no checkpoint.
    """

    def __init__(self, folder: Path, recipe: Recipe, device: str = "cpu") -> None:
        self.folder, self.recipe, self.device = folder, recipe, torch.device(device)
        self.model = build_model(recipe.seed, recipe.architecture)
        if recipe.language is not None:
            copy_language_model(self.model, recipe.language)
        self.model.set_attn_implementation(recipe.attention)
        self.heads = build_heads(recipe)
        self.modules = nn.ModuleDict({"model": self.model, "heads": self.heads})
        claim_folder(folder, recipe)
        self.done, self._moments = load_state(folder, self.modules)
        self.modules.to(self.device)

    @property
    def words(self) -> Tensor:
        """The word embeddings, [vocabulary, width]."""
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight

    def loss(self, stage: str, batch: Batch) -> dict[str, Tensor]:
        """Computes the weighted parts of a step's loss; their sum is minimised."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.low_precision):
            features, cls = tower_tokens(self.model, batch.pixels)
            projected = self.model.model.multi_modal_projector(features)
        if isinstance(self.heads, PatchHeads):
            patch = self.heads.loss(projected.float(), self.words, batch.labels)
        else:
            assert batch.captions is not None  # batches of this objective have captions
            patch = self.heads.loss(projected, cls, self.words, batch.captions)
        if stage == "patches":
            return {"patch": patch}
        return self._answer_losses(batch, projected, self.recipe.patch_weight * patch)

    def _answer_losses(self, batch: Batch, projected: Tensor, patch: Tensor) -> dict[str, Tensor]:
        """Adds the losses of the answers and of the attention to named objects to ``patch``."""
        assert batch.packed is not None  # batches of stage "answers" have questions
        with (
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.low_precision),
            grounding.record_attention_inputs(self.model) as inputs,
        ):
            logits = packed_logits(self.model, projected, batch.packed)
        answer = F.cross_entropy(
            logits.flatten(0, 1).float(), batch.packed.labels.flatten(), ignore_index=IGNORED
        )
        parts = {"answer": answer, "patch": patch}
        if self.recipe.name_weight:
            names = grounding.loss(self.model, inputs, batch.packed, batch.labels.owners)
            parts["name"] = self.recipe.name_weight * names
        return parts

    def run(
        self,
        stage: str,
        steps: int,
        progress: Progress,
        save_every: int,
        stop_after: int | None = None,
    ) -> None:
        """Trains one stage from its last completed step to ``steps``.

        Args:
            stage: ``patches`` or ``answers``.
            steps: length of the stage, which determines the learning rate schedule.
            progress: displays the progress.
            save_every: steps between saves; the last step is saved too.
            stop_after: ends early after this step.
        """
        start, stop = getattr(self.done, stage), steps if stop_after is None else stop_after
        if start >= stop:
            return
        optimizer = self._optimizer(stage)
        data = Steps(self.recipe, stage, start, stop)
        loader = DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=8)
        task = progress.add_task(stage, total=steps, completed=start, note="")
        self.modules.train()
        averages: dict[str, float] = {}
        started = time.perf_counter()
        for step, batch in enumerate(loader, start):
            set_learning_rate(optimizer, step, steps, self.recipe.warmup)
            for name, value in self._step(stage, batch, optimizer).items():
                averages[name] = 0.98 * averages.get(name, value) + 0.02 * value
            note = " ".join(f"{name} {value:.3f}" for name, value in averages.items())
            progress.update(task, completed=step + 1, note=note)
            setattr(self.done, stage, step + 1)
            if (step + 1) % save_every == 0 or step + 1 == stop:
                now = time.perf_counter()
                self.done.seconds[stage] += now - started
                started = now
                save_state(self.folder, self.modules, optimizer, self.done)
                self._log(stage, step + 1, averages)

    def _optimizer(self, stage: str) -> torch.optim.Optimizer:
        """Builds the optimizer of a stage, with the moments of a resumed run."""
        optimizer = build_optimizer(self.recipe, stage, self.modules)
        # Moments of a finished stage belong to no other.
        if getattr(self.done, stage):
            restore_moments(optimizer, self.modules, self._moments, self.device)
        self._moments = {}
        return optimizer

    def _step(self, stage: str, batch: Batch, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        """Takes one optimizer step; returns the parts of the loss."""
        parts = self.loss(stage, batch.to(self.device))
        torch.stack(list(parts.values())).sum().backward()  # type: ignore[no-untyped-call]
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(trained, self.recipe.clip)
        optimizer.step()
        self.modules.zero_grad(set_to_none=True)
        return {name: value.item() for name, value in parts.items()}

    def validate(self, stage: str) -> dict[str, float]:
        """Measures what a stage trains on validation pictures."""
        if stage == "patches":
            return validate_vision(self.model, self.heads)
        return validate_answers(self.model)

    def _log(self, stage: str, step: int, losses: dict[str, float]) -> None:
        """Appends validation results and running losses to the log."""
        # Pictures and questions are on the CPU, and few enough that the model moves there too.
        self.modules.eval().cpu()
        validation = self.validate(stage)
        self.modules.train().to(self.device)
        record: dict[str, Any] = {
            "stage": stage,
            "step": step,
            "seconds": self.done.seconds[stage],
            "validation": validation,
            **{f"loss_{name}": value for name, value in losses.items()},
        }
        with (self.folder / LOG_FILE).open("a") as stream:
            stream.write(json.dumps(record) + "\n")

    def finish(self, scenes: int = 400, easy_vqa: int = 150) -> None:
        """Writes the checkpoint: bfloat16 weights and processor as transformers does, and a card.

        Args:
            scenes: scenes of the test split for the card's accuracy.
            easy_vqa: easy-VQA pictures for the card's accuracy.
        """
        out = self.folder / "checkpoint"
        self.model.eval().cpu().to(torch.bfloat16).save_pretrained(out)
        build_processor(self.recipe.architecture).save_pretrained(out)
        accuracy = card.measure(load(out)[0], scenes, easy_vqa)
        log = self.folder / LOG_FILE
        card.write(out, asdict(self.recipe), log, accuracy, (scenes, easy_vqa))
