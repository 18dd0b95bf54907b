"""CLIP and SigLIP: the folders of `CLIPModel`, `CLIPVisionModel` and `SiglipVisionModel`."""

from collections.abc import Mapping
from typing import Any

from ssmjax.checkpoints.mapping import Era, KeyTable, Rule
from ssmjax.models.family import HFLayout
from vlmjax.checkpoints.fields import ACTIVATIONS, block_rules, field, name_of_activation, only
from vlmjax.models.clip import CLIPConfig, CLIPTextConfig
from vlmjax.models.towers import CLIPVisionConfig, SiglipVisionConfig

__all__ = ["CLIP", "CLIP_VISION", "SIGLIP_VISION", "read_tower", "tower_rules", "write_tower"]

_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.out": "self_attn.out_proj",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}

# The defaults of transformers' own configuration classes: what a short config.json leaves out.
_DEFAULTS = {
    "clip_vision_model": dict(patch_size=32, layer_norm_eps=1e-5, hidden_act="quick_gelu"),
    "siglip_vision_model": dict(patch_size=16, layer_norm_eps=1e-6, hidden_act="gelu_pytorch_tanh"),
}


def tower_rules(theirs: str = "", ours: str = "") -> tuple[Rule, ...]:
    """The rules of a vision tower whose names begin with `theirs` there and with `ours` here."""
    return (
        Rule(f"{theirs}embeddings.class_embedding", f"{ours}class_token"),
        Rule(f"{theirs}embeddings.patch_embedding.weight", f"{ours}patch_kernel", "patch_conv"),
        Rule(f"{theirs}embeddings.patch_embedding.bias", f"{ours}patch_bias"),
        Rule(f"{theirs}embeddings.position_embedding.weight", f"{ours}positions"),
        *_norm(f"{theirs}pre_layrnorm", f"{ours}pre_norm"),
        *block_rules(f"{theirs}encoder.layers.{{i}}", f"{ours}layers", _BLOCK),
        *_norm(f"{theirs}post_layernorm", f"{ours}post_norm"),
        Rule(f"{theirs}head.probe", f"{ours}head.probe"),
        Rule(f"{theirs}head.attention.in_proj_weight", f"{ours}head.in_proj.kernel", "linear"),
        Rule(f"{theirs}head.attention.in_proj_bias", f"{ours}head.in_proj.bias"),
        *_linear(f"{theirs}head.attention.out_proj", f"{ours}head.out_proj"),
        *_norm(f"{theirs}head.layernorm", f"{ours}head.norm"),
        *_linear(f"{theirs}head.mlp.fc1", f"{ours}head.mlp.up"),
        *_linear(f"{theirs}head.mlp.fc2", f"{ours}head.mlp.down"),
    )


def read_tower(description: Mapping[str, Any], where: str = "config.json") -> CLIPVisionConfig:
    """Our configuration for a `config.json` of a tower, or for the `vision_config` of a larger model's.

    Args:
        description: Its content.
        where: What to call it in a message.

    Raises:
        ValueError: It has a value that the towers here do not have.
    """
    kind = only(where, description, "model_type", tuple(_DEFAULTS), "clip_vision_model")
    defaults = _DEFAULTS[kind]
    only(where, description, "num_channels", (3,), 3)
    activation = only(where, description, "hidden_act", tuple(ACTIVATIONS), defaults["hidden_act"])
    options: dict[str, Any] = dict(
        img_size=field(description, ["image_size"], 224),
        patch_size=field(description, ["patch_size"], defaults["patch_size"]),
        d_model=field(description, ["hidden_size"], 768),
        depth=field(description, ["num_hidden_layers"], 12),
        heads=field(description, ["num_attention_heads"], 12),
        d_mlp=field(description, ["intermediate_size"], 3072),
        activation=ACTIVATIONS[activation],
        eps=field(description, ["layer_norm_eps"], defaults["layer_norm_eps"]),
    )
    if kind == "siglip_vision_model":
        return SiglipVisionConfig(**options, pool_head=bool(description.get("vision_use_head", True)))
    return CLIPVisionConfig(**options)


def write_tower(config: CLIPVisionConfig) -> dict[str, Any]:
    """The content of a `config.json`."""
    siglip = isinstance(config, SiglipVisionConfig)
    content = {
        "architectures": ["SiglipVisionModel" if siglip else "CLIPVisionModel"],
        "model_type": "siglip_vision_model" if siglip else "clip_vision_model",
        "image_size": config.img_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.d_mlp,
        "hidden_act": name_of_activation(config.activation),
        "layer_norm_eps": config.eps,
    }
    return content | ({"vision_use_head": config.pool_head} if siglip else {})


def _read_clip(description: Mapping[str, Any]) -> CLIPConfig:
    text = dict(description.get("text_config") or {})
    vision = dict(description.get("vision_config") or {})
    activation = only("config.json, text_config", text, "hidden_act", tuple(ACTIVATIONS), "quick_gelu")
    ours = CLIPTextConfig(
        vocab=field(text, ["vocab_size"], 49408),
        length=field(text, ["max_position_embeddings"], 77),
        d_model=field(text, ["hidden_size"], 512),
        depth=field(text, ["num_hidden_layers"], 12),
        heads=field(text, ["num_attention_heads"], 8),
        d_mlp=field(text, ["intermediate_size"], 2048),
        activation=ACTIVATIONS[activation],
        eps=field(text, ["layer_norm_eps"], 1e-5),
        eos=field(text, ["eos_token_id"], 49407),
    )
    tower = read_tower(vision, "config.json, vision_config")
    return CLIPConfig(tower, ours, field(description, ["projection_dim"], 512))


def _write_clip(config: CLIPConfig) -> dict[str, Any]:
    text = config.text
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.d_shared,
        "vision_config": write_tower(config.vision) | {"projection_dim": config.d_shared},
        "text_config": {
            "model_type": "clip_text_model",
            "vocab_size": text.vocab,
            "max_position_embeddings": text.length,
            "hidden_size": text.d_model,
            "num_hidden_layers": text.depth,
            "num_attention_heads": text.heads,
            "intermediate_size": text.d_mlp,
            "hidden_act": name_of_activation(text.activation),
            "layer_norm_eps": text.eps,
            "eos_token_id": text.eos,
            "projection_dim": config.d_shared,
        },
    }


def _norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    return Rule(f"{theirs}.weight", f"{ours}.scale"), Rule(f"{theirs}.bias", f"{ours}.bias")


def _linear(theirs: str, ours: str) -> tuple[Rule, ...]:
    return Rule(f"{theirs}.weight", f"{ours}.kernel", "linear"), Rule(f"{theirs}.bias", f"{ours}.bias")


def _tower_table(config: CLIPVisionConfig) -> KeyTable:
    return KeyTable(
        tower_rules(),
        ignored=("embeddings.position_ids",),
        eras=(Era("transformers 4", {"vision_model.": ""}),),
    )


def _clip_table(config: CLIPConfig) -> KeyTable:
    return KeyTable(
        (
            *tower_rules("vision_model.", "vision."),
            Rule("text_model.embeddings.token_embedding.weight", "text.embedding"),
            Rule("text_model.embeddings.position_embedding.weight", "text.positions"),
            *block_rules("text_model.encoder.layers.{i}", "text.layers", _BLOCK),
            *_norm("text_model.final_layer_norm", "text.norm"),
            Rule("visual_projection.weight", "vision_projection.kernel", "linear"),
            Rule("text_projection.weight", "text_projection.kernel", "linear"),
            Rule("logit_scale", "logit_scale"),
        ),
        ignored=("vision_model.embeddings.position_ids", "text_model.embeddings.position_ids"),
    )


CLIP_VISION = HFLayout(("clip_vision_model",), read_tower, write_tower, _tower_table)
"""Folders of `CLIPVisionModel`."""

SIGLIP_VISION = HFLayout(("siglip_vision_model",), read_tower, write_tower, _tower_table)
"""Folders of `SiglipVisionModel`."""

CLIP = HFLayout(("clip",), _read_clip, _write_clip, _clip_table, architectures=("CLIPModel",))
"""Folders of `CLIPModel`."""
