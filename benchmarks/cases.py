"""What the op benchmark times: for each op its inputs at a shape, our variants, and the opponents."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from benchmarks import forms
from ssmjax import ops
from ssmjax.ops.causal_conv1d.cost import causal_conv1d_cost
from ssmjax.ops.cost import Cost
from ssmjax.ops.linear_scan.cost import linear_scan_cost
from ssmjax.ops.selective_scan.call import ScanCall
from ssmjax.ops.selective_scan.cost import selective_scan_cost
from ssmjax.ops.selective_scan.pallas_triton import supports
from ssmjax.ops.selective_scan.xla import selective_scan_xla
from ssmjax.ops.separable_conv.cost import separable_conv_cost
from ssmjax.ops.separable_conv.xla import separable_conv_xla

__all__ = ["CASES", "Case"]


@dataclasses.dataclass(frozen=True)
class Case:
    """One op at one shape.

    Attributes:
        args: Arrays.
        ours: Variants of the library by name, `"ours: ..."`; each maps `args` to y.
        opponents: The others by name.
        reference: Maps `args` to the y that all are checked against.
        cost: The cost of the forward pass.
    """

    args: tuple[jax.Array, ...]
    ours: Mapping[str, Callable]
    opponents: Mapping[str, Callable]
    reference: Callable
    cost: Cost


def selective_scan_case(shape: tuple[int, ...], dtype: jnp.dtype) -> Case:
    """Shape (b l e n)."""
    b, l, e, n = shape
    keys = jax.random.split(jax.random.key(0), 5)
    x = jax.random.normal(keys[0], (b, l, e), dtype)
    dt = jax.nn.softplus(jax.random.normal(keys[1], (b, l, e)) - 2).astype(dtype)
    A = -jnp.exp(0.5 * jax.random.normal(keys[2], (e, n)))
    B, C = (jax.random.normal(key, (b, l, n), dtype) for key in keys[3:])

    def form(name, **knobs):
        def call(x, dt, A, B, C):
            return selective_scan_xla(ScanCall(x, dt, A, B, C), form=name, **knobs)[0]

        return call

    ours = {
        "ours: auto": ops.selective_scan,
        "ours: sequential": form("sequential"),
        "ours: chunked": form("chunked"),
    }
    if jax.default_backend() != "cpu":
        ours |= {f"ours: sequential, unroll={u}": form("sequential", unroll=u) for u in (4, 8)}
        ours |= {f"ours: chunked, Q={q}": form("chunked", chunk=q) for q in (32, 128, 256)}
    if supports(ScanCall(x, dt, A, B, C)) is None:
        ours["ours: pallas_triton"] = functools.partial(ops.selective_scan, implementation="pallas_triton")
    opponents = forms.OPPONENTS if dtype == jnp.float32 else {}
    reference = functools.partial(ops.selective_scan, implementation="reference")
    cost = selective_scan_cost(b, l, e, n, itemsize=jnp.dtype(dtype).itemsize)
    return Case((x, dt, A, B, C), ours, opponents, reference, cost)


def linear_scan_case(shape: tuple[int, ...], dtype: jnp.dtype) -> Case:
    """Shape (b l f)."""
    b, l, f = shape
    keys = jax.random.split(jax.random.key(0))
    args = jax.random.uniform(keys[0], shape, dtype), jax.random.normal(keys[1], shape, dtype)

    def associative(a, x):
        combine = lambda p, q: (q[0] * p[0], q[0] * p[1] + q[1])  # noqa: E731
        return jax.lax.associative_scan(combine, (a, x), axis=1)[1]

    reference = functools.partial(ops.linear_scan, implementation="reference")
    opponents = {"scan": reference, "associative": associative}
    cost = linear_scan_cost(b, l, f, itemsize=jnp.dtype(dtype).itemsize)
    return Case(args, {"ours: auto": ops.linear_scan}, opponents, reference, cost)


def causal_conv1d_case(shape: tuple[int, ...], dtype: jnp.dtype) -> Case:
    """Shape (b l e k)."""
    b, l, e, k = shape
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (b, l, e), dtype)
    weight, bias = jax.random.normal(keys[1], (k, e)), jax.random.normal(keys[2], (e,))

    def lax_conv(x, weight, bias):
        y = jax.lax.conv_general_dilated(
            x.astype(jnp.float32),
            weight[:, None],
            window_strides=(1,),
            padding=((k - 1, 0),),
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=e,
        )
        return jax.nn.silu(y + bias[None, None]).astype(x.dtype)

    ours = {"ours: auto": functools.partial(ops.causal_conv1d, activation="silu")}
    reference = functools.partial(ops.causal_conv1d, activation="silu", implementation="reference")
    cost = causal_conv1d_cost(b, l, e, k, itemsize=jnp.dtype(dtype).itemsize)
    return Case((x, weight, bias), ours, {"lax.conv": lax_conv, "windows": reference}, reference, cost)


def separable_conv_case(shape: tuple[int, ...], dtype: jnp.dtype) -> Case:
    """Shape (b *s d r), with two-sided kernels."""
    b, *sides, d, r = shape
    keys = jax.random.split(jax.random.key(0), 1 + len(sides))
    x = jax.random.normal(keys[0], shape[:-1], dtype)
    kernels = [jax.random.normal(key, (r, 1, 2 * l, d)) for key, l in zip(keys[1:], sides, strict=True)]
    origin = tuple(sides)

    def form(**knobs):
        def call(x, kernels):
            return separable_conv_xla(x.astype(jnp.float32), tuple(kernels), origin, **knobs).astype(x.dtype)

        return call

    ours = {
        "ours: auto": functools.partial(ops.separable_conv, origin=origin),
        "ours: Toeplitz matrices": form(longest_dense=max(sides), most_terms=r),
        "ours: transforms along each axis": form(longest_dense=0, most_terms=r),
    }
    whole = form(most_terms=0)
    cost = separable_conv_cost(b, tuple(sides), d, r=r, itemsize=jnp.dtype(dtype).itemsize)
    return Case((x, kernels), ours, {"transform over all axes": whole}, whole, cost)


CASES: dict[str, tuple[Callable[[tuple[int, ...], jnp.dtype], Case], tuple[str, ...]]] = {
    "selective_scan": (selective_scan_case, ("2x1024x256x16",)),
    "linear_scan": (linear_scan_case, ("2x1024x4096",)),
    "causal_conv1d": (causal_conv1d_case, ("2x1024x256x4",)),
    "separable_conv": (separable_conv_case, ("8x32x32x128x1", "8x32x32x128x4", "1x128x128x64x1", "1x512x512x8x1")),
}
"""For each op its case and its default shapes."""
