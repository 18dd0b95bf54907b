"""The public attention: checks, which keys a query may see, choice of implementation, documentation."""

import math

import jax
import jax.numpy as jnp
from einops import rearrange

from ssmjax import errors
from ssmjax.ops import _checks, backend
from ssmjax.ops.attention import cudnn
from ssmjax.ops.attention.reference import attention_reference, weights_reference
from ssmjax.ops.attention.xla import attention_xla, weights_xla
from ssmjax.shapes import Array, Bool, Float, Int, SegmentIds

__all__ = ["attention", "attention_weights"]

IMPLEMENTATIONS = {"xla": attention_xla, "reference": attention_reference}
WEIGHTS = {"xla": weights_xla, "reference": weights_reference}


def attention(
    q: Float[Array, "b l h p"],
    k: Float[Array, "b m g p"],
    v: Float[Array, "b m g p"],
    *,
    causal: bool = False,
    mask: Bool[Array, "b m"] | None = None,
    segment_ids: SegmentIds | None = None,
    key_segment_ids: Int[Array, "b m"] | None = None,
    bias: Float[Array, "..."] | None = None,
    scale: float | None = None,
    offset: int | Int[Array, ""] | Int[Array, "b"] | None = None,
    key_lengths: Int[Array, "_"] | None = None,
    implementation: str = "auto",
) -> Float[jax.Array, "b l h p"]:
    """Softmax attention (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, equation 1), with grouped heads.

        y_i = sum_j softmax_j(scale q_i k_j + bias_j) v_j        over the keys j that query i may see

    The softmax is in float32 whatever the inputs' dtype. A query that may see no key gets zeros. Keys and values at
    padding (`mask` False) may hold anything, NaN too: they change no bit of the output or of a gradient. For `q`, `k`,
    `v` and `bias` there are gradients. Without scatter, so the same inputs give the same bits on a GPU.

    Args:
        q: Queries, (b l h p).
        k: Keys, (b m g p); h is a multiple of g, and query head i reads head `i // (h / g)` of the keys (grouped
            heads, https://arxiv.org/abs/2305.13245).
        v: Values, (b m g p).
        causal: Whether query i, which stands at position `offset + i` of the keys, sees no later key.
        mask: (b m), False at padding among the keys.
        segment_ids: Packed sequences, (b l) int: a query sees only the keys of its own id.
        key_segment_ids: The ids of the keys, (b m); those of the queries if left out.
        bias: What is added to the logits: (b m), such as the log of the sizes of merged tokens, or of rank 4,
            any shape that broadcasts to (b h l m). An entry of -inf hides a key.
        scale: The factor of the products; None means `1 / sqrt(p)`.
        offset: The position of the first query among the keys, an int or one for each row, (b); None means that the
            queries are the last `l` positions of the keys. Used by `causal` only.
        key_lengths: (b), how many keys of each row are real: the first ones. It says the same as a mask that is True
            for those, and the fused form takes it.
        implementation: See `ssmjax.ops.use_implementation`; `"cudnn"` is the fused form on NVIDIA GPUs.

    Returns:
        (b l h p) in the dtype of `q`.

    Raises:
        ValueError: An argument has the wrong shape or dtype.
        NotImplementedError: A named implementation does not take this call.

    >>> import jax.numpy as jnp, ssmjax
    >>> q = k = jnp.zeros((1, 2, 1, 4))
    >>> v = jnp.arange(2.0)[None, :, None, None] + jnp.zeros((1, 2, 1, 4))
    >>> ssmjax.ops.attention(q, k, v)[0, :, 0, 0].tolist()
    [0.5, 0.5]
    >>> ssmjax.ops.attention(q, k, v, causal=True)[0, :, 0, 0].tolist()
    [0.0, 0.5]
    """
    where = "attention"
    _check_arrays(where, q=q, k=k, v=v)
    if v.shape != k.shape:
        raise errors.bad_shape(where, "v", v, f"of the shape of k, (b m g p) = {tuple(k.shape)}")
    plain = all(x is None for x in (mask, segment_ids, key_segment_ids, bias, offset))
    mask = _with_lengths(where, mask, key_lengths, k.shape)
    allowed, bias, scale = _prepare(where, q, k, causal, mask, segment_ids, key_segment_ids, bias, scale, offset)
    available = {"cudnn": cudnn.supports(q, k, v, causal=causal, plain=plain), "xla": None, "reference": None}
    chosen = backend.resolve(where, implementation, available)
    q, k, v = jnp.asarray(q), _without_padding(k, mask), _without_padding(v, mask)
    if chosen == "cudnn":
        return cudnn.attention_cudnn(q, k, v, key_lengths, causal, scale)
    return IMPLEMENTATIONS[chosen](q, k, v, allowed, bias, scale)


def attention_weights(
    q: Float[Array, "b l h p"],
    k: Float[Array, "b m g p"],
    *,
    causal: bool = False,
    mask: Bool[Array, "b m"] | None = None,
    segment_ids: SegmentIds | None = None,
    key_segment_ids: Int[Array, "b m"] | None = None,
    bias: Float[Array, "..."] | None = None,
    scale: float | None = None,
    offset: int | Int[Array, ""] | Int[Array, "b"] | None = None,
    implementation: str = "auto",
) -> Float[jax.Array, "b h l m"]:
    """The weights that `attention` gives to the keys, for pictures and for methods that rank tokens by them.

    Args:
        q: The queries; this argument and the others are those of `attention`.
        k: The keys.
        causal: Whether a query sees no later key.
        mask: False at padding.
        segment_ids: The ids of the queries.
        key_segment_ids: The ids of the keys.
        bias: What is added to the logits.
        scale: The factor of the products.
        offset: The position of the first query among the keys.
        implementation: `"auto"`, `"xla"` or `"reference"`.

    Returns:
        (b h l m), float32; a row sums to one, or to zero where a query sees no key.

    >>> import jax.numpy as jnp, ssmjax
    >>> q = jnp.zeros((1, 2, 1, 4))
    >>> ssmjax.ops.attention_weights(q, q, causal=True)[0, 0].tolist()
    [[1.0, 0.0], [0.5, 0.5]]
    """
    where = "attention_weights"
    _check_arrays(where, q=q, k=k)
    allowed, bias, scale = _prepare(where, q, k, causal, mask, segment_ids, key_segment_ids, bias, scale, offset)
    chosen = backend.resolve(where, implementation, dict.fromkeys(WEIGHTS))
    weights = WEIGHTS[chosen](jnp.asarray(q), _without_padding(k, mask), allowed, bias, scale)
    return rearrange(weights, "b g r l m -> b (g r) l m") if weights.ndim == 5 else weights


def _check_arrays(where, **arrays):
    _checks.require_arrays(where, **arrays)
    _checks.require_dtype(where, arrays, jnp.floating, "a real floating")
    for name, x in arrays.items():
        if x.ndim != 4:
            wanted = "of rank 4, " + ("(b l h p)" if name == "q" else "(b m g p)")
            raise errors.bad_shape(where, name, x, wanted, "Heads have an axis of their own, after the length.")
    q, k = arrays["q"], arrays["k"]
    b, _, h, p = q.shape
    if k.shape[0] != b or k.shape[3] != p or k.shape[2] == 0 or h % k.shape[2]:
        wanted = f"(b m g p) with b = {b}, p = {p} and g a divisor of the {h} heads of q"
        layout = k.shape[1] != 0 and k.shape[2] != 0 and h % k.shape[2] and h % k.shape[1] == 0
        remedy = "The shapes fit (b h l p): swap axes 1 and 2 of all arrays." if layout else ""
        raise errors.bad_shape(where, "k", k, wanted, remedy)


def _prepare(where, q, k, causal, mask, segment_ids, key_segment_ids, bias, scale, offset):
    """Which keys a query may see, (b|1 1 l|1 m) or None; the bias with four axes or None; the scale."""
    errors.require_flags(where, causal=causal)
    (b, l, h, p), m = q.shape, k.shape[1]
    _checks.require_dtype(where, {"bias": bias}, jnp.floating, "a real floating")
    ids = {"segment_ids": segment_ids, "key_segment_ids": key_segment_ids}
    _checks.require_dtype(where, ids, jnp.integer, "an integer")
    _checks.require_shape(where, "segment_ids", segment_ids, "(b l)", (b, l))
    _checks.require_shape(where, "key_segment_ids", key_segment_ids, "(b m)", (b, m))
    if mask is not None:
        _checks.require_dtype(where, {"mask": mask}, jnp.bool, "a boolean")
        _checks.require_shape(where, "mask", mask, "(b m)", (b, m), "It tells padding among the keys: mask != 0.")
    allowed = None if mask is None else jnp.asarray(mask)[:, None, None]
    if segment_ids is not None or key_segment_ids is not None:
        allowed = _both(allowed, _same_segment(where, segment_ids, key_segment_ids, l, m))
    if causal:
        allowed = _both(allowed, _not_later(where, offset, b, l, m))
    return allowed, _four_axes(where, bias, (b, h, l, m)), 1 / math.sqrt(p) if scale is None else scale


def _with_lengths(where, mask, lengths, shape):
    """The mask of the keys, those beyond a row's length taken out."""
    if lengths is None:
        return mask
    b, m = shape[:2]
    _checks.require_dtype(where, {"key_lengths": lengths}, jnp.integer, "an integer")
    _checks.require_shape(where, "key_lengths", lengths, "(b)", (b,))
    first = jnp.arange(m)[None] < jnp.asarray(lengths)[:, None]
    return first if mask is None else mask & first


def _both(first, second):
    return second if first is None else first & second


def _same_segment(where, segment_ids, key_segment_ids, l, m):
    if segment_ids is None or (key_segment_ids is None and l != m):
        name = "segment_ids" if segment_ids is None else "key_segment_ids"
        wanted = "given where there are others than of the queries and as many keys"
        raise errors.bad_argument(where, name, None, wanted, "Both sides of a pair need an id.")
    keys = segment_ids if key_segment_ids is None else key_segment_ids
    return jnp.asarray(segment_ids)[:, None, :, None] == jnp.asarray(keys)[:, None, None]


def _not_later(where, offset, b, l, m):
    first = jnp.asarray(m - l if offset is None else offset)
    if not jnp.issubdtype(first.dtype, jnp.integer) or first.shape not in ((), (b,)):
        raise errors.bad_shape(where, "offset", first, f"an int, or an integer array (b) = ({b},)")
    places = first.reshape(-1, 1, 1, 1) + jnp.arange(l).reshape(1, 1, l, 1)
    return jnp.arange(m).reshape(1, 1, 1, m) <= places


def _four_axes(where, bias, full):
    if bias is None:
        return None
    b, _, _, m = full
    if bias.ndim == 2 and tuple(bias.shape) == (b, m):
        return jnp.asarray(bias)[:, None, None]
    if bias.ndim == 4 and all(size in (1, whole) for size, whole in zip(bias.shape, full, strict=True)):
        return jnp.broadcast_to(bias, (*bias.shape[:3], m))
    raise errors.bad_shape(where, "bias", bias, f"(b m) = {(b, m)}, or of rank 4 and broadcast to (b h l m) = {full}")


def _without_padding(x, mask):
    """Zero times NaN is NaN, so a weight of zero is not enough to keep padding out of sums."""
    return jnp.asarray(x) if mask is None else jnp.where(jnp.asarray(mask)[..., None, None], x, 0)


def _example(key):
    q, k, v = (
        jax.random.normal(key, (2, 5, heads, 4)) for key, heads in zip(jax.random.split(key, 3), (4, 2, 2), strict=True)
    )
    return (q, k, v), {"causal": True}


def _expected(q, k, v, causal):
    del k, v, causal
    return jax.ShapeDtypeStruct(q.shape, q.dtype)


def _example_weights(key):
    (q, k, _), options = _example(key)
    return (q, k), options


def _expected_weights(q, k, causal):
    del causal
    return jax.ShapeDtypeStruct((q.shape[0], q.shape[2], q.shape[1], k.shape[1]), jnp.float32)


backend.register_op(
    "attention", attention, implementations=tuple(IMPLEMENTATIONS), example=_example, expected=_expected
)
backend.register_op(
    "attention_weights",
    attention_weights,
    implementations=tuple(WEIGHTS),
    example=_example_weights,
    expected=_expected_weights,
)
