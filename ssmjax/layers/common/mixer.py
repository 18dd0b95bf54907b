"""The one call of everything that mixes tokens, and the state that packed sequences carry."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from ssmjax import _compat, errors
from ssmjax.layers.common.checks import check_array, check_mask, check_segment_ids
from ssmjax.layers.common.padding import Compaction, compact
from ssmjax.shapes import Array, Bool, Float, Int, Mask, SegmentIds, Tokens

__all__ = [
    "Entry",
    "Mixer",
    "PackedState",
    "bare_state",
    "begins_segment",
    "check_state",
    "enter",
    "enter_state",
    "leave_state",
]


@runtime_checkable
class Mixer(Protocol):
    """What every layer that mixes tokens can do: run a sequence, a chunk of one, or one token.

    A state is a tree of arrays with the batch first, and the state before the first token is all zeros. What only some
    mixers have (`rate`, `dts`, `mode`, `recurrence`) is a further keyword in their own signature.

    >>> from flax import nnx
    >>> from ssmjax.layers import Mamba, S5
    >>> all(isinstance(layer(8, d_state=4, rngs=nnx.Rngs(0)), Mixer) for layer in (Mamba, S5))
    True
    """

    def __call__(
        self,
        u: Tokens,
        *,
        mask: Mask | None = None,
        segment_ids: SegmentIds | None = None,
        state: Any = None,
        return_state: bool = False,
    ) -> Any:
        """Runs a sequence (b l d), or the next chunk of one, and returns its outputs, with the new state if asked.

        Args:
            u: (b l d), any `l >= 0`.
            mask: (b l), False at padding, which leaves the state as it is and has outputs of zero.
            segment_ids: (b l), which of several packed sequences a token belongs to; they do not see each other.
            state: The state to continue from; None starts anew.
            return_state: Whether to return the state after the last real token too.
        """
        ...

    def init_state(self, batch: int) -> Any:
        """Returns the state before the first token of `batch` sequences."""
        ...

    def step(self, u: Float[Array, "b d"], state: Any, *, segment_ids: Int[Array, " b"] | None = None) -> Any:
        """Runs one token of each sequence (b d) and returns the outputs and the state after it."""
        ...


class PackedState(NamedTuple):
    """A state of packed sequences: what a call with `segment_ids` returns, so that the next chunk may begin another.

    A call or a step whose first token has another id than `segment` starts anew. Tokens without ids continue the
    segment that the state is in. A state that is not packed belongs to the segment of the next token, whichever it is;
    a loop over steps with ids, whose state must keep its type, starts from `PackedState(layer.init_state(b), ids[:,
    0])`.

    Attributes:
        state: The layer's own state.
        segment: (b), the id of the segment that it is in.

    >>> from flax import nnx
    >>> from ssmjax.layers import S5
    >>> layer, u = S5(8, d_state=4, rngs=nnx.Rngs(0)), jnp.ones((1, 4, 8))
    >>> _, state = layer(u, segment_ids=jnp.array([[0, 0, 1, 1]]), return_state=True)
    >>> state.segment.tolist()
    [1]
    """

    state: Any
    segment: Int[Array, " b"]


def bare_state(state: Any) -> Any:
    """Returns a layer's own state, whether it is packed or not.

    >>> bare_state(PackedState(1.0, jnp.zeros(2, int)))
    1.0
    """
    return state.state if isinstance(state, PackedState) else state


def begins_segment(segment_ids: SegmentIds) -> Bool[jax.Array, "b l"]:
    """True at the tokens whose id differs from the one before; False at the first, which `enter_state` looks after.

    >>> begins_segment(jnp.array([[3, 3, 5]])).tolist()
    [[False, False, True]]
    """
    changed = jnp.asarray(segment_ids[:, 1:] != segment_ids[:, :-1])
    return jnp.pad(changed, ((0, 0), (1, 0)))[:, : segment_ids.shape[1]]


def enter_state(
    state: Any, segment_ids: SegmentIds | None, lengths: Int[Array, " b"] | None = None
) -> tuple[Any, Int[jax.Array, " b"] | None]:
    """The state that a chunk starts from, and the segment that it ends in: zeros for rows that begin another segment.

    Args:
        state: A layer's state, bare or packed, or None.
        segment_ids: (b l), with the real tokens first, or None.
        lengths: (b), how many tokens of each row are real; None: all.

    Returns:
        The bare state and the id (b) for `leave_state`; None without ids.

    >>> state, segment = enter_state(PackedState(jnp.ones((2, 1)), jnp.array([4, 5])), jnp.array([[4, 4], [6, 7]]))
    >>> state.tolist(), segment.tolist()
    ([[1.0], [0.0]], [4, 7])
    """
    bare, before = state if isinstance(state, PackedState) else (state, None)
    if segment_ids is None or not segment_ids.shape[1]:
        return bare, before
    segment_ids = jnp.asarray(segment_ids, jnp.int32)
    first, last = segment_ids[:, 0], segment_ids[:, -1]
    if lengths is not None:
        place = jnp.maximum(lengths - 1, 0)[:, None]
        last = jnp.take_along_axis(segment_ids, place, axis=1)[:, 0]
    if before is None:
        return bare, last
    before = jnp.asarray(before, jnp.int32)
    if lengths is not None:  # a row without a token begins nothing
        first, last = jnp.where(lengths > 0, first, before), jnp.where(lengths > 0, last, before)
    return jax.tree.map(lambda x: _zero_rows(first != before, x), bare), last


class Entry(NamedTuple):
    """What a recurrent layer works with, its real tokens first.

    Attributes:
        u: (b l d), with zeros at the padding.
        segment_ids: (b l), moved along with the tokens, or None.
        state: The layer's own state, that the call starts from.
        segment: (b), the segment that the call ends in; None without ids.
        padding: How to move the tokens back; None without a mask.
    """

    u: Tokens
    segment_ids: SegmentIds | None
    state: Any
    segment: Int[Array, " b"] | None
    padding: Compaction | None

    def leave(self, y: Tokens, state: Any, return_state: bool) -> Any:
        """What the layer returns: the outputs where their tokens were, and the new state if it is asked for."""
        y = y if self.padding is None else self.padding.undo(y)
        return (y, leave_state(state, self.segment)) if return_state else y


def enter(layer: Mixer, u: Tokens, *, mask: Mask | None, segment_ids: SegmentIds | None, state: Any) -> Entry:
    """Begins the call of a recurrent layer: checks, moves padding to the end, and finds the state to start from.

    Args:
        layer: The layer, for its `init_state` and its name.
        u: The input; it and the other arguments are those of the mixer's call.
        mask: False at padding.
        segment_ids: Which of several packed sequences a token belongs to.
        state: Bare or packed, or None.

    Raises:
        ValueError: The mask or the ids do not fit the tokens.
    """
    where = type(layer).__name__
    check_array(where, "u", u, (None, None, None), "(b, l, d)", "Features are last, time is second.")
    check_mask(where, mask, u.shape[:2])
    check_segment_ids(where, segment_ids, u.shape[:2])
    if state is not None:
        check_state(layer, state, u.shape[0])
    padding = None if mask is None else compact(mask)
    if padding is not None:
        u, segment_ids = padding.apply(u), padding.ids(segment_ids)
    state = _compat.split_as(layer.init_state(u.shape[0]) if state is None else state, u)
    state, segment = enter_state(state, segment_ids, None if padding is None else padding.lengths)
    return Entry(u, segment_ids, state, segment, padding)


def check_state(layer: Mixer, state: Any, batch: int) -> None:
    """Raises `ValueError` unless a state, bare or packed, has the arrays of `layer.init_state(batch)`.

    >>> from flax import nnx
    >>> from ssmjax.layers import Mamba
    >>> mixer = Mamba(8, d_state=4, rngs=nnx.Rngs(0))
    >>> check_state(mixer, mixer.init_state(3), 2)
    Traceback (most recent call last):
    ValueError: Mamba: state.conv must be (b, ...) = (2, 3, 16), got (3, 3, 16) float32. `init_state(b)` makes one.
    """
    where, state, wanted = type(layer).__name__, bare_state(state), jax.eval_shape(lambda: layer.init_state(1))
    remedy = "`init_state(b)` makes one."
    if jax.tree.structure(state) != jax.tree.structure(wanted):
        raise errors.bad_argument(where, "state", state, f"a {type(wanted).__name__} of arrays", remedy)
    named = jax.tree_util.tree_leaves_with_path(wanted)
    for (path, one), got in zip(named, jax.tree.leaves(state), strict=True):
        name, sizes = f"state{jax.tree_util.keystr(path)}", (batch, *one.shape[1:])
        check_array(where, name, got, sizes, f"(b, ...) = {sizes}", remedy)
        if jnp.issubdtype(one.dtype, jnp.floating) and not jnp.issubdtype(got.dtype, jnp.floating):
            raise errors.bad_shape(where, name, got, "of real floats", remedy)


def leave_state(state: Any, segment: Int[Array, " b"] | None) -> Any:
    """Returns the state that a call returns: packed if it knows its segment, else bare.

    >>> leave_state(jnp.ones((2, 1)), None).shape
    (2, 1)
    """
    return state if segment is None else PackedState(state, segment)


def _zero_rows(rows, x):
    return jnp.where(rows.reshape(-1, *[1] * (x.ndim - 1)), jnp.zeros_like(x), x)
