"""Image-token pruning in vLLM, as a plugin: install gprune beside vLLM and it is found.

vLLM finds `vllm.plugin.register` through the entry point group `vllm.general_plugins`, in every
process. It adds architectures (`GPruneLlavaForConditionalGeneration` and so on) and changes no
existing one, so nothing happens without configuration. docs/serving.md describes the configuration.

The modules of this package need torch and the pruners only, and are tested without vLLM; its
subpackage `vllm` derives from vLLM's classes.
"""
