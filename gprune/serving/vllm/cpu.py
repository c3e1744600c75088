"""vLLM on CPUs."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker


class PruningCPUWorker(CPUWorker):
    """The CPU worker, whose runner takes positions from pruned embeddings.

    The GPU runner reads from the model and its config whether embeddings carry positions. The CPU
    runner derives from it, loads models in its own way and leaves the switch off.
    """

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        self.model_runner.is_multimodal_pruning_enabled = True
