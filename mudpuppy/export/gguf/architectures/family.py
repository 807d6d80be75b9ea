"""What the families of models have in common: tables of tensors, and settings as metadata."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mudpuppy.errors import shown
from mudpuppy.export.gguf.refusals import ExportRefused

Settings = Mapping[str, Any]
"""A model's configuration as transformers completes it, those of its text part on top."""
Entry = tuple[str, Any]
"""Method of `gguf.GGUFWriter` without `add_`, and what it is given."""
MOST = 2**31 - 1
"""Largest whole number that the file takes for a size."""
LARGEST = 3.4e38
"""Largest number that fp32 has, nearly."""
EXPERTS = ("num_local_experts", "num_experts")
"""What families call the number of experts."""
BLOCK = "model.layers.{block}."
"""How the tensors of a block begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One kind of tensor: what it is called on both sides, and its shape."""

    stored: tuple[str, ...]
    """Names in the checkpoint, the first that is there counts; `{block}` and `{expert}` are
    numbers. Those of all experts are put on top of each other."""
    name: str
    """Name in the file."""
    shape: tuple[str, ...]
    """Names of its sizes, see `sizes_of`; those of one expert where it has `{expert}`."""
    fused: str = ""
    """The checkpoint's name for the tensors of all experts in one."""
    half: int | None = None
    """Which half of the rows of each expert of the fused tensor it is; None for all of them."""
    heads: str = ""
    """`heads` or `kv_heads` where its rows are reordered for the rotation of positions."""
    shift: float = 0.0
    """What is added to its values."""
    is_optional: bool = False
    """Whether a model may do without."""
    is_exact: bool = False
    """Whether it stays F32 although it is a matrix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A family of models that llama.cpp has one name for."""

    name: str
    """That name."""
    classes: tuple[str, ...]
    """Names of transformers' classes."""
    rows: tuple[Row, ...]
    """Its tensors."""
    defaults: Mapping[str, Any]
    """What transformers takes where config.json is silent."""
    describe: Callable[[Settings], Iterable[Entry]]
    """Settings as metadata."""
    check: Callable[[Settings], Iterable[str]]
    """Raises where llama.cpp would compute something else; yields what is worth telling."""
    extra: Callable[[Settings], Iterable[tuple[str, tuple[float, ...]]]] = lambda _: ()
    """Vectors that are computed from settings, by name."""
    head: str = "optional"
    """Whether llama.cpp takes an output layer of its own: `optional`, `required`, or `never`."""
    activation: str = "silu"
    """What its blocks compute with."""
    fills_head: bool = False
    """Whether transformers computes the length of a head where it is not given."""
    alternates: bool = False
    """Whether blocks with and without a window rotate positions differently."""
    skipped: tuple[str, ...] = ()
    """Beginnings of tensors of other parts, such as pictures, which are left out."""


def defaults(
    vocabulary: int, shape: tuple[int, int, int, int, int | None], reach: int, **more: Any
) -> dict[str, Any]:
    """Return the settings that every family has.

    Args:
        vocabulary: tokens.
        shape: width, inner width, blocks, heads, and heads of keys and values.
        reach: positions.
        more: what else there is, or is otherwise.
    """
    wide, feed, blocks, heads, keys = shape
    return {
        "vocab_size": vocabulary,
        "hidden_size": wide,
        "intermediate_size": feed,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "max_position_embeddings": reach,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "rope_theta": 10_000.0,
        **more,
    }


def refuse(message: str, hint: str = "") -> ExportRefused:
    """Return the error for settings that cannot be said in the file."""
    return ExportRefused("MP-X03", message, hint=hint)


def find(settings: Settings, *keys: str) -> Any:
    """Return the first of some settings that is there, None where none is."""
    return next((settings[key] for key in keys if settings.get(key) is not None), None)


def whole(settings: Settings, key: str) -> int:
    """Return a setting that must be a positive whole number.

    Raises:
        ExportRefused: it is none.
    """
    value = settings.get(key)
    if type(value) is not int or not 0 < value <= MOST:
        raise refuse(f"config.json: {key} is {shown(value)}, not a positive whole number")
    return value


def number(settings: Settings, key: str) -> float:
    """Return a setting that must be a positive number.

    Raises:
        ExportRefused: it is none.
    """
    value: Any = settings.get(key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value <= LARGEST:
        raise refuse(f"config.json: {key} is {shown(value)}, not a positive number")
    found: float = value
    return found


def head_size(settings: Settings) -> int:
    """Return the length of a head.

    Raises:
        ExportRefused: it is not given, and the heads do not divide the width.
    """
    if settings.get("head_dim") is not None:
        return whole(settings, "head_dim")
    wide, heads = whole(settings, "hidden_size"), whole(settings, "num_attention_heads")
    if wide % heads:
        raise refuse(f"hidden_size {wide} is not a multiple of num_attention_heads {heads}")
    return wide // heads


def kv_heads(settings: Settings) -> int:
    """Return the number of heads of keys and values."""
    missing = settings.get("num_key_value_heads") is None
    return whole(settings, "num_attention_heads" if missing else "num_key_value_heads")


def sizes_of(settings: Settings) -> dict[str, int]:
    """Return the sizes that shapes of tensors are made of, by name."""
    size, feed = head_size(settings), whole(settings, "intermediate_size")
    heads, keys = whole(settings, "num_attention_heads"), kv_heads(settings)
    return {
        "one": 1,
        "rows": whole(settings, "vocab_size"),
        "hidden": whole(settings, "hidden_size"),
        "heads": heads,
        "kv_heads": keys,
        "head": size,
        "q": heads * size,
        "kv": keys * size,
        "qkv": (heads + 2 * keys) * size,
        "feed": feed,
        "double_feed": 2 * feed,
        "experts": experts_of(settings),
        "expert_feed": _or(settings, "moe_intermediate_size", feed),
        "shared_feed": _or(settings, "shared_expert_intermediate_size", feed),
    }


def experts_of(settings: Settings) -> int:
    """Return the number of experts of a block; 0 where there are none."""
    key = next((k for k in EXPERTS if settings.get(k) is not None), None)
    return 0 if key is None else whole(settings, key)


def _or(settings: Settings, key: str, other: int) -> int:
    return other if settings.get(key) is None else whole(settings, key)


EMBEDDING = Row(
    stored=("model.embed_tokens.weight",), name="token_embd.weight", shape=("rows", "hidden")
)
NORM = Row(stored=("model.norm.weight",), name="output_norm.weight", shape=("hidden",))
HEAD = Row(
    stored=("lm_head.weight",), name="output.weight", shape=("rows", "hidden"), is_optional=True
)


def block_row(stored: str, name: str, *shape: str, **more: Any) -> Row:
    """Return a tensor that every block has."""
    return Row(stored=(BLOCK + stored,), name="blk.{block}." + name, shape=shape, **more)


def attention_rows(*, turned: bool = False, output_bias: bool = False) -> tuple[Row, ...]:
    """Return queries, keys, values and output, with or without biases.

    Args:
        turned: whether heads are reordered for the rotation of positions.
        output_bias: whether llama.cpp knows a bias of the output.
    """
    found = []
    for letter, size, heads in (("q", "q", "heads"), ("k", "kv", "kv_heads"), ("v", "kv", "")):
        turn = heads if turned else ""
        stored, name = f"self_attn.{letter}_proj", f"attn_{letter}"
        found += [
            block_row(f"{stored}.weight", f"{name}.weight", size, "hidden", heads=turn),
            block_row(f"{stored}.bias", f"{name}.bias", size, heads=turn, is_optional=True),
        ]
    found.append(block_row("self_attn.o_proj.weight", "attn_output.weight", "hidden", "q"))
    if output_bias:
        found.append(
            block_row("self_attn.o_proj.bias", "attn_output.bias", "hidden", is_optional=True)
        )
    return tuple(found)


def feed_rows(stored: str = "mlp", *, end: str = "", size: str = "feed") -> tuple[Row, ...]:
    """Return gate, up and down of a block without experts, or of the one that all tokens share."""
    return (
        block_row(f"{stored}.gate_proj.weight", f"ffn_gate{end}.weight", size, "hidden"),
        block_row(f"{stored}.up_proj.weight", f"ffn_up{end}.weight", size, "hidden"),
        block_row(f"{stored}.down_proj.weight", f"ffn_down{end}.weight", "hidden", size),
    )


def norm_rows(shift: float = 0.0) -> tuple[Row, ...]:
    """Return the two norms that most blocks have."""
    return (
        block_row("input_layernorm.weight", "attn_norm.weight", "hidden", shift=shift),
        block_row("post_attention_layernorm.weight", "ffn_norm.weight", "hidden", shift=shift),
    )


def expert_rows(stored: str, gate: str, up: str, down: str) -> tuple[Row, ...]:
    """Return the router and the stacked experts.

    Args:
        stored: what comes before `gate.weight` and `experts.` in the checkpoint.
        gate: name of the gate of an expert.
        up: name of its way up.
        down: name of its way down.
    """
    fused = f"{BLOCK}mlp.experts."

    def one(part: str, name: str, half: int | None, *shape: str) -> Row:
        end = "down_proj" if half is None else "gate_up_proj"
        return Row(
            stored=(f"{BLOCK}{stored}.experts.{{expert}}.{part}.weight",),
            name=f"blk.{{block}}.{name}.weight",
            shape=shape,
            fused=fused + end,
            half=half,
        )

    return (
        Row(
            stored=(f"{BLOCK}{stored}.gate.weight", f"{BLOCK}mlp.gate.weight"),
            name="blk.{block}.ffn_gate_inp.weight",
            shape=("experts", "hidden"),
            is_exact=True,
        ),
        one(gate, "ffn_gate_exps", 0, "expert_feed", "hidden"),
        one(up, "ffn_up_exps", 1, "expert_feed", "hidden"),
        one(down, "ffn_down_exps", None, "hidden", "expert_feed"),
    )
