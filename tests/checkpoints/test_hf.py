"""Folders of the Hugging Face form: recognized, read exactly and shard by shard, written, and refused when damaged."""

import json
import subprocess
import sys

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

import ssmjax
from ssmjax.checkpoints.arrays import model_arrays, write_safetensors
from ssmjax.checkpoints.hf import INDEX
from ssmjax.models import registry
from tests.checkpoints import toy_hf
from tests.checkpoints.toy_hf import ToyConfig


@pytest.fixture(autouse=True)
def family(monkeypatch):
    with toy_hf.registered(monkeypatch):
        yield


@pytest.fixture
def model():
    return registry.build("toy", ToyConfig())


@pytest.fixture
def sharded(model, tmp_path):
    ssmjax.save_pretrained(model, tmp_path / "hf", format="hf", shard_bytes=200)
    return tmp_path / "hf"


def assert_same(model, other):
    one, two = model_arrays(model), model_arrays(other)
    assert one.keys() == two.keys()
    for name, x in one.items():
        assert x.dtype == two[name].dtype and np.asarray(x).tobytes() == np.asarray(two[name]).tobytes(), name


def theirs(model, **changes):
    return toy_hf.table(model.config).to_source(model_arrays(model)) | changes


def put(folder, arrays, name="model.safetensors"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(write_safetensors(arrays))
    return folder


def describe(folder, config, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(toy_hf.write(config) | changes))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard_bytes", [10**9, 200, 1])
def test_a_round_trip_is_the_identity(tmp_path, tied, shard_bytes):
    model = registry.build("toy", ToyConfig(tied=tied))
    ssmjax.save_pretrained(model, tmp_path / "hf", format="hf", shard_bytes=shard_bytes)
    loaded = ssmjax.load_pretrained(tmp_path / "hf")
    assert loaded.config == model.config
    assert_same(model, loaded)
    tokens = jnp.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(nnx.jit(model)(tokens), nnx.jit(loaded)(tokens))
    files = sorted(path.name for path in (tmp_path / "hf").glob("*.safetensors"))
    assert (files == ["model.safetensors"]) == (shard_bytes == 10**9)
    ssmjax.save_pretrained(loaded, tmp_path / "own")  # and into the own form
    assert_same(model, ssmjax.load_pretrained(tmp_path / "own"))


def test_what_is_written_is_what_others_read(model, sharded):
    from safetensors.numpy import load_file

    index = json.loads((sharded / INDEX).read_text())
    found = {
        name: x for file in sorted(set(index["weight_map"].values())) for name, x in load_file(sharded / file).items()
    }
    wanted = theirs(model)
    assert found.keys() == wanted.keys() == index["weight_map"].keys()
    for name, x in wanted.items():
        np.testing.assert_array_equal(found[name], x)
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in wanted.values())
    description = json.loads((sharded / "config.json").read_text())
    assert (description["model_type"], description["torch_dtype"]) == ("toy", "float32")


def test_a_saved_folder_is_replaced_and_another_is_not(model, sharded, tmp_path):
    ssmjax.save_pretrained(model, sharded, format="hf")
    assert sorted(path.name for path in sharded.iterdir()) == ["config.json", "model.safetensors"]
    with pytest.raises(ValueError, match="holds another program's model"):
        ssmjax.save_pretrained(model, sharded)
    put(tmp_path / "other", theirs(model))
    describe(tmp_path / "other", model.config)
    with pytest.raises(ValueError, match="holds another program's model"):
        ssmjax.save_pretrained(model, tmp_path / "other", format="hf")


def test_every_era_and_ignored_names_are_read(model, tmp_path):
    describe(tmp_path, model.config)
    arrays = toy_hf.table(model.config).to_source(model_arrays(model), era="memory")
    put(tmp_path, arrays | {"model.language_model.layers.1.inv_freq": np.ones(2, np.float32)})
    assert_same(model, ssmjax.load_pretrained(tmp_path))


def test_a_pickle_is_read_only_if_allowed(model, tmp_path):
    torch = pytest.importorskip("torch")
    describe(tmp_path, model.config)
    torch.save(
        {name: torch.from_numpy(np.array(x)) for name, x in theirs(model).items()}, tmp_path / "pytorch_model.bin"
    )
    with pytest.raises(ValueError, match="is a pickle, which can run code .* allow_pickle=True"):
        ssmjax.load_pretrained(tmp_path)
    assert_same(model, ssmjax.load_pretrained(tmp_path, allow_pickle=True))


# ------------------------------------------------------------------------------------------------------------- dtypes


def test_bfloat16_weights_stay_bfloat16(model, tmp_path):
    describe(tmp_path, model.config)
    half = {name: x.astype(ml_dtypes.bfloat16) for name, x in theirs(model).items()}
    put(tmp_path, half)
    loaded = ssmjax.load_pretrained(tmp_path)
    assert {x.dtype for x in model_arrays(loaded).values()} == {jnp.dtype(jnp.bfloat16)}
    for name, x in theirs(loaded).items():
        assert x.tobytes() == half[name].tobytes(), name
    whole = ssmjax.load_pretrained(tmp_path, param_dtype="float32")
    np.testing.assert_array_equal(model_arrays(whole)["embed"], half["model.embed.weight"].astype(np.float32))
    ssmjax.save_pretrained(loaded, tmp_path / "own")
    assert_same(loaded, ssmjax.load_pretrained(tmp_path / "own"))
    ssmjax.save_pretrained(loaded, tmp_path / "hf", format="hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize("form", ["hf", "ssmjax"])
def test_a_float_type_is_chosen_at_load(model, tmp_path, form):
    ssmjax.save_pretrained(model, tmp_path / "m", format=form)
    loaded = ssmjax.load_pretrained(tmp_path / "m", param_dtype=jnp.bfloat16)
    arrays = model_arrays(loaded)
    assert arrays["statistics"].dtype == jnp.float32  # no parameter
    assert {x.dtype for name, x in arrays.items() if name != "statistics"} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_array_equal(arrays["embed"], model.embed[...].astype(jnp.bfloat16))
    with pytest.raises(ValueError, match="param_dtype must be 'float32' or 'bfloat16' or 'float16', or None"):
        ssmjax.load_pretrained(tmp_path / "m", param_dtype="int8")


def test_mixed_float_types_come_back_in_the_own_form(model, tmp_path):
    model.embed = nnx.Param(model.embed[...].astype(jnp.bfloat16))
    ssmjax.save_pretrained(model, tmp_path / "m")
    assert json.loads((tmp_path / "m" / "config.json").read_text())["dtypes"] == {"embed": "bfloat16"}
    assert_same(model, ssmjax.load_pretrained(tmp_path / "m"))


# ------------------------------------------------------------------------------------------------------ hostile folders


def damage(folder, name, change):
    path = folder / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def first_shard(folder):
    return sorted(folder.glob("model-*.safetensors"))[0]


def test_a_missing_shard(sharded):
    first_shard(sharded).unlink()
    with pytest.raises(
        ValueError, match=r"model-00001-of-\d+.safetensors missing, of the \d+ files that model.safetensors"
    ):
        ssmjax.load_pretrained(sharded)


@pytest.mark.parametrize("file", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", "model.bin", "..", 3, None])
def test_an_index_that_leaves_the_folder(sharded, file):
    damage(sharded, INDEX, lambda index: index["weight_map"].update({"lm_head.weight": file}))
    with pytest.raises(ValueError, match="files must be .safetensors in the same folder, got"):
        ssmjax.load_pretrained(sharded)


@pytest.mark.parametrize("places", [None, [], {}, "model.safetensors"])
def test_an_index_that_says_nothing(sharded, places):
    damage(sharded, INDEX, lambda index: index.update(weight_map=places))
    with pytest.raises(ValueError, match="'weight_map' must say for each array in which file it is"):
        ssmjax.load_pretrained(sharded)


def test_an_index_that_does_not_fit_its_files(sharded):
    def change(index):
        index["weight_map"]["nothing"] = index["weight_map"].pop("lm_head.weight")

    damage(sharded, INDEX, change)
    with pytest.raises(
        ValueError, match="does not fit the files: nothing is not in .*; lm_head.weight in .* is not in"
    ):
        ssmjax.load_pretrained(sharded)


def test_a_truncated_shard(sharded):
    path = first_shard(sharded)
    whole = path.read_bytes()
    for length in (0, 7, 40, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"{path.name}: not a safetensors file, or a damaged one"):
            ssmjax.load_pretrained(sharded)


def header(**entries):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (header(a=GOOD | {"data_offsets": [0, 9]}) + bytes(9), "the bytes of a are not where"),
        (header(a=GOOD | {"data_offsets": [4, 12]}) + bytes(12), "the bytes of a are not where"),
        (header(a=GOOD, b=GOOD) + bytes(8), "the bytes of b are not where"),
        (header(a=GOOD | {"shape": [-2]}) + bytes(8), "says nothing sensible of a"),
        (header(a=GOOD | {"shape": [2.0]}) + bytes(8), "says nothing sensible of a"),
        (header(a=GOOD | {"shape": [2**62, 2**62], "data_offsets": [0, 2**126]}), "it is cut off"),
        (header(a=[1]) + bytes(8), "says nothing sensible of a"),
        (header(a=GOOD) + bytes(9), "1 bytes follow its last array"),
        (header(a=GOOD | {"dtype": "F4"}) + bytes(8), "holds F4 arrays"),
        ((2**63).to_bytes(8, "little") + bytes(8), "its header would have"),
        ((8).to_bytes(8, "little") + b"[" * 8, "its header is no JSON"),
    ],
)
def test_a_header_that_lies(model, tmp_path, data, message):
    describe(tmp_path, model.config)
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        ssmjax.load_pretrained(tmp_path)


def test_one_error_lists_every_difference(model, tmp_path):
    describe(tmp_path, model.config)
    arrays = theirs(model, extra=np.ones(1, np.float32))
    arrays["model.layers.1.qk.weight"] = arrays["model.layers.1.qk.weight"].T.copy()
    del arrays["model.layers.2.qk.bias"]
    put(tmp_path, arrays)
    with pytest.raises(ValueError, match="do not fit the model") as error:
        ssmjax.load_pretrained(tmp_path)
    assert "unknown: extra\n  missing: model.layers.2.qk.bias\n" in str(error.value)
    assert "model.layers.1.qk.weight: got (4, 6) float32, wanted (6, 4) float32" in str(error.value)


def test_tied_weights_that_differ(tmp_path):
    model = registry.build("toy", ToyConfig(tied=True))
    describe(tmp_path, model.config)
    put(tmp_path, theirs(model, **{"lm_head.weight": np.zeros((7, 4), np.float32)}))
    with pytest.raises(ValueError, match="lm_head.weight and model.embed.weight differ"):
        ssmjax.load_pretrained(tmp_path)


def test_a_folder_without_weights_or_of_an_unknown_type(model, tmp_path, monkeypatch):
    describe(tmp_path, model.config)
    with pytest.raises(ValueError, match="holds no weights; wanted model.safetensors"):
        ssmjax.load_pretrained(tmp_path)
    for changes, message in (
        (
            {"model_type": "toi"},
            "type 'toi' .* which no registered family reads. Did you mean 'toy'.* Known types",
        ),
        ({"architectures": ["ToyForImages"]}, "architectures .'ToyForImages'"),
        ({"width": "4"}, "config.json: ToyConfig: width must be an integer, got '4'"),
    ):
        describe(tmp_path, model.config, **changes)
        with pytest.raises(ValueError, match=message):
            ssmjax.load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json: not valid JSON"):
        ssmjax.load_pretrained(tmp_path)


def test_a_family_without_such_a_form(tmp_path):
    vim = ssmjax.create_model("vim_nano", depth=1)
    with pytest.raises(ValueError, match="'vim' has no Hugging Face form; families that have one: .*toy"):
        ssmjax.save_pretrained(vim, tmp_path / "vim", format="hf")
    with pytest.raises(ValueError, match="format must be 'ssmjax' or 'hf'"):
        ssmjax.save_pretrained(vim, tmp_path / "vim", format="pt")
    assert list(tmp_path.iterdir()) == []


def test_a_layout_is_found_by_its_name(monkeypatch, model, tmp_path):
    with toy_hf.registered(monkeypatch, hf=f"{toy_hf.__name__}:LAYOUT"):
        ssmjax.save_pretrained(model, tmp_path / "hf", format="hf")
        assert_same(model, ssmjax.load_pretrained(tmp_path / "hf"))


MEASURED = """
import re, sys
import jax, jax.numpy as jnp
import ssmjax
from tests.checkpoints import toy_hf
from ssmjax.models.registry import register_family
from ssmjax.models.family import Family
register_family(Family("toy", toy_hf.ToyConfig, toy_hf.Toy, inputs=toy_hf.inputs, hf=toy_hf.LAYOUT))
ssmjax.load_pretrained(sys.argv[1])  # a small one: what the libraries themselves need
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
before = peak()
model = ssmjax.load_pretrained(sys.argv[2])
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["hf", "ssmjax"])
def test_peak_memory_is_that_of_the_weights(model, tmp_path, form):
    ssmjax.save_pretrained(model, tmp_path / "small", format=form)
    large = registry.build("toy", ToyConfig(width=2048, depth=8, vocab=4000))
    size = sum(x.nbytes for x in model_arrays(large).values())
    options = {"shard_bytes": size // 5} if form == "hf" else {}
    ssmjax.save_pretrained(large, tmp_path / "large", format=form, **options)
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "small"), str(tmp_path / "large")]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert size < 1.01 * peak < 1.2 * size, f"{peak / size:.2f} of the weights"
