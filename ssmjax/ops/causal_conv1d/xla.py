"""The causal depthwise convolution in XLA: k shifted multiply-adds, which fuse into one pass over memory.

The backward pass keeps only the inputs, in their own dtype, and computes the pre-activation again:

    dx_s = sum_o w_o g_{s-o},    dw_o = sum_t g_t x_{t+o},    g = dy silu'(pre-activation).
"""

import functools

import jax
import jax.numpy as jnp

from ssmjax import _compat
from ssmjax.ops import _half
from ssmjax.ops._numerics.derivatives import reverse_only
from ssmjax.ops._numerics.dtypes import common_type, real_type

__all__ = ["causal_conv1d_xla", "run_of"]


def causal_conv1d_xla(x, weight, bias, activation, state, segment_ids, reverse):
    """Returns `y` (b l e) in the dtype of `x`; arguments as in `api.causal_conv1d`."""
    k = weight.shape[0]
    if state is None:
        state = _compat.zeros((x.shape[0], k - 1, x.shape[2]), x.dtype, x)
    wide = common_type(x, state)  # a float32 state is not rounded to a bfloat16 input
    pieces = [v.astype(wide) for v in ((x, state) if reverse else (state, x))]
    weight = weight[::-1] if reverse else weight
    run = None
    if segment_ids is not None:
        run = jnp.pad(run_of(segment_ids), ((0, 0), (0, k - 1) if reverse else (k - 1, 0)), mode="edge")
    window = jnp.concatenate(pieces, axis=1)
    correlate = functools.partial(_correlate, activation, 0 if reverse else k - 1)
    y = reverse_only("causal_conv1d", correlate, *_compat.vary_alike((window, weight, bias, run)))
    return y.astype(x.dtype)


def run_of(segment_ids: jax.Array) -> jax.Array:
    """(b l) int32: how often the id has changed up to each position; unlike the ids it never takes a value twice."""
    changed = segment_ids[:, 1:] != segment_ids[:, :-1]
    return jnp.pad(jnp.cumsum(changed, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _correlate(activation, center, window, weight, bias, run):
    """`y_t = act(sum_o weight_o window_{t+o} + bias)` for every t whose k taps lie in the window (b l+k-1 e).

    Args:
        activation: `"silu"` or None.
        center: The tap o that is the position's own.
        window: (b l+k-1 e).
        weight: (k e).
        bias: (e) or None.
        run: (b l+k-1) or None; a tap counts only if its run is that of the center.
    """
    y = _pre_activation(center, window, weight, bias, run)
    return _half.narrow(jax.nn.silu(y) if activation == "silu" else y, window.dtype)


def _correlate_fwd(activation, center, window, weight, bias, run):
    return _correlate(activation, center, window, weight, bias, run), (window, weight, bias, run)


def _correlate_bwd(activation, center, saved, dy):
    window, weight, bias, run = saved
    g = dy.astype(_real(window))
    if activation == "silu":
        y = _pre_activation(center, window, weight, bias, run)
        sigmoid = jax.nn.sigmoid(y)
        g = g * (sigmoid * (1 + y * (1 - sigmoid)))
    k = weight.shape[0]
    dwindow, dweight = 0, []
    for o, (tap, same) in enumerate(_taps(center, window, run, k)):
        masked = g if same is None else jnp.where(same, g, 0)
        shifted = jnp.pad(masked, ((0, 0), (o, k - 1 - o), (0, 0)))
        dwindow = dwindow + shifted * weight[o].astype(g.dtype)[None, None]
        dweight.append((masked * tap).sum((0, 1)))
    dbias = None if bias is None else g.sum((0, 1)).astype(bias.dtype)
    return dwindow.astype(window.dtype), jnp.stack(dweight).astype(weight.dtype), dbias, None


_correlate.defvjp(_correlate_fwd, _correlate_bwd)


def _pre_activation(center, window, weight, bias, run):
    y = 0 if bias is None else bias.astype(_real(window))[None, None]
    for o, (tap, same) in enumerate(_taps(center, window, run, weight.shape[0])):
        term = tap * weight[o].astype(tap.dtype)[None, None]
        y = y + (term if same is None else jnp.where(same, term, 0))
    return y


def _taps(center, window, run, k):
    """The k shifted views (b l e) of the window in float32, each with where it counts (b l 1), None for everywhere."""
    l = window.shape[1] - k + 1
    for o in range(k):
        same = None if run is None else (run[:, o : o + l] == run[:, center : center + l])[..., None]
        yield window[:, o : o + l].astype(_real(window)), same


def _real(v):
    return real_type(v)
