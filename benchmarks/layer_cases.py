"""The linear time-invariant layers as benchmark cases: a layer of ours, and other forms of it in JAX."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks import lti_forms
from benchmarks.cases import Case
from ssmjax import layers
from ssmjax.ops.cost import Cost

__all__ = ["LAYER_CASES", "GatedS4D"]


class GatedS4D(nnx.Module):
    """S4D with what the original's minimal file adds: GELU, and a linear map to a gated linear unit."""

    def __init__(self, d_model: int, *, rngs: nnx.Rngs, dtype=jnp.float32, **options):
        self.layer = layers.S4D(d_model, dtype=dtype, rngs=rngs, **options)
        self.output_linear = nnx.Linear(d_model, 2 * d_model, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, **options) -> jax.Array:
        return jax.nn.glu(self.output_linear(jax.nn.gelu(self.layer(x, **options), approximate=False)))


def _sequence_layer(build: Callable[..., nnx.Module], forms: dict[str, Callable], scan: bool):
    """A maker of cases for shapes (b l h n). Checked against the recurrence, or the first of the forms."""

    def make(shape: tuple[int, ...], dtype: jnp.dtype) -> Case:
        b, l, h, n = shape
        return _case(build(h, d_state=n, l_max=l, dtype=dtype, rngs=nnx.Rngs(0)), (b, l, h), dtype, forms, scan)

    return make


def s4nd_case(shape: tuple[int, ...], dtype: jnp.dtype) -> Case:
    """Shape (b *s h n)."""
    *size, n = shape
    layer = layers.S4ND(size[-1], axes=len(size) - 2, d_state=n, init="diag-lin", dtype=dtype, rngs=nnx.Rngs(0))
    return _case(layer, tuple(size), dtype, {"transform over all axes": lti_forms.joint_transform}, scan=False)


def _case(layer: nnx.Module, size: tuple[int, ...], dtype, forms: dict[str, Callable], scan: bool) -> Case:
    definition, state = nnx.split(layer)
    x = jax.random.normal(jax.random.key(0), size, dtype)

    def ours(state, x, **options):
        return nnx.merge(definition, state)(x, **options)

    def other(form, state, x):
        return form(nnx.merge(definition, state), x)

    opponents = {name: functools.partial(other, form) for name, form in forms.items()} if dtype == jnp.float32 else {}
    # In float32 whatever the dtype: what a low precision is measured against.
    first = functools.partial(other, next(iter(forms.values()))) if forms else ours
    reference = functools.partial(ours, mode="scan") if scan else first
    values = sum(v.size for v in jax.tree.leaves(state))
    cost = Cost(flops=0, transcendentals=0, bytes=2 * x.nbytes + 4 * values)
    return Case((state, x), {"ours: auto": ours}, opponents, reference, cost)


def _without_length(layer: Callable[..., nnx.Module], **options):
    """A maker of layers that take sequences of any length."""
    return lambda h, *, l_max, **more: layer(h, **options, **more)


_DENSE = {"Vandermonde product written out": lti_forms.dense_vandermonde}
_SCAN = {"complex associative_scan": lti_forms.associative}

LAYER_CASES = {
    "s4d": (_sequence_layer(_without_length(layers.S4D, init="diag-lin"), _DENSE, scan=True), ("8x1024x128x64",)),
    "s4d_glu": (_sequence_layer(_without_length(GatedS4D, init="diag-lin"), {}, scan=True), ("8x1024x128x64",)),
    "s4": (
        _sequence_layer(layers.S4, {"Cauchy products written out": lti_forms.dense_cauchy}, scan=True),
        ("8x1024x128x64",),
    ),
    "s5": (_sequence_layer(_without_length(layers.S5), _SCAN, scan=False), ("8x1024x128x64",)),
    "lru": (_sequence_layer(_without_length(layers.LRU), _SCAN, scan=False), ("8x1024x128x64",)),
    "s4nd": (s4nd_case, ("8x32x32x128x64",)),
}
"""For each layer its case and its default shapes, (b l h n) with the full state size n."""
