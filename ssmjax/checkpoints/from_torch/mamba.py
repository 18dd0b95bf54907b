"""Mamba, Mamba-2, Mamba-3 and their language models: from and to the key layout of the original implementation.

`ssmjax.load_pretrained` reads its folders, such as a download of `state-spaces/mamba-130m` (`allow_pickle=True`).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from ssmjax import errors
from ssmjax.checkpoints.arrays import model_arrays
from ssmjax.checkpoints.mapping import KeyTable, Rule
from ssmjax.models import registry
from ssmjax.models.language_model import LanguageModelConfig

__all__ = ["config_from_reference", "convert", "mixer_arguments", "mixer_table", "table", "to_reference"]

_PROJECTIONS = ("in_proj", "x_proj", "dt_proj", "out_proj")
_SAME = ("A_log", "D", "dt_bias", "B_bias", "C_bias", "mimo_x", "mimo_z", "mimo_o")


def _mixer_rules(theirs: str, ours: str, stack: tuple[int, ...] | None = None) -> tuple[Rule, ...]:
    """The rules of all mixers: a rule whose parameter a mixer does not have is not used."""
    rules = [Rule(f"{theirs}{name}.weight", f"{ours}{name}.kernel", "linear", stack=stack) for name in _PROJECTIONS]
    rules += [Rule(f"{theirs}{name}.bias", f"{ours}{name}.bias", stack=stack) for name in _PROJECTIONS]
    rules += [Rule(f"{theirs}{name}", f"{ours}{name}", stack=stack) for name in _SAME]
    rules += [
        Rule(f"{theirs}conv1d.weight", f"{ours}conv1d.kernel", "conv1d", stack=stack),
        Rule(f"{theirs}conv1d.bias", f"{ours}conv1d.bias", stack=stack),
        Rule(f"{theirs}conv1d.weight", f"{ours}conv_kernel", "conv1d", stack=stack),  # of attention
        Rule(f"{theirs}conv1d.bias", f"{ours}conv_bias", stack=stack),
        Rule(f"{theirs}norm.weight", f"{ours}norm.scale", stack=stack),
        Rule(f"{theirs}norm.weight", f"{ours}norm_scale", stack=stack),  # of Mamba-3
        Rule(f"{theirs}B_norm.weight", f"{ours}B_norm.scale", stack=stack),
        Rule(f"{theirs}C_norm.weight", f"{ours}C_norm.scale", stack=stack),
    ]
    return tuple(rules)


def mixer_table() -> KeyTable:
    """The key table of a mixer alone, of any of the three kinds.

    >>> mixer_table().rules[0].source
    'in_proj.weight'
    """
    return KeyTable(_mixer_rules("", ""))


def table(config: LanguageModelConfig, *, embedding: str = "embedding") -> KeyTable:
    """The key table of a language model.

    Args:
        config: The model's configuration.
        embedding: How the embedding is called; `"embeddings"` in transformers.

    >>> table(LanguageModelConfig()).tied
    {'lm_head.weight': 'backbone.embedding.weight'}
    """
    rules = [
        Rule(f"backbone.{embedding}.weight", "embedding"),
        Rule("backbone.norm_f.weight", "norm_f.scale"),
        Rule("backbone.norm_f.bias", "norm_f.bias"),
        Rule("lm_head.weight", "head.kernel", "linear"),
    ]
    for kind in dict.fromkeys(config.pattern):
        stack = tuple(i for i, each in enumerate(config.pattern) if each == kind)
        theirs = "backbone.layers.{i}."
        for norm in ("norm", "norm2"):
            rules.append(Rule(f"{theirs}{norm}.weight", f"{kind}.{norm}.scale", stack=stack))
            rules.append(Rule(f"{theirs}{norm}.bias", f"{kind}.{norm}.bias", stack=stack))
        for name in ("fc1", "fc2"):
            rules.append(Rule(f"{theirs}mlp.{name}.weight", f"{kind}.mlp.{name}.kernel", "linear", stack=stack))
        rules += _mixer_rules(f"{theirs}mixer.", f"{kind}.mixer.", stack)
    tied = {"lm_head.weight": f"backbone.{embedding}.weight"} if config.tie_embeddings else {}
    return KeyTable(tuple(rules), tied=tied)


# What the originals call the arguments of a mixer: our name; None if it does not change what a trained mixer computes.
_COMMON = {
    "expand": "expand",
    "d_state": "d_state",
    "dt_min": "dt_min",
    "dt_max": "dt_max",
    "dt_init_floor": "dt_floor",
    "layer_idx": None,
    "device": None,
    "dtype": None,
}
_ARGUMENTS: dict[str, dict[str, str | None]] = {
    "mamba": _COMMON
    | {"d_conv": "d_conv", "dt_rank": "dt_rank", "conv_bias": "conv_bias", "bias": "use_bias"}
    | dict.fromkeys(("dt_init", "dt_scale", "use_fast_path")),
    "mamba2": _COMMON
    | {
        "d_conv": "d_conv",
        "headdim": "head_dim",
        "d_ssm": "d_ssm",
        "ngroups": "groups",
        "A_init_range": "A_range",
        "D_has_hdim": "D_per_channel",
        "rmsnorm": "norm",
        "norm_before_gate": "norm_before_gate",
        "dt_limit": "dt_limit",
        "bias": "use_bias",
        "conv_bias": "conv_bias",
        "chunk_size": "chunk",
    }
    | dict.fromkeys(("conv_init", "use_mem_eff_path")),
    "mamba3": _COMMON
    | {
        "headdim": "head_dim",
        "ngroups": "groups",
        "rope_fraction": "rope_fraction",
        "A_floor": "A_floor",
        "is_outproj_norm": "norm",
        "chunk_size": "chunk",
    }
    | dict.fromkeys(("is_mimo", "mimo_rank", "fuse_pregate_headwise_norm", "dropout")),
    "attention": {
        "num_heads": "heads",
        "num_heads_kv": "kv_heads",
        "head_dim": "head_dim",
        "d_conv": "d_conv",
        "rotary_emb_dim": "rotary_dim",
        "rotary_emb_base": "rotary_base",
        "qkv_proj_bias": "qkv_bias",
        "out_proj_bias": "out_bias",
    },
}
_DEFAULTS = {"attention": {"rotary_dim": 0, "qkv_bias": True, "out_bias": True}}
_KINDS = {"Mamba1": "mamba", "Mamba2": "mamba2", "Mamba3": "mamba3"}
_ATTENTION_FIXED = {"causal": (True,), "mlp_dim": (0,), "rotary_emb_interleaved": (False,), "softmax_scale": (None,)}


def mixer_arguments(kind: str, theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Our arguments of a mixer for the original's; those left out are left out here, too.

    Args:
        kind: "mamba", "mamba2", "mamba3" or "attention".
        theirs: The original's arguments by name.

    Raises:
        ValueError: An argument is unknown.
        NotImplementedError: A value that this library does not have.

    >>> mixer_arguments("mamba2", {"headdim": 32, "ngroups": 2})
    {'head_dim': 32, 'groups': 2}
    """
    known, ours = _ARGUMENTS[kind], dict(_DEFAULTS.get(kind, {}))
    for name, value in theirs.items():
        if kind == "attention" and name in _ATTENTION_FIXED:
            if value not in _ATTENTION_FIXED[name]:
                raise NotImplementedError(f"mixer_arguments: there is no attention with {name}={value!r}.")
            continue
        if name not in known:
            raise ValueError(f"mixer_arguments: {errors.unknown_name('argument', name, list(known))}")
        if known[name] is not None:
            ours[known[name]] = tuple(value) if isinstance(value, list) else None if value == "auto" else value
    if kind == "mamba3" and theirs.get("is_mimo"):
        ours["rank"] = theirs.get("mimo_rank", 4)
    return ours


_FIELDS = {
    "d_model": ("d_model", 2560),
    "n_layer": ("depth", 64),
    "vocab_size": ("vocab_size", 50277),
    "pad_vocab_size_multiple": ("vocab_multiple", 8),
    "d_intermediate": ("mlp_width", 0),
    "residual_in_fp32": ("float32_residual", True),
    "tie_embeddings": ("tie_embeddings", True),
}


def config_from_reference(theirs: Mapping[str, Any]) -> LanguageModelConfig:
    """Our configuration for the content of the original's `config.json`; what is left out has the original's default.

    Raises:
        ValueError: A field or an argument of a mixer is unknown.
        NotImplementedError: A mixer or an option that this library does not have.

    >>> config_from_reference({"d_model": 768, "n_layer": 24, "ssm_cfg": {"layer": "Mamba2"}}).mixer
    'mamba2'
    """
    known = [*_FIELDS, "ssm_cfg", "attn_cfg", "attn_layer_idx", "rms_norm", "fused_add_norm"]
    for name in theirs:
        if name not in known:
            raise ValueError(f"config_from_reference: {errors.unknown_name('field', name, known)}")
    options = dict(theirs.get("ssm_cfg") or {})
    layer = options.pop("layer", "Mamba1")
    if layer not in _KINDS:
        raise NotImplementedError(f"config_from_reference: {errors.unknown_name('layer', layer, list(_KINDS))}")
    fields = {name: theirs.get(source, default) for source, (name, default) in _FIELDS.items()}
    places = tuple(theirs.get("attn_layer_idx") or ())
    attention = mixer_arguments("attention", theirs.get("attn_cfg") or {}) if places else {}
    return LanguageModelConfig(
        mixer=_KINDS[layer],
        mixer_options=mixer_arguments(_KINDS[layer], options),
        attention_layers=places,
        attention_options=attention,
        norm="rms" if theirs.get("rms_norm", True) else "layer",
        **fields,
    )


def convert(
    state: Mapping[str, np.ndarray], config: LanguageModelConfig, where: str = "convert", **names: str
) -> dict[str, np.ndarray]:
    """Converts a state dict of the original to arrays of ours.

    Args:
        state: Arrays by the original's names; a tied head may be there or not.
        config: The configuration of the model they are for.
        where: What to call the state dict in a message.
        **names: As in `table`.

    Raises:
        ValueError: Names, shapes or dtypes are not those of such a model; one message lists all differences.
    """
    abstract = nnx.eval_shape(lambda: registry.build("language_model", config))
    return table(config, **names).to_ours(state, model_arrays(abstract), where, cast=False)


def to_reference(arrays: Mapping[str, Any], config: LanguageModelConfig, **names: str) -> dict[str, np.ndarray]:
    """Converts arrays of ours, or gradients, to the original's layout. A tied head is written twice, as there."""
    result = table(config, **names).to_source(arrays)
    if config.tie_embeddings:
        result["lm_head.weight"] = result[f"backbone.{names.get('embedding', 'embedding')}.weight"]
    return result
