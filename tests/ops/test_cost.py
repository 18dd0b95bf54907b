"""The analytic costs against XLA's count of an unrolled graph: a loop's body would be counted once."""

import functools

import jax
import jax.numpy as jnp

from ssmjax import ops
from ssmjax.ops.causal_conv1d.cost import causal_conv1d_cost
from ssmjax.ops.linear_scan.cost import linear_scan_cost
from ssmjax.ops.selective_scan.cost import selective_scan_cost


def counted(function, *args):
    """Flops and transcendentals of the graph as traced, and the bytes of its arguments and results."""
    lowered = jax.jit(function).lower(*args)
    analysis, memory = lowered.cost_analysis(), lowered.compile().memory_analysis()
    return (
        analysis["flops"],
        analysis.get("transcendentals", 0),
        memory.argument_size_in_bytes + memory.output_size_in_bytes,
    )


def test_selective_scan():
    b, l, e, n = 2, 4, 8, 16

    def unrolled(x, dt, A, B, C, h):
        out = []
        for t in range(l):
            a = jnp.exp(dt[:, t, :, None] * A[None])
            u = (dt[:, t] * x[:, t])[..., None] * B[:, t, None]
            h = a * h + u
            out.append(functools.reduce(jnp.add, (C[:, t, None, i] * h[..., i] for i in range(n))))
        return jnp.stack(out, axis=1)

    shapes = (b, l, e), (b, l, e), (e, n), (b, l, n), (b, l, n), (b, e, n)
    cost = selective_scan_cost(b, l, e, n)
    flops, transcendentals, size = counted(unrolled, *map(jnp.ones, shapes))
    assert cost.flops == flops
    assert cost.transcendentals == transcendentals
    assert cost.bytes == size - 4 * b * e * n  # without the first state, which the op need not be given


def test_linear_scan():
    b, l, f = 2, 5, 8
    a = x = jnp.ones((b, l, f))
    flops, _, size = counted(lambda a, x: functools.reduce(lambda h, t: a[:, t] * h + x[:, t], range(l), a[:, 0]), a, x)
    cost = linear_scan_cost(b, l, f)
    assert cost.flops == flops
    assert cost.bytes == size - 4 * b * f + 4 * b * l * f  # the graph returns the last state only


def test_causal_conv1d():
    b, l, e, k = 2, 6, 8, 4
    args = jnp.ones((b, l, e)), jnp.ones((k, e)), jnp.ones((e,))
    flops, transcendentals, size = counted(ops.causal_conv1d, *args)
    cost = causal_conv1d_cost(b, l, e, k)
    assert (cost.flops, cost.transcendentals, cost.bytes) == (flops, transcendentals, size)
