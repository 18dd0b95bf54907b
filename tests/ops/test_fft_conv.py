"""The long convolutions against loops in float64, and their gradients."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmjax import ops
from ssmjax.ops.fft_conv import cost, xla


def convolve(x, kernel, origin):
    """(b c *s d) in float64 from x (b *s d) and kernel (c *k d)."""
    spatial, taps = x.shape[1:-1], kernel.shape[1:-1]
    y = np.zeros((x.shape[0], kernel.shape[0], *spatial, x.shape[-1]))
    for t in np.ndindex(*spatial):
        for j in np.ndindex(*taps):
            s = tuple(a - b + o for a, b, o in zip(t, j, origin, strict=True))
            if all(0 <= i < l for i, l in zip(s, spatial, strict=True)):
                y[(slice(None), slice(None), *t)] += x[(slice(None), None, *s)] * kernel[(None, slice(None), *j)]
    return y


def problem(spatial, taps, c=2, d=3, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, *spatial, d)).astype(np.float32)
    return x, rng.normal(size=(c, *taps, d)).astype(np.float32), rng.normal(size=(c, d)).astype(np.float32)


@pytest.mark.parametrize("l", [1, 2, 5])
def test_every_length_of_kernel_and_origin(l):
    """Kernels shorter than the sequence, as long, and longer, with taps that nothing can meet."""
    for k in {1, 2, l, l + 1, 3 * l}:
        for origin in {0, k // 2, k - 1}:
            x, kernel, _ = problem((l,), (k,))
            y = jax.jit(functools.partial(ops.fft_conv, origin=origin))(x, kernel)
            chex.assert_trees_all_close(y, convolve(x, kernel, (origin,)).astype(np.float32), atol=3e-6 * k)


@pytest.mark.parametrize(
    ("spatial", "taps", "origin"),
    [((63,), (65,), (0,)), ((5, 4), (3, 6), (1, 2)), ((4, 5), (9, 5), (4, 0)), ((3, 4, 2), (3, 7, 2), (0, 3, 1))],
)
@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_values_over_axes(spatial, taps, origin, implementation):
    x, kernel, D = problem(spatial, taps)
    run = jax.jit(functools.partial(ops.fft_conv_nd, origin=origin, implementation=implementation))
    skip = x[:, None] * D.reshape(1, 2, *[1] * len(spatial), 3)
    chex.assert_trees_all_close(run(x, kernel, D), (convolve(x, kernel, origin) + skip).astype(np.float32), atol=2e-5)
    one = run(x, kernel[0], D[0])
    chex.assert_trees_all_close(one, (convolve(x, kernel, origin) + skip)[:, 0].astype(np.float32), atol=2e-5)


@pytest.mark.parametrize(
    ("spatial", "taps", "origin"), [((9,), (4,), (1,)), ((5,), (12,), (7,)), ((5, 4), (3, 6), (1, 2))]
)
def test_gradients(spatial, taps, origin):
    """Against the adjoints written as convolutions, and against the reference's."""
    args = problem(spatial, taps)

    def loss(implementation, args):
        y = ops.fft_conv_nd(*args, origin=origin, implementation=implementation)
        return jnp.sum(jnp.sin(y))

    got, wanted = (jax.jit(jax.grad(functools.partial(loss, i)))(args) for i in ("xla", "reference"))
    chex.assert_trees_all_close(got, wanted, rtol=1e-5, atol=2e-5)


def test_long_convolution_is_accurate():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(1, 4096, 2)), rng.normal(size=(4096, 2)) * np.exp(-np.arange(4096) / 500)[:, None]
    x, kernel = x.astype(np.float32), kernel.astype(np.float32)
    wanted = [np.convolve(x[0, :, i].astype(float), kernel[:, i].astype(float))[:4096] for i in range(2)]
    y = ops.fft_conv(x, kernel)[0]
    assert np.max(abs(y - np.stack(wanted, axis=-1))) < 1e-6 * np.max(np.abs(wanted))


def test_half_precision_is_computed_in_float32():
    """Transforms have no half precision: the result is the float32 one, rounded once."""
    x, kernel, D = problem((33,), (33,))
    for dtype in (jnp.bfloat16, jnp.float16):
        low = x.astype(dtype)
        y, pullback = jax.vjp(jax.jit(ops.fft_conv), low, kernel, D)
        chex.assert_trees_all_equal(y, jax.jit(ops.fft_conv)(low.astype(np.float32), kernel, D).astype(dtype))
        chex.assert_trees_all_equal_shapes_and_dtypes(pullback(y), (low, kernel, D))


def test_vmap():
    x, kernel, _ = problem((9,), (9,))
    grad = jax.grad(lambda kernel, x: (ops.fft_conv(x, kernel) ** 2).sum())
    several = jax.jit(jax.vmap(grad, in_axes=(0, None)))(kernel, x)
    wanted = jnp.stack([jax.jit(grad)(kernel[i], x) for i in range(2)])
    chex.assert_trees_all_close(several, wanted, rtol=1e-5, atol=1e-5)


def test_an_empty_batch():
    chex.assert_shape(ops.fft_conv(jnp.zeros((0, 5, 3)), jnp.ones((4, 3)), implementation="reference"), (0, 5, 3))


def test_backward_keeps_the_arguments_alone():
    x, kernel, _ = problem((1024,), (1024,), c=1, d=8)
    _, pullback = jax.vjp(ops.fft_conv, jnp.asarray(x), jnp.asarray(kernel[0]))
    kept = {v.shape for v in jax.tree.leaves(pullback) if hasattr(v, "shape") and v.size > 1}
    assert kept == {x.shape, kernel.shape}


@pytest.mark.parametrize("inclusive", [False, True])
def test_two_sided_kernels(inclusive):
    """A causal convolution, and one of the reversed sequence; without `inclusive` the latter starts a step later."""
    x, kernel, _ = problem((11,), (11,))
    causal, anticausal = kernel[0], kernel[1]
    joined, origin = ops.two_sided_kernel(causal, anticausal, inclusive=inclusive)
    future = ops.fft_conv(x[:, ::-1], anticausal)[:, ::-1]
    if not inclusive:
        future = jnp.pad(future[:, 1:], ((0, 0), (0, 1), (0, 0)))
    chex.assert_trees_all_close(ops.fft_conv(x, joined, origin=origin), ops.fft_conv(x, causal) + future, atol=1e-5)


def test_separable_kernels():
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(2, 3, k, 5)).astype(np.float32) for k in (4, 2, 3)]  # (r c k d)
    wanted = np.einsum("rcid,rcjd,rckd->cijkd", *parts)
    chex.assert_trees_all_close(ops.separable_kernel(parts), wanted, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(ops.separable_kernel(parts[:1]), parts[0].sum(0), rtol=1e-5, atol=1e-6)


def test_fast_sizes():
    smooth = sorted(2**a * 3**b * 5**c for a, b, c in itertools.product(range(12), range(8), range(6)))
    for size in range(1, 700):
        assert xla.fast_size(size) == next(n for n in smooth if n >= size)


def test_cost():
    """The product of spectra against XLA's count, which leaves the transforms to us."""
    x, kernel, _ = problem((64,), (64,), c=1, d=8)
    counted = cost.fft_conv_cost(2, 64, 8, 64)
    memory = jax.jit(ops.fft_conv).lower(x, kernel[0]).compile().memory_analysis()
    assert counted.bytes == memory.argument_size_in_bytes + memory.output_size_in_bytes
    assert counted.flops == 8 * (5 * round(2.5 * 128 * 7) + 6 * 2 * 65)


@pytest.mark.usefixtures("as_a_user")
def test_errors():
    x, kernel, D = problem((9,), (9,))
    with pytest.raises(ValueError, match=r"x must be of rank 3, \(b l d\).*fft_conv_nd"):
        ops.fft_conv(x[0], kernel)
    with pytest.raises(ValueError, match="kernel must be .* with 1 spatial axes and d = 3.*Features are last"):
        ops.fft_conv(x, np.swapaxes(kernel, 1, 2))
    with pytest.raises(ValueError, match=r"D must be \(d\) or \(c d\) = \(2, 3\), got \(3,\)"):
        ops.fft_conv(x, kernel, D[0])
    with pytest.raises(ValueError, match="origin must be an index into the 9 taps, got 9"):
        ops.fft_conv(x, kernel, origin=9)
    with pytest.raises(
        ValueError, match=r"origin must be a tuple of one index for each axis, into the taps \(1, 9\), got \(0,\)"
    ):
        ops.fft_conv_nd(x[:, None], kernel[:, None], origin=(0,))
    with pytest.raises(ValueError, match="x must be a real floating array"):
        ops.fft_conv(x.astype(int), kernel)
    with pytest.raises(ValueError, match="anticausal must be of the channels and features of causal"):
        ops.two_sided_kernel(kernel, kernel[:1])
    for halves, name in (((kernel, kernel[:, :0]), "anticausal"), ((kernel[:, :0], kernel), "causal")):
        with pytest.raises(ValueError, match=f"{name} must be .* both have a tap at offset 0"):
            ops.two_sided_kernel(*halves, inclusive=True)
    with pytest.raises(ValueError, match=r"kernels\[1\] must be all of the terms, channels and features of the first"):
        ops.separable_kernel([kernel, kernel[:1]])
    with pytest.raises(NotImplementedError, match="4 axes, and transforms run over at most 3"):
        ops.fft_conv_nd(
            np.ones((1, 2, 2, 2, 2, 3), np.float32), np.ones((1, 1, 1, 1, 3), np.float32), implementation="xla"
        )


X, K = np.ones((2, 5, 3), np.float32), np.ones((4, 3), np.float32)


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.fft_conv(X.tolist(), K), r"x must be an array, got a list. Make it one: jnp.asarray\(x\)"),
        (lambda: ops.fft_conv(X, K.tolist()), "kernel must be an array, got a list"),
        (lambda: ops.fft_conv(X, None), "kernel must be an array, got a NoneType"),
        (lambda: ops.fft_conv(X, K, 1.0), "D must be a real floating array, got a float"),
        (lambda: ops.fft_conv(X, K, origin=0.5), "origin must be an index into the 4 taps, got 0.5.*a Python int"),
        (lambda: ops.fft_conv(X, K, origin=-1), "origin must be an index into the 4 taps, got -1"),
        (lambda: ops.fft_conv(X, K, origin=True), "origin must be an index into the 4 taps, got True"),
        (lambda: ops.fft_conv(X, K, origin=(1,)), r"origin must be an index into the 4 taps, got \(1,\)"),
        (
            lambda: jax.eval_shape(lambda o: ops.fft_conv(X, K, origin=o), 1),
            "origin must be an index into the 4 taps, got .*Tracer.*static under jax.jit",
        ),
        (lambda: ops.fft_conv_nd(X[0, 0], K), r"x must be of rank 3 or more.*got \(3,\).*x\[..., None\]"),
        (lambda: ops.fft_conv_nd(X, K, origin=1), r"origin must be a tuple of one index for each axis.*\(4,\), got 1"),
        (lambda: ops.fft_conv_nd(X, K, origin=(1.0,)), r"origin\[0\] must be an index into the 4 taps, got 1.0"),
        (lambda: ops.two_sided_kernel([[1.0]], K), "causal must be an array, got a list"),
        (lambda: ops.two_sided_kernel(K[0], K[0]), r"causal must be of rank 2 or more, \(\*c k d\), got \(3,\)"),
        (lambda: ops.two_sided_kernel(K, K.astype(int)), "anticausal must be a real floating array, got .* int"),
        (lambda: ops.two_sided_kernel(K, K, inclusive="no"), "inclusive must be True or False, got 'no'"),
        (lambda: ops.separable_kernel([]), r"kernels must be one array or more in a list, got \[\]"),
        (lambda: ops.separable_kernel(2.0), "kernels must be one array or more in a list, got 2.0"),
        (lambda: ops.separable_kernel([[1.0]]), r"kernels\[0\] must be a real floating array, got a list"),
        (lambda: ops.separable_kernel([K, K]), r"kernels\[0\] must be of rank 3 or more.*kernel\[None\]"),
    ],
)
def test_odd_types(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.usefixtures("as_a_user")
@pytest.mark.parametrize("one", [np.int64(1), np.uint8(1), np.array(1), jnp.array(1)])
def test_whole_numbers_of_any_kind_are_origins(one):
    wanted = ops.fft_conv(X, K, origin=1)
    chex.assert_trees_all_equal(jax.jit(lambda x: ops.fft_conv(x, K, origin=one))(X), wanted)
    chex.assert_trees_all_equal(ops.fft_conv_nd(X, K, origin=[one]), wanted)


def test_forward_mode():
    with pytest.raises(TypeError, match="forward-mode"):  # "Reverse mode only"
        jax.jvp(ops.fft_conv, (X, K), (X, K))
    _, tangent = jax.jvp(functools.partial(ops.fft_conv, implementation="reference"), (X, K), (X, K))
    chex.assert_trees_all_close(tangent, 2 * ops.fft_conv(X, K), atol=1e-5)
