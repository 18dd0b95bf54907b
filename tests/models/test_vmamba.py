"""VMamba: published sizes, directions against loops in float64, options, head surgery, messages."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ssmjax
from ssmjax.checkpoints.arrays import model_arrays
from ssmjax.checkpoints.from_torch import vmamba as converter
from ssmjax.layers import SS2D
from ssmjax.models import registry
from ssmjax.models.summary import count_parameters
from ssmjax.models.vmamba import VMamba, VMambaConfig, two_of_four
from tests.layers import quick

TINY = VMambaConfig(img_size=16, num_classes=5, depths=(1, 2), dims=(8, 16), d_state=2)

PUBLISHED = {
    "vmamba_vanilla_tiny": 22_893_448,
    "vmamba_vanilla_small": 44_417_416,
    "vmamba_vanilla_base": 76_254_056,
    "vmamba_tiny_s2l5": 30_705_832,
    "vmamba_small_s2l15": 50_147_752,
    "vmamba_base_s2l15": 88_557_800,
    "vmamba_tiny": 30_249_064,
    "vmamba_small": 49_012_840,
    "vmamba_base": 86_614_504,
    "vmamba_tiny_m2": 25_340_296,
    "vmamba_small_m2": 39_079_816,
    "vmamba_base_m2": 67_527_528,
}


def make(**options):
    return quick.lively(lambda: VMamba(dataclasses.replace(TINY, **options), rngs=nnx.Rngs(0)))


def images(size=(16, 16), batch=2):
    return jax.random.normal(jax.random.key(1), (batch, *size, 3))


@pytest.mark.parametrize(("name", "number"), quick.first(PUBLISHED.items()))
def test_parameter_counts_are_the_published_ones(name, number):
    assert count_parameters(nnx.eval_shape(lambda: ssmjax.create_model(name))) == number


def ss2d(directions):
    """Lively parameters, the same in every direction's set that two mixers share."""
    layer = quick.lively(lambda: SS2D(8, directions="cross", d_state=3, dt_rank=2, rngs=nnx.Rngs(0)))
    other = nnx.eval_shape(lambda: SS2D(8, directions=directions, d_state=3, dt_rank=2, rngs=nnx.Rngs(0)))
    state = nnx.to_pure_dict(nnx.state(layer))
    if directions == "two":
        state = {name: _halved(name, x) for name, x in state.items()}
    target = nnx.state(other)
    nnx.replace_by_pure_dict(target, state)
    nnx.update(other, target)
    return other


def _halved(name, x):
    return two_of_four(f".op.{name}", x[None])[0] if isinstance(x, jax.Array) else x


def loop(layer, u):
    """The equations of `SS2D`, one pixel after the other, in float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(nnx.state(layer)))
    u = np.asarray(u, np.float64)
    b, rows, columns, _ = u.shape
    x, z = np.split(u @ p["in_proj"]["kernel"], 2, axis=-1)
    x = _silu(_convolved(x, p["conv2d"]["kernel"]) + p["conv2d"]["bias"])
    cells = [(y, x) for y in range(rows) for x in range(columns)]
    across = [(y, x) for x in range(columns) for y in range(rows)]
    paths = {
        "cross": (cells, across, cells[::-1], across[::-1]),
        "rows": (cells,) * 4,
        "rows_both_ways": (cells, cells, cells[::-1], cells[::-1]),
        "two": (cells, cells[::-1]),
    }[layer.directions]
    e, n, r = x.shape[-1], layer.d_state, layer.rank
    total = np.zeros((b, rows, columns, e))
    for k, path in enumerate(paths):
        A, D = -np.exp(p["A_log"][k * e : (k + 1) * e]), p["D"][k * e : (k + 1) * e]
        state = np.zeros((b, e, n))
        for place in path:
            x_t = x[:, place[0], place[1]]
            low, B, C = np.split(x_t @ p["x_proj"][k], [r, r + n], axis=-1)
            dt = np.log1p(np.exp(low @ p["dt_proj"][k] + p["dt_bias"][k]))
            state = np.exp(dt[:, :, None] * A) * state + (dt * x_t)[:, :, None] * B[:, None]
            total[:, place[0], place[1]] += (state * C[:, None]).sum(-1) + D * x_t
    mean, var = total.mean(-1, keepdims=True), total.var(-1, keepdims=True)
    y = (total - mean) / np.sqrt(var + 1e-5) * p["norm"]["scale"] + p["norm"]["bias"]
    return (y * _silu(z)) @ p["out_proj"]["kernel"]


def _silu(x):
    return x / (1 + np.exp(-x))


def _convolved(x, kernel):
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = x.shape[1:3]
    return sum(padded[:, i : i + rows, j : j + columns] * kernel[i, j] for i in range(3) for j in range(3))


def test_direction_matters_and_each_equals_a_loop():
    u, outputs = jax.random.normal(jax.random.key(2), (2, 3, 4, 8)), {}
    for directions in ("cross", "rows", "rows_both_ways", "two"):
        layer = ss2d(directions)
        outputs[directions] = np.asarray(quick.apply(layer, u))
        np.testing.assert_allclose(outputs[directions], loop(layer, u), rtol=1e-4, atol=1e-4)
    names = list(outputs)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            assert np.abs(outputs[first] - outputs[second]).max() > 1e-2, (first, second)


def test_features_are_the_maps_of_the_stages():
    model = make()
    maps = quick.apply(model, images(), method="features")
    chex.assert_shape(maps, [(2, 4, 4, 8), (2, 2, 2, 16)])
    logits = quick.apply(model, images())
    chex.assert_shape(logits, (2, 5))
    by_hand = model.norm(maps[-1]).mean((1, 2)) @ model.head.kernel[...] + model.head.bias[...][None]
    chex.assert_trees_all_close(logits, by_hand, atol=1e-5)


@pytest.mark.slow  # several seconds to compile; Vim's is a default test
def test_scanned_unrolled_and_rematerialized_are_equal():
    model = make()

    def value(**how):
        other = nnx.eval_shape(lambda: VMamba(dataclasses.replace(model.config, **how), rngs=nnx.Rngs(0)))
        definition = nnx.graphdef(other)
        run = quick.jit(jax.value_and_grad(lambda state: (nnx.merge(definition, state)(images()) ** 2).sum()))
        return run(nnx.state(model))

    chex.assert_trees_all_close(value(unroll_layers=True, remat=True), value(), rtol=1e-4, atol=1e-4)


def test_drop_path_acts_in_training_only():
    model = make(drop_path_rate=0.5, mlp_ratio=0.0)
    with pytest.raises(ValueError, match=r"train=True with drop_path_rate=0.5 needs a random key"):
        model(images(), train=True)
    definition, state = nnx.split(model)
    train = quick.jit(lambda state, key: nnx.merge(definition, state)(images(), train=True, key=key))
    kept, dropped = (train(state, jax.random.key(seed)) for seed in (0, 1))
    assert float(jnp.abs(kept - dropped).max()) > 1e-3
    rates = [rate for rate, _ in model._drops(True, jax.random.key(0))]
    np.testing.assert_allclose(np.concatenate(rates), [0, 0.25, 0.5])


def test_a_head_an_image_size_and_two_directions_are_changed_on_loading(tmp_path):
    saved = make(pos_embed=True)
    ssmjax.save_pretrained(saved, tmp_path)
    loaded = ssmjax.load_pretrained(tmp_path, num_classes=3, img_size=24, directions="two")
    chex.assert_shape(loaded.pos_embed[...], (1, 36, 8))
    chex.assert_shape(loaded.head.kernel[...], (16, 3))
    old, new = saved.stages[1].blocks.op.x_proj[...], loaded.stages[1].blocks.op.x_proj[...]
    np.testing.assert_array_equal(old[:, ::2], new)
    chex.assert_shape(quick.apply(loaded, images((24, 24))), (2, 3))


@pytest.mark.parametrize("options", [{}, {"core": "ssd", "initialization": "constant", "d_state": 4, "norm": "batch"}])
def test_the_converter_is_exact_both_ways(options):
    model = make(embed="patch", downsample="merge", **options)
    theirs = converter.to_reference(model_arrays(model), model.config)
    chex.assert_trees_all_equal(converter.convert(theirs, model.config), model_arrays(model))
    old = {name.replace("classifier.", "").replace(".op.", ".self_attention."): x for name, x in theirs.items()}
    old = {name.replace("patch_embed.0", "patch_embed.proj"): x for name, x in old.items()}
    name = "layers.0.blocks.0.mlp.fc1.weight"
    chex.assert_trees_all_equal(
        converter.convert(old | {name: old[name][:, :, None, None]}, model.config), model_arrays(model)
    )


def test_the_one_file_form_of_the_original_is_read():
    model = make()
    theirs = converter.to_reference(model_arrays(model), model.config)
    renamed = {"x_proj_weight": "x_proj.weight", "dt_projs_weight": "dt_projs.weight"}
    one_file = {}
    for name, x in theirs.items():
        prefix, _, last = name.rpartition(".")
        one_file[f"{prefix}.{renamed[last]}" if last in renamed else name] = (
            x.reshape(-1, x.shape[-1]) if last in renamed else x
        )
    assert one_file.keys() != theirs.keys()
    chex.assert_trees_all_equal(converter.convert(one_file, model.config), model_arrays(model))


def test_two_directions_come_from_four():
    four, two = make(), dataclasses.replace(TINY, directions="two")
    arrays = converter.convert(converter.to_reference(model_arrays(four), four.config), two)
    np.testing.assert_array_equal(
        arrays["stages.0.blocks.op.D"],
        np.asarray(four.stages[0].blocks.op.D[...]).reshape(1, 4, -1)[:, ::2].reshape(1, -1),
    )


def test_forward_types():
    config = converter.config_from_reference({"dims": 8, "depths": [1, 1], "forward_type": "v05_ondwconv3_noz"})
    assert (config.gate, config.out_norm, config.directions) == ("none", "conv", "cross")
    with pytest.raises(ValueError, match=r"Unknown forward_type 'v9'"):
        converter.forward_type_options("v9_noz")
    with pytest.raises(NotImplementedError, match=r"'xv1a' does not run in the original"):
        converter.forward_type_options("xv1a")


@pytest.mark.usefixtures("as_a_user")
def test_errors():
    model = nnx.eval_shape(lambda: registry.build("vmamba", TINY))
    with pytest.raises(ValueError, match=r"Channels first\?"):
        model(jnp.zeros((2, 3, 16, 16)))
    with pytest.raises(ValueError, match=r"Resize the images, or create the model with img_size=8"):
        model(jnp.zeros((2, 8, 8, 3)))
    with pytest.raises(ValueError, match=r"dims must be as many as depths, 3"):
        VMambaConfig(depths=(1, 1, 1), dims=(8, 16))
    with pytest.raises(ValueError, match=r"initialization must be 'normal' or 'constant' for 'ssd'"):
        VMambaConfig(core="ssd")
    with pytest.raises(ValueError, match=r"(?s)the arrays do not fit the model.*x_proj_weight: got \(4, 3, 8\)"):
        wide = dataclasses.replace(TINY, ssm_ratio=2.0)
        small = quick.lively(lambda: VMamba(dataclasses.replace(TINY, d_state=1), rngs=nnx.Rngs(0)))
        converter.convert(converter.to_reference(model_arrays(small), small.config), wide)
    gated = dataclasses.replace(small.config, gate="activated")  # as of another forward type, without _noz
    with pytest.raises(ValueError, match=r"(?s)the arrays do not fit the model.*in_proj.weight: got \(8, 8\)"):
        converter.convert(converter.to_reference(model_arrays(small), small.config), gated)
