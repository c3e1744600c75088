"""Trains the tiny VLM from scratch on a CPU: ``python -m gprune.training.train --out runs/tiny``.

Stage 1 teaches the vision tower and the projector what each patch shows (mostly crowded scenes,
dense labels), in the words of the language model: a projected patch must be nearest to the
embeddings of the words for its content and its colour. Looking up a word of the question among the
patches and reading a patch's word out are then the same for all words. Or, with ``--objective
captions``, stage 1 has captions whose phrases go with regions
(`gprune.training.captions`). Stage 2 trains everything on question answering; the objective of
stage 1 stays as a small auxiliary loss, and another holds two attention heads to what the questions
name (`gprune.training.grounding`). Both stages draw their data by step number from the seed, so a
killed run that is started again with the same command goes on from its last saved step and sees
what it would have seen.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from gprune.ask.answers import place_and_kind
from gprune.tinyvlm import easyvqa
from gprune.tinyvlm.model import Architecture, build_model, build_processor, load, take_language
from gprune.tinyvlm.scenes import (
    COLORS,
    HUES,
    MARKS,
    PATTERNS,
    SHAPES,
    TINTS,
    Question,
    Scene,
    make_scene,
)
from gprune.tinyvlm.vocabulary import build_tokenizer
from gprune.training import card, grounding
from gprune.training.accuracy import (
    by_type,
    held_out,
    score,
    to_pixels,
    tower_tokens,
)
from gprune.training.captions import CaptionHeads, Captions, captions_of
from gprune.training.labels import KIND_WORDS, Labels, dense, edge_ids, edge_logits
from gprune.training.packing import IGNORED, PackedQuestions, pack, packed_logits
from gprune.training.products import PRODUCTS

Record = TypeVar("Record", Labels, Captions, PackedQuestions)

# What stage 1 teaches the vision tower: a word for every patch, or phrases for regions.
OBJECTIVES = ("patches", "captions")
# How attention is computed while training: the results differ by rounding.
ATTENTIONS = ("sdpa", PRODUCTS)


@dataclass(frozen=True)
class Recipe:
    """What a checkpoint is trained with; a learning rate decays by a cosine to 1%.

    The defaults are those of the shipped checkpoint.

    Raises:
        ValueError: ``objective`` is none of ``OBJECTIVES`` or ``attention`` of ``ATTENTIONS``.
    """

    architecture: Architecture = field(default_factory=Architecture)
    language: str | None = None  # checkpoint to take the language model from, see `take_language`
    objective: str = "patches"  # of stage 1, one of OBJECTIVES
    asked: int = 3  # questions of each kind about a scene, as far as it has so many
    most_asked: int = 18  # of all kinds about one scene
    low_precision: bool = True  # bf16 autocast: twice as fast where the CPU has units for it
    attention: str = "sdpa"  # or "products", faster in bf16 on a CPU, see gprune.training.products
    seed: int = 0
    batch: int = 16
    patch_steps: int = 4500
    patch_rate: float = 1e-3
    ordinary_every: int = 4  # one in so many scenes of stage 1 is not crowded
    answer_steps: int = 2800
    answer_rate: float = 1e-3
    vision_rate: float = 4e-4
    warmup: int = 150
    patch_weight: float = 0.3
    name_weight: float = 0.3  # of looking names up, see `gprune.training.grounding`
    easy_vqa_images: int = 2  # of each batch
    easy_vqa_questions: int = 8  # of each of those images
    weight_decay: float = 0.05
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective={self.objective!r} must be one of {', '.join(OBJECTIVES)}")
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention={self.attention!r} must be one of {', '.join(ATTENTIONS)}")


@dataclass
class Batch:
    """Pictures [b, 3, size, size] in [-1, 1], their dense labels, captions and questions.

    Captions are there where the recipe's objective asks for them, questions in stage 2.
    """

    pixels: Tensor
    labels: Labels
    captions: Captions | None
    packed: PackedQuestions | None

    def to(self, device: torch.device) -> Batch:
        """With every tensor on ``device``."""
        captions = None if self.captions is None else moved(self.captions, device)
        packed = None if self.packed is None else moved(self.packed, device)
        return Batch(self.pixels.to(device), moved(self.labels, device), captions, packed)


def moved(record: Record, device: torch.device) -> Record:
    """A dataclass with every tensor in it on ``device``."""
    values: dict[str, Any] = {part.name: getattr(record, part.name) for part in fields(record)}
    tensors = {name: x.to(device) for name, x in values.items() if isinstance(x, Tensor)}
    return replace(record, **{**values, **tensors})


class Steps(Dataset[Batch]):
    """The batches of one stage; item i is what step ``start + i`` trains on."""

    def __init__(self, recipe: Recipe, stage: str, start: int, stop: int) -> None:
        self.recipe, self.stage, self.start, self.stop = recipe, stage, start, stop
        self.tokenizer = build_tokenizer()

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, item: int) -> Batch:
        recipe, step = self.recipe, self.start + item
        grid, first = recipe.architecture.grid, step * recipe.batch
        if self.stage == "patches":
            scenes = [
                make_scene("train", 2 * recipe.seed, place, place % recipe.ordinary_every != 0)
                for place in range(first, first + recipe.batch)
            ]
            pixels = to_pixels([scene.draw(grid) for scene in scenes])
            labels = dense(scenes, grid)
            return Batch(pixels, labels, self._captions(scenes, labels), None)
        rng = np.random.default_rng([recipe.seed, step])
        scenes = [
            make_scene("train", 2 * recipe.seed + 1, first + i)
            for i in range(recipe.batch - recipe.easy_vqa_images)
        ]
        pictures = [scene.draw(grid) for scene in scenes]
        questions = [self._asked(scene, rng) for scene in scenes]
        for index in rng.choice(easyvqa.indices("train"), recipe.easy_vqa_images, replace=False):
            pictures.append(easyvqa.image("train", int(index), grid))
            questions.append(easyvqa.ask("train", int(index), recipe.easy_vqa_questions, rng))
        labels = dense(scenes, grid)
        return Batch(
            to_pixels(pictures),
            labels.padded(recipe.easy_vqa_images),
            self._captions(scenes, labels),
            pack(questions, self.tokenizer, grid**2),
        )

    def _captions(self, scenes: list[Scene], labels: Labels) -> Captions | None:
        if self.recipe.objective == "captions":
            return captions_of(scenes, labels, self.tokenizer)
        return None

    def _asked(self, scene: Scene, rng: np.random.Generator) -> list[Question]:
        """What is asked about a scene: any ``most_asked`` of the questions it can answer."""
        every = scene.ask(times=self.recipe.asked)
        if len(every) <= self.recipe.most_asked:
            return every
        return [every[i] for i in sorted(rng.choice(len(every), self.recipe.most_asked, False))]


class PatchHeads(nn.Module):
    """What projected patches show: the nearest words, and a linear classifier of their marks.

    Args:
        width: of the language model's tokens.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mark = nn.Linear(width, len(MARKS))
        self.ink = nn.Parameter(0.02 * torch.randn(1, width))  # the one hue without a word
        tokenizer = build_tokenizer()
        ids = tokenizer.convert_tokens_to_ids
        self.kind_ids = ids(list(KIND_WORDS))
        self.color_ids = ids(list(COLORS))
        self.tint_ids = ids(list(TINTS))
        self.edge_ids = edge_ids(tokenizer)

    def forward(self, projected: Tensor, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of kinds, hues and marks, [b, n, ...].

        Args:
            projected: patch features in the language model's space, [b, n, width].
            words: the language model's word embeddings, [vocabulary, width].
        """
        x = self.norm(projected)
        hues = torch.cat([words[self.color_ids], self.ink, words[self.tint_ids]])
        return x @ words[self.kind_ids].T, x @ hues.T, self.mark(x)

    def edges(self, projected: Tensor, words: Tensor) -> Tensor:
        """Logits of the steps of the four edges, [b, n, 4, BINS]; arguments as in `forward`."""
        return edge_logits(self.norm(projected), words, self.edge_ids)

    def loss(self, projected: Tensor, words: Tensor, labels: Labels) -> Tensor:
        """The sum of the mean cross-entropies over labelled patches."""
        kinds, hues, marks = self(projected, words)
        pairs = (
            (kinds, labels.kinds),
            (hues, labels.hues),
            (marks, labels.marks),
            (self.edges(projected, words), labels.edges),
        )
        losses = [
            F.cross_entropy(logits.flatten(0, -2), label.flatten()) for logits, label in pairs
        ]
        return torch.stack(losses).sum()


def cosine(step: int, total: int, warmup: int) -> float:
    """The learning rate's factor: a linear warm-up, then a cosine from 1 to 0.01."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass
class Progressing:
    """Where a run stands: finished steps of each stage and the seconds they took."""

    patches: int = 0
    answers: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"patches": 0.0, "answers": 0.0})


class Trainer:
    """One run in one folder: state, log and, when it is done, the checkpoint."""

    def __init__(self, folder: Path, recipe: Recipe, device: str = "cpu") -> None:
        self.folder, self.recipe, self.device = folder, recipe, torch.device(device)
        folder.mkdir(parents=True, exist_ok=True)
        self.model = build_model(recipe.seed, recipe.architecture)
        if recipe.language is not None:
            take_language(self.model, recipe.language)
        self.model.set_attn_implementation(recipe.attention)
        self.heads: PatchHeads | CaptionHeads
        if recipe.objective == "patches":
            self.heads = PatchHeads(recipe.architecture.text_width)
        else:
            shape = recipe.architecture
            self.heads = CaptionHeads(shape.vision_width, shape.text_width, build_tokenizer())
        self.done = Progressing()
        self.saved_optimizer: dict[str, Tensor] = {}
        recipe_file = folder / "recipe.json"
        if recipe_file.is_file():
            stored = json.loads(recipe_file.read_text())
            if stored != asdict(recipe):
                raise ValueError(
                    f"out {str(folder)!r} holds a run with another recipe; "
                    "take a new folder or the options it was started with"
                )
        else:
            recipe_file.write_text(json.dumps(asdict(recipe), indent=2) + "\n")
        self._restore()
        self.modules.to(self.device)

    @property
    def modules(self) -> nn.ModuleDict:
        return nn.ModuleDict({"model": self.model, "heads": self.heads})

    def _restore(self) -> None:
        state = self.folder / "state.safetensors"
        if not state.is_file():
            return
        tensors = load_file(state)
        progress = json.loads(bytes(tensors.pop("progress").tolist()))
        self.done = Progressing(**progress)
        self.saved_optimizer = {
            name.removeprefix("optimizer."): tensors.pop(name)
            for name in list(tensors)
            if name.startswith("optimizer.")
        }
        with torch.no_grad():
            for name, parameter in self.modules.named_parameters():
                parameter.copy_(tensors[name])

    def save(self, optimizer: torch.optim.Optimizer) -> None:
        """Weights, optimizer and progress in one file that replaces the last one at once."""
        tensors: dict[str, Tensor] = {}
        # Parameters rather than a state dict: the tied word embeddings are stored once.
        for name, parameter in self.modules.named_parameters():
            tensors[name] = parameter.detach().contiguous()
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}.{key}"] = value.contiguous()
        progress = json.dumps(asdict(self.done)).encode()
        tensors["progress"] = torch.tensor(list(progress), dtype=torch.uint8)
        temporary = self.folder / "state.partial"
        save_file(tensors, temporary)
        os.replace(temporary, self.folder / "state.safetensors")

    def optimizer(self, stage: str) -> torch.optim.Optimizer:
        """AdamW over what the stage trains, with the moments of a resumed run."""
        recipe = self.recipe
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.modules.named_parameters():
            in_vision = name.startswith("model.model.vision_tower.")
            in_language = name.startswith("model.model.language_model.")
            if stage == "patches":
                # Words that come with a language model mean something to it: patches move to them.
                words_learn = recipe.language is None and name.endswith("embed_tokens.weight")
                if in_language and not words_learn:
                    continue
                rate = recipe.patch_rate
            else:
                rate = recipe.vision_rate if in_vision else recipe.answer_rate
            decay = recipe.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
        optimizer = torch.optim.AdamW(
            [
                {"params": parameters, "lr": rate, "initial": rate, "weight_decay": decay}
                for (rate, decay), parameters in groups.items()
            ],
            betas=(0.9, 0.98),
            fused=True,
        )
        # Those of a stage that is over belong to no other.
        if getattr(self.done, stage):
            for name, parameter in self.modules.named_parameters():
                moments = {
                    key: self.saved_optimizer[f"{name}.{key}"].to(self.device)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                    if f"{name}.{key}" in self.saved_optimizer
                }
                if moments:
                    optimizer.state[parameter] = moments
        self.saved_optimizer = {}
        return optimizer

    @property
    def words(self) -> Tensor:
        """The word embeddings, [vocabulary, width]."""
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight

    def loss(self, stage: str, batch: Batch) -> dict[str, Tensor]:
        """The parts of a step's loss, already weighted: their sum is what is minimised."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.low_precision):
            features, cls = tower_tokens(self.model, batch.pixels)
            projected = self.model.model.multi_modal_projector(features)
        if isinstance(self.heads, PatchHeads):
            patch = self.heads.loss(projected.float(), self.words, batch.labels)
        else:
            assert batch.captions is not None  # this objective's batches have them
            patch = self.heads.loss(projected, cls, self.words, batch.captions)
        if stage == "patches":
            return {"patch": patch}
        assert batch.packed is not None  # stage "answers" always packs questions
        with (
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.low_precision),
            grounding.watched(self.model) as seen,
        ):
            logits = packed_logits(self.model, projected, batch.packed)
        answer = F.cross_entropy(
            logits.flatten(0, 1).float(), batch.packed.labels.flatten(), ignore_index=IGNORED
        )
        parts = {"answer": answer, "patch": self.recipe.patch_weight * patch}
        if self.recipe.name_weight:
            found = grounding.loss(self.model, seen, batch.packed, batch.labels.owners)
            parts["name"] = self.recipe.name_weight * found
        return parts

    def log(self, **record: Any) -> None:
        with (self.folder / "log.jsonl").open("a") as stream:
            stream.write(json.dumps(record) + "\n")

    def run(
        self,
        stage: str,
        steps: int,
        progress: Progress,
        save_every: int,
        stop_after: int | None = None,
    ) -> None:
        """Trains one stage from where it stands to ``steps``.

        Args:
            stage: ``patches`` or ``answers``.
            steps: length of the stage, which the learning rate's schedule goes by.
            progress: shows how far it is.
            save_every: steps between saves; the last step is saved too.
            stop_after: leaves the stage unfinished after this step.
        """
        start, last = getattr(self.done, stage), steps if stop_after is None else stop_after
        if start >= last:
            return
        recipe, optimizer = self.recipe, self.optimizer(stage)
        loader = DataLoader(
            Steps(recipe, stage, start, last), batch_size=None, num_workers=1, prefetch_factor=8
        )
        task = progress.add_task(stage, total=steps, completed=start, note="")
        self.modules.train()
        running: dict[str, float] = {}
        began = time.perf_counter()
        for step, batch in enumerate(loader, start):
            for group in optimizer.param_groups:
                group["lr"] = group["initial"] * cosine(step, steps, recipe.warmup)
            parts = self.loss(stage, batch.to(self.device))
            torch.stack(list(parts.values())).sum().backward()  # type: ignore[no-untyped-call]
            trained = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(trained, recipe.clip)
            optimizer.step()
            self.modules.zero_grad(set_to_none=True)
            for name, value in parts.items():
                running[name] = 0.98 * running.get(name, value.item()) + 0.02 * value.item()
            note = " ".join(f"{name} {value:.3f}" for name, value in running.items())
            progress.update(task, completed=step + 1, note=note)
            setattr(self.done, stage, step + 1)
            if (step + 1) % save_every == 0 or step + 1 == last:
                now = time.perf_counter()
                self.done.seconds[stage] += now - began
                began = now
                self.save(optimizer)
                # Pictures and questions are on the CPU, and so few that the model goes there too.
                self.modules.eval().cpu()
                validation = self.see() if stage == "patches" else self.answer()
                self.modules.train().to(self.device)
                self.log(
                    stage=stage,
                    step=step + 1,
                    seconds=self.done.seconds[stage],
                    validation=validation,
                    **{f"loss_{name}": value for name, value in running.items()},
                )

    @torch.inference_mode()
    def see(self) -> dict[str, float]:
        """How well the objective of stage 1 is met on a few validation pictures.

        The share of right patch labels by what they are, or `CaptionHeads.right`.
        """
        grid = self.recipe.architecture.grid
        scenes = [make_scene("validation", 0, index) for index in range(96)]
        pixels = to_pixels([scene.draw(grid) for scene in scenes])
        features, cls = tower_tokens(self.model, pixels)
        projected = self.model.model.multi_modal_projector(features)
        labels = dense(scenes, grid)
        if isinstance(self.heads, CaptionHeads):
            captions = captions_of(scenes, labels, build_tokenizer())
            return self.heads.right(projected, cls, self.words, captions)
        kinds, hues, marks = (
            logits.argmax(-1) == label
            for logits, label in zip(
                self.heads(projected, self.words),
                (labels.kinds, labels.hues, labels.marks),
                strict=True,
            )
        )
        off = (self.heads.edges(projected, self.words).argmax(-1) - labels.edges).abs()
        signs = (labels.marks > 0) & (labels.marks < MARKS.index("centre"))
        patterns = torch.tensor([word in PATTERNS for word in KIND_WORDS])[labels.kinds]
        where = {
            "shape": (kinds, labels.kinds < len(SHAPES)),
            "pattern": (kinds, patterns),
            "sign": (kinds, signs),
            "color": (hues, labels.hues < HUES.index("ink")),
            "tint": (hues, labels.hues > HUES.index("ink")),
            "order": (marks, signs),
            "centre": (marks, labels.marks == MARKS.index("centre")),
            "edges": (off <= 1, labels.edges >= 0),
        }
        return {name: right[mask].float().mean().item() for name, (right, mask) in where.items()}

    def answer(self) -> dict[str, float]:
        """Share of right answers by question type on a few validation pictures, unpruned."""
        grid = self.recipe.architecture.grid
        samples = held_out("validation", scenes=96, easy_vqa=48, grid=grid)
        outcomes = by_type(samples, score(self.model, samples))
        return {kind: float(np.mean(results)) for kind, results in outcomes.items()}

    def finish(self, scenes: int = 400, easy_vqa: int = 150) -> None:
        """Writes the checkpoint: bf16 weights and the processor as transformers does, and a card.

        Args:
            scenes: how many pictures of the test split the card's accuracy is measured on.
            easy_vqa: how many of easy-VQA's.
        """
        out = self.folder / "checkpoint"
        self.model.eval().cpu().to(torch.bfloat16).save_pretrained(out)
        build_processor(self.recipe.architecture).save_pretrained(out)
        accuracy = card.measure(load(out)[0], scenes, easy_vqa)
        log = self.folder / "log.jsonl"
        card.write(out, asdict(self.recipe), log, accuracy, (scenes, easy_vqa))


app = typer.Typer(add_completion=False)


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder of the run; an unfinished one is resumed.")],
    seed: Annotated[int, typer.Option(help="Seed of weights and data.")] = Recipe.seed,
    tower: Annotated[str | None, typer.Option(help="clip or siglip; the recipe's.")] = None,
    language: Annotated[
        str | None,
        typer.Option(help="Checkpoint folder, or tinyvlm, whose language model goes on learning."),
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="Of stage 1: patches or captions; the recipe's.")
    ] = None,
    attention: Annotated[
        str | None, typer.Option(help="sdpa or products, faster in bf16 on a CPU; the recipe's.")
    ] = None,
    patch_steps: Annotated[int | None, typer.Option(min=1, help="The recipe's.")] = None,
    answer_steps: Annotated[int | None, typer.Option(min=1, help="The recipe's.")] = None,
    answer_rate: Annotated[float | None, typer.Option(min=0, help="The recipe's.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="The recipe's.")] = None,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between saves.")] = 200,
    scenes: Annotated[int, typer.Option(min=1, help="Test scenes for the model card.")] = 400,
    easy_vqa: Annotated[int, typer.Option(min=1, help="As many of easy-VQA's.")] = 150,
    threads: Annotated[int | None, typer.Option(help="CPU threads; all by default.")] = None,
    device: Annotated[str, typer.Option(help="Such as cpu, cuda or cuda:1.")] = "cpu",
    stage: Annotated[
        str | None, typer.Option(help="patches: leave the run after stage 1, to be resumed.")
    ] = None,
) -> None:
    """Train the tiny VLM and write OUT/checkpoint; with --stage patches, stage 1 alone.

    Example: python -m gprune.training.train --out runs/tiny --seed 0
    """
    if threads is not None:
        torch.set_num_threads(threads)
    given = {
        "language": language,
        "objective": objective,
        "attention": attention,
        "patch_steps": patch_steps,
        "answer_steps": answer_steps,
        "answer_rate": answer_rate,
        "batch": batch,
    }
    changed: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    try:
        recipe = Recipe(seed=seed, **changed)
        if tower is not None:
            recipe = replace(recipe, architecture=replace(recipe.architecture, tower=tower))
        if stage not in (None, "patches"):
            raise ValueError(f"stage={stage!r} must be patches; without it, both are trained")
        trainer = Trainer(out, recipe, str(place_and_kind(device, "float32")[0]))
    except (ValueError, FileNotFoundError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} {task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        trainer.run("patches", recipe.patch_steps, progress, save_every)
        if stage == "patches":
            return
        trainer.run("answers", recipe.answer_steps, progress, save_every)
    trainer.finish(scenes, easy_vqa)
    minutes = sum(trainer.done.seconds.values()) / 60
    typer.echo(f"wrote {out / 'checkpoint'} after {minutes:.1f} minutes of training")


if __name__ == "__main__":
    app()
