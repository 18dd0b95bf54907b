"""Folders of Mamba models that are wrong, cut off or hostile: one clear error each, before any array is used."""

import json
import re

import numpy as np
import pytest
from flax import nnx

import ssmjax
from ssmjax.checkpoints.arrays import model_arrays, write_safetensors
from ssmjax.checkpoints.from_torch import mamba
from ssmjax.checkpoints.hf import INDEX, PICKLE
from ssmjax.models.language_model import LanguageModel, LanguageModelConfig

CONFIG = LanguageModelConfig(vocab_size=16, d_model=8, depth=2)
OFFICIAL = {"d_model": 8, "n_layer": 2, "vocab_size": 16, "ssm_cfg": {}}

pytestmark = pytest.mark.usefixtures("as_a_user")


@pytest.fixture(scope="module")
def model():
    return LanguageModel(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture
def sharded(model, tmp_path):
    ssmjax.save_pretrained(model, tmp_path / "model", format="hf", shard_bytes=4000)
    return tmp_path / "model"


@pytest.fixture
def whole(model, tmp_path):
    ssmjax.save_pretrained(model, tmp_path / "model", format="hf")
    return tmp_path / "model"


def rewrite(folder, **changes):
    arrays = (
        mamba.table(CONFIG, embedding="embeddings").to_source(model_arrays(ssmjax.load_pretrained(folder))) | changes
    )
    arrays = {name: x for name, x in arrays.items() if x is not None}
    (folder / "model.safetensors").write_bytes(write_safetensors(arrays))


def test_a_wrong_shape_and_missing_and_unknown_arrays_are_one_error(whole):
    D, A_log = (f"backbone.layers.{i}.mixer.{name}" for i, name in ((0, "D"), (1, "A_log")))
    rewrite(whole, **{D: np.ones(15, np.float32), A_log: None, "backbone.layers.2.mixer.D": np.ones(16, np.float32)})
    with pytest.raises(ValueError) as error:
        ssmjax.load_pretrained(whole)
    for part in (D, A_log, "backbone.layers.2.mixer.D", r"15", r"16"):
        assert re.search(part, str(error.value)), part


def test_a_missing_shard(sharded):
    first = sorted(sharded.glob("model-*.safetensors"))[0]
    first.unlink()
    with pytest.raises(ValueError, match=f"{first.name} missing"):
        ssmjax.load_pretrained(sharded)


@pytest.mark.parametrize("length", [0, 7, -1])
def test_a_file_that_is_cut_off(whole, length):
    path = whole / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match="model.safetensors: not a safetensors file, or a damaged one"):
        ssmjax.load_pretrained(whole)


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "../../pytorch_model.bin"])
def test_an_index_that_leaves_the_folder(sharded, file):
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["backbone.norm_f.weight"] = file
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="files must be .safetensors in the same folder, got"):
        ssmjax.load_pretrained(sharded)


def test_a_pickle_without_leave(tmp_path, monkeypatch):
    """A file as the originals publish it: nothing of it is read."""
    (tmp_path / "config.json").write_text(json.dumps(OFFICIAL))
    (tmp_path / PICKLE).write_bytes(b"\x80\x04never read")
    with pytest.raises(ValueError, match="allow_pickle=True"):
        ssmjax.load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layers": 2}, "Unknown field 'n_layers'.*Did you mean 'n_layer'"),
        ({"d_model": -8}, "d_model must be at least 1, got -8"),
        ({"ssm_cfg": {"layer": "Mamba4"}}, "Mamba4"),
    ],
)
def test_a_configuration_that_is_wrong(tmp_path, change, message):
    with pytest.raises((ValueError, NotImplementedError), match=message):
        mamba.config_from_reference(OFFICIAL | change)
