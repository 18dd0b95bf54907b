"""The public causal convolution: checks, choice of implementation, the carried state, documentation."""

import jax
import jax.numpy as jnp

from ssmjax import _compat, errors
from ssmjax.ops import _checks, backend
from ssmjax.ops.causal_conv1d.reference import causal_conv1d_reference
from ssmjax.ops.causal_conv1d.xla import causal_conv1d_xla, run_of
from ssmjax.shapes import Array, Expanded, Float, SegmentIds

__all__ = ["causal_conv1d", "convolve_causally"]

IMPLEMENTATIONS = {"xla": causal_conv1d_xla, "reference": causal_conv1d_reference}


def causal_conv1d(
    x: Expanded,
    weight: Float[Array, "k e"],
    bias: Float[Array, "e"] | None = None,
    *,
    activation: str | None = None,
    state: Float[Array, "b _ e"] | None = None,
    segment_ids: SegmentIds | None = None,
    return_state: bool = False,
    reverse: bool = False,
    implementation: str = "auto",
) -> Expanded | tuple[Expanded, Float[jax.Array, "b _ e"]]:
    """The short causal depthwise convolution in front of a selective scan (Gu & Dao 2023, arXiv:2312.00752, fig. 3).

        y_t = act(sum_i weight_i x_{t-(k-1)+i} + bias)

    The last tap is the position's own. Accumulated in float32 whatever the inputs' dtype; deterministic. All float
    arguments have gradients, and so has the returned state. One decoding step is a call with l = 1 and `state`.
    Reverse mode only; `implementation="reference"` has forward mode, too.

    Args:
        x: Input, (b l e). Channels are last; the CUDA op takes (b e l).
        weight: Taps, (k e).
        bias: (e).
        activation: `"silu"` or None.
        state: The k-1 inputs before the first position, (b k-1 e), oldest first; zero by default. With `reverse` the
            k-1 inputs after the last position, nearest first (in order of position in both cases).
        segment_ids: Packed sequences, (b l) int: a tap counts only if no id changes between it and its position.
            `state` belongs to the segment of the position next to it.
        return_state: Also returns the state for the call that continues this one.
        reverse: Anti-causal: y_t = act(sum_i weight_i x_{t+(k-1)-i} + bias), as if x were flipped along l, and y
            flipped back.
        implementation: The name of one, or "auto"; see `ssmjax.ops.use_implementation`.

    Returns:
        y, (b l e) in the dtype of `x`; with `return_state` a pair of y and the state, (b k-1 e) in the dtype of
        `state`, else of `x`.

    Raises:
        ValueError: An argument has the wrong shape or dtype, or the activation or implementation is unknown.
        NotImplementedError: A named implementation does not take this call.

    >>> import jax.numpy as jnp, ssmjax
    >>> x = jnp.arange(1.0, 5.0)[None, :, None]
    >>> y, state = ssmjax.ops.causal_conv1d(x, jnp.ones((3, 1)), return_state=True)
    >>> y.ravel().tolist(), state.ravel().tolist()
    ([1.0, 3.0, 6.0, 9.0], [3.0, 4.0])
    """
    _checks.require_arrays("causal_conv1d", x=x, weight=weight)
    errors.require_flags("causal_conv1d", reverse=reverse, return_state=return_state)
    _check(x, weight, bias, activation, state, segment_ids)
    options = dict(reverse=reverse, return_state=return_state, implementation=implementation)
    return convolve_causally(x, weight, bias, activation, state, segment_ids, **options)


def convolve_causally(
    x, weight, bias, activation, state, segment_ids, *, reverse=False, return_state=False, implementation="auto"
):
    """`causal_conv1d` of arguments that are known to be right, as those of a layer are."""
    chosen = backend.resolve("causal_conv1d", implementation, dict.fromkeys(IMPLEMENTATIONS))
    x, weight, bias, state, segment_ids = jax.tree.map(jnp.asarray, (x, weight, bias, state, segment_ids))
    state = _compat.split_as(state, x)
    y = IMPLEMENTATIONS[chosen](x, weight, bias, activation, state, segment_ids, reverse)
    return (y, _next_state(x, weight.shape[0] - 1, state, segment_ids, reverse)) if return_state else y


def _next_state(x, size, state, segment_ids, reverse):
    """The last `size` inputs met, without those of a segment that had ended."""
    if state is None:
        state = _compat.zeros((x.shape[0], size, x.shape[2]), x.dtype, x)
    if segment_ids is not None and x.shape[1]:
        run = run_of(segment_ids)
        last = run[:, :1] if reverse else run[:, -1:]
        x = jnp.where((run == last)[..., None], x, 0)
        first = run[:, -1:] if reverse else run[:, :1]
        state = jnp.where((first == last)[..., None], state, 0)
    x = x.astype(state.dtype)
    seen = jnp.concatenate([x, state] if reverse else [state, x], axis=1)
    return seen[:, :size] if reverse else seen[:, seen.shape[1] - size :]


def _check(x, weight, bias, activation, state, segment_ids):
    where = "causal_conv1d"
    arrays = {"x": x, "weight": weight, "bias": bias, "state": state}
    _checks.require_dtype(where, arrays, jnp.floating, "a real floating")
    _checks.require_dtype(where, {"segment_ids": segment_ids}, jnp.integer, "an integer")
    if activation not in (None, "silu"):
        raise errors.bad_argument(where, "activation", activation, "'silu' or None")
    if x.ndim != 3:
        raise errors.bad_shape(where, "x", x, "of rank 3, (b l e)")
    b, l, e = x.shape
    if weight.ndim != 2 or weight.shape[0] == 0 or weight.shape[1] != e:
        raise errors.bad_shape(where, "weight", weight, f"(k e) with e = {e} and k >= 1", _layout_hint(x, weight))
    _checks.require_shape(where, "bias", bias, "(e)", (e,))
    _checks.require_shape(where, "state", state, "(b k-1 e)", (b, weight.shape[0] - 1, e))
    _checks.require_shape(where, "segment_ids", segment_ids, "(b l)", (b, l))


def _layout_hint(x, weight):
    if weight.ndim == 3 and 1 in weight.shape:
        return "A torch Conv1d weight is (e 1 k): weight[:, 0].T."
    if weight.ndim == 2 and weight.shape[1] == x.shape[1]:
        return "The shapes fit the channels-first layout (b e l); here channels are last: x.swapaxes(1, 2)."
    if weight.ndim == 2 and weight.shape[0] == x.shape[2]:
        return "Taps come first here: weight.T."
    if weight.ndim == 2 and weight.shape[0] == x.shape[1]:
        return "Both arrays fit the channels-first layout; here it is x.swapaxes(1, 2), weight.T."
    return ""


def _example(key):
    keys = jax.random.split(key)
    return (jax.random.normal(keys[0], (2, 5, 3)), jax.random.normal(keys[1], (4, 3))), {"return_state": True}


def _expected(x, weight, return_state):
    del return_state
    b, _, e = x.shape
    return jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct((b, weight.shape[0] - 1, e), x.dtype)


backend.register_op(
    "causal_conv1d", causal_conv1d, implementations=tuple(IMPLEMENTATIONS), example=_example, expected=_expected
)
