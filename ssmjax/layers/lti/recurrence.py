"""Diagonal state spaces of many inputs and outputs, run as a scan: what S5 and the LRU share.

    x_t = decay x_(t-1) + gain B u_t,    y_t = Re C x_t + D u_t

with a diagonal `decay`. A reverse direction has its own C and reads the same B u.
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssmjax import errors
from ssmjax.layers.common.checks import (
    as_float_dtype,
    as_sizes,
    check_array,
    check_call,
    check_elapsed,
    check_real,
    check_segment_ids,
)
from ssmjax.layers.common.mixer import PackedState, bare_state, begins_segment, enter_state, leave_state
from ssmjax.layers.common.padding import Compaction, compact
from ssmjax.ops.linear_scan.api import scan_steps
from ssmjax.shapes import Array, Bool, Complex, Float, Int, Mask, SegmentIds, Tokens

__all__ = ["Bidirectional", "Matrices", "ScanLayer"]

Bidirectional = Literal["none", "exclusive", "inclusive"]
"""What a reverse direction reads: there is none, strictly future inputs (S4), or the present one too (S5)."""


class Matrices(NamedTuple):
    """The maps into and out of the state.

    Attributes:
        B: (p h) complex.
        C: One (h p) complex a direction, with the factor of conjugate pairs.
        D: (h).
    """

    B: Complex[Array, "p h"]
    C: tuple[Complex[Array, "h p"], ...]
    D: Float[Array, " h"]


class ScanLayer(nnx.Module):
    """The call, the chunks and the steps of a diagonal recurrence; a layer adds its parameters.

    A layer defines `_matrices` and `_discretize`.
    """

    def __init__(self, d_model: int, modes: int, bidirectional: Bidirectional, dtype: DTypeLike):
        where = type(self).__name__
        d_model, modes = as_sizes(where, d_model=d_model, d_state=modes)
        if bidirectional not in get_args(Bidirectional):
            raise ValueError(f"{where}: {errors.unknown_name('bidirectional', bidirectional, get_args(Bidirectional))}")
        self.d_model = d_model
        self.modes = modes
        self.bidirectional = bidirectional
        self.dtype = as_float_dtype(where, dtype)

    def _matrices(self) -> Matrices:
        """Returns the maps into and out of the state."""
        raise NotImplementedError

    def _discretize(
        self, rate: float | Array, dts: Float[Array, "b l"] | None
    ) -> tuple[Complex[Array, "*steps p"], Float[Array, "*steps p"] | Complex[Array, "*steps p"]]:
        """Returns the decay and the gain: (p) if every step is alike, or (b l p) with a length for each."""
        raise NotImplementedError

    def __call__(
        self,
        u: Tokens,
        *,
        mask: Mask | None = None,
        segment_ids: SegmentIds | None = None,
        state: Complex[Array, "b p"] | PackedState | None = None,
        return_state: bool = False,
        rate: float | Array = 1.0,
        mode: Literal["auto", "conv", "scan"] = "auto",
        dts: Float[Array, "b l"] | None = None,
    ) -> Tokens | tuple[Tokens, Complex[Array, "b p"] | PackedState]:
        """Runs a sequence, or the next chunk of one.

        Args:
            u: (b l d), any `l >= 0`.
            mask: (b l), False at padding, which may be on the left, on the right or anywhere. Padding leaves the state
                as it is, its outputs are zero, and the reverse direction starts at the last real token.
            segment_ids: (b l), which of several packed sequences a token belongs to; they do not see each other. The
                state that is returned carries the last id, see `PackedState`.
            state: (b p) complex64, the state to continue from; None starts anew.
            return_state: Whether to return the state after the last (real) token too.
            rate: A factor on the step size: 2 for an input sampled at half the rate.
            mode: "auto" and "scan" are the same.
            dts: (b l), a further factor for each step, such as the time that has passed since the previous event. Into
                the reverse direction a step's length is the time until the next event, and 1 at the last.

        Returns:
            (b l d) in the compute dtype, with the new state if `return_state`.

        Raises:
            ValueError: A shape or a mode does not fit, a step is negative, or a state is asked of a layer that runs in
                both directions.
        """
        self._check(u, mask, segment_ids, state, return_state, rate, mode, dts)
        padding = None
        if mask is not None:
            padding = compact(mask)
            u, segment_ids = padding.apply(u), padding.ids(segment_ids)
            dts = None if dts is None else padding.apply(jnp.asarray(dts)[..., None])[..., 0]
        segment = begins = None
        if state is not None or segment_ids is not None:
            state, segment = enter_state(state, segment_ids, None if padding is None else padding.lengths)
            state = None if state is None else jnp.asarray(state, jnp.complex64)
            begins = None if segment_ids is None else begins_segment(segment_ids)
        B, C, D = self._matrices()
        decay, gain = self._discretize(rate, dts)
        if dts is None:
            inputs = driven = self._project(u, gain[:, None].astype(B.dtype) * B)
        else:
            inputs = self._project(u, B)
            driven = gain.astype(inputs.dtype) * inputs
        h, last = scan_steps(decay if begins is None else _cut(decay, begins), driven, state)
        states = [h]
        if self.bidirectional != "none":
            ends = None if begins is None else jnp.pad(begins[:, 1:], ((0, 0), (0, 1)))[:, : u.shape[1]]
            if dts is not None:
                decay, gain = self._discretize(rate, _until_the_next(dts, padding, ends))
                driven = gain.astype(inputs.dtype) * inputs
            states.append(self._reversed(decay, driven, ends))
        # The sum over directions of `Re C x`, as one real product.
        parts = jnp.concatenate([part for x in states for part in (x.real, x.imag)], axis=-1).astype(self.dtype)
        weight = jnp.concatenate([part for c in C for part in (c.real, -c.imag)], axis=-1).T.astype(self.dtype)
        y = self._product(parts, weight) + D.astype(jnp.float32)[None, None] * u.astype(jnp.float32)
        y = y.astype(self.dtype)
        y = y if padding is None else padding.undo(y)
        if not return_state:
            return y
        return y, leave_state(last if padding is None else _state_at(h, padding.lengths, state), segment)

    def init_state(self, batch: int) -> Complex[jax.Array, "b p"]:
        """Returns the state before the first token: zeros."""
        return jnp.zeros((batch, self.modes), jnp.complex64)

    def step(
        self,
        u: Float[Array, "..."],
        state: Complex[Array, "b p"] | PackedState,
        *,
        segment_ids: Int[Array, " b"] | None = None,
        rate: float | Array = 1.0,
        dts: Float[Array, " b"] | None = None,
    ) -> tuple[Float[jax.Array, "b d"], Complex[jax.Array, "b p"] | PackedState]:
        """Runs one token.

        Args:
            u: (b d), the token.
            state: (b p), the state before it, from `init_state`, `step` or a call with `return_state=True`.
            segment_ids: (b), the packed sequence that the token belongs to; another one than that of the state starts
                anew.
            rate: The factor on the step sizes, as in a call.
            dts: (b), as in a call.

        Returns:
            (b d) and the state after it.

        Raises:
            ValueError: `u` is not one token a row, or the layer runs in both directions.
        """
        where, wanted = f"{type(self).__name__}.step", f"(b, {self.d_model}), one token a row"
        check_array(where, "u", u, (None, self.d_model), wanted, "Call the layer itself for a sequence.")
        if dts is not None:
            check_array(where, "dts", dts, (u.shape[0],), f"(b) = ({u.shape[0]},)", "It has one value a row of u.")
        check_segment_ids(where, segment_ids, (u.shape[0],))
        ids, steps = (None if v is None else v[:, None] for v in (segment_ids, dts))
        y, state = self(u[:, None], segment_ids=ids, state=state, return_state=True, rate=rate, dts=steps)
        return y[:, 0], state

    def _project(self, u: Tokens, B: Complex[Array, "p h"]) -> Complex[jax.Array, "b l p"]:
        """`B u`, as one real product, accumulated in float32."""
        weight = jnp.concatenate([B.real, B.imag]).T.astype(self.dtype)
        re, im = jnp.split(self._product(u.astype(self.dtype), weight), 2, axis=-1)
        return jax.lax.complex(re, im)

    def _product(self, x: Array, weight: Array) -> Array:
        """Accumulated in float32; of float32 without the shortened factors (TF32, bfloat16) of a GPU or TPU."""
        if self.dtype == jnp.float32:
            return jnp.matmul(x, weight, precision=jax.lax.Precision.HIGHEST)
        return jax.lax.platform_dependent(
            x,
            weight,
            # XLA of jax 0.7 multiplies no two bfloat16 to a float32 on CPUs that have instructions for bfloat16.
            cpu=lambda x, weight: jnp.matmul(x.astype(jnp.float32), weight.astype(jnp.float32)),
            default=lambda x, weight: jnp.matmul(x, weight, preferred_element_type=jnp.float32),
        )

    def _reversed(
        self, decay: Complex[Array, "*steps p"], driven: Complex[Array, "b l p"], ends: Bool[Array, "b l"] | None
    ) -> Complex[jax.Array, "b l p"]:
        """The states of the reverse direction; padding at the end holds zeros, so they start at the last real token."""
        h, _ = scan_steps(decay if ends is None else _cut(decay, ends), driven, reverse=True)
        if self.bidirectional == "inclusive":
            return h
        h = jnp.concatenate([h[:, 1:], jnp.zeros_like(h[:, :1])], axis=1)[:, : h.shape[1]]
        return h if ends is None else jnp.where(ends[..., None], 0, h)

    def _check(self, u, mask, segment_ids, state, return_state, rate, mode, dts) -> None:
        where = type(self).__name__
        options = dict(mask=mask, segment_ids=segment_ids, rate=rate, return_state=return_state)
        check_call(where, u, self.d_model, **options)
        wanted = u.shape[0], self.modes
        if dts is not None:
            check_array(where, "dts", dts, u.shape[:2], f"(b, l) = {u.shape[:2]}", "It has one value a token of u.")
            check_real(where, "dts", dts, f"(b, l) = {u.shape[:2]}", "It is a length of time.")
            check_elapsed(where, dts, mask)
        if state is not None:
            check_array(where, "state", bare_state(state), wanted, f"(b, p) = {wanted}", "`init_state(b)` makes one.")
        if mode not in ("auto", "scan"):
            remedy = "A convolution would need a kernel for each pair of features."
            raise errors.bad_argument(where, "mode", mode, "'auto' or 'scan'", remedy)
        if self.bidirectional != "none" and (state is not None or return_state):
            remedy = "The reverse direction needs the whole sequence; for a state, use bidirectional='none'."
            raise errors.bad_argument(where, "bidirectional", self.bidirectional, "'none' to carry a state", remedy)


def _state_at(h: Complex[Array, "b l p"], lengths: Array, state: Complex[Array, "b p"] | None):
    """The state after each row's last real token; the one it began with where there is none."""
    before = jnp.zeros_like(h, shape=(h.shape[0], h.shape[2])) if state is None else state
    history = jnp.concatenate([before[:, None], h], axis=1)
    chosen = jnp.arange(history.shape[1])[None] == lengths[:, None]
    return jnp.where(chosen[..., None], history, 0).sum(1)  # not a gather, whose gradient is a scatter


def _cut(decay: Complex[Array, "*steps p"], where: Bool[Array, "b l"]) -> Complex[jax.Array, "b l p"]:
    """Returns the decays with zeros, (b l p), where a sequence begins that must not see the one before it."""
    return jnp.where(where[..., None], 0, decay if decay.ndim == 3 else decay[None, None])


def _until_the_next(
    dts: Float[Array, "b l"], padding: Compaction | None, ends: Bool[Array, "b l"] | None
) -> Float[jax.Array, "b l"]:
    """Returns the time from each event to the one after it; 1 at the last, where the reverse direction begins."""
    if padding is not None:
        dts = jnp.where(padding.mask, dts, 1.0)
    following = jnp.concatenate([dts[:, 1:], jnp.ones_like(dts[:, :1])], axis=1)[:, : dts.shape[1]]
    return following if ends is None else jnp.where(ends, 1.0, following)
