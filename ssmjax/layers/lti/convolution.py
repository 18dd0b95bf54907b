"""What the layers of the convolution school share: S4, S4D and DSS as a convolution, a scan, in chunks and in steps.

A layer owns a kernel module, with

    kernel.taps(length, rate) -> (c l h)                the convolution kernels, of arguments that are checked
    kernel.recurrence(rate)                             the discretized state space, see `Recurrence`
    kernel.discretized(rate)                            the same, of a rate that is checked
    kernel.carried(state, length, rate) -> (b c l h)    what a state adds to the outputs of the steps after it
    kernel.last_state(u, steps, state, rate)            the state after a sequence, without a scan
    kernel.init_state(batch)                            zeros
    kernel.depends_on_length                            whether other taps follow from another length; then
                                                        taps(length, rate, over) has a kernel for each row, (b c l h)
"""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssmjax import _compat, errors, ops
from ssmjax.layers.common.checks import (
    as_float_dtype,
    as_sizes,
    check_array,
    check_call,
    check_options,
    check_real,
    check_segment_ids,
)
from ssmjax.layers.common.mixer import PackedState, bare_state, begins_segment, enter_state, leave_state
from ssmjax.layers.common.padding import compact
from ssmjax.layers.common.parameters import parameter
from ssmjax.layers.lti.recurrence import Bidirectional
from ssmjax.ops.fft_conv.api import convolve
from ssmjax.ops.recurrences.scan import Recurrence, scan
from ssmjax.shapes import Array, Expanded, Float, Inexact, Int, Mask, SegmentIds, Tokens

__all__ = ["Bidirectional", "ConvolutionLayer", "Mode", "longest"]

Mode = Literal["auto", "conv", "scan"]
"""How a sequence is run: "auto" is the convolution, and the scan for packed sequences."""


class ConvolutionLayer(nnx.Module):
    """The call, the chunks and the steps of a layer that is a convolution; a layer adds `self.kernel`.

    Args:
        d_model: The width of a token, `h`.
        channels: How many outputs a feature has, `c`.
        bidirectional: A choice of `Bidirectional`.
        dtype: The dtype of the output.
        param_dtype: The dtype of `D`.
        rngs: Source of its initial values, which are standard normal.
    """

    l_max: int | None = None
    kernel: Any

    def __init__(
        self,
        d_model: int,
        channels: int,
        bidirectional: Bidirectional,
        *,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        d_model, channels = as_sizes(type(self).__name__, d_model=d_model, channels=channels)
        if bidirectional not in get_args(Bidirectional):
            known = get_args(Bidirectional)
            raise ValueError(f"{type(self).__name__}: {errors.unknown_name('bidirectional', bidirectional, known)}")
        self.d_model, self.channels = d_model, channels
        self.bidirectional = bidirectional
        self.dtype = as_float_dtype(type(self).__name__, dtype)
        self.D = parameter(jax.random.normal(rngs.params(), (channels, d_model), param_dtype), "D")

    def __call__(
        self,
        u: Tokens,
        *,
        mask: Mask | None = None,
        segment_ids: SegmentIds | None = None,
        state: Inexact[Array, "b d n"] | PackedState | None = None,
        return_state: bool = False,
        rate: float | Array = 1.0,
        mode: Mode = "auto",
    ) -> Expanded | tuple[Expanded, Inexact[Array, "b d n"] | PackedState]:
        """Runs a sequence, or the next chunk of one.

        Args:
            u: (b l d), any `l >= 0`.
            mask: (b l), False at padding, which may be on the left, on the right or anywhere. Padding leaves the state
                as it is, its outputs are zero, and the reverse direction starts at the last real token.
            segment_ids: (b l), which of several packed sequences a token belongs to; they do not see each other. They
                are run as a scan, since a kernel reaches across sequences. The state that is returned carries the last
                id, see `PackedState`.
            state: (b d n), the state to continue from; None starts anew.
            return_state: Whether to return the state after the last (real) token too.
            rate: A factor on the step sizes: 2 for an input sampled at half the rate.
            mode: "conv", which "auto" is without `segment_ids`, or "scan": one step after the other. The convolution is
                a Fourier transform, which is causal up to rounding: a large later input shows in earlier outputs as
                noise, with a NaN all of them are NaN; see `ssmjax.ops.fft_conv`. The scan is exactly causal.

        Returns:
            (b l c*d) in the compute dtype, channels outermost, with the new state if `return_state`.

        Raises:
            ValueError: A shape or the mode does not fit, the rate is not positive, or a state is asked of a layer that
                runs in both directions, or for more tokens than its kernel has taps.
        """
        mode = "scan" if mode == "auto" and segment_ids is not None else mode
        self._check(u, mask, segment_ids, state, return_state, rate, mode)
        padding = None if mask is None else compact(mask)
        x = u.astype(jnp.float32)
        if padding is not None:
            x, segment_ids = padding.apply(x), padding.ids(segment_ids)
        segment = None
        if state is not None or segment_ids is not None:
            state, segment = enter_state(state, segment_ids, None if padding is None else padding.lengths)
            state = None if state is None else _compat.split_as(self._as_state(state), x)
        if 0 in x.shape:
            y, last = jnp.zeros((x.shape[0], self.channels, *x.shape[1:])), state
        elif mode == "scan":
            begins = None if segment_ids is None else begins_segment(segment_ids)
            y, last = self._scan(x, None if padding is None else padding.mask, begins, state, rate)
        else:
            y = self._convolve(x, None if padding is None else padding.lengths, rate)
            y = y if state is None else y + self.kernel.carried(state, x.shape[1], rate)
            last = self._last_state(x, padding, state, rate) if return_state else None
        y = jnp.moveaxis(y, 1, 2).reshape(*u.shape[:2], self.channels * self.d_model)
        y = (y if padding is None else padding.undo(y)).astype(self.dtype)
        if not return_state:
            return y
        return y, leave_state(_compat.split_as(self.init_state(u.shape[0]), u) if last is None else last, segment)

    def init_state(self, batch: int) -> Inexact[jax.Array, "b d n"]:
        """Returns the state before the first token: zeros.

        >>> from ssmjax.layers import S4D
        >>> S4D(8, d_state=4, rngs=nnx.Rngs(0)).init_state(3).shape
        (3, 8, 2)
        """
        return self.kernel.init_state(batch)

    def recurrence(self, rate: float | Array = 1.0) -> Any:
        """Returns the discretized state space, to be computed once before many steps; see `step`."""
        self._check_one_direction()
        return self.kernel.recurrence(rate)

    def step(
        self,
        u: Float[Array, "..."],
        state: Inexact[Array, "b d n"] | PackedState,
        *,
        segment_ids: Int[Array, " b"] | None = None,
        rate: float | Array = 1.0,
        recurrence: Any = None,
    ) -> tuple[Float[jax.Array, "b e"], Inexact[jax.Array, "b d n"] | PackedState]:
        """Runs one token.

        Args:
            u: (b d), the token.
            state: (b d n), the state before it, from `init_state`, `step` or a call with `return_state=True`. A
                recurrence with states of its own (S4's "diagonal") makes one of it: `recurrence.enter(state)`.
            segment_ids: (b), the packed sequence that the token belongs to; another one than that of the state starts
                anew.
            rate: The factor on the step sizes, as in a call.
            recurrence: What `recurrence` returns, so that it need not be computed in every step; then `rate` has no
                effect.

        Returns:
            (b c*d) and the state after it.

        Raises:
            ValueError: `u` is not one token a row, or the layer runs in both directions.
        """
        where = f"{type(self).__name__}.step"
        wanted = f"(b, {self.d_model}), one token a row"
        check_array(where, "u", u, (None, self.d_model), wanted, "Call the layer itself for a sequence.")
        check_real(where, "u", u, wanted)
        self._check_one_direction()
        recurrence = self.recurrence(rate) if recurrence is None else recurrence
        if not isinstance(recurrence, Recurrence):
            raise errors.bad_argument(where, "recurrence", recurrence, "what `layer.recurrence()` returns")
        if recurrence.C.shape[:2] != (self.channels, self.d_model):
            wanted = f"of this layer, with C of (c, d, ...) = {(self.channels, self.d_model)}"
            raise errors.bad_shape(where, "recurrence", recurrence.C, wanted, "`layer.recurrence()` makes one.")
        check_segment_ids(where, segment_ids, u.shape[:1])
        enters = hasattr(recurrence, "enter")
        remedy = "`recurrence.enter(state)` makes it of a layer's." if enters else "`init_state(b)` makes one."
        wanted = u.shape[0], self.d_model, recurrence.modes
        check_array(where, "state", bare_state(state), wanted, f"(b, d, n) = {wanted}", remedy)
        state, segment = enter_state(state, None if segment_ids is None else segment_ids[:, None])
        state = jnp.asarray(state, jnp.complex64) if enters else self._as_state(state)
        x = u[:, None].astype(jnp.float32)
        y, state = recurrence.advance(x, jnp.ones(x.shape[:2], bool), jnp.zeros(x.shape[:2], bool), state)
        y = y + self._skip(x)
        return y.reshape(u.shape[0], self.channels * self.d_model).astype(self.dtype), leave_state(state, segment)

    @property
    def kernel_channels(self) -> int:
        """How many kernels a feature has: a second half for the reverse direction."""
        return self.channels * (1 if self.bidirectional == "none" else 2)

    def _add_kernel(self, kind: type, **options: Any) -> None:
        """Makes the kernel, with one set of taps for every channel and direction."""
        check_options(type(self), kind, options)
        self.kernel = kind(self.d_model, channels=self.kernel_channels, **options)

    def _convolve(self, x: Tokens, lengths: Int[Array, " b"] | None, rate: Any) -> Float[jax.Array, "b c l d"]:
        taps, D, origin = x.shape[1], self.D[...].astype(jnp.float32), 0
        if self.l_max is not None:
            taps = min(taps, longest(type(self).__name__, self.l_max, rate))
        each = lengths is not None and self.kernel.depends_on_length  # then every row has a kernel of its own
        options = {"over": jnp.minimum(lengths, taps)} if each else {}
        kernel = self.kernel.taps(taps, rate, **options)
        if self.bidirectional != "none":
            forward, backward = jnp.split(kernel, 2, axis=-3)
            kernel, origin = ops.two_sided_kernel(forward, backward, inclusive=self.bidirectional == "inclusive")
        if not each:
            return convolve("fft_conv", x, kernel, D, (origin,))
        return jax.vmap(lambda x, kernel: convolve("fft_conv", x[None], kernel, D, (origin,))[0])(x, kernel)

    def _scan(
        self, x: Tokens, real: Mask | None, begins: Mask | None, state: Any, rate: float | Array
    ) -> tuple[Any, Any]:
        recurrence = self.kernel.discretized(rate)
        C, c = recurrence.C, self.channels
        state = self.init_state(x.shape[0]) if state is None else state
        y, last = scan(recurrence._replace(C=C[:c]), x, real, state, begins)
        if self.bidirectional != "none":  # the padding at the end is zero, and so is the state that it leaves
            ends = None if begins is None else jnp.pad(begins[:, 1:], ((0, 0), (0, 1)))
            flipped = None if ends is None else ends[:, ::-1]
            backward, _ = scan(recurrence._replace(C=C[c:]), x[:, ::-1], None, self.init_state(x.shape[0]), flipped)
            backward = backward[:, :, ::-1]
            if self.bidirectional == "exclusive":
                backward = jnp.pad(backward[:, :, 1:], ((0, 0), (0, 0), (0, 1), (0, 0)))
                backward = backward if ends is None else jnp.where(ends[:, None, :, None], 0, backward)
            y = y + backward
        return y + self._skip(x), last

    def _last_state(self, x: Tokens, padding: Any, state: Any, rate: float | Array) -> Any:
        if padding is None:
            return self.kernel.last_state(x, jnp.full(x.shape[:1], x.shape[1]), state, rate)
        return self.kernel.last_state(padding.to_end(x), padding.lengths, state, rate)

    def _skip(self, x: Tokens) -> Float[jax.Array, "b c l d"]:
        return self.D[...].astype(jnp.float32)[None, :, None] * x[:, None]

    def _check(self, u, mask, segment_ids, state, return_state, rate, mode) -> None:
        where = type(self).__name__
        options = dict(mask=mask, segment_ids=segment_ids, rate=rate, return_state=return_state)
        check_call(where, u, self.d_model, **options)
        stateful = state is not None or return_state
        if segment_ids is not None and mode == "conv":
            remedy = "A kernel reaches across packed sequences; the scan starts anew at each."
            raise errors.bad_argument(where, "mode", mode, "'scan' or 'auto' with segment_ids", remedy)
        if mode not in get_args(Mode):
            raise ValueError(f"{where}: {errors.unknown_name('mode', mode, get_args(Mode))}")
        if stateful:
            self._check_one_direction()
        forgets = self.l_max is not None and (stateful or mode == "scan")
        if forgets and u.shape[1] > (taps := longest(where, self.l_max, rate)):
            wanted = f"at most {taps} long, from where on the convolution forgets and a state does not"
            raise errors.bad_shape(where, "u", u, wanted, "Build it with l_max=None.")
        if state is not None:
            wanted = (u.shape[0], *jax.eval_shape(lambda: self.init_state(1)).shape[1:])
            check_array(
                where, "state", bare_state(state), wanted, f"(b, d, n) = {wanted}", "`init_state(b)` makes one."
            )

    def _as_state(self, state: Any) -> Inexact[jax.Array, "b d n"]:
        """Returns a state in the dtype of this layer's own."""
        real = getattr(self.kernel, "real", False)
        if real and jnp.iscomplexobj(state):
            raise errors.bad_shape(
                type(self).__name__, "state", state, "real, as its modes are", "`init_state(b)` makes one."
            )
        return jnp.asarray(state, jnp.float32 if real else jnp.complex64)

    def _check_one_direction(self) -> None:
        if self.bidirectional != "none":
            remedy = "The reverse direction needs the whole sequence at once; build it with bidirectional='none'."
            raise errors.bad_argument(
                type(self).__name__, "state", "a state to carry", "left out in both directions", remedy
            )


def longest(where: str, l_max: int, rate: float | Array) -> int:
    """Returns how many samples a length of `l_max` is at a rate, at least one.

    Args:
        where: The public class, for messages.
        l_max: The length at a rate of 1.
        rate: One that has passed `check_rate`.

    Raises:
        ValueError: The rate has no value, under a transform such as `jax.jit`.

    >>> longest("S4D", 1024, 2.0)
    512
    """
    if isinstance(rate, jax.core.Tracer):
        remedy = f"A length, {l_max} / rate, depends on it: close over the number, or make the argument static."
        raise errors.bad_argument(where, "rate", rate, "a Python number", remedy)
    return max(1, round(l_max / float(rate)))
