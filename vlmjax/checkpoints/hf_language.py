"""Llama and Qwen2: the folders of `LlamaForCausalLM` and `Qwen2ForCausalLM`."""

from collections.abc import Mapping
from typing import Any

from ssmjax import errors
from ssmjax.checkpoints.mapping import KeyTable, Rule
from ssmjax.models.family import HFLayout
from vlmjax.checkpoints.fields import block_rules, field, only
from vlmjax.models.language import LlamaConfig, Qwen2Config

__all__ = ["LLAMA", "QWEN2", "language_rules", "read_language", "write_language"]

_BLOCK = {
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.out": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}

# The defaults of transformers' own configuration classes: what a short config.json leaves out.
_DEFAULTS = {
    "llama": dict(vocab_size=32000, hidden_size=4096, intermediate_size=11008, rms_norm_eps=1e-6, length=2048),
    "qwen2": dict(vocab_size=151936, hidden_size=4096, intermediate_size=22016, rms_norm_eps=1e-6, length=32768),
}

_SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def language_rules(theirs: str = "", ours: str = "") -> tuple[Rule, ...]:
    """The rules of a language model whose names begin with `theirs` there and with `ours` here."""
    return (
        Rule(f"{theirs}model.embed_tokens.weight", f"{ours}embedding"),
        *block_rules(f"{theirs}model.layers.{{i}}", f"{ours}layers", _BLOCK),
        Rule(f"{theirs}model.norm.weight", f"{ours}norm.scale"),
        Rule(f"{theirs}lm_head.weight", f"{ours}head.kernel", "linear"),
    )


def read_language(description: Mapping[str, Any], where: str = "config.json") -> LlamaConfig:
    """Our configuration for a `config.json` of Llama or Qwen2, or for the `text_config` of a larger model's.

    Args:
        description: Its content.
        where: What to call it in a message.

    Raises:
        ValueError: It has a value that the models here do not have.
    """
    kind = only(where, description, "model_type", tuple(_DEFAULTS), "llama")
    defaults = _DEFAULTS[kind]
    only(where, description, "hidden_act", ("silu",), "silu")
    only(where, description, "use_sliding_window", (False, None), False)
    base, scaling = _rope(where, description)
    heads = field(description, ["num_attention_heads"], 32)
    options: dict[str, Any] = dict(
        vocab=field(description, ["vocab_size"], defaults["vocab_size"]),
        d_model=field(description, ["hidden_size"], defaults["hidden_size"]),
        depth=field(description, ["num_hidden_layers"], 32),
        heads=heads,
        kv_heads=field(description, ["num_key_value_heads"], heads if kind == "llama" else 32),
        head_dim=description.get("head_dim"),
        d_mlp=field(description, ["intermediate_size"], defaults["intermediate_size"]),
        eps=field(description, ["rms_norm_eps"], defaults["rms_norm_eps"]),
        rope_base=base,
        rope_scaling=scaling,
        tied=bool(description.get("tie_word_embeddings", False)),
        max_length=field(description, ["max_position_embeddings"], defaults["length"]),
    )
    if options["kv_heads"] == heads:
        options["kv_heads"] = None
    if options["head_dim"] == options["d_model"] // heads and options["d_model"] % heads == 0:
        options["head_dim"] = None  # written out by newer versions, left out by older ones
    if kind == "qwen2":
        return Qwen2Config(**options)
    bias = bool(description.get("attention_bias", False))
    return LlamaConfig(**options, qkv_bias=bias, out_bias=bias, mlp_bias=bool(description.get("mlp_bias", False)))


def write_language(config: LlamaConfig) -> dict[str, Any]:
    """The content of a `config.json`; the rotary fields stand there in the form of transformers 4 and in that of 5."""
    qwen2 = isinstance(config, Qwen2Config)
    old = None if config.rope_scaling is None else dict(zip(_SCALING, config.rope_scaling, strict=True))
    old = None if old is None else {"rope_type": "llama3", **old}
    content = {
        "architectures": ["Qwen2ForCausalLM" if qwen2 else "LlamaForCausalLM"],
        "model_type": "qwen2" if qwen2 else "llama",
        "vocab_size": config.vocab,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.block.groups,
        "head_dim": config.block.head_width,
        "intermediate_size": config.d_mlp,
        "hidden_act": "silu",
        "rms_norm_eps": config.eps,
        "rope_theta": config.rope_base,
        "rope_scaling": old,
        "rope_parameters": {"rope_type": "default", **(old or {}), "rope_theta": config.rope_base},
        "tie_word_embeddings": config.tied,
        "max_position_embeddings": config.max_length,
    }
    return content if qwen2 else content | {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}


def _rope(where: str, description: Mapping[str, Any]) -> tuple[float, tuple[float, float, float, int] | None]:
    """The base of the wavelengths and their stretching, from the form of transformers 5 or from that of 4."""
    new, old = description.get("rope_parameters"), description.get("rope_scaling")
    found = dict(new or old or {})
    theirs = {description.get("rope_theta"), found.get("rope_theta")} - {None}
    if len(theirs) > 1:
        remedy = "rope_parameters and rope_theta differ: correct the file."
        raise errors.bad_argument(where, "rope_theta", sorted(theirs), "one number", remedy)
    base = float(theirs.pop()) if theirs else 10000.0
    kind = found.get("rope_type", found.get("type", "default"))
    if kind == "default":
        return base, None
    if kind != "llama3":
        remedy = "There is no other stretching here."
        raise errors.bad_argument(where, "rope_type", kind, "'default' or 'llama3'", remedy)
    missing = [name for name in _SCALING if name not in found]
    if missing:
        raise errors.bad_argument(where, "rope_parameters", found, f"with {', '.join(missing)}")
    return base, (*(float(found[name]) for name in _SCALING[:3]), int(found[_SCALING[3]]))


def _table(config: LlamaConfig) -> KeyTable:
    return KeyTable(
        language_rules(),
        ignored=("model.layers.{i}.self_attn.rotary_emb.inv_freq",),
        tied={"lm_head.weight": "model.embed_tokens.weight"} if config.tied else {},
    )


LLAMA = HFLayout(("llama",), read_language, write_language, _table, architectures=("LlamaForCausalLM",))
"""Folders of `LlamaForCausalLM`."""

QWEN2 = HFLayout(("qwen2",), read_language, write_language, _table, architectures=("Qwen2ForCausalLM",))
"""Folders of `Qwen2ForCausalLM`."""
