"""The public linear scan: checks, choice of implementation, documentation."""

import jax
import jax.numpy as jnp

from ssmjax import _compat, errors
from ssmjax.ops import _checks, _half, backend
from ssmjax.ops.linear_scan.reference import linear_scan_reference
from ssmjax.ops.linear_scan.xla import linear_scan_xla
from ssmjax.shapes import Array, Inexact

__all__ = ["linear_scan", "scan_steps"]

IMPLEMENTATIONS = {"xla": linear_scan_xla, "reference": linear_scan_reference}


@_half.rounded_once("a", "x")
def linear_scan(
    a: Inexact[Array, "*decay"],
    x: Inexact[Array, "b l *f"],
    h0: Inexact[Array, "b *f"] | None = None,
    *,
    reverse: bool = False,
    return_state: bool = False,
    implementation: str = "auto",
) -> Inexact[jax.Array, "b l *f"] | tuple[Inexact[jax.Array, "b l *f"], Inexact[jax.Array, "b *f"]]:
    """Computes the first-order linear recurrence, elementwise over the trailing axes.

        h_t = a_t h_{t-1} + x_t

    A scan of associative pairs (Blelloch 1990; Martin & Cundy 2018, arXiv:1709.04057, section 2). Computed in float32
    or complex64 at least, and deterministic: one step after the other on a CPU, by `jax.lax.associative_scan`
    elsewhere, with complex numbers as pairs of reals. All array arguments have gradients; the backward pass is the same
    scan against time and keeps `a` and the result. Reverse mode only; `implementation="reference"` has forward mode,
    too.

    Args:
        a: Decays, real or complex: (b l *f), or (*f) if they are the same at every step, which saves time and memory.
        x: Inputs, (b l *f), real or complex.
        h0: State before the first step (with `reverse`, after the last), (b *f); zero by default. Complex only if a or
            x is.
        reverse: Runs against time: h_t = a_t h_{t+1} + x_t.
        return_state: Also returns the last state.
        implementation: The name of one, or "auto"; see `ssmjax.ops.use_implementation`.

    Returns:
        h, (b l *f), in the dtype that `a` and `x` promote to; with `return_state` a pair of h and the last state, (b
        *f), at least float32.

    Raises:
        ValueError: An argument has the wrong shape or dtype, or the implementation is unknown.
        NotImplementedError: A named implementation does not take this call.

    >>> import jax.numpy as jnp, ssmjax
    >>> ssmjax.ops.linear_scan(jnp.full((1, 4), 0.5), jnp.ones((1, 4))).tolist()
    [[1.0, 1.5, 1.75, 1.875]]
    """
    _checks.require_arrays("linear_scan", a=a, x=x)
    errors.require_flags("linear_scan", reverse=reverse, return_state=return_state)
    _check(a, x, h0)
    h, state = scan_steps(a, x, h0, reverse=reverse, implementation=implementation)
    return (h, state) if return_state else h


def scan_steps(
    a: Inexact[Array, "*decay"],
    x: Inexact[Array, "b l *f"],
    h0: Inexact[Array, "b *f"] | None = None,
    *,
    reverse: bool = False,
    implementation: str = "auto",
) -> tuple[Inexact[jax.Array, "b l *f"], Inexact[jax.Array, "b *f"]]:
    """`linear_scan` of arguments that are known to be right, as those of a layer are: h and the last state."""
    available = dict.fromkeys(IMPLEMENTATIONS)
    if 0 in x.shape:
        available["xla"] = "an axis has size 0"
    chosen = backend.resolve(
        "linear_scan", implementation, available, "xla is sequential on CPU, associative elsewhere"
    )
    a, x, h0 = jax.tree.map(jnp.asarray, (a, x, h0))
    h0 = None if h0 is None else _compat.split_as(h0, x)
    h, state = IMPLEMENTATIONS[chosen](a, x, h0, reverse)
    return h.astype(x.dtype) if a.dtype == x.dtype else h, state


def _check(a, x, h0):
    where = "linear_scan"
    _checks.require_dtype(where, {"a": a, "x": x, "h0": h0}, jnp.inexact, "a floating or complex")
    if x.ndim < 2:
        raise errors.bad_shape(where, "x", x, "of rank 2 or more, (b l *f)", "Add a batch axis: x[None].")
    if a.shape != x.shape[2:]:
        remedy = "Broadcast a against x first: jnp.broadcast_to(a, x.shape)."
        _checks.require_shape(where, "a", a, "(b l *f)", x.shape, remedy)
    _checks.require_shape(where, "h0", h0, "(b *f)", (x.shape[0], *x.shape[2:]))
    if jnp.iscomplexobj(h0) and not (jnp.iscomplexobj(a) or jnp.iscomplexobj(x)):
        raise errors.bad_shape(where, "h0", h0, "real when a and x are real", "Make x complex, or take the real part.")


def _example(key):
    keys = jax.random.split(key)
    return (jax.random.uniform(keys[0], (2, 5, 3)), jax.random.normal(keys[1], (2, 5, 3))), {"return_state": True}


def _expected(a, x, return_state):
    del a, return_state
    return jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct((x.shape[0], *x.shape[2:]), jnp.float32)


backend.register_op(
    "linear_scan", linear_scan, implementations=tuple(IMPLEMENTATIONS), example=_example, expected=_expected
)
