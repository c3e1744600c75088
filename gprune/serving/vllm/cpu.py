"""vLLM's CPU worker."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker


class PruningCPUWorker(CPUWorker):
    """A CPU worker whose model runner takes positions from pruned embeddings.

    The GPU runner sets a switch for it when it loads the model. The CPU runner derives from it but
    loads models in its own way, and leaves the switch off.
    """

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        self.model_runner.is_multimodal_pruning_enabled = True
