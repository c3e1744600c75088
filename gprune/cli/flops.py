"""``gprune flops``: multiply-adds and KV-cache bytes with and without pruning."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from gprune.ask.loading import read_config, refuse_cross_attention
from gprune.budget import parse_keep
from gprune.cli.console import exit_on_bad_use, print_costs, print_json, print_line
from gprune.cli.options import KEEP_HELP, JsonOption, complete_method
from gprune.pruners import DecoderPruner, make

if TYPE_CHECKING:
    from gprune.costs import LanguageModelShape

CONVENTION_HELP = (
    "How a layer is counted. fastv: 4nd² + 2n²d + 2ndm; linear: linear layers only; exact: linear "
    "layers with grouped-query attention and gated MLP, plus causal attention."
)

Model = Annotated[str | None, typer.Argument(help="Folder or Hub id of a model, for its sizes.")]
HiddenSize = Annotated[int | None, typer.Option(help="Width of the language model.")]
IntermediateSize = Annotated[int | None, typer.Option(help="Width of its MLP.")]
Layers = Annotated[int | None, typer.Option(help="Decoder layers.")]
Heads = Annotated[int | None, typer.Option(help="Attention heads.")]
KeyValueHeads = Annotated[int | None, typer.Option(help="KV heads; as many as heads by default.")]
HeadDim = Annotated[int | None, typer.Option(help="Width of a head.")]
Gated = Annotated[bool, typer.Option(help="Whether the MLP is gated.")]
VisualTokens = Annotated[int | None, typer.Option(help="Visual tokens before pruning.")]
TextTokens = Annotated[int, typer.Option(help="All other tokens of the prompt.")]
OptionalKeep = Annotated[str | None, typer.Option(help=KEEP_HELP)]
TargetSaving = Annotated[
    float | None, typer.Option(help="Find the keep that saves this share, such as 0.64.")
]
Convention = Annotated[str, typer.Option(help=CONVENTION_HELP)]
DecoderMethod = Annotated[
    str | None,
    typer.Option(
        help="Needed only for methods that prune inside the language model, such as fastv.",
        autocompletion=complete_method,
    ),
]
BytesPerValue = Annotated[int, typer.Option(min=1, help="Bytes per value of the KV cache.")]


# Over 40 lines: eighteen options.
def flops(
    model: Model = None,
    hidden_size: HiddenSize = None,
    intermediate_size: IntermediateSize = None,
    layers: Layers = None,
    heads: Heads = None,
    kv_heads: KeyValueHeads = None,
    head_dim: HeadDim = None,
    gated: Gated = True,
    visual_tokens: VisualTokens = None,
    text_tokens: TextTokens = 0,
    keep: OptionalKeep = None,
    target_saving: TargetSaving = None,
    convention: Convention = "exact",
    method: DecoderMethod = None,
    bytes_per_value: BytesPerValue = 2,
    as_json: JsonOption = False,
) -> None:
    """Count prefill multiply-adds and KV-cache bytes with and without pruning.

    Example: gprune flops --hidden-size 4096 --intermediate-size 11008 --layers 32
    --visual-tokens 576 --keep 192 --convention fastv
    """
    from gprune.costs import LanguageModelShape, saving

    with exit_on_bad_use():
        tower = None
        if model is not None:
            shape, tower, default_tokens = model_sizes(model)
            visual_tokens = visual_tokens or default_tokens
        elif hidden_size is None or intermediate_size is None or layers is None:
            raise ValueError(
                "sizes are missing: pass MODEL, or --hidden-size, --intermediate-size and --layers"
            )
        else:
            shape = LanguageModelShape(
                hidden_size, intermediate_size, layers, heads, kv_heads, head_dim, gated
            )
        if visual_tokens is None:
            raise ValueError("visual_tokens is missing: pass --visual-tokens, such as 576")
        prompt = (shape, visual_tokens, text_tokens)
        budget = resolve_budget(keep, target_saving, *prompt, convention)
        by_layer = None
        if method is not None:
            by_layer = tokens_by_layer(method, budget, target_saving, shape, visual_tokens)
        cost = saving(*prompt, budget, convention, bytes_per_value, by_layer)
    if as_json:
        print_json({**dataclasses.asdict(cost), "vision_tower_flops": tower})
        return
    print_line(
        f"keep {cost.keep}: {cost.kept_tokens} of {cost.visual_tokens} visual tokens, "
        f"{cost.text_tokens} text tokens"
    )
    print_costs(cost)
    if tower is not None:
        print_line(f"vision tower {tower / 1e9:.3f} G multiply-adds per image, not pruned")


def resolve_budget(
    keep: str | None,
    target_saving: float | None,
    shape: LanguageModelShape,
    visual_tokens: int,
    text_tokens: int,
    convention: str,
) -> float | int:
    """Parses ``keep``, or finds the budget that saves ``target_saving`` of the multiply-adds.

    Raises:
        ValueError: both or neither of the two are given, or one is out of range.
    """
    from gprune.costs import keep_for

    if (keep is None) == (target_saving is None):
        raise ValueError("pass either --keep or --target-saving")
    if keep is not None:
        return parse_keep(keep)
    assert target_saving is not None  # by the check above
    return keep_for(target_saving, shape, visual_tokens, text_tokens, convention)


def tokens_by_layer(
    method: str,
    budget: float | int,
    target_saving: float | None,
    shape: LanguageModelShape,
    visual_tokens: int,
) -> list[int] | None:
    """Returns the visual tokens in each layer for a method that prunes inside the language model.

    Returns:
        None for other methods, whose layers all see the same number.

    Raises:
        ValueError: the method is unknown, or ``target_saving`` cannot be met with it.
    """
    pruner = make(method, keep=budget)
    if not isinstance(pruner, DecoderPruner):
        return None
    if target_saving is not None:
        raise ValueError(
            f"target_saving={target_saving} cannot be met with method {method!r}, "
            "whose early layers see every token; pass --keep"
        )
    return pruner.schedule(visual_tokens, shape.layers)


def model_sizes(model: str) -> tuple[LanguageModelShape, int | None, int | None]:
    """Reads the sizes of a model from its config.

    Returns:
        The language model's sizes; multiply-adds of the vision tower, and visual tokens per image,
        both None where they depend on the image's size.

    Raises:
        ValueError: the config cannot be read.
        UnsupportedModelError: the family reads visual tokens by cross-attention.
    """
    from gprune.costs import LanguageModelShape
    from gprune.costs.flops import vision_tower_flops
    from gprune.layouts import FAMILIES

    config = read_config(model)
    shape = LanguageModelShape.from_config(config)
    family = next((one for one in FAMILIES if one.name == config.model_type), None)
    if family is not None:
        refuse_cross_attention(family)
    tokens = None if family is None else family.tokens_per_image(config)
    return shape, None if tokens is None else vision_tower_flops(config), tokens
