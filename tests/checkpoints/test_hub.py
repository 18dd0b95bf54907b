"""Saved models: exact round trips, damage found, overrides, the hub."""

import hashlib
import json
import logging
import os
import re
import sys

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

import ssmjax
from ssmjax.checkpoints import folder
from ssmjax.checkpoints.arrays import model_arrays, set_model_arrays, write_safetensors
from ssmjax.checkpoints.folder import CONFIG, MANIFEST, WEIGHTS
from ssmjax.checkpoints.hub import load_pretrained, save_pretrained
from ssmjax.models import registry
from ssmjax.models.adapt import resize_pos_embed
from ssmjax.models.sequence_classifier import SequenceConfig
from ssmjax.models.vim import VimConfig
from tests.layers import quick

SMALL = VimConfig(img_size=16, patch_size=4, d_model=8, depth=2, d_state=2, num_classes=3)


@pytest.fixture(scope="module")
def model():
    return registry.build("vim", SMALL)


@pytest.fixture
def saved(model, tmp_path):
    save_pretrained(model, tmp_path / "model", name="vim_small_test")
    return tmp_path / "model"


def assert_same(model, other, but: tuple[str, ...] = ()) -> None:
    """Every array of two models is the same, bit for bit, except those named."""
    one, two = model_arrays(model), model_arrays(other)
    assert one.keys() == two.keys()
    for name in one.keys() - set(but):
        assert one[name].dtype == two[name].dtype
        assert np.asarray(one[name]).tobytes() == np.asarray(two[name]).tobytes(), name


def test_round_trip_is_the_identity(model, saved):
    loaded = load_pretrained(saved)
    assert loaded.config == model.config
    assert_same(model, loaded)
    assert json.loads((saved / CONFIG).read_text())["name"] == "vim_small_test"


def test_round_trip_of_every_bit_pattern(model, saved):
    """NaN with a payload, infinities, negative zero and subnormals come back as they were."""
    special = np.array([0x7FC01234, 0xFF800000, 0x80000000, 1, 0x7F800000, 0xFFFFFFFF, 0, 0x3F800001], np.uint32)
    other = registry.build("vim", SMALL)
    set_model_arrays(other, model_arrays(other) | {"norm_f.scale": special.view(np.float32)})
    save_pretrained(other, saved)
    loaded = np.asarray(model_arrays(load_pretrained(saved))["norm_f.scale"])
    np.testing.assert_array_equal(loaded.view(np.uint32), special)


def test_round_trip_in_bfloat16(tmp_path, monkeypatch, model):
    def build(family, config, *, seed=0):
        built = registry_build(family, config, seed=seed)
        state = jax.tree.map(lambda x: x.astype(jnp.bfloat16), nnx.state(built))
        nnx.update(built, state)
        return built

    registry_build = registry.build
    monkeypatch.setattr(registry, "build", build)
    half = build("vim", SMALL, seed=3)
    save_pretrained(half, tmp_path / "half")
    loaded = load_pretrained(tmp_path / "half")
    assert {x.dtype for x in model_arrays(loaded).values()} == {jnp.dtype(jnp.bfloat16)}
    assert_same(half, loaded)


def test_a_saved_model_is_replaced_and_nothing_else_is(model, saved, tmp_path):
    other = registry.build("vim", SMALL, seed=1)
    save_pretrained(other, saved)
    assert_same(load_pretrained(saved), other)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"], "nothing temporary is left"
    (saved / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds other files \(notes.txt\)"):
        save_pretrained(model, saved)
    with pytest.raises(ValueError, match="is a file"):
        save_pretrained(model, saved / "notes.txt")
    assert_same(load_pretrained(saved), other)


def test_a_failed_save_leaves_the_old_one(model, saved, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "write_safetensors_files", full)
    with pytest.raises(OSError, match="No space left"):
        save_pretrained(registry.build("vim", SMALL, seed=1), saved)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    assert_same(load_pretrained(saved), model)


# ------------------------------------------------------------------------------------------------------------ damage


def test_every_flipped_bit_is_found(saved):
    random = np.random.default_rng(0)
    for name in (CONFIG, WEIGHTS):
        whole = (saved / name).read_bytes()
        for position in random.integers(0, len(whole), 20):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << random.integers(0, 8)
            (saved / name).write_bytes(damaged)
            with pytest.raises(
                ValueError, match=rf"{name} is damaged or was exchanged: .* expects .*sha256.* got .*sha256"
            ):
                load_pretrained(saved)
        (saved / name).write_bytes(whole)
    load_pretrained(saved)


def test_a_damaged_manifest_is_found(saved):
    whole = (saved / MANIFEST).read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        if json_equal(damaged, whole):
            continue
        (saved / MANIFEST).write_bytes(damaged)
        with pytest.raises(ValueError, match="manifest.json"):
            load_pretrained(saved)


def json_equal(one: bytes, other: bytes) -> bool:
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, MANIFEST])
def test_truncated_missing_and_exchanged_files_are_found(saved, tmp_path, name):
    save_pretrained(registry.build("vim", SMALL, seed=1), tmp_path / "other", name="vim_small_test")
    whole = (saved / name).read_bytes()
    for content in (whole[:-2], whole[: len(whole) // 2], b"", whole + b"\n x"):
        (saved / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            load_pretrained(saved)
    (saved / name).unlink()
    with pytest.raises(ValueError, match=f"{name} missing"):
        load_pretrained(saved)
    if name != CONFIG:  # both have the same configuration
        (saved / name).write_bytes((tmp_path / "other" / name).read_bytes())
        with pytest.raises(ValueError, match=f"{WEIGHTS} is damaged or was exchanged"):
            load_pretrained(saved)


def rewrite(folder, name: str, data: bytes) -> None:
    """Replaces a file and its entry in the manifest: what someone who edits a saved model does."""
    (folder / name).write_bytes(data)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2, wanted 1. It was written by ssmjax"),
        ({"format": None}, "format None, wanted 1"),
        ({"model": "vimm"}, "Unknown model family 'vimm'. Did you mean 'vim'"),
        ({"model": 3}, "field 'model' is missing or of a wrong type: 3"),
        ({"name": ["a"]}, "field 'name' is missing or of a wrong type"),
        ({"confg": {}}, "Unknown field 'confg'. Did you mean 'config'?"),
        ({"config": {"dpth": 2}}, "Unknown option 'dpth'. Did you mean 'depth'?"),
        ({"config": {"depth": "2"}}, "depth must be an integer, got '2'"),
        ({"config": {"depth": True}}, "depth must be an integer, got True"),
        ({"config": {"norm_eps": float("nan")}}, "norm_eps must be a number"),
        ({"config": {"depth": 10**9, "bidirectional": "v3"}}, "bidirectional must be 'v2' or 'v1' or 'none'"),
    ],
)
def test_a_bad_configuration_is_one_clear_error(saved, change, message, monkeypatch):
    monkeypatch.setattr(
        jaxtyping.config, "jaxtyping_disable", True
    )  # it would find a wrong type before the library does
    description = json.loads((saved / CONFIG).read_text()) | change
    rewrite(saved, CONFIG, json.dumps(description).encode())
    with pytest.raises(ValueError, match=re.escape(message)):
        load_pretrained(saved)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_configuration_that_is_no_json_object(saved, data):
    rewrite(saved, CONFIG, data)
    with pytest.raises(ValueError, match=r"config\.json: (not valid JSON|wanted a JSON object)"):
        load_pretrained(saved)


def test_weights_that_do_not_fit_list_every_difference(model, saved):
    arrays = {name: np.asarray(x) for name, x in model_arrays(model).items()}
    del arrays["norm_f.scale"]
    arrays["extra"] = np.zeros(1, np.float32)
    arrays["pos_embed"] = arrays["pos_embed"][:, :-1]
    arrays["head.bias"] = arrays["head.bias"].astype(np.float16)
    rewrite(saved, WEIGHTS, write_safetensors(arrays))
    with pytest.raises(ValueError, match="do not fit the model") as error:
        load_pretrained(saved)
    for part in (
        "unknown: extra",
        "missing: norm_f.scale",
        "pos_embed: got (1, 16, 8) float32, wanted (1, 17, 8) float32",
        "head.bias: got (3,) float16, wanted (3,) float32",
    ):
        assert part in str(error.value)


# --------------------------------------------------------------------------------------------------------- overrides


def test_another_number_of_classes_gives_a_new_head(model, saved, caplog):
    with caplog.at_level(logging.INFO, "ssmjax"):
        loaded = load_pretrained(saved, num_classes=5)
    assert "New head: 5 outputs instead of 3" in caplog.text
    assert model_arrays(loaded)["head.kernel"].shape == (8, 5)
    body = {name: x for name, x in model_arrays(loaded).items() if not name.startswith("head.")}
    for name, x in body.items():
        np.testing.assert_array_equal(x, model_arrays(model)[name])
    again, other = load_pretrained(saved, num_classes=5), load_pretrained(saved, num_classes=5, seed=1)
    assert_same(loaded, again)
    assert not np.array_equal(model_arrays(loaded)["head.kernel"], model_arrays(other)["head.kernel"])


def test_the_same_number_of_classes_keeps_the_head(model, saved, caplog):
    with caplog.at_level(logging.INFO, "ssmjax"):
        assert_same(model, load_pretrained(saved, num_classes=3))
    assert "head" not in caplog.text


def test_a_head_can_be_left_out_and_put_back(model, saved, tmp_path):
    bare = load_pretrained(saved, num_classes=0)
    assert not any(name.startswith("head") for name in model_arrays(bare))
    save_pretrained(bare, tmp_path / "bare")
    assert model_arrays(load_pretrained(tmp_path / "bare", num_classes=4))["head.kernel"].shape == (8, 4)


def test_another_image_size_interpolates_positions(model, saved, caplog):
    with caplog.at_level(logging.INFO, "ssmjax"):
        loaded = load_pretrained(saved, img_size=24)
    assert "Position embeddings interpolated from (4, 4) to (6, 6)" in caplog.text
    old, new = (np.asarray(model_arrays(m)["pos_embed"]) for m in (model, loaded))
    assert new.shape == (1, 37, 8)
    np.testing.assert_array_equal(new[0, 18], old[0, 8])  # the class token stays in the middle
    assert_same(load_pretrained(saved, img_size=16), model)


def test_positions_follow_the_grid_and_the_class_token_where_no_shape_changes(model, saved):
    old = np.asarray(model_arrays(model)["pos_embed"])
    wide = np.asarray(model_arrays(load_pretrained(saved, img_size=(8, 32)))["pos_embed"])
    assert wide.shape == old.shape and not np.allclose(wide, old)
    head = np.asarray(model_arrays(load_pretrained(saved, class_token="head"))["pos_embed"])
    np.testing.assert_allclose(head[0], np.concatenate([old[0, 8:9], old[0, :8], old[0, 9:]]), atol=1e-6)


def test_overrides_that_change_no_shape_apply(model, saved):
    loaded = load_pretrained(saved, drop_path_rate=0.2, dtype="bfloat16")
    assert (loaded.config.drop_path_rate, loaded.config.dtype) == (0.2, "bfloat16")
    assert_same(model, loaded)


def test_overrides_that_do_not_fit_are_one_clear_error(saved):
    with pytest.raises(ValueError, match=r"d_model.*\n(.*\n)*Only num_classes and img_size may change a shape"):
        load_pretrained(saved, d_model=12)
    with pytest.raises(ValueError, match=r"unknown: cls_token\n  missing: cls_token_head, cls_token_tail\n"):
        load_pretrained(saved, class_token="double")
    with pytest.raises(ValueError, match="Unknown option 'img_sise'. Did you mean 'img_size'?"):
        load_pretrained(saved, img_sise=24)


@pytest.mark.parametrize(
    ("fields", "same", "other", "got"),
    [
        ({"l_max": 16}, {"layer_options": {"l_max": 16}}, {"l_max": 32}, "16, .* got 32"),
        ({"l_max": 16}, {}, {"layer_options": {"l_max": 32}}, "16, .* got 32"),
        ({"l_max": 16}, {}, {"l_max": None}, "16, .* got 1024"),
        ({}, {"l_max": 1024}, {"l_max": 512}, "1024, .* got 512"),
        (
            {"layer": "s4nd", "l_max": 6, "layer_options": {"kernel": "s4"}},
            {"layer_options": {"kernel": "s4", "l_max": [6, 6]}},
            {"layer_options": {"kernel": "s4", "l_max": (6, 7)}},
            r"\(6, 6\), .* got \(6, 7\)",
        ),
    ],
    ids=str,
)
def test_a_length_that_parameters_are_made_for_stays(tmp_path, fields, same, other, got):
    """S4's C~ belongs to one kernel length, and its shape does not tell which."""
    config = SequenceConfig(**({"layer": "s4", "d_model": 4, "d_state": 4, "depth": 1} | fields))
    model = quick.lively(lambda: registry.build("sequence_classifier", config))
    save_pretrained(model, tmp_path / "s4")
    assert_same(model, load_pretrained(tmp_path / "s4", **same))
    with pytest.raises(ValueError, match=f"l_max must be {got}. Load the model as it was saved"):
        load_pretrained(tmp_path / "s4", **other)


def test_a_discretization_that_parameters_are_made_for_stays(tmp_path):
    config = SequenceConfig("s5", d_model=4, d_state=4, depth=1)
    model = registry.build("sequence_classifier", config)
    save_pretrained(model, tmp_path / "s5")
    assert_same(model, load_pretrained(tmp_path / "s5", layer_options={"discretization": "zoh"}))
    with pytest.raises(ValueError, match="discretization must be 'zoh', which the saved parameters are made for"):
        load_pretrained(tmp_path / "s5", layer_options={"discretization": "bilinear"})


def test_a_length_that_parameters_are_not_made_for_may_change(tmp_path):
    config = SequenceConfig("s4d", d_model=4, d_state=4, depth=1, l_max=16)
    model = quick.lively(lambda: registry.build("sequence_classifier", config))
    save_pretrained(model, tmp_path / "s4d")
    loaded = load_pretrained(tmp_path / "s4d", l_max=None)
    assert loaded.config.l_max is None
    assert_same(model, loaded)


def test_create_model_loads_by_path(model, saved):
    assert_same(model, ssmjax.create_model("vim_tiny", pretrained=str(saved)))


class TestResize:
    def test_the_same_grid_is_the_identity(self):
        x = np.random.default_rng(0).normal(size=(1, 14, 4)).astype(np.float32)
        np.testing.assert_allclose(resize_pos_embed(x, (3, 4), (3, 4), (0, 13), (0, 13)), x, rtol=1e-6)

    def test_a_plane_stays_a_plane_inside(self):
        """A cubic kernel reproduces linear functions, away from the border where it has all four neighbors."""
        y, x = np.meshgrid(np.arange(8.0), np.arange(6.0), indexing="ij")
        plane = (2 * y - 3 * x).reshape(1, 48, 1).astype(np.float32)
        resized = np.asarray(resize_pos_embed(plane, (8, 6), (16, 12))).reshape(16, 12)
        y, x = np.meshgrid((np.arange(16) + 0.5) / 2 - 0.5, (np.arange(12) + 0.5) / 2 - 0.5, indexing="ij")
        np.testing.assert_allclose(resized[4:-4, 4:-4], (2 * y - 3 * x)[4:-4, 4:-4], atol=1e-4)

    def test_wrong_arguments(self):
        with pytest.raises(ValueError, match=r"pos_embed must be \(1, 17, d\) for 4 x 4 patches and 1 class"):
            resize_pos_embed(np.zeros((1, 16, 2), np.float32), (4, 4), (6, 6), (8,), (18,))
        with pytest.raises(ValueError, match="new_extra must be as many places as old_extra"):
            resize_pos_embed(np.zeros((1, 17, 2), np.float32), (4, 4), (6, 6), (8,))


# --------------------------------------------------------------------------------------------------------------- hub


def test_what_is_neither_a_folder_nor_a_hub_name(tmp_path):
    for path in (str(tmp_path / "missing"), tmp_path / "missing", "vim_tiny", "a/b/c", "../model", ""):
        with pytest.raises(ValueError, match=r"there is no folder|missing\. A saved model has"):
            load_pretrained(path)


def test_a_hub_name_goes_through_snapshot_download(model, saved, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: asked.append(name) or str(saved))
    assert_same(model, load_pretrained("someone/vim-tiny"))
    assert asked == ["someone/vim-tiny"]


def test_offline_is_one_clear_error(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(name, **options):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ConnectionError, match="'someone/vim-tiny' could not be had from the Hugging Face hub"):
        load_pretrained("someone/vim-tiny")


def test_importing_the_hub_module_is_light():
    import subprocess

    heavy = ("huggingface_hub", "torch", "safetensors")
    code = f"import sys, ssmjax.checkpoints.hub; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert result.stdout.strip() == "[]"
