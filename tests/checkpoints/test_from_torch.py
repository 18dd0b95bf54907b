"""Key tables, PyTorch files, and the published Vim checkpoints' layout."""

import contextlib
import json
import math
import re
import sys
import types
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from ssmjax.checkpoints import from_torch
from ssmjax.checkpoints.arrays import check_arrays, model_arrays, read_safetensors, specs, write_safetensors
from ssmjax.checkpoints.mapping import LAYOUTS, KeyTable, Rule
from ssmjax.checkpoints.torch_file import read_torch_file, strip_prefix, unwrap
from ssmjax.models import registry
from ssmjax.models.vim import VimConfig

GOLDEN = Path(__file__).parents[1] / "golden"

TABLE = KeyTable(
    (
        Rule("embed.proj.weight", "embed.kernel", "patch_conv"),
        Rule("stages.{s}.blocks.{i}.fc.weight", "stages.{s}.fc.kernel", "linear"),
        Rule("stages.{s}.blocks.{i}.conv.weight", "stages.{s}.conv.kernel", "conv1d"),
        Rule("stages.{s}.blocks.{i}.A_log", "stages.{s}.A_log"),
        Rule("head.bias", "head.bias"),
    ),
    ignored=("table",),
)


def foreign(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    shapes = {"embed.proj.weight": (8, 3, 2, 4), "head.bias": (5,)}
    for s, depth in enumerate((2, 11)):  # more than ten, where sorting names as text would go wrong
        for i in range(depth):
            block = f"stages.{s}.blocks.{i}"
            shapes |= {f"{block}.fc.weight": (6, 8), f"{block}.conv.weight": (6, 1, 4), f"{block}.A_log": (6, 2)}
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


OURS = {
    "embed.kernel": (2, 4, 3, 8),
    "head.bias": (5,),
    **{
        f"stages.{s}.{name}": (depth, *shape)
        for s, depth in enumerate((2, 11))
        for name, shape in {"fc.kernel": (8, 6), "conv.kernel": (4, 6), "A_log": (6, 2)}.items()
    },
}
OURS = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in OURS.items()}


def test_round_trip_is_exact():
    source = foreign()
    ours = TABLE.to_ours(source | {"table": np.zeros(3)}, OURS)
    assert specs(ours) == OURS
    back = TABLE.to_source(ours)
    assert back.keys() == source.keys()
    for name, x in source.items():
        np.testing.assert_array_equal(back[name], x, err_msg=name)


def test_values_land_where_they_belong():
    source = foreign()
    ours = TABLE.to_ours(source, OURS)
    np.testing.assert_array_equal(ours["stages.1.fc.kernel"][10], source["stages.1.blocks.10.fc.weight"].T)
    np.testing.assert_array_equal(ours["stages.0.conv.kernel"][1, 3], source["stages.0.blocks.1.conv.weight"][:, 0, 3])
    np.testing.assert_array_equal(ours["embed.kernel"][1, 2, 0], source["embed.proj.weight"][:, 0, 1, 2])


def test_one_error_lists_every_difference():
    source = foreign()
    del source["stages.0.blocks.1.A_log"]
    source["stages.0.blocks.1.fc.weight"] = source["stages.0.blocks.1.fc.weight"].T
    source["stages.1.blocks.11.A_log"] = source["head.bias"]
    source["head.bias"] = source["head.bias"].astype(np.float64)
    with pytest.raises(ValueError, match="the arrays do not fit") as error:
        TABLE.to_ours(source, OURS, "somewhere.pth")
    message = str(error.value)
    assert message.startswith("somewhere.pth:")
    assert "unknown: stages.1.blocks.11.A_log" in message
    assert "missing: stages.0.blocks.1.A_log" in message
    assert "stages.0.blocks.1.fc.weight: got (8, 6) float32, wanted (6, 8) float32" in message
    assert "head.bias: got (5,) float64, wanted (5,) float32" in message


def test_a_narrower_float_is_widened_and_an_integer_is_not():
    source = foreign() | {"head.bias": np.array([1, 2, 3, 4, 5.5], ml_dtypes.bfloat16)}
    np.testing.assert_array_equal(TABLE.to_ours(source, OURS)["head.bias"], np.array([1, 2, 3, 4, 5.5], np.float32))
    with pytest.raises(ValueError, match=re.escape("head.bias: got (5,) int16")):
        TABLE.to_ours(source | {"head.bias": np.arange(5, dtype=np.int16)}, OURS)


def test_an_array_of_ours_without_a_rule_is_an_error():
    with pytest.raises(ValueError, match=re.escape("No rule of the key table has 'stages.0.gamma'")):
        TABLE.to_source({"stages.0.gamma": np.zeros((2, 6))})


@pytest.mark.parametrize("layout", sorted(set(LAYOUTS) - {"same"}))
def test_layouts_are_permutations(layout):
    source, ours = LAYOUTS[layout]
    assert set(source.split()) - {"1"} == set(ours.split()) - {"1"}


# ------------------------------------------------------------------------------------------------------------- files


def test_safetensors_round_trip():
    arrays = {
        "bf16": np.array([[1.5, -2.0]], ml_dtypes.bfloat16),
        "f32": np.float32(3.25),
        "empty": np.zeros((0, 3), np.float16),
        "steps": np.arange(3),
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    }
    back = read_safetensors(write_safetensors(arrays), "x")
    check_arrays("x", back, specs(arrays))
    for name, x in arrays.items():
        np.testing.assert_array_equal(back[name], x)


@pytest.mark.parametrize("data", [b"", b"\x00" * 7, b"\xff" * 64, write_safetensors({"a": np.ones(4)})[:-1]])
def test_what_is_no_safetensors_is_one_clear_error(data):
    with pytest.raises(ValueError, match="weights.safetensors: not a safetensors file, or a damaged one"):
        read_safetensors(data, "weights.safetensors")


def test_a_safetensors_checkpoint_needs_no_torch(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(write_safetensors({"module.head.bias": np.arange(3.0)}))
    np.testing.assert_array_equal(read_torch_file(path)["head.bias"], np.arange(3.0))


def test_a_pickle_is_refused_unless_allowed(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(b"not looked at")
    with pytest.raises(ValueError, match="allow_pickle=True"):
        read_torch_file(path)
    with pytest.raises(ValueError, match="there is no file"):
        read_torch_file(tmp_path / "missing.pth", allow_pickle=True)


def test_a_missing_torch_is_one_clear_error(tmp_path, monkeypatch):
    (tmp_path / "x.pth").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)  # makes `import torch` fail
    with pytest.raises(ImportError, match="pip install torch"):
        read_torch_file(tmp_path / "x.pth", allow_pickle=True)


class FakeTensor:
    """As much of a torch tensor as the reader touches."""

    def __init__(self, array: np.ndarray, dtype: str):
        self.array, self.dtype = array, dtype

    def detach(self):
        return self

    def view(self, dtype):
        return FakeTensor(self.array.view(dtype), dtype)

    def numpy(self):
        return self.array


def fake_torch(monkeypatch, content: object) -> list[dict]:
    """Puts a stand-in for PyTorch in place whose `load` returns (or raises) `content`; returns the calls of `load`."""
    calls = []

    def load(path, **options):
        calls.append(options)
        if isinstance(content, Exception):
            raise content
        return content

    module = types.SimpleNamespace(
        load=load,
        is_tensor=lambda x: isinstance(x, FakeTensor),
        serialization=types.SimpleNamespace(safe_globals=lambda allowed: contextlib.nullcontext()),
        bfloat16="bfloat16",
        int16=np.int16,
    )
    monkeypatch.setitem(sys.modules, "torch", module)
    return calls


def test_a_pickle_is_read_by_torch_with_weights_only(tmp_path, monkeypatch):
    (tmp_path / "x.pth").write_bytes(b"")
    half = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    state = {"module.w": FakeTensor(np.ones((2, 3), np.float32), "float32"), "module.h": FakeTensor(half, "bfloat16")}
    calls = fake_torch(monkeypatch, {"model": state, "epoch": 3})
    arrays = read_torch_file(tmp_path / "x.pth", allow_pickle=True)
    assert calls == [{"map_location": "cpu", "weights_only": True}]
    np.testing.assert_array_equal(arrays["w"], np.ones((2, 3), np.float32))
    assert arrays["h"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(arrays["h"], half)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (RuntimeError("truncated"), "is damaged, or it holds more than tensors"),
        ({"model": {"w": 3}}, "no tensors: w"),
        ([1, 2], "wanted a state dict"),
        ({}, "wanted a state dict"),
    ],
)
def test_a_bad_pickle_is_one_clear_error(tmp_path, monkeypatch, content, message):
    (tmp_path / "x.pth").write_bytes(b"")
    fake_torch(monkeypatch, content)
    with pytest.raises(ValueError, match=message):
        read_torch_file(tmp_path / "x.pth", allow_pickle=True)


def test_wrappers_and_prefixes_come_off_explicitly():
    assert unwrap({"state_dict": {"model": {"a": 1}}}) == {"a": 1}
    assert unwrap({"model.a": 1}) == {"model.a": 1}
    assert strip_prefix({"module.a": 1, "module.b": 2}) == {"a": 1, "b": 2}
    assert strip_prefix({"module.a": 1, "b": 2}) == {"module.a": 1, "b": 2}


# --------------------------------------------------------------------------------------------------------------- Vim

LAYOUTS_OF_VIM = json.loads((GOLDEN / "layouts" / "vim.json").read_text())


def published(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a published checkpoint."""
    layout = LAYOUTS_OF_VIM[name]
    return {
        key.format(i=i): tuple(shape)
        for key, shape in layout["tensors"].items()
        for i in range(layout["depth"] if "{i}" in key else 1)
    }


@pytest.mark.parametrize("name", sorted(LAYOUTS_OF_VIM))
def test_our_sizes_are_the_published_checkpoints(name):
    config = registry.model_config(name)
    ours = model_arrays(nnx.eval_shape(lambda: registry.build("vim", config)))
    theirs = from_torch.vim.TABLE.source_specs(ours)
    assert {key: spec.shape for key, spec in theirs.items()} == published(name)
    assert {spec.dtype for spec in theirs.values()} == {np.dtype(np.float32)}
    assert len(theirs) == 415
    count = LAYOUTS_OF_VIM[name]["parameters"]
    assert sum(math.prod(x.shape) for x in ours.values()) == count


@pytest.mark.parametrize("name", sorted(LAYOUTS_OF_VIM))
def test_the_originals_names_and_ours_mean_the_same_model(name):
    arguments = from_torch.vim.FACTORIES[LAYOUTS_OF_VIM[name]["factory"]]
    theirs = from_torch.vim.config_from_reference(from_torch.vim._PUBLISHED | arguments)
    assert theirs.drop_path_rate == 0.1  # the original constructor's default, which its recipes override
    ours = registry.model_config(name)
    assert {f: x for f, x in vars(theirs).items() if getattr(ours, f) != x} == {"drop_path_rate": 0.1, "stride": 16}
    assert theirs.step == ours.step


@pytest.mark.parametrize("path", sorted((GOLDEN / "vim").glob("*.npz")), ids=lambda path: path.stem)
def test_state_dicts_come_back_bit_for_bit(path):
    arguments = json.loads(path.with_suffix(".json").read_text())
    del arguments["family"]
    with np.load(path) as file:
        state = {name.removeprefix("param/"): file[name] for name in file.files if name.startswith("param/")}
    config = from_torch.vim.config_from_reference(arguments)
    back = from_torch.vim.to_reference(from_torch.vim.convert(state, config), config)
    assert back.keys() == state.keys()
    for name, x in state.items():
        if name.startswith("rope."):  # recomputed, with another library's cosine
            np.testing.assert_allclose(back[name], x, atol=1e-6)
        else:
            assert back[name].dtype == x.dtype and back[name].tobytes() == x.tobytes(), name


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            {},
            {"class_token": "middle", "pool": "last", "divide_out": True, "drop_path_rate": 0.1, "bidirectional": "v2"},
        ),
        ({"use_double_cls_token": True}, {"class_token": "double"}),
        ({"use_middle_cls_token": False}, {"class_token": "head"}),
        ({"if_cls_token": False, "use_double_cls_token": True}, {"class_token": "none"}),
        ({"final_pool_type": "max"}, {"pool": "max"}),
        ({"if_bimamba": True}, {"bidirectional": "v1"}),
        ({"rms_norm": False, "norm_epsilon": 1e-6}, {"norm": "layer", "norm_eps": 1e-6}),
        ({"if_bidirectional": True, "bimamba_type": "none"}, {"alternate_layers": True, "bidirectional": "none"}),
        ({"if_rope": True, "embed_dim": 64}, {"rope": True, "rope_pretrained_side": 14, "rope_skips": "first"}),
        ({"if_rope": True, "use_middle_cls_token": False}, {"rope_skips": "class"}),
        ({"ssm_cfg": {"d_state": 8, "dt_rank": "auto"}}, {"d_state": 8, "dt_rank": None}),
        ({"channels": 1, "stride": 8, "init_layer_scale": 0.1}, {"in_channels": 1, "stride": 8, "layer_scale": 0.1}),
        ({"fused_add_norm": False, "if_devide_out": True, "device": None}, {}),
    ],
)
def test_the_originals_arguments(arguments, expected):
    config = from_torch.vim.config_from_reference(arguments)
    assert {name: getattr(config, name) for name in expected} == expected


def test_arguments_that_the_original_does_not_have():
    with pytest.raises(ValueError, match="Unknown argument 'embed_dims'. Did you mean 'embed_dim'?"):
        from_torch.vim.config_from_reference({"embed_dims": 192})
    with pytest.raises(NotImplementedError, match="flip_img_sequences_ratio"):
        from_torch.vim.config_from_reference({"flip_img_sequences_ratio": 0.5})
    with pytest.raises(ValueError, match="Unknown option of ssm_cfg 'conv_init'. Did you mean .*'conv_bias'"):
        from_torch.vim.config_from_reference({"ssm_cfg": {"conv_init": 1.0}})
    with pytest.raises(NotImplementedError, match="'use_fast_path'.=False is a fault of the original, whose slow path"):
        from_torch.vim.config_from_reference({"ssm_cfg": {"use_fast_path": False}})
    with pytest.raises(ValueError, match="ssm_cfg.'if_divide_out'. must be left out, got False. The model gives it"):
        from_torch.vim.config_from_reference({"ssm_cfg": {"if_divide_out": False}})


def test_every_option_of_the_originals_mixer():
    """Biases are parameters, which a state dict then holds, and that change the output."""
    options = {
        "d_state": 4, "d_conv": 3, "expand": 1, "dt_rank": 2, "dt_min": 0.01, "dt_max": 0.02, "dt_init": "constant",
        "dt_scale": 0.5, "dt_init_floor": 0.015, "conv_bias": False, "bias": True, "use_fast_path": True,
    }  # fmt: skip
    arguments = {"img_size": 16, "embed_dim": 16, "depth": 2, "num_classes": 3, "ssm_cfg": options}
    config = from_torch.vim.config_from_reference(arguments)
    arrays = {name: np.asarray(x) for name, x in model_arrays(registry.build("vim", config)).items()}
    dt = np.logaddexp(arrays["layers.mixer.dt_proj.bias"], 0)
    assert dt.min() > 0.0149 and dt.max() < 0.0201  # between the floor and the maximum
    np.testing.assert_allclose(arrays["layers.mixer.dt_proj_b.kernel"], 0.5 / np.sqrt(2), rtol=1e-6)
    state = from_torch.vim.to_reference(arrays, config)
    assert state["layers.1.mixer.in_proj.bias"].shape == (32,) and state["layers.1.mixer.out_proj.bias"].shape == (16,)
    assert state["layers.0.mixer.conv1d.weight"].shape == (16, 1, 3) and "layers.0.mixer.conv1d.bias" not in state
    back = from_torch.vim.convert(state, config)
    assert all(back[name].tobytes() == x.tobytes() for name, x in arrays.items())


SMALL = VimConfig(
    img_size=16, patch_size=8, d_model=16, depth=2, d_state=2, num_classes=3, rope=True, class_token="head"
)
SMALL_ARGUMENTS = dict(
    img_size=16, patch_size=8, stride=8, embed_dim=16, depth=2, d_state=2, num_classes=3,
    if_rope=True, pt_hw_seq_len=2, use_middle_cls_token=False, drop_path_rate=0.0, final_pool_type="mean",
)  # fmt: skip


@pytest.fixture(scope="module")
def state():
    arrays = model_arrays(registry.build("vim", SMALL))
    return from_torch.vim.to_reference(arrays, SMALL)


def write(folder: Path, state) -> Path:
    (folder / "vim.safetensors").write_bytes(write_safetensors({f"module.{name}": x for name, x in state.items()}))
    return folder / "vim.safetensors"


def test_a_checkpoint_of_the_original(tmp_path, state):
    model = from_torch.vim.load(write(tmp_path, state), SMALL_ARGUMENTS)
    assert model.config.rope_pretrained_side == 2
    for name, x in from_torch.vim.to_reference(model_arrays(model), model.config).items():
        np.testing.assert_array_equal(x, state[name], err_msg=name)


def test_another_rotary_table_is_found(tmp_path, state):
    with pytest.raises(ValueError, match="rope.freqs_cos is not the table"):
        from_torch.vim.load(write(tmp_path, state), SMALL_ARGUMENTS | {"pt_hw_seq_len": 3})


def test_rotary_tables_do_not_fit_a_model_without(tmp_path, state):
    with pytest.raises(ValueError, match="unknown: rope.freqs_cos, rope.freqs_sin"):
        from_torch.vim.load(write(tmp_path, state), SMALL_ARGUMENTS | {"if_rope": False})


def test_another_depth_is_one_error(tmp_path, state):
    with pytest.raises(ValueError, match=r"unknown: layers\.1\.mixer\.A_b_log, (layers\.1\.\S+,? ?)+") as error:
        from_torch.vim.load(write(tmp_path, state), SMALL_ARGUMENTS, depth=1)
    assert "vim.safetensors" in str(error.value)


def test_a_wrong_variant(tmp_path, state):
    with pytest.raises(ValueError, match="Unknown model 'vim_tinny'. Did you mean 'vim_tiny'?"):
        from_torch.vim.load(write(tmp_path, state), "vim_tinny")
