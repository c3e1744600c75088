"""Image-token pruning in vLLM, as a plugin: `pip install gprune` beside vLLM is all it takes.

vLLM finds `plugin.register` through the entry point group `vllm.general_plugins`, in every process.
It adds architectures (`GPruneLlavaForConditionalGeneration` and so on) and changes no existing one,
so without configuration nothing happens. docs/serving.md says how to ask for them.

`settings`, `families`, `positions` and `images` know torch and the pruners alone and are tested
without vLLM; `processing`, `models`, `hooks` and `cpu` are its subclasses.
"""
