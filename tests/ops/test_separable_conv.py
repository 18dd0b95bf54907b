"""The separable convolution against loops in float64, in each of its forms, and its gradients."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssmjax import ops
from ssmjax.ops.separable_conv import cost, reference, xla

pytestmark = pytest.mark.slow  # minutes to compile; the default tests have the dumps and the registries

CASES = [
    ((7,), (7,), (0,), 1, 1),
    ((5, 4), (10, 8), (5, 4), 2, 3),
    ((4, 5), (9, 2), (4, 0), 1, 2),
    ((1, 2), (3, 5), (2, 4), 1, 1),
    ((2, 3, 4), (2, 7, 3), (1, 0, 2), 2, 1),
]
"""Lengths, taps, origins, terms and channels: kernels shorter and longer than an axis, one-sided and two-sided."""


def problem(spatial, taps, r, c, d=2):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *spatial, d)).astype(np.float32)
    kernels = [rng.normal(size=(r, c, k, d)).astype(np.float32) for k in taps]
    return x, kernels, rng.normal(size=(c, d)).astype(np.float32)


def convolve(x, kernels, D, origin):
    """(b c *s d) in float64, one axis after the other, with a matrix of taps written out for each."""
    total = 0.0
    for r in range(len(kernels[0])):
        y = np.repeat(x[:, None].astype(float), kernels[0].shape[1], axis=1)
        for axis, (kernel, o) in enumerate(zip(kernels, origin, strict=True)):
            l = x.shape[1 + axis]
            matrix = np.zeros((*kernel.shape[1::2], l, l))
            for i, j in np.ndindex(l, l):
                if 0 <= i - j + o < kernel.shape[2]:
                    matrix[..., i, j] = kernel[r, :, i - j + o]
            y = np.moveaxis(
                np.einsum("b c ... j d, c d i j -> b c ... i d", np.moveaxis(y, 2 + axis, -2), matrix), -2, 2 + axis
            )
        total = total + y
    return total + x[:, None] * D.reshape(1, len(D), *[1] * len(kernels), -1)


FORMS = {
    "dense": functools.partial(xla.separable_conv_xla, longest_dense=256, most_terms=4),
    "transformed": functools.partial(xla.separable_conv_xla, longest_dense=0, most_terms=4),
    "whole": functools.partial(xla.separable_conv_xla, most_terms=0),
    "reference": reference.separable_conv_reference,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("spatial", "taps", "origin", "r", "c"), CASES)
def test_forms(form, spatial, taps, origin, r, c):
    x, kernels, D = problem(spatial, taps, r, c)
    y = jax.jit(functools.partial(FORMS[form], origin=origin))(x, tuple(kernels))
    wanted = convolve(x, kernels, 0 * D, origin).astype(np.float32)
    chex.assert_trees_all_close(y, wanted, atol=2e-6 * np.max(np.abs(wanted)))


@pytest.mark.parametrize(("spatial", "taps", "origin", "r", "c"), CASES)
def test_values(spatial, taps, origin, r, c):
    x, kernels, D = problem(spatial, taps, r, c)
    y = jax.jit(functools.partial(ops.separable_conv, origin=origin))(x, kernels, D)
    wanted = convolve(x, kernels, D, origin).astype(np.float32)
    chex.assert_trees_all_close(y, wanted, atol=2e-6 * np.max(np.abs(wanted)))


@pytest.mark.parametrize(("spatial", "taps", "origin", "r", "c"), CASES)
def test_gradients(spatial, taps, origin, r, c):
    args = problem(spatial, taps, r, c)

    def loss(implementation, args):
        return jnp.sum(jnp.sin(ops.separable_conv(*args, origin=origin, implementation=implementation)))

    got, wanted = (jax.jit(jax.grad(functools.partial(loss, i)))(args) for i in ("xla", "reference"))
    chex.assert_trees_all_close(got, wanted, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("l", [1, 2, 6])
def test_toeplitz_matrices(l):
    for k in (1, 2, 5, 13):
        for origin in {0, k // 2, k - 1}:
            kernel = np.arange(1.0, k + 1, dtype=np.float32)
            wanted = np.zeros((l, l), np.float32)
            for i, j in np.ndindex(l, l):
                wanted[i, j] = kernel[i - j + origin] if 0 <= i - j + origin < k else 0
            np.testing.assert_array_equal(xla.toeplitz(jnp.asarray(kernel), l, origin), wanted)


def test_no_scatter_in_the_gradient():
    x, kernels, D = problem((6, 5), (12, 10), 1, 1)
    graph = jax.jit(jax.grad(lambda *args: jnp.sum(ops.separable_conv(*args, origin=(6, 5))), (0, 1, 2)))
    assert "scatter" not in graph.lower(x, kernels, D).as_text()


def test_half_precision_is_computed_in_float32():
    x, kernels, D = problem((6, 5), (6, 5), 1, 1)
    low = x.astype(jnp.bfloat16)
    y, pullback = jax.vjp(jax.jit(ops.separable_conv), low, kernels, D)
    chex.assert_trees_all_equal(y, jax.jit(ops.separable_conv)(low.astype(np.float32), kernels, D).astype(jnp.bfloat16))
    chex.assert_trees_all_equal_shapes_and_dtypes(pullback(y), (low, kernels, D))


def test_vmap_and_an_empty_batch():
    x, kernels, _ = problem((4, 3), (4, 3), 1, 1)
    several = jax.vmap(ops.separable_conv, in_axes=(0, None))(x[:, None], kernels)
    chex.assert_trees_all_close(several[:, 0], ops.separable_conv(x, kernels), rtol=1e-5, atol=1e-5)
    chex.assert_shape(ops.separable_conv(x[:0], kernels), (0, 1, 4, 3, 2))


def test_cost():
    x, kernels, _ = problem((8, 8), (8, 8), 1, 1)
    analysis = jax.jit(ops.separable_conv).lower(x, kernels).cost_analysis()
    assert abs(analysis["flops"] / cost.separable_conv_cost(2, (8, 8), 2).flops - 1) < 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(x=np.zeros((2, 4, 2), np.float32)), "as many axes"),
        (dict(x=np.zeros((2, 4, 3, 2), np.int32)), "floating"),
        (dict(kernels=[np.zeros((1, 1, 4, 2), np.float32), np.zeros((2, 1, 3, 2), np.float32)]), "kernels\\[1\\]"),
        (dict(D=np.zeros((1, 3), np.float32)), "D must be"),
        (dict(origin=(0, 3)), "origin"),
        (dict(origin=(0,)), r"origin must be a tuple of one index for each axis, into the taps \(4, 3\), got \(0,\)"),
        (dict(origin=2), "origin must be a tuple of one index for each axis.* got 2"),
        (dict(origin=(0, 0.5)), r"origin\[1\] must be an index into the 3 taps, got 0.5.*a Python int"),
        (dict(x=[1.0]), "x must be an array, got a list"),
        (dict(kernels=None), "kernels must be one array or more in a list, got None"),
        (dict(kernels=[[1.0], [1.0]]), r"kernels\[0\] must be a real floating array, got a list"),
        (dict(D=1.0), "D must be a real floating array, got a float"),
    ],
)
def test_errors(as_a_user, change, message):
    x, kernels, D = problem((4, 3), (4, 3), 1, 1)
    call = dict(x=x, kernels=kernels, D=D, origin=(0, 0)) | change
    with pytest.raises(ValueError, match=f"separable_conv: .*{message}"):
        ops.separable_conv(**call)
    call = dict(x=x, kernels=kernels, origin=np.array([1, 0]))
    chex.assert_trees_all_equal(ops.separable_conv(**call), ops.separable_conv(**call | dict(origin=(1, 0))))
