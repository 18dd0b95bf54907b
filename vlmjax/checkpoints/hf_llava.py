"""LLaVA and LLaVA-NeXT: the folders of transformers, in each of the spellings that its versions wrote."""

from collections.abc import Mapping
from typing import Any

from ssmjax.checkpoints.mapping import Era, KeyTable, Rule
from ssmjax.models.family import HFLayout
from vlmjax.checkpoints.fields import field, only
from vlmjax.checkpoints.hf_language import language_rules, read_language, write_language
from vlmjax.checkpoints.hf_towers import read_tower, tower_rules, write_tower
from vlmjax.models.llava import LlavaConfig
from vlmjax.models.llava_next import LlavaNextConfig

__all__ = ["LLAVA", "LLAVA_NEXT"]

_MEMORY = {
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.language_model.": "language_model.model.",
    "model.image_newline": "image_newline",
    "lm_head.": "language_model.lm_head.",
}

ERAS = (
    Era("transformers 4", {"vision_tower.vision_model.": "vision_tower."}),
    Era("transformers 4.52, in memory", {"model.vision_tower.vision_model.": "vision_tower.", **_MEMORY}),
    Era("transformers 5, in memory", {"model.vision_tower.": "vision_tower.", **_MEMORY}),
)
"""The table has the spelling that transformers 5 saves."""


def _read(description: Mapping[str, Any]) -> LlavaConfig:
    return LlavaConfig(**_options(description))


def _read_next(description: Mapping[str, Any]) -> LlavaNextConfig:
    only("config.json", description, "use_image_newline_parameter", (True,), True)
    found = field(description, ["image_grid_pinpoints"], None)
    pinpoints = {} if found is None else {"pinpoints": tuple(map(tuple, found))}
    return LlavaNextConfig(**_options(description), **pinpoints)


def _options(description: Mapping[str, Any]) -> dict[str, Any]:
    where = "config.json"
    only(where, description, "projector_hidden_act", ("gelu",), "gelu")
    strategy = only(where, description, "vision_feature_select_strategy", ("default", "full"), "default")
    layers = field(description, ["vision_feature_layer"], -2)
    text = dict(description.get("text_config") or {})
    text.setdefault("tie_word_embeddings", description.get("tie_word_embeddings", False))
    return dict(
        vision=read_tower(description.get("vision_config") or {}, f"{where}, vision_config"),
        text=read_language(text, f"{where}, text_config"),
        projector="mlp2x_gelu",
        projector_bias=bool(description.get("multimodal_projector_bias", True)),
        layers=(layers,) if isinstance(layers, int) else tuple(layers),
        keep_class=strategy == "full",
        image_token=field(description, ["image_token_index", "image_token_id"], 32000),
    )


def _write(config: LlavaConfig) -> dict[str, Any]:
    only("save", {"projector": config.projector}, "projector", ("mlp2x_gelu",), None)
    only("save", {"final_norm": config.final_norm}, "final_norm", (False,), None)
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": config.image_token,
        "image_seq_length": config.tokens_per_image,
        "multimodal_projector_bias": config.projector_bias,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": config.layers[0] if len(config.layers) == 1 else list(config.layers),
        "vision_feature_select_strategy": "full" if config.keep_class else "default",
        "tie_word_embeddings": config.text.tied,
        "vision_config": write_tower(config.vision),
        "text_config": write_language(config.text),
    }


def _write_next(config: LlavaNextConfig) -> dict[str, Any]:
    return _write(config) | {
        "architectures": ["LlavaNextForConditionalGeneration"],
        "model_type": "llava_next",
        "image_grid_pinpoints": [list(each) for each in config.pinpoints],
        "use_image_newline_parameter": True,
    }


def _table(config: LlavaConfig) -> KeyTable:
    projector = [
        rule
        for i in (0, 1)
        for rule in (
            Rule(f"multi_modal_projector.linear_{i + 1}.weight", f"projector.layers.{i}.kernel", "linear"),
            Rule(f"multi_modal_projector.linear_{i + 1}.bias", f"projector.layers.{i}.bias"),
        )
    ]
    return KeyTable(
        (
            *tower_rules("vision_tower.", "vision."),
            Rule("image_newline", "newline"),
            *projector,
            *language_rules("language_model.", "language."),
        ),
        ignored=(
            "vision_tower.embeddings.position_ids",
            "language_model.model.layers.{i}.self_attn.rotary_emb.inv_freq",
        ),
        tied={"language_model.lm_head.weight": "language_model.model.embed_tokens.weight"} if config.text.tied else {},
        eras=ERAS,
    )


LLAVA = HFLayout(("llava",), _read, _write, _table, architectures=("LlavaForConditionalGeneration",))
"""Folders of `LlavaForConditionalGeneration`."""

LLAVA_NEXT = HFLayout(
    ("llava_next",), _read_next, _write_next, _table, architectures=("LlavaNextForConditionalGeneration",)
)
"""Folders of `LlavaNextForConditionalGeneration`."""
