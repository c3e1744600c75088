"""The vLLM plugin: subclasses of vLLM's models, processors, config hook and CPU worker."""
