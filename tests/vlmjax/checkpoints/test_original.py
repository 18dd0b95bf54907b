"""Folders of the original repositories, and of other eras: read whole, or refused in one clear error."""

import dataclasses
import json

import numpy as np
import pytest
from flax import nnx

import vlmjax
from ssmjax.checkpoints.arrays import model_arrays, set_model_arrays, write_safetensors
from ssmjax.models import registry
from ssmjax.models.config import override
from tests.layers import quick
from vlmjax.checkpoints.hf_language import write_language
from vlmjax.checkpoints.hf_llava import ERAS
from vlmjax.checkpoints.hf_towers import write_tower

TOWER = dict(img_size=8, patch_size=4, d_model=16, depth=2, heads=2, d_mlp=32)
TEXT = dict(vocab=31, d_model=16, depth=1, heads=2, d_mlp=32, max_length=64)


def filled(name, **changes):
    """A model with values that differ everywhere."""
    config = override(registry.model_config(name), dict(vision=TOWER, text=TEXT, image_token=31, **changes), name)
    model = nnx.eval_shape(lambda: registry.build(registry.family_of(config), config))
    rng = np.random.default_rng(0)
    values = {name: rng.standard_normal(x.shape).astype(x.dtype) for name, x in model_arrays(model).items()}
    set_model_arrays(model, values)
    return model, values


def write(folder, arrays, description=None):
    folder.mkdir(parents=True, exist_ok=True)
    if description is not None:
        (folder / "config.json").write_text(json.dumps(description))
    (folder / "model.safetensors").write_bytes(write_safetensors(arrays))


def theirs(model, number):
    layout = registry.hf_layouts(registry.get_family(registry.family_of(model.config)))[number]
    return layout.table(model.config).to_source(model_arrays(model))


def split(arrays, prefix):
    """The arrays whose names begin so, without it, and the others."""
    mine = {name.removeprefix(prefix): x for name, x in arrays.items() if name.startswith(prefix)}
    return mine, {name: x for name, x in arrays.items() if not name.startswith(prefix)}


def same(model, values):
    found = model_arrays(model)
    assert set(found) == set(values)
    assert all(np.array_equal(found[name], x) for name, x in values.items())


def llava_config(model, **more):
    llm = write_language(model.config.text)
    return llm | {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "mm_projector_type": model.config.projector,
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        **more,
    }


@pytest.mark.parametrize("projector", quick.first(["mlp2x_gelu", "linear"]))
@pytest.mark.parametrize("whole_clip", [False, True])
def test_original_llava_with_its_tower_elsewhere(tmp_path, projector, whole_clip):
    model, values = filled("llava_nano", projector=projector)
    arrays = theirs(model, 1)
    tower, rest = split(arrays, "model.vision_tower.vision_tower.")
    rest["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    description = write_tower(model.config.vision)
    if whole_clip:
        description = {"model_type": "clip", "vision_config": description}
        tower = {f"vision_model.{name}": x for name, x in tower.items()} | {"text_model.x": np.zeros(2, np.float32)}
    write(tmp_path / "llava", rest, llava_config(model))
    write(tmp_path / "clip", tower, description)
    with pytest.raises(ValueError, match="Pass vision_tower=FOLDER, a folder with openai/clip-vit-large-patch14-336"):
        vlmjax.load_pretrained(tmp_path / "llava")
    found = vlmjax.load_pretrained(tmp_path / "llava", vision_tower=tmp_path / "clip")
    same(found, values)
    assert found.config == dataclasses.replace(model.config, image_token=31)


def test_original_llava_1_6(tmp_path):
    model, values = filled("llava_next_nano", pinpoints=((8, 16), (16, 8)))
    description = llava_config(
        model, image_aspect_ratio="anyres", mm_patch_merge_type="spatial_unpad", image_grid_pinpoints=[[16, 8], [8, 16]]
    )
    tower, rest = split(theirs(model, 1), "model.vision_tower.vision_tower.")
    write(tmp_path / "llava", rest, description)
    write(tmp_path / "clip", tower, write_tower(model.config.vision))
    found = vlmjax.load_pretrained(tmp_path / "llava", vision_tower=tmp_path / "clip")
    same(found, values)
    assert found.config == model.config


@pytest.mark.parametrize("nvila", [False, True])
def test_vila(tmp_path, nvila):
    model, values = filled("vila_nano", projector_by_columns=not nvila)
    arrays = theirs(model, 0)
    parts = {}
    for part in ("llm", "vision_tower", "mm_projector"):
        parts[part], arrays = split(arrays, f"{part}.")
    assert not arrays
    write(tmp_path / "llm", parts["llm"], write_language(model.config.text))
    tower = parts["vision_tower"]  # NVILA's in the spelling of transformers 5
    tower = {name.removeprefix("vision_model.") if nvila else name: x for name, x in tower.items()}
    write(tmp_path / "vision_tower", tower, write_tower(model.config.vision))
    write(tmp_path / "mm_projector", parts["mm_projector"], {"mm_projector_type": "mlp_downsample"})
    description = {"architectures": ["LlavaLlamaModel"], "model_type": "llava_llama"}
    description |= {"mm_vision_select_feature": "cls_patch"} | ({"image_encoder": {}} if nvila else {})
    (tmp_path / "config.json").write_text(json.dumps(description))
    found = vlmjax.load_pretrained(tmp_path)
    same(found, values)
    assert found.config == dataclasses.replace(model.config, image_token=31)
    vlmjax.save_pretrained(found, tmp_path / "again", format="hf")
    vlmjax.save_pretrained(found, tmp_path / "again", format="hf")  # in the place of the first
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == [
        "config.json",
        "llm",
        "mm_projector",
        "vision_tower",
    ]
    again = vlmjax.load_pretrained(tmp_path / "again")
    same(again, values)
    assert again.config == found.config
    (tmp_path / "llm" / "config.json").unlink()
    with pytest.raises(ValueError, match="llm must be a folder of that name with its own config.json"):
        vlmjax.load_pretrained(tmp_path)


@pytest.mark.parametrize("era", [era.name for era in ERAS])
@pytest.mark.parametrize("name", quick.first(["llava_nano", "llava_next_nano"]))
def test_every_era_and_half_precision(tmp_path, era, name):
    changes = {"pinpoints": ((8, 16), (16, 8))} if "next" in name else {}
    model, values = filled(name, **changes)
    layout = registry.hf_layouts(registry.get_family(registry.family_of(model.config)))[0]
    arrays = layout.table(model.config).to_source(model_arrays(model), era=era)
    description = layout.write(model.config)
    write(tmp_path, arrays, description)
    found = vlmjax.load_pretrained(tmp_path)
    same(found, values)
    assert found.config == model.config
    half = vlmjax.load_pretrained(tmp_path, param_dtype="bfloat16")
    vlmjax.save_pretrained(half, tmp_path / "half", format="hf", shard_bytes=4000)
    assert len(list((tmp_path / "half").glob("model-*.safetensors"))) > 2
    again = model_arrays(vlmjax.load_pretrained(tmp_path / "half"))
    assert {x.dtype.name for x in again.values()} == {"bfloat16"}
    same(vlmjax.load_pretrained(tmp_path / "half"), model_arrays(half))


def test_files_of_another_era_are_one_error(tmp_path):
    model, _ = filled("llava_nano")
    arrays = {f"transformer.{name}": x for name, x in theirs(model, 0).items()}
    write(tmp_path, arrays, registry.hf_layouts(registry.get_family("llava"))[0].write(model.config))
    with pytest.raises(ValueError, match="do not fit the model") as caught:
        vlmjax.load_pretrained(tmp_path)
    assert "unknown: transformer." in str(caught.value) and "missing: " in str(caught.value)


@pytest.mark.parametrize(
    ("name", "projector"), [("vila_1_5_3b", 18_364_416), ("nvila_8b", 62_425_088), ("llava_1_6_vicuna_7b", 20_979_712)]
)
def test_published_projectors_have_their_numbers_of_parameters(name, projector):
    config = registry.model_config(name)
    abstract = nnx.eval_shape(lambda: registry.build(registry.family_of(config), config).projector)
    assert sum(x.size for x in model_arrays(abstract).values()) == projector


@pytest.mark.parametrize("name", ["vila_1_5_3b", "nvila_8b", "vila_nano"])
def test_configurations_of_vila_both_ways(name):
    config = registry.model_config(name)
    layout = registry.hf_layouts(registry.get_family("vila"))[0]
    assert layout.accepts(layout.write(config)) and layout.read(layout.write(config)) == config
