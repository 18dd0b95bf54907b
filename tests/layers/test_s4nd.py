"""S4ND against recurrences in float64 along each axis, its options, resolutions, errors and converter."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ssmjax import ops
from ssmjax.checkpoints.arrays import model_arrays, set_model_arrays
from ssmjax.checkpoints.from_torch import s4nd as converter
from ssmjax.layers import S4ND
from tests.layers import quick

pytestmark = pytest.mark.slow  # minutes to compile; the default tests have the dumps and the registries


def make(axes=2, **options):
    return S4ND(3, axes=axes, d_state=4, rngs=nnx.Rngs(0), **options)


def kernels_by_recurrence(kernel, length):
    """(c l h) in float64 by stepping `x = A_bar x` from the discretized input vector."""
    recurrence = kernel.recurrence()
    A_bar, x, C = (np.asarray(v, np.complex128) for v in recurrence)
    taps = []
    for _ in range(length):
        taps.append(2 * np.einsum("chn,hn->ch", C, x).real)
        x = A_bar * x
    return np.stack(taps, axis=1)


def by_loops(layer, x):
    """The layer's output (b y x c*d) in float64: every pair of pixels, every term, every direction."""
    d = x.shape[-1]
    taps = [kernels_by_recurrence(k, l) for k, l in zip(layer.kernels, x.shape[1:-1], strict=True)]
    taps = [t.reshape(-1, layer.trank, layer.channels, *t.shape[1:]) for t in taps]
    shift = 1 if layer.bidirectional == "exclusive" else 0

    def tap(axis, offset):
        value = taps[axis][0][:, :, offset] if offset >= 0 else 0.0
        if layer.bidirectional != "none" and offset <= -shift:
            value = value + taps[axis][1][:, :, -offset - shift]
        return value

    y = np.zeros((x.shape[0], *x.shape[1:-1], layer.channels, d))
    for t in np.ndindex(*x.shape[1:-1]):
        for s in np.ndindex(*x.shape[1:-1]):
            product = np.ones((layer.trank, layer.channels, d))
            for axis, (i, j) in enumerate(zip(t, s, strict=True)):
                product = product * tap(axis, i - j)
            y[(slice(None), *t)] += product.mean(0) * x[(slice(None), *s, None)]
    y = y + np.asarray(layer.D[...], np.float64) * x[..., None, :]
    return y.reshape(*x.shape[:-1], -1)


@pytest.mark.parametrize(
    ("sides", "options"),
    [
        ((4, 3), {}),
        ((3, 5), {"bidirectional": "inclusive", "trank": 2}),
        ((4, 3), {"bidirectional": "none", "channels": 2, "trank": 2}),
        ((2, 3, 2), {"init": "diag-lin", "copies": 1}),
        ((1, 2), {"channels": 2}),
        ((6,), {"init": "diag-inv"}),
    ],
)
def test_values(sides, options):
    layer = make(len(sides), **options)
    x = np.random.default_rng(0).normal(size=(2, *sides, 3)).astype(np.float32)
    y = quick.apply(layer, x)
    wanted = by_loops(layer, x)
    chex.assert_trees_all_close(y, wanted.astype(np.float32), atol=3e-6 * np.max(np.abs(wanted)))


def test_s4_along_each_axis():
    """The kernels are those of S4, and the whole is a convolution with their product."""
    layer = make(kernel="s4", l_max=(5, 7))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 7, 3)), jnp.float32)
    halves = quick.jit(lambda: [kernel(l) for kernel, l in zip(layer.kernels, (5, 7), strict=True)])()
    joined = [ops.two_sided_kernel(k[0], k[1])[0] for k in halves]
    wanted = ops.fft_conv_nd(x, ops.separable_kernel([k[None] for k in joined]), layer.D[0], origin=(5, 7))
    chex.assert_trees_all_close(quick.apply(layer, x), wanted, atol=1e-5)
    chex.assert_shape(quick.apply(layer, x[:1, :3]), (1, 3, 7, 3))
    with pytest.raises(ValueError, match="length must be at most 7"):
        layer(jnp.zeros((1, 5, 8, 3)))


def test_rates():
    """A rate for an axis is a factor on that axis's step sizes."""
    layer, doubled = make(), make()
    doubled.kernels[1].inv_dt[...] = layer.kernels[1].inv_dt[...] + jnp.log(2.0)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 5, 3)), jnp.float32)
    run = quick.jit(lambda x: (layer(x, rate=(1.0, 2.0)), doubled(x), layer(x, rate=2.0), layer(x, rate=(2.0, 2.0))))
    one, wanted, both, each = run(x)
    chex.assert_trees_all_close(one, wanted, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(both, each)


def test_another_resolution():
    """A smooth image at half the resolution with `rate=2` gives nearly every other pixel of the output."""
    layer = S4ND(2, d_state=8, init="diag-lin", bandlimit=0.2, dt_min=0.02, dt_max=0.1, rngs=nnx.Rngs(0))
    layer.D[...] = jnp.zeros_like(layer.D[...])
    for kernel in layer.kernels:
        kernel.A_real[...] = jnp.full_like(kernel.A_real[...], 0.5)
    y, x = np.mgrid[:48, :48] / 48.0
    image = np.exp(-40 * ((y - 0.5) ** 2 + (x - 0.4) ** 2)).astype(np.float32)
    image = jnp.asarray(np.repeat(image[None, ..., None], 2, axis=-1))
    fine, coarse = quick.jit(lambda x: (layer(x)[:, ::2, ::2], layer(x[:, ::2, ::2], rate=2.0)))(image)
    assert float(jnp.abs(coarse - fine).max()) < 0.15 * float(jnp.abs(fine).max())


def test_bandlimit_drops_fast_modes():
    layer = make(init="diag-lin", bandlimit=0.2, dt_min=1.0, dt_max=1.0)
    turns = np.arange(2) / 2  # of the modes pi k at a step of 1
    kept = np.asarray(layer.kernels[0].vectors()[1]) != 0
    np.testing.assert_array_equal(kept, np.broadcast_to(turns < 0.1, kept.shape))


def test_l_max_cuts_the_kernels():
    layer, whole = make(l_max=(2, 5)), make()
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 6, 5, 3)), jnp.float32)
    _, origin = layer.axis_kernels((6, 5))
    (cut, _), (full, _) = quick.jit(lambda: (layer.axis_kernels((6, 5))[0], whole.axis_kernels((6, 5))[0]))()
    chex.assert_shape(cut, (1, 1, 4, 3))
    chex.assert_trees_all_close(cut, full[:, :, 4:8], rtol=1e-6)
    assert origin == [2, 5]
    chex.assert_tree_all_finite(quick.apply(layer, x))


def test_vmap_bfloat16_and_an_empty_batch():
    layer, low = make(), make(dtype=jnp.bfloat16)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 5, 3)), jnp.float32)
    whole, mapped, rounded = quick.jit(lambda x: (layer(x), jax.vmap(layer)(x[:, None])[:, 0], low(x)))(x)
    chex.assert_trees_all_close(mapped, whole, atol=1e-5)
    chex.assert_trees_all_close(rounded, whole.astype(jnp.bfloat16))
    chex.assert_shape(quick.apply(layer, x[:0]), (0, 4, 5, 3))


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"axes": 4}, "axes must be from 1 to 3"),
        ({"trank": 0}, "trank must be a positive int"),
        ({"channels": 0}, "channels must be a positive int"),
        ({"kernel": "s5"}, "Unknown kernel 's5'"),
        ({"bidirectional": "both"}, "Unknown bidirectional 'both'"),
        ({"l_max": (3,)}, "l_max"),
        ({"l_max": 0}, "l_max"),
        ({"kernel": "s4"}, "l_max must be given"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((2, 4, 3), {}, "2 axes"),
        ((2, 4, 4, 5), {}, "d = 3"),
        ((2, 4, 4, 3), {"rate": (1.0,)}, "rate must be one number, or 2"),
        ((2, 4, 4, 3), {"rate": -1.0}, "rate must be positive"),
    ],
)
def test_bad_calls(shape, options, message):
    with pytest.raises(ValueError, match=message):
        make()(jnp.zeros(shape), **options)


class TestConverter:
    """The key table, read both ways."""

    ARGUMENTS = {"d_model": 3, "d_state": 4, "kernel": "s4", "l_max": (4, 6)}

    def state(self):
        arrays = model_arrays(S4ND(**self.ARGUMENTS, rngs=nnx.Rngs(1)))
        buffers = {f"kernel.{i}.l_kernel": np.int64(l) for i, l in enumerate(self.ARGUMENTS["l_max"])}
        return arrays, converter.to_reference(arrays) | buffers

    def test_round_trip(self):
        arrays, state = self.state()
        assert {"D", "kernel.0.P", "kernel.1.inv_dt"} <= state.keys()
        chex.assert_trees_all_equal(converter.convert(state, self.ARGUMENTS), arrays)
        layer = S4ND(**self.ARGUMENTS, rngs=nnx.Rngs(0))
        set_model_arrays(layer, converter.convert(state, self.ARGUMENTS))
        chex.assert_trees_all_equal(model_arrays(layer), arrays)

    def test_output_linear(self):
        arrays, state = self.state()
        state |= {"output_linear.0.weight": np.ones((6, 3), np.float32), "output_linear.0.bias": np.ones(6, np.float32)}
        converted = converter.convert(state, self.ARGUMENTS)
        chex.assert_shape(converted["output_linear.kernel"], (3, 6))
        assert converted.keys() - arrays.keys() == {"output_linear.kernel", "output_linear.bias"}

    def test_arguments(self):
        _, state = self.state()
        ours = converter.layer_arguments({"d_model": 3, "d_state": 4, "n_ssm": 1}, state)
        assert ours | {"kernel": "s4", "l_max": (4, 6), "copies": 1, "bidirectional": "exclusive"} == ours
        assert converter.layer_arguments({"mode": "diag", "disc": "bilinear"}, {})["discretization"] == "bilinear"
        with pytest.raises(ValueError, match="Unknown argument 'd_sate'"):
            converter.layer_arguments({"d_sate": 4}, state)
        with pytest.raises(ValueError, match="Unknown mode"):
            converter.layer_arguments({"mode": "fancy"}, state)
        with pytest.raises(ValueError, match="l_kernel"):
            converter.layer_arguments({}, state | {"kernel.0.l_kernel": np.int64(0)})
        with pytest.raises(NotImplementedError, match="trank"):
            converter.layer_arguments({"trank": 2, "contract_version": 1}, state)

    def test_misfits_are_listed(self):
        _, state = self.state()
        wrong = {name: x for name, x in state.items() if name != "D"} | {"extra": np.zeros(2, np.float32)}
        with pytest.raises(ValueError, match=r"(?s)unknown: extra.*missing: D"):
            converter.convert(wrong, self.ARGUMENTS)
        with pytest.raises(ValueError, match="l_kernel"):
            converter.convert(state | {"kernel.1.l_kernel": np.int64(9)}, self.ARGUMENTS)
