"""The folders of the original repositories: LLaVA and VILA 1.0 (one state dict), VILA 1.5 and NVILA (three folders)."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from ssmjax import errors
from ssmjax.checkpoints.mapping import Era, KeyTable, Rule
from ssmjax.models.family import HFLayout, Part
from vlmjax.checkpoints.fields import field, only
from vlmjax.checkpoints.hf_language import language_rules, read_language, write_language
from vlmjax.checkpoints.hf_towers import read_tower, tower_rules, write_tower
from vlmjax.models.llava import LlavaConfig
from vlmjax.models.llava_next import LlavaNextConfig
from vlmjax.models.towers import CLIPVisionConfig
from vlmjax.models.vila import VilaConfig

__all__ = ["LLAVA_NEXT_ORIGINAL", "LLAVA_ORIGINAL", "VILA", "projector_rules"]

TOWERS = {
    "openai/clip-vit-large-patch14": CLIPVisionConfig(img_size=224),
    "openai/clip-vit-large-patch14-336": CLIPVisionConfig(img_size=336),
}
"""The towers that LLaVA's configurations name, where the tower's own configuration is not given."""

_TOWER = "model.vision_tower.vision_tower."
_CLASSES = ("LlavaLlamaForCausalLM", "LlavaQwenForCausalLM")
_ERAS = (Era("transformers 4", {f"{_TOWER}vision_model.": _TOWER}),)

# The position in torch's `Sequential` of each norm and each linear map.
_NUMBERS = {
    "mlp_downsample": ((1,), (2, 4)),
    "mlp_downsample_2x2_fix": ((1,), (2, 4)),
    "mlp_downsample_3x3_fix": ((1, 4), (2, 5, 7)),
}


def projector_rules(kind: str, theirs: str, ours: str) -> tuple[Rule, ...]:
    """The rules of a projector of LLaVA or VILA, whose names begin with `theirs` there and with `ours` here."""
    deep = re.fullmatch(r"mlp(\d+)x_gelu", kind)
    norms, layers = _NUMBERS.get(kind, ((), tuple(range(0, 2 * int(deep[1]), 2)) if deep else ("",)))
    rules: list[Rule] = []
    for i, number in enumerate(() if kind == "identity" else layers):
        name = f"{theirs}{number}." if number != "" else theirs
        rules.append(Rule(f"{name}weight", f"{ours}layers.{i}.kernel", "linear"))
        rules.append(Rule(f"{name}bias", f"{ours}layers.{i}.bias"))
    for i, number in enumerate(norms):
        rules.append(Rule(f"{theirs}{number}.weight", f"{ours}norms.{i}.scale"))
        rules.append(Rule(f"{theirs}{number}.bias", f"{ours}norms.{i}.bias"))
    return tuple(rules)


# ---------------------------------------------------------------------------------------------- LLaVA, one state dict


def _read_llava(description: Mapping[str, Any]) -> LlavaConfig:
    return LlavaConfig(**_llava_options(description))


def _read_llava_next(description: Mapping[str, Any]) -> LlavaNextConfig:
    only("config.json", description, "mm_patch_merge_type", ("spatial_unpad",), "flat")
    found = field(description, ["image_grid_pinpoints"], None)
    if not isinstance(found, list):
        raise errors.bad_argument("config.json", "image_grid_pinpoints", found, "a list of (width, height)")
    return LlavaNextConfig(**_llava_options(description), pinpoints=tuple((y, x) for x, y in found))


def _llava_options(description: Mapping[str, Any]) -> dict[str, Any]:
    where = "config.json"
    kind = {"LlavaQwenForCausalLM": "qwen2"}.get(str(field(description, ["architectures"], [""])[0]), "llama")
    text = read_language({**description, "model_type": kind}, where)
    only(where, description, "mm_use_im_start_end", (False, None), False)
    feature = only(where, description, "mm_vision_select_feature", ("patch", "cls_patch"), "patch")
    return dict(
        vision=_llava_tower(description),
        text=text,
        projector=field(description, ["mm_projector_type"], "linear"),
        layers=(field(description, ["mm_vision_select_layer"], -1),),
        keep_class=feature == "cls_patch",
        image_token=text.vocab,
    )


def _llava_tower(description: Mapping[str, Any]) -> CLIPVisionConfig:
    """The tower's configuration: that of the folder that was given, or of a tower that is known by its name."""
    given = description.get("vision_tower_cfg")
    if given is not None:
        given = given.get("vision_config", given) if given.get("model_type") in ("clip", "siglip") else given
        return read_tower(given, "config.json of vision_tower")
    name = field(description, ["mm_vision_tower", "vision_tower"], None)
    if name not in TOWERS:
        remedy = "Pass vision_tower=FOLDER, a folder of the tower itself."
        raise errors.bad_argument("config.json", "mm_vision_tower", name, " or ".join(map(repr, TOWERS)), remedy)
    return TOWERS[name]


def _llava_table(config: LlavaConfig) -> KeyTable:
    return KeyTable(
        (
            *tower_rules(_TOWER, "vision."),
            *projector_rules(config.projector, "model.mm_projector.", "projector."),
            Rule("model.image_newline", "newline"),
            *language_rules("", "language."),
        ),
        ignored=(f"{_TOWER}embeddings.position_ids", "model.layers.{i}.self_attn.rotary_emb.inv_freq"),
        tied={"lm_head.weight": "model.embed_tokens.weight"} if config.text.tied else {},
        eras=_ERAS,
    )


def _check_llava(description: Mapping[str, Any], names: Collection[str]) -> None:
    if not any(name.startswith(_TOWER) for name in names):
        tower = field(description, ["mm_vision_tower", "vision_tower"], "its vision tower")
        raise ValueError(
            f"the weights of the vision tower are not in the folder, as in most of the original LLaVA's. Pass "
            f"vision_tower=FOLDER, a folder with {tower} (of CLIPModel or CLIPVisionModel)."
        )


def _is_llava(anyres: bool):
    def recognizes(description: Mapping[str, Any]) -> bool:
        named = description.get("architectures") or []
        tiled = str(description.get("image_aspect_ratio", "")).startswith("anyres")
        return any(name in _CLASSES for name in named) and "llm_cfg" not in description and tiled == anyres

    return recognizes


def _not_written(config: Any) -> dict[str, Any]:
    raise NotImplementedError("Folders of the original repositories are read and not written: use transformers' form.")


_LLAVA = dict(
    types=("llava", "llava_llama", "llava_qwen"),
    write=_not_written,
    table=_llava_table,
    parts={"vision_tower": Part(_TOWER, "vision_model.")},
    check=_check_llava,
)
LLAVA_ORIGINAL = HFLayout(read=_read_llava, recognizes=_is_llava(False), **_LLAVA)
"""Folders of the original LLaVA 1.0 and 1.5, and of VILA 1.0."""

LLAVA_NEXT_ORIGINAL = HFLayout(read=_read_llava_next, recognizes=_is_llava(True), **_LLAVA)
"""Folders of the original LLaVA 1.6."""


# ----------------------------------------------------------------------------------------------- VILA, three folders


def _read_vila(description: Mapping[str, Any]) -> VilaConfig:
    where = "config.json"
    parts = {name: description.get(f"{name}_cfg") for name in ("llm", "vision_tower", "mm_projector")}
    if lacking := [name for name, part in parts.items() if not isinstance(part, Mapping)]:
        wanted = "a folder of that name with its own config.json"
        raise errors.bad_argument(where, " and ".join(lacking), "nothing", wanted, "Download the whole model.")
    kind = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}
    llm, tower, projector = parts.values()
    named = (llm.get("architectures") or [""])[0]
    text = read_language({"model_type": kind.get(named, llm.get("model_type")), **llm}, "config.json of llm")
    vision = read_tower(tower, "config.json of vision_tower")
    kind = projector.get("mm_projector_type")
    if kind not in ("identity", "linear", *_NUMBERS) and not re.fullmatch(r"mlp\d+x_gelu", str(kind)):
        raise errors.bad_argument("config.json of mm_projector", "mm_projector_type", kind, " or ".join(_NUMBERS))
    feature = only(where, description, "mm_vision_select_feature", ("patch", "cls_patch"), "patch")
    if feature == "patch" and not vision.class_tokens:
        remedy = "A SigLIP tower has no class token that could be left out."
        raise errors.bad_argument(where, "mm_vision_select_feature", feature, "'cls_patch'", remedy)
    dynamic = bool(description.get("dynamic_s2", False))
    scales = _scales(description) if dynamic or description.get("s2") else ()
    # NVILA's class of configurations writes these fields, VILA 1.5's has none of them.
    nvila = bool({"image_encoder", "video_encoder", "min_tiles", "dynamic_s2"} & description.keys())
    return VilaConfig(
        vision=vision,
        text=text,
        projector=kind,
        projector_by_columns=kind == "mlp_downsample" and not nvila,
        layers=(field(description, ["mm_vision_select_layer"], -2),),
        keep_class=feature == "cls_patch",
        image_token=field(description, ["image_token_index"], text.vocab),
        scales=scales,
        scale_index=field(description, ["s2_resize_output_to_scale_idx"], 0),
        tiling="scales" if dynamic else "tiles" if description.get("image_aspect_ratio") == "dynamic" else "none",
    )


def _scales(description: Mapping[str, Any]) -> tuple[int, ...]:
    found = field(description, ["s2_scales"], None)
    try:
        return tuple(int(each) for each in str(found).split(","))
    except ValueError:
        raise errors.bad_argument("config.json", "s2_scales", found, "such as '448,896,1344'") from None


def _write_vila(config: VilaConfig) -> dict[str, Any]:
    if len(config.layers) != 1:
        raise errors.bad_argument("save_pretrained", "layers", config.layers, "one hidden state")
    nvila = config.projector != "mlp_downsample" or not config.projector_by_columns
    description = {
        "architectures": ["LlavaLlamaModel"],
        "model_type": "llava_llama",
        "mm_vision_select_layer": config.layers[0],
        "mm_vision_select_feature": "cls_patch" if config.keep_class else "patch",
        "mm_hidden_size": config.projector_width,
        "hidden_size": config.text.d_model,
        "image_token_index": config.image_token,
        "image_aspect_ratio": {"none": "resize", "tiles": "dynamic", "scales": "dynamic_s2"}[config.tiling],
        "s2": bool(config.scales) and config.tiling != "scales",
        "llm_cfg": write_language(config.text),
        "vision_tower_cfg": write_tower(config.vision),
        "mm_projector_cfg": {
            "architectures": ["MultimodalProjector"],
            "model_type": "v2l_projector",
            "mm_projector_type": config.projector,
        },
    }
    if config.scales:
        description["s2_scales"] = ",".join(map(str, config.scales))
        description["s2_resize_output_to_scale_idx"] = config.scale_index
    if nvila:
        description["image_encoder"] = {"_target_": "llava.model.encoders.BasicImageEncoder"}
        description["dynamic_s2"] = config.tiling == "scales"
    return description


def _vila_table(config: VilaConfig) -> KeyTable:
    return KeyTable(
        (
            *tower_rules("vision_tower.vision_model.", "vision."),
            *projector_rules(config.projector, "mm_projector.layers.", "projector."),
            *language_rules("llm.", "language."),
        ),
        ignored=(
            "vision_tower.vision_model.embeddings.position_ids",
            "llm.model.layers.{i}.self_attn.rotary_emb.inv_freq",
        ),
        tied={"llm.lm_head.weight": "llm.model.embed_tokens.weight"} if config.text.tied else {},
        eras=(Era("transformers 5", {"vision_tower.": "vision_tower.vision_model."}),),
    )


VILA = HFLayout(
    ("llava_llama", "vila"),
    _read_vila,
    _write_vila,
    _vila_table,
    recognizes=lambda description: "llm_cfg" in description or description.get("architectures") == ["LlavaLlamaModel"],
    parts={"llm": Part("llm."), "vision_tower": Part("vision_tower."), "mm_projector": Part("mm_projector.")},
)
"""Folders of VILA 1.5 and NVILA."""
