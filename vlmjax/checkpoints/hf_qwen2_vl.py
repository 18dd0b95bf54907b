"""Qwen2-VL and Qwen2.5-VL: the folders of their `ForConditionalGeneration`, in each of its versions' spellings."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ssmjax import errors
from ssmjax.checkpoints.mapping import Era, KeyTable, Layout, Rule
from ssmjax.models.family import HFLayout
from vlmjax.checkpoints.fields import ACTIVATIONS, field, name_of_activation, only
from vlmjax.checkpoints.hf_language import language_rules, read_language, write_language
from vlmjax.models.qwen2_vl import Qwen2VLConfig
from vlmjax.models.qwen_tower import QwenVisionConfig

__all__ = ["QWEN2_VL"]

_TYPES = ("qwen2_vl", "qwen2_5_vl")
_WINDOWED = "qwen2_5_vl"
_EVERYWHERE = ("model_type", "vision_config", "architectures", "image_token_id", "video_token_id")

ERAS = (Era("transformers 4.52 and later, in memory", {"model.visual.": "visual.", "model.language_model.": "model."}),)
"""The table has the spelling of the hub, which transformers 5 saves, too."""

# The defaults of transformers' own configuration classes: what a short config.json leaves out.
_TEXT = dict(
    vocab_size=152064,
    hidden_size=8192,
    intermediate_size=29568,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    rms_norm_eps=1e-5,
    max_position_embeddings=32768,
)


def _read(description: Mapping[str, Any]) -> Qwen2VLConfig:
    where = "config.json"
    kind = only(where, description, "model_type", _TYPES, _TYPES[0])
    text = description.get("text_config")
    if text is None:  # the hub's own files have the text's fields beside the others
        text = {name: value for name, value in description.items() if name not in _EVERYWHERE}
    text = dict(text)
    text.setdefault("tie_word_embeddings", description.get("tie_word_embeddings", False))
    vision = dict(description.get("vision_config") or {})
    language = _read_text(text, f"{where}, text_config", kind)
    return Qwen2VLConfig(
        vision=_read_vision(vision, f"{where}, vision_config", kind, language.d_model),
        text=language,
        image_token=field(description, ["image_token_id"], 151655),
        video_token=field(description, ["video_token_id"], 151656),
        tokens_per_second=field(vision, ["tokens_per_second"], 4) if kind == _WINDOWED else None,
    )


def _read_text(text: dict[str, Any], where: str, kind: str):
    """The language model's configuration; M-RoPE's sections stand in the rotary fields of either era."""
    only(where, text, "model_type", (None, kind, f"{kind}_text"), None)
    sections = None
    for name in ("rope_parameters", "rope_scaling"):
        if text.get(name):
            rope = dict(text[name])
            sections = rope.pop("mrope_section", sections)
            for key in ("type", "rope_type"):
                if rope.get(key) == "mrope":
                    rope[key] = "default"
            text[name] = rope
    if sections is None:
        remedy = "Without mrope_section this is no checkpoint of Qwen2-VL."
        raise errors.bad_argument(where, "rope_parameters", text.get("rope_parameters"), "with mrope_section", remedy)
    config = read_language({**_TEXT, **text, "model_type": "qwen2"}, where)
    return dataclasses.replace(config, rope_sections=tuple(sections))


def _read_vision(vision: dict[str, Any], where: str, kind: str, d_out: int) -> QwenVisionConfig:
    windowed = kind == _WINDOWED
    only(where, vision, "model_type", (None, kind, f"{kind}_vision"), None)
    for name in ("in_channels", "in_chans"):
        only(where, vision, name, (3,), 3)
    rope = vision.get("rope_parameters") or {}
    only(where, rope, "rope_type", ("axial",), "axial")
    d_model = field(vision, ["hidden_size"], 3584) if windowed else field(vision, ["embed_dim"], 1280)
    activation = only(where, vision, "hidden_act", tuple(ACTIVATIONS), "silu" if windowed else "quick_gelu")
    inner = int(d_model * field(vision, ["mlp_ratio"], 4))
    written = field(vision, ["out_hidden_size" if windowed else "hidden_size"], d_out)
    if written != d_out:
        raise errors.bad_argument(where, "hidden_size", written, f"that of the language model, {d_out}")
    return QwenVisionConfig(
        d_model=d_model,
        d_out=d_out,
        depth=field(vision, ["depth"], 32),
        heads=field(vision, ["num_heads"], 16),
        d_mlp=field(vision, ["intermediate_size"], 3420) if windowed else inner,
        activation=ACTIVATIONS[activation],
        gated=windowed,
        norm="rms" if windowed else "layer",
        patch_size=field(vision, ["patch_size"], 14),
        frames=field(vision, ["temporal_patch_size"], 2),
        merge=field(vision, ["spatial_merge_size"], 2),
        rope_base=float(field(rope, ["rope_theta"], 10000.0)),
        window=field(vision, ["window_size"], 112) if windowed else 0,
        full_blocks=tuple(field(vision, ["fullatt_block_indexes"], [7, 15, 23, 31])) if windowed else (),
    )


def _write(config: Qwen2VLConfig) -> dict[str, Any]:
    windowed = config.vision.gated
    kind = _WINDOWED if windowed else _TYPES[0]
    text = write_language(config.text)
    sections = list(config.text.rope_sections)
    text["model_type"] = f"{kind}_text"
    text["rope_parameters"] = {**text["rope_parameters"], "mrope_section": sections}
    text["rope_scaling"] = {"type": "mrope", "rope_type": "default", "mrope_section": sections}
    for name in ("architectures", "head_dim"):
        del text[name]
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration" if windowed else "Qwen2VLForConditionalGeneration"],
        "model_type": kind,
        "image_token_id": config.image_token,
        "video_token_id": config.video_token,
        "tie_word_embeddings": config.text.tied,
        "vision_config": _write_vision(config, kind),
        "text_config": text,
    }


def _write_vision(config: Qwen2VLConfig, kind: str) -> dict[str, Any]:
    vision = config.vision
    content = {
        "model_type": f"{kind}_vision",
        "depth": vision.depth,
        "num_heads": vision.heads,
        "hidden_act": name_of_activation(vision.activation),
        "in_channels": 3,
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.frames,
        "spatial_merge_size": vision.merge,
        "rope_parameters": {"rope_type": "axial", "rope_theta": vision.rope_base},
    }
    if kind == _WINDOWED:
        return content | {
            "hidden_size": vision.d_model,
            "out_hidden_size": vision.d_out,
            "intermediate_size": vision.d_mlp,
            "window_size": vision.window,
            "fullatt_block_indexes": list(vision.full_blocks),
            "tokens_per_second": config.tokens_per_second,
        }
    only("save", {"d_mlp": vision.d_mlp % vision.d_model}, "d_mlp", (0,), 0)  # theirs is a multiple of the width
    return content | {
        "embed_dim": vision.d_model,
        "hidden_size": vision.d_out,
        "mlp_ratio": vision.d_mlp // vision.d_model,
    }


def _table(config: Qwen2VLConfig) -> KeyTable:
    vision, blocks = config.vision, "visual.blocks.{i}"
    patches = {"i": 3, "f": vision.frames, "p": vision.patch_size, "q": vision.patch_size}
    parts = {"attn.proj": "attn.out", "mlp.fc1": "mlp.up", "mlp.fc2": "mlp.down"}
    parts |= {f"mlp.{name}_proj": f"mlp.{name}" for name in ("gate", "up", "down")} if vision.gated else {}
    kinds = (("weight", "kernel", "linear"), ("bias", "bias", "same"))
    rules = [Rule("visual.patch_embed.proj.weight", "vision.patch_kernel", Layout("d i f p q", "(i f p q) d", patches))]
    for theirs, ours, layout in kinds:
        qkv = tuple(f"vision.layers.attn.{name}.{ours}" for name in "qkv")
        rules.append(Rule(f"{blocks}.attn.qkv.{theirs}", qkv, layout))
        found = parts.items() if not vision.gated else [pair for pair in parts.items() if "fc" not in pair[0]]
        rules += [Rule(f"{blocks}.{name}.{theirs}", f"vision.layers.{part}.{ours}", layout) for name, part in found]
        rules += [
            Rule(f"visual.merger.mlp.{i}.{theirs}", f"vision.merger.{part}.{ours}", layout)
            for i, part in ((0, "first"), (2, "second"))
        ]
    norms = {f"{blocks}.norm{i}": f"vision.layers.norm{i}" for i in (1, 2)}
    norms["visual.merger.ln_q"] = "vision.merger.norm"
    for name, part in norms.items():
        rules += [Rule(f"{name}.weight", f"{part}.scale"), Rule(f"{name}.bias", f"{part}.bias")]
    return KeyTable(
        (*rules, *language_rules("", "language.")),
        ignored=("visual.rotary_pos_emb.inv_freq", "model.layers.{i}.self_attn.rotary_emb.inv_freq"),
        tied={"lm_head.weight": "model.embed_tokens.weight"} if config.text.tied else {},
        eras=ERAS,
    )


QWEN2_VL = HFLayout(
    _TYPES,
    _read,
    _write,
    _table,
    architectures=("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"),
)
"""Folders of `Qwen2VLForConditionalGeneration` and of `Qwen2_5_VLForConditionalGeneration`."""
