"""The language models `mamba`, `falcon_mamba` and `mamba2` of transformers, in both directions."""

import math
from collections.abc import Mapping
from typing import Any

from ssmjax import errors
from ssmjax.checkpoints.from_torch import mamba
from ssmjax.checkpoints.mapping import KeyTable
from ssmjax.models.family import HFLayout
from ssmjax.models.language_model import LanguageModelConfig

__all__ = ["LAYOUTS", "config_from_hf", "config_to_hf"]

_TYPES = {"mamba": "MambaForCausalLM", "falcon_mamba": "FalconMambaForCausalLM", "mamba2": "Mamba2ForCausalLM"}

# What transformers assumes where a file is silent.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "mamba": {"vocab_size": 50280, "hidden_size": 768, "state_size": 16, "num_hidden_layers": 32},
    "falcon_mamba": {"vocab_size": 50280, "hidden_size": 768, "state_size": 16, "num_hidden_layers": 32},
    "mamba2": {"vocab_size": 32768, "hidden_size": 4096, "state_size": 128, "num_hidden_layers": 64},
}
_COMMON: dict[str, Any] = {
    "layer_norm_epsilon": 1e-5,
    "expand": 2,
    "conv_kernel": 4,
    "use_bias": False,
    "use_conv_bias": True,
    "hidden_act": "silu",
    "residual_in_fp32": True,
    "time_step_rank": "auto",
    "time_step_min": 0.001,
    "time_step_max": 0.1,
    "time_step_floor": 1e-4,
    "intermediate_size": None,
    "mixer_rms_eps": 1e-6,
    "num_heads": 128,
    "head_dim": 64,
    "n_groups": 8,
    "chunk_size": 256,
    "time_step_limit": [0.0, math.inf],
    "rms_norm": True,
    "norm_before_gate": True,  # written into some files of Mamba-2, and read by no version of transformers
}


def config_from_hf(theirs: Mapping[str, Any]) -> LanguageModelConfig:
    """Our configuration for the content of a `config.json` of transformers.

    Args:
        theirs: The content; what is left out has the default of transformers.

    Raises:
        ValueError: The `model_type` is none of these, or a size contradicts another.
        NotImplementedError: An activation that this library does not have.

    >>> config_from_hf({"model_type": "mamba", "num_hidden_layers": 24}).depth
    24
    """
    kind = theirs.get("model_type")
    if kind not in _TYPES:
        raise errors.unknown_name("model_type", str(kind), list(_TYPES))
    whole = _COMMON | _DEFAULTS[kind] | {name: value for name, value in theirs.items() if value is not None}
    if whole["hidden_act"] not in ("silu", "swish"):
        raise NotImplementedError(f"config_from_hf: there is no Mamba with hidden_act={whole['hidden_act']!r}.")
    options: dict[str, Any] = {
        "d_state": whole["state_size"],
        "d_conv": whole["conv_kernel"],
        "expand": whole["expand"],
        "use_bias": whole["use_bias"],
        "conv_bias": whole["use_conv_bias"],
        "dt_min": whole["time_step_min"],
        "dt_max": whole["time_step_max"],
        "dt_floor": whole["time_step_floor"],
    }
    inner = whole["expand"] * whole["hidden_size"]
    if kind == "mamba2":
        if whole["num_heads"] * whole["head_dim"] != inner:
            wanted = f"expand * hidden_size / head_dim = {inner / whole['head_dim']}"
            raise errors.bad_argument("config_from_hf", "num_heads", whole["num_heads"], wanted)
        low, high = map(_number, whole["time_step_limit"])
        options |= {"head_dim": whole["head_dim"], "groups": whole["n_groups"], "chunk": whole["chunk_size"]}
        options |= {"norm_eps": whole["layer_norm_epsilon"]}
        options |= {} if (low, high) == (0.0, math.inf) else {"dt_limit": (low, high)}
    else:
        if whole["intermediate_size"] not in (None, inner):
            raise errors.bad_argument("config_from_hf", "intermediate_size", whole["intermediate_size"], f"{inner}")
        rank = whole["time_step_rank"]
        options["dt_rank"] = None if rank == "auto" else rank
        options |= {"rms_eps": whole["mixer_rms_eps"]} if kind == "falcon_mamba" else {}
    return LanguageModelConfig(
        mixer="mamba2" if kind == "mamba2" else "mamba",
        mixer_options=options,
        vocab_size=whole["vocab_size"],
        vocab_multiple=1,
        d_model=whole["hidden_size"],
        depth=whole["num_hidden_layers"],
        norm_eps=whole["layer_norm_epsilon"],
        tie_embeddings=whole.get("tie_word_embeddings", kind != "mamba2"),
        float32_residual=whole["residual_in_fp32"],
    )


def _number(value: Any) -> float:
    """A number, or what newer versions write in place of those that JSON lacks: `{"__float__": "Infinity"}`."""
    return float(value["__float__"] if isinstance(value, Mapping) else value)


_MAMBA_DEFAULTS = {"d_state": 16, "d_conv": 4, "expand": 2, "use_bias": False, "conv_bias": True, "dt_rank": None}
_MAMBA2_DEFAULTS = {
    "d_state": 128,
    "d_conv": 4,
    "expand": 2,
    "use_bias": False,
    "conv_bias": True,
    "head_dim": 64,
    "groups": 1,
    "chunk": 256,
    "dt_limit": None,
    "norm_eps": 1e-5,
}
_UNKNOWN_THERE = {"d_ssm": (None,), "D_per_channel": (False,), "norm": (True,), "norm_before_gate": (False,)}


def config_to_hf(config: LanguageModelConfig) -> dict[str, Any]:
    """The content of a `config.json` with which transformers builds the same model.

    Raises:
        ValueError: transformers has no such model.

    >>> config_to_hf(LanguageModelConfig())["model_type"]
    'mamba'
    """
    given = dict(config.mixer_options)
    foreign = {name: given[name] for name, known in _UNKNOWN_THERE.items() if given.get(name, known[0]) not in known}
    hybrid = config.attention_layers or config.mlp_width or config.norm != "rms"
    if config.mixer not in ("mamba", "mamba2") or hybrid or foreign:
        raise ValueError(
            f"config_to_hf: transformers has no {config.mixer} language model with attention_layers="
            f"{config.attention_layers}, mlp_width={config.mlp_width}, norm={config.norm!r}, {foreign}. "
            "save_pretrained without format='hf' keeps any model."
        )
    second = config.mixer == "mamba2"
    options = (_MAMBA2_DEFAULTS if second else _MAMBA_DEFAULTS) | given
    inner = options["expand"] * config.d_model
    kind = "mamba2" if second else "falcon_mamba" if options.get("rms_eps") is not None else "mamba"
    content = {
        "model_type": kind,
        "architectures": [_TYPES[kind]],
        "vocab_size": config.vocab_rows,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.depth,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "residual_in_fp32": config.float32_residual,
        "state_size": options["d_state"],
        "conv_kernel": options["d_conv"],
        "expand": options["expand"],
        "use_bias": options["use_bias"],
        "use_conv_bias": options["conv_bias"],
        "hidden_act": "silu",
        "time_step_min": options.get("dt_min", 1e-3),
        "time_step_max": options.get("dt_max", 0.1),
        "time_step_floor": options.get("dt_floor", 1e-4),
    }
    if second:
        if options["norm_eps"] != config.norm_eps:
            raise errors.bad_argument("config_to_hf", "norm_eps", options["norm_eps"], f"{config.norm_eps}, as outside")
        limit = options["dt_limit"] or (0.0, math.inf)
        heads = {"num_heads": inner // options["head_dim"], "head_dim": options["head_dim"]}
        return (
            content
            | heads
            | {
                "n_groups": options["groups"],
                "chunk_size": options["chunk"],
                "time_step_limit": list(limit),
            }
        )
    rank = options["dt_rank"] or math.ceil(config.d_model / 16)
    content |= {"time_step_rank": rank, "intermediate_size": inner}
    return content | ({"mixer_rms_eps": options["rms_eps"]} if kind == "falcon_mamba" else {})


def _table(config: LanguageModelConfig) -> KeyTable:
    return mamba.table(config, embedding="embeddings")


LAYOUTS = (
    HFLayout(tuple(_TYPES), config_from_hf, config_to_hf, _table, architectures=tuple(_TYPES.values())),
    # The folders of the original implementation, which name no type.
    HFLayout((), mamba.config_from_reference, config_to_hf, mamba.table, recognizes=lambda theirs: "ssm_cfg" in theirs),
)
"""The forms of folders that a language model is read from; the first is written."""
