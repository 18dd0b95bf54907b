"""The causal depthwise convolution in XLA: k shifted multiply-adds, which fuse into one pass over memory.

Shifts are pads of positive and negative width, which fuse; a window that holds the zeros before the sequence would be a
copy of it.

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
    weight = weight[::-1] if reverse else weight
    center = 0 if reverse else k - 1
    run = None
    if segment_ids is not None:
        run = jnp.pad(run_of(segment_ids), ((0, 0), (center, k - 1 - center)), mode="edge")
    v = x
    if state is not None:  # a float32 state is not rounded to a bfloat16 input
        wide = common_type(x, state)
        v = jnp.concatenate([v.astype(wide) for v in ((x, state) if reverse else (state, x))], axis=1)
    correlate = functools.partial(_correlate, activation, center, state is None)
    return reverse_only("causal_conv1d", correlate, *_compat.vary_alike((v, weight, bias, run))).astype(x.dtype)


def run_of(segment_ids: jax.Array) -> jax.Array:
    """(b l) int32: how often the id has changed up to each position; unlike the ids it never takes a value twice."""
    changed = segment_ids[:, 1:] != segment_ids[:, :-1]
    return jnp.pad(jnp.cumsum(changed, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _correlate(activation, center, alone, v, weight, bias, run):
    """`y_t = act(sum_o weight_o v_{t+o-center} + bias)`, with zeros beyond the ends.

    Args:
        activation: `"silu"` or None.
        center: The tap o that is the position's own.
        alone: Whether `v` is the input (b l e); else it has a state's rows before or after it, (b l+k-1 e), and y
            belongs to the input's positions.
        v: What is convolved; all that is kept of it for the backward pass.
        weight: (k e).
        bias: (e) or None.
        run: (b l+k-1) or None; a tap counts only if its run is that of the center.
    """
    y = _pre_activation(center, alone, v, weight, bias, run)
    return _half.narrow(jax.nn.silu(y) if activation == "silu" else y, v.dtype)


def _correlate_fwd(activation, center, alone, v, weight, bias, run):
    return _correlate(activation, center, alone, v, weight, bias, run), (v, weight, bias, run)


def _correlate_bwd(activation, center, alone, saved, dy):
    v, weight, bias, run = saved
    g = dy.astype(real_type(v))
    if activation == "silu":
        y = _pre_activation(center, alone, v, weight, bias, run)
        sigmoid = jax.nn.sigmoid(y)
        g = g * (sigmoid * (1 + y * (1 - sigmoid)))
    k = weight.shape[0]
    first, extra = (center, 0) if alone else (0, k - 1)
    dv, dweight = 0, []
    for o, (tap, same) in enumerate(_taps(center, alone, v, run, k)):
        masked = g if same is None else jnp.where(same, g, 0)
        dv = dv + _shifted(masked, o - first, extra) * weight[o].astype(g.dtype)[None, None]
        dweight.append((masked * tap).sum((0, 1)))
    dbias = None if bias is None else g.sum((0, 1)).astype(bias.dtype)
    return dv.astype(v.dtype), jnp.stack(dweight).astype(weight.dtype), dbias, None


_correlate.defvjp(_correlate_fwd, _correlate_bwd)


def _pre_activation(center, alone, v, weight, bias, run):
    y = 0 if bias is None else bias.astype(real_type(v))[None, None]
    for o, (tap, same) in enumerate(_taps(center, alone, v, run, weight.shape[0])):
        term = tap * weight[o].astype(tap.dtype)[None, None]
        y = y + (term if same is None else jnp.where(same, term, 0))
    return y


def _taps(center, alone, v, run, k):
    """The k shifted views (b l e) of `v` in float32, each with where it counts (b l 1), None for everywhere."""
    first, extra = (center, 0) if alone else (0, 1 - k)
    l, v = v.shape[1] + extra, v.astype(real_type(v))
    for o in range(k):
        same = None if run is None else (run[:, o : o + l] == run[:, center : center + l])[..., None]
        yield _shifted(v, first - o, extra), same


def _shifted(v, by: int, extra: int):
    """`v` moved along axis 1, with zeros where nothing comes in, and `extra` rows more (or fewer) at its end."""
    return jax.lax.pad(v, jnp.zeros((), v.dtype), [(0, 0, 0), (by, extra - by, 0), (0, 0, 0)])
