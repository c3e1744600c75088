"""An lmms-eval model class for any supported model with any method."""

from __future__ import annotations

import inspect
import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessages
from PIL import Image
from tqdm import tqdm

from gprune.ask.loading import load_model, quiet_transformers
from gprune.budget import parse_keep
from gprune.costs.clock import synchronize
from gprune.pruners import Pruner, make

# Limit for tasks that set none, as in lmms-eval's own models.
MAX_NEW_TOKENS = 1024

# Options of `generate` that a task may set, beside ``until``.
OPTIONS = ("max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "num_beams")


class PrunedLMM(lmms):  # type: ignore[misc]
    """The model ``--model gprune --model_args pretrained=…,method=graph_cover,keep=0.36``.

    With ``accelerate launch``, every process loads the whole model on its own device, and lmms-eval
    distributes the documents.

    Args:
        pretrained: folder or hub id of a supported model.
        method: one of ``gprune methods``, ``recommended``, or ``full`` for no pruning.
        keep: share of the visual tokens, or a count above 1.
        positions: ``original`` or ``compact``, see `Pruner.__call__`.
        dtype: such as ``bfloat16``.
        device: such as ``cuda``; ignored with several processes, each of which has its own device.
        attn_implementation: ``sdpa``, ``eager`` or ``flash_attention_2``; the model's own by
            default.
        batch_size: documents per batch; lmms-eval passes ``--batch_size``.
        max_batch_size: ignored; lmms-eval passes it.
        options: options of the method, such as ``threshold=0.7``.

    Raises:
        ValueError: an argument is out of range, or the model cannot be loaded.
        UnsupportedModelError: the model's family is not supported.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        method: str = "recommended",
        keep: float | int | str = 0.36,
        positions: str = "original",
        dtype: str = "bfloat16",
        device: str | None = None,
        attn_implementation: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.pruner = make_pruner(method, keep, options)
        self.positions = positions
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"batch_size={batch_size!r} must be a whole number of at least 1")
        self.batch_size_per_gpu = int(batch_size)
        self.accelerator = Accelerator()
        if device is None or self.accelerator.num_processes > 1:
            device = str(self.accelerator.device)
        quiet_transformers()
        self.model, self.processor = load_model(pretrained, device, dtype)
        if attn_implementation is not None:
            self.model.set_attn_implementation(attn_implementation)
        self.tokenizer = self.processor.tokenizer
        self.tokenizer.padding_side = "left"  # generation continues at the end of a row
        self.device = self.model.device
        self._rank, self._world_size = (
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )

    @property
    def config(self) -> Any:
        """Config of the model; lmms-eval stores it with the results."""
        return self.model.config

    @property
    def batch_size(self) -> int:
        """Documents per batch; lmms-eval stores it with the results."""
        return self.batch_size_per_gpu

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Generates the answers, in the order of ``requests``."""
        results: list[GenerationResult | None] = [None] * len(requests)
        seconds, tokens, visual, kept = 0.0, 0, 0, 0
        bar = tqdm(total=len(requests), disable=self.rank != 0, desc=f"gprune {self.label}")
        for batch in self._batches(requests):
            prompts = [self._prompt(requests[index]) for index in batch]
            inputs = self._inputs(prompts)
            options, until = generation_options(requests[batch[0]].args[2])
            synchronize(self.device)
            start = time.perf_counter()
            answers, dropped = self._generate(inputs, options)
            synchronize(self.device)
            seconds += time.perf_counter() - start
            placeholders = int((inputs["input_ids"] == self.model.config.image_token_id).sum())
            visual, kept = visual + placeholders, kept + placeholders - dropped
            for index, ids in zip(batch, answers, strict=True):
                text = truncate(self.tokenizer.decode(ids, skip_special_tokens=True), until)
                length = self._count_tokens(ids)
                tokens += length
                results[index] = GenerationResult(text, TokenCounts(output_tokens=length))
                request = requests[index].args
                self.cache_hook.add_partial("generate_until", (request[0], request[2]), text)
            bar.update(len(batch))
        bar.close()
        documents = max(1, len(requests))
        means = {"visual_tokens": visual / documents, "kept_tokens": kept / documents}
        log_metrics(seconds, tokens, tokens / seconds if seconds else 0.0, means)
        return [result for result in results if result is not None]

    @property
    def label(self) -> str:
        """Name of the method and its budget, for the progress bar."""
        return "full" if self.pruner is None else f"{self.pruner.name} keep {self.pruner.keep}"

    def _batches(self, requests: Sequence[Instance]) -> Iterator[list[int]]:
        """Yields the indices of each batch: requests with equal generation options."""
        order = sorted(range(len(requests)), key=lambda index: repr(requests[index].args[2]))
        for _, group in itertools.groupby(order, lambda index: repr(requests[index].args[2])):
            while batch := list(itertools.islice(group, self.batch_size_per_gpu)):
                yield batch

    def _prompt(self, request: Instance) -> tuple[str, list[Image.Image]]:
        """Returns a document's text in the model's chat format, and its pictures."""
        _, doc_to_messages, _, doc_id, task, split = request.args
        messages = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id]))
        images, videos, audios = messages.extract_media()
        for name, media in (("video", videos), ("audio", audios)):
            if media:
                raise ValueError(
                    f"task {task!r} has {name}, which lmms-eval passes as a file, but gprune takes "
                    "only pictures; choose a task with pictures"
                )
        turns = [
            {
                "role": message.role,
                "content": [
                    {"type": "text", "text": part.text}
                    if part.type == "text"
                    else {"type": "image"}
                    for part in message.content
                ],
            }
            for message in messages.messages
        ]
        if getattr(self.processor, "chat_template", None):
            text = self.processor.apply_chat_template(turns, add_generation_prompt=True)
        else:
            parts = [part for turn in turns for part in turn["content"]]
            image = self.processor.image_token
            text = "".join(image if part["type"] == "image" else part["text"] for part in parts)
        return text, [image.convert("RGB") for image in images]

    def _inputs(self, prompts: Sequence[tuple[str, list[Image.Image]]]) -> Any:
        """Returns the arguments of the model's call."""
        images = [image for _, pictures in prompts for image in pictures]
        return self.processor(
            images=images or None,
            text=[text for text, _ in prompts],
            padding=len(prompts) > 1,  # one prompt needs no padding token
            return_tensors="pt",
        ).to(self.device, dtype=self.model.dtype)

    @torch.inference_mode()
    def _generate(self, inputs: Any, options: dict[str, Any]) -> tuple[torch.Tensor, int]:
        """Returns the new tokens, [batch, length], and the number of dropped visual tokens."""
        pruner = self.pruner
        with nullcontext() if pruner is None else pruner(self.model, self.positions) as pruned:
            ids = self.model.generate(**inputs, **options)
            dropped = 0 if pruned is None else sum(pruned.dropped)
        return ids[:, inputs["input_ids"].shape[1] :], dropped

    def _count_tokens(self, ids: torch.Tensor) -> int:
        """Counts the new tokens of a row, without the padding behind a shorter answer."""
        return int((ids != self.tokenizer.pad_token_id).sum())

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        raise NotImplementedError(
            "gprune cannot score likelihoods: the token before an answer's first token may be "
            "pruned; choose a task with output_type generate_until"
        )

    def generate_until_multi_round(self, requests: list[Instance]) -> NoReturn:
        raise NotImplementedError(
            "gprune cannot answer tasks of several rounds; choose a task with output_type "
            "generate_until"
        )


def make_pruner(method: str, keep: float | int | str, options: dict[str, Any]) -> Pruner | None:
    """Returns the pruner that the model's arguments name; None for ``full``.

    Raises:
        ValueError: the method or an option is unknown, or a value is out of range.
    """
    if method == "full":
        return None
    pruner = make(method, keep=parse_keep(str(keep)))
    known = inspect.signature(type(pruner)).parameters
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ValueError(
            f"model_args has {unknown[0]}={options[unknown[0]]!r}, which is neither an argument of "
            f"this model class nor an option of {method}; {method} takes {', '.join(known)}"
        )
    return make(method, keep=pruner.keep, **options)


def generation_options(kwargs: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Splits a task's ``generation_kwargs`` into options of `generate` and stop strings.

    Temperature 0 means greedy decoding, as in all models of lmms-eval.
    """
    options = {name: kwargs[name] for name in OPTIONS if kwargs.get(name) is not None}
    options.setdefault("max_new_tokens", MAX_NEW_TOKENS)
    options["do_sample"] = bool(options.get("temperature")) and options.get("do_sample", True)
    if not options["do_sample"]:
        for name in ("temperature", "top_p", "top_k"):
            options.pop(name, None)
    until = kwargs.get("until") or []
    return options, [until] if isinstance(until, str) else list(until)


def truncate(text: str, until: Sequence[str]) -> str:
    """Returns ``text`` up to the first stop string, stripped."""
    for stop in until:
        if stop:
            text = text.partition(stop)[0]
    return text.strip()
