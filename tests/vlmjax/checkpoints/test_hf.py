"""Folders of the Hugging Face form: configurations both ways, names in all spellings, refusals."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

import vlmjax
from ssmjax.checkpoints.arrays import model_arrays
from ssmjax.models import registry
from vlmjax.checkpoints.hf_language import read_language, write_language
from vlmjax.checkpoints.hf_llava import ERAS

SIZES = (
    "clip_vision_nano",
    "siglip_vision_so400m_384",
    "llama_nano",
    "qwen2_0_5b",
    "llava_1_5_7b",
    "qwen2_vl_2b",
    "clip_vit_large_336",
)


@pytest.mark.parametrize("name", SIZES)
def test_configurations_both_ways(name):
    assert name in vlmjax.list_models()
    config = registry.model_config(name)
    layout, *_ = registry.hf_layouts(registry.get_family(registry.family_of(config)))
    written = layout.write(config)
    assert layout.accepts(written)
    assert layout.read(written) == config


PARAMETERS = {
    "clip_vision_large_336": 303_507_456,
    "clip_vision_large": 303_179_776,
    "llava_1_5_7b": 7_063_427_072,
    "qwen2_vl_2b": 2_208_985_600,
    "qwen2_vl_7b": 8_291_375_616,
}
"""Those that the published models have."""


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes_have_their_numbers_of_parameters(name):
    assert name in vlmjax.list_models()
    config = registry.model_config(name)
    abstract = nnx.eval_shape(lambda: registry.build(registry.family_of(config), config))
    assert sum(x.size for x in model_arrays(abstract).values()) == PARAMETERS[name]


def test_every_spelling_of_llava_is_read():
    assert "llava_nano" in vlmjax.list_models()
    config = registry.model_config("llava_nano")
    config = dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, depth=2, d_model=16, d_mlp=16, heads=2),
        text=dataclasses.replace(config.text, depth=2, d_model=16, d_mlp=16, heads=2),
    )
    layout, *_ = registry.hf_layouts(registry.get_family("llava"))
    table = layout.table(config)
    shapes = model_arrays(nnx.eval_shape(lambda: registry.build("llava", config)))
    rng = np.random.default_rng(0)
    ours = {name: rng.standard_normal(x.shape).astype(np.float32) for name, x in shapes.items()}
    plain = table.to_source(ours)
    for era in (None, *(era.name for era in ERAS)):
        theirs = table.to_source(ours, era=era)
        assert era is None or set(theirs) != set(plain)
        back = table.to_ours(theirs, shapes)
        assert all(np.array_equal(back[name], ours[name]) for name in ours)
    assert "vision_tower.vision_model.pre_layrnorm.weight" in table.to_source(ours, era="transformers 4")


def test_every_spelling_of_qwen2_vl_is_read():
    config = registry.model_config("qwen2_vl_nano")
    config = dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, depth=2, d_model=8, d_mlp=16, heads=2, d_out=16),
        text=dataclasses.replace(
            config.text, depth=2, d_model=16, d_mlp=16, heads=2, kv_heads=1, rope_sections=(1, 1, 2)
        ),
    )
    (layout,) = registry.hf_layouts(registry.get_family("qwen2_vl"))
    table, description = layout.table(config), layout.write(config)
    shapes = model_arrays(nnx.eval_shape(lambda: registry.build("qwen2_vl", config)))
    rng = np.random.default_rng(0)
    ours = {name: rng.standard_normal(x.shape).astype(np.float32) for name, x in shapes.items()}
    (era,) = table.eras
    for theirs in (table.to_source(ours), table.to_source(ours, era=era.name)):
        assert any("visual.blocks.1.attn.qkv.weight" in name for name in theirs)
        back = table.to_ours(theirs, shapes)
        assert all(np.array_equal(back[name], ours[name]) for name in ours)
    flat = {**description, **description["text_config"], "model_type": "qwen2_vl", "text_config": None}
    old = {name: x for name, x in flat.items() if name not in ("text_config", "rope_parameters")}
    old["rope_scaling"] = {"type": "mrope", "mrope_section": [1, 1, 2]}
    assert layout.read(old) == config  # as the hub's own files are
    with pytest.raises(ValueError, match="with mrope_section"):
        layout.read({**old, "rope_scaling": None})
    changes = dict(gated=True, norm="rms", activation="silu", window=56, full_blocks=(1,))
    vision = dataclasses.replace(config.vision, **changes)
    windows = dataclasses.replace(config, vision=vision, tokens_per_second=2)
    assert layout.read(layout.write(windows)) == windows


def test_rotary_fields_in_both_forms():
    new = {"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    old = {"model_type": "llama", "rope_theta": 5e5}
    assert read_language(new) == read_language(old)
    assert read_language(new).rope_base == 5e5
    stretched = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    stretched["original_max_position_embeddings"] = 8192
    config = read_language({"model_type": "llama", "rope_theta": 5e5, "rope_scaling": stretched})
    assert config.rope_scaling == (8.0, 1.0, 4.0, 8192)
    assert read_language(write_language(config)) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mistral"}, "model_type must be 'llama' or 'qwen2', got 'mistral'"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_type must be 'default' or 'llama3', got 'yarn'"),
        ({"rope_theta": 1.0, "rope_parameters": {"rope_theta": 2.0}}, "rope_parameters and rope_theta differ"),
        ({"use_sliding_window": True}, "use_sliding_window must be False"),
    ],
)
def test_what_the_models_do_not_have_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        read_language({"model_type": "llama"} | change)
