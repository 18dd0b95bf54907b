"""S4: a diagonal plus low-rank state space for every feature, run as a long convolution."""

import math
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssmjax import errors
from ssmjax.layers.common.checks import as_sizes, check_array, check_rate
from ssmjax.layers.lti.convolution import Bidirectional, ConvolutionLayer, longest
from ssmjax.layers.lti.state_space import StateSpaceParameters, as_complex, as_real
from ssmjax.ops.dplr_kernel.api import dplr_taps
from ssmjax.ops.recurrences import dense
from ssmjax.ops.recurrences.dplr import DenseRecurrence, DPLRRecurrence, StepForm, diagonal_form, linear_form
from ssmjax.shapes import Array, Complex, Float, Int

__all__ = ["S4", "DPLRKernel"]

L_MAX = 1024
"""The length that C~ is made for where no other is given."""


class DPLR(NamedTuple):
    """The continuous state space, with its modes doubled in pairs.

    Attributes:
        A: (h n).
        P: (r h n).
        B: (h n).
        C: (c h n), the `C~` that is stored.
        dt: (h).
    """

    A: Complex[jax.Array, "h n"]
    P: Complex[jax.Array, "r h n"]
    B: Complex[jax.Array, "h n"]
    C: Complex[jax.Array, "c h n"]
    dt: Float[jax.Array, " h"]


class DPLRKernel(StateSpaceParameters):
    r"""The convolution kernels of diagonal plus low-rank state spaces, one a feature and channel: S4's parameters.

        K_l = 2 Re C A_bar^l B_bar,    A - sum_r P_r P_r* discretized by the bilinear rule,

    algorithm 1 of S4 (https://arxiv.org/abs/2111.00396). What is stored and trained is not C but

        C~ = C (1 - A_bar^L)

    for one length L, `l_kernel`: with it a kernel of that length needs no power of `A_bar`. Shorter kernels are the
    beginning of that one. A longer one needs another C~, which `extend` makes. The shape of C~ does not tell L: a saved
    state is to be read back into a kernel that was built with the same `l_max`.

    Args:
        d_model: The number of features, `h`.
        d_state: The state size N, of which `n = N / 2` modes are stored, one of each conjugate pair.
        l_max: The length L for which C~ is made: the longest sequence.
        channels: How many kernels a feature has, `c`; each has its own C.
        copies: How many independent (A, B, P) there are, `s`: feature `h` uses copy `h mod s`. None: one a feature.
        init: How A, B and P start: "legs", "legt", "fout", "hippo", ...; see `ssmjax.init.diagonal.state_space`.
        B_init: How B starts, for a diagonal initialization.
        rank: The rank of the low-rank part, `r`; "legt" needs 2.
        dt_min: The smallest initial step size.
        dt_max: The largest initial step size.
        dt_transform: What makes steps positive; it and the next two are those of `DiagonalKernel`.
        real_transform: What makes the real part of -A positive.
        imag_transform: What makes the imaginary part of -A positive, or "none".
        bandlimit: Drops entries of C~ whose modes turn by this fraction of the largest frequency or more, or None.
        conj_sym: False stores all N modes, which then need not come in pairs, and counts each once.
        frozen: Which of "dt", "A", "B", "C" and "P" are not trained.
        param_dtype: The dtype of the parameters.
        rngs: Source of the initial values.

    Attributes:
        inv_dt: (h 1).
        C: (c h n 2), C~, real and imaginary parts.
        B: (1 s n 2).
        A_real, A_imag: (s n).
        P: (r s n 2).
        l_kernel: L.

    Raises:
        ValueError: A name is unknown, N is odd where modes come in pairs, `copies` does not divide `d_model`, or the
            rank is too small.

    >>> kernel = DPLRKernel(8, d_state=4, l_max=64, rngs=nnx.Rngs(0))
    >>> kernel(50).shape
    (1, 50, 8)
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 64,
        l_max: int = L_MAX,
        channels: int = 1,
        copies: int | None = None,
        init: str = "legs",
        B_init: str = "constant",
        rank: int = 1,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_transform: str = "exp",
        real_transform: str = "exp",
        imag_transform: str = "none",
        bandlimit: float | None = None,
        conj_sym: bool = True,
        frozen: tuple[str, ...] = (),
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        l_max, rank = as_sizes("S4", l_max=l_max, rank=rank)
        super().__init__(
            "S4",
            d_model,
            d_state=d_state,
            channels=channels,
            copies=copies,
            init=init,
            B_init=B_init,
            rank=rank,
            dt_min=dt_min,
            dt_max=dt_max,
            dt_transform=dt_transform,
            dt_tie=True,
            real_transform=real_transform,
            imag_transform=imag_transform,
            bandlimit=bandlimit,
            real=False,
            conj_sym=conj_sym,
            frozen=frozen,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.l_kernel = l_max
        self.set_output(as_complex(self.C[...].astype(jnp.float32)), l_max)

    def __call__(self, length: int, rate: float = 1.0) -> Float[jax.Array, "c l h"]:
        """The kernels.

        Args:
            length: How many taps, at most `l_kernel / rate`.
            rate: A factor on the step sizes: 2 for an input sampled at half the rate. A Python number: the length of
                the transform depends on it.

        Raises:
            ValueError: The length or the rate is not positive, the rate has no value (under a transform such as
                `jax.jit`), or C~ is made for shorter kernels.
        """
        check_rate("S4", rate)
        return self.taps(errors.as_int("S4", "length", length, least=1), rate)

    def taps(self, length: int, rate: float) -> Float[jax.Array, "c l h"]:
        """Returns the kernels, of arguments that are checked."""
        return dplr_taps(*self._system(rate), self._length(length, rate))[:, :length]

    def system(self, rate: float = 1.0) -> DPLR:
        """Returns the continuous state space, complex64, one mode of each conjugate pair.

        Without conjugate symmetry, `K = Re C A^l B` is the kernel of a symmetric system of rank 2r: with `P / sqrt(2)`
        and `i P / sqrt(2)`, the products that would couple the modes to their conjugates cancel.
        """
        check_rate("S4", rate)
        return self._system(rate)

    def _system(self, rate: float) -> DPLR:
        P = self._tile(self._numbers(self.P))
        if not self.conj_sym:
            P = jnp.concatenate([P, 1j * P]) * 0.5**0.5
        return DPLR(self.A(), P, *self.vectors(), self.step_sizes(rate)[:, 0])

    def recurrence(self, rate: float = 1.0, form: StepForm = "dense") -> DPLRRecurrence:
        """Returns the discretized state space; C is recovered from C~.

        Args:
            rate: The factor on the step sizes, as in a call.
            form: "dense": a matrix of 2n x 2n real numbers a feature. "linear": O(n) numbers and operations a step, by
                the Woodbury identity (section 3.3 of S4). "diagonal": in the eigenbasis of `A_bar`, found on the host
                in float64, with states of its own; see `EigenRecurrence`. That is exact for FouT. Where
                eigenvectors are too nearly parallel it is refused: LegS and LegT of more than a few modes, of whose
                output a fifth would be lost with 64.

        Raises:
            ValueError: The form is unknown, or "diagonal" for matrices that are not so in floating point.
        """
        if form not in get_args(StepForm):
            raise ValueError(f"S4: {errors.unknown_name('form', form, get_args(StepForm))}")
        check_rate("S4", rate)
        steps = self.discretized(rate)
        if form == "linear":
            return linear_form(self._system(rate), steps.C)
        return diagonal_form(steps) if form == "diagonal" else steps

    def discretized(self, rate: float) -> DenseRecurrence:
        """Returns the dense recurrence, of a rate that is checked: a real row C such that `y = C x`."""
        A, P, B, C, dt = self._system(rate)
        E, B_bar = dense.bilinear(dense.real_matrix(A, P), dense.real_vector(B), dt)
        squares, power = dense.powers(E, self._length(1, rate))
        row = jnp.moveaxis(2 * _output_row(C), 0, -1)
        C = -jnp.linalg.solve(jnp.swapaxes(power, -1, -2), row)
        return DenseRecurrence(squares[0], B_bar, jnp.moveaxis(C, -1, 0))

    def carried(self, state: Complex[Array, "b h n"], length: int, rate: float = 1.0) -> Float[jax.Array, "b c l h"]:
        """Returns what a state adds to the outputs of the steps after it, `2 Re C A_bar^(l+1) x`."""
        A, P, _, C, dt = self._system(rate)
        shared = 2 * jnp.einsum("rhn,bhn->brh", P.conj(), state, precision="highest").real
        driven = A[None] * state - jnp.einsum("rhn,brh->bhn", P, shared.astype(P.dtype), precision="highest")
        B = state / dt[None, :, None].astype(state.dtype) + 0.5 * driven
        return dplr_taps(A, P, B, C, dt, self._length(length, rate))[:, :, :length]

    def last_state(
        self,
        u: Float[Array, "b l h"],
        steps: Int[Array, " b"],
        state: Complex[Array, "b h n"] | None,
        rate: float = 1.0,
    ) -> Complex[jax.Array, "b h n"]:
        """Returns the state after inputs that end at the last place of `u`, `steps` of them, with zeros before."""
        A, P, B, _, dt = self._system(rate)
        E, B_bar = dense.bilinear(dense.real_matrix(A, P), dense.real_vector(B), dt)
        squares, _ = dense.powers(E, u.shape[1])
        x = dense.state_after(squares, B_bar, u)
        if state is not None:
            x = x + dense.advance(squares, steps, dense.real_vector(state))
        return jax.lax.complex(*jnp.split(x, 2, axis=-1))

    def extend(self, length: int) -> "DPLRKernel":
        """Returns a kernel with the same values and a C~ for more of them; this one stays as it is.

        `C (1 - A_bar^2L) = C~ (1 + A_bar^L)`: `l_kernel` is doubled until it is `length` at least. The new kernel is as
        if built with that as its `l_max`, and so must be whatever its state is read back into.

        Args:
            length: How many taps it must be able to make.

        Returns:
            The new kernel, for `layer.kernel = layer.kernel.extend(length)`.

        Raises:
            ValueError: This is the kernel of a stack of layers, whose model is built for one `l_max`, or it has a
                `bandlimit`, which drops entries of one C~ and not of the other.

        >>> kernel = DPLRKernel(8, d_state=4, l_max=64, rngs=nnx.Rngs(0))
        >>> kernel.extend(100).l_kernel, kernel.l_kernel
        (128, 64)
        """
        if self.C.ndim != 4:
            remedy = f"Build the model with l_max={length}; its configuration could not tell of another length."
            raise errors.bad_shape("DPLRKernel.extend", "C", self.C[...], "(c h n 2), of one layer", remedy)
        length = errors.as_int("DPLRKernel.extend", "length", length, least=1)
        if self.bandlimit is not None:
            remedy = f"Build the layer with l_max={length}."
            raise errors.bad_argument("DPLRKernel.extend", "bandlimit", self.bandlimit, "None", remedy)
        longer = nnx.clone(self)
        while longer.l_kernel < length:
            _, power = longer._powers(1.0, longer.l_kernel)
            row = _output_row(as_complex(longer.C[...].astype(jnp.float32)))
            longer._store(2 * row + _times(row, power))
            longer.l_kernel *= 2
        return longer

    def set_output(self, C: Complex[Array, "c h n"], length: int) -> None:
        """Stores the `C~` of an output vector C, in place.

        Args:
            C: (c h n), the C of `y = 2 Re C x`, or `Re C x` without `conj_sym`.
            length: The `l_kernel` that it is for; a layer that the state is read back into must be built with this
                `l_max`.

        Raises:
            ValueError: C has another shape, or the length is not positive.
        """
        where, wanted = "DPLRKernel.set_output", (self.channels, self.d_model, self.modes)
        length = errors.as_int(where, "length", length, least=1)
        check_array(where, "C", C, wanted, f"(c, h, n) = {wanted}")
        _, power = self._powers(1.0, length)
        self._store(-_times(_output_row(C), power))
        self.l_kernel = length

    def _powers(self, rate: float, length: int) -> tuple[list[jax.Array], jax.Array]:
        A, P, B, _, dt = self._system(rate)
        E, _ = dense.bilinear(dense.real_matrix(A, P), dense.real_vector(B), dt)
        return dense.powers(E, length)

    def _store(self, row: Float[Array, "c h m"]) -> None:
        re, im = jnp.split(row, 2, axis=-1)
        self.C[...] = as_real(jax.lax.complex(re, -im)).astype(self.C.dtype)

    def _length(self, length: int, rate: float) -> int:
        most = longest("S4", self.l_kernel, rate)
        if length > most:
            wanted = f"at most {most}, for which C~ is made" + (f" (at rate {rate})" if rate != 1 else "")
            enough = math.ceil(length * float(rate))
            remedy = f"Build it with l_max={enough}. A single layer may take `kernel.extend({enough})` for its kernel."
            raise errors.bad_argument("S4", "length", length, wanted, remedy)
        return most


class S4(ConvolutionLayer):
    r"""The structured state space layer (https://arxiv.org/abs/2111.00396).

        x' = A x + B u,    y = 2 Re C x + D u

    for every feature on its own, with an A that is diagonal plus low rank: a bare state space, without activation or
    norm. It is run as a convolution; as a scan, in chunks (`state=`, `return_state=True`) and token by token (`step`)
    the outputs are the same, with padding (`mask=`) anywhere, too.

    Args:
        d_model: The width of a token, `h`.
        d_state: The state size N.
        l_max: The longest sequence: see `DPLRKernel`.
        channels: How many outputs a feature has, `c`.
        bidirectional: "none"; "exclusive": a second kernel reads strictly future inputs (S4's school); "inclusive": it
            reads the present one too (S5's).
        dtype: The dtype of the output. Everything within is float32.
        param_dtype: The dtype of the parameters.
        rngs: Source of the initial values.
        **options: Those of `DPLRKernel`, such as `init="fout"`.

    Attributes:
        kernel: The `DPLRKernel`; twice the channels if bidirectional, the forward ones first.
        D: (c h).

    Raises:
        ValueError: An argument is wrong, as in `DPLRKernel`.

    >>> import jax.numpy as jnp
    >>> layer = S4(8, d_state=4, l_max=6, rngs=nnx.Rngs(0))
    >>> u = jnp.ones((2, 6, 8))
    >>> whole = layer(u)
    >>> first, state = layer(u[:, :4], return_state=True)
    >>> second, state = layer(u[:, 4:], state=state, return_state=True)
    >>> bool(jnp.allclose(whole, jnp.concatenate([first, second], axis=1), atol=1e-5))
    True
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 64,
        l_max: int = L_MAX,
        channels: int = 1,
        bidirectional: Bidirectional = "none",
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
        **options,
    ):
        super().__init__(d_model, channels, bidirectional, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self._add_kernel(DPLRKernel, d_state=d_state, l_max=l_max, param_dtype=param_dtype, rngs=rngs, **options)

    def recurrence(self, rate: float = 1.0, form: StepForm = "dense") -> DPLRRecurrence:
        """Returns the discretized state space, to be computed once before many steps; see `DPLRKernel.recurrence`."""
        self._check_one_direction()
        return self.kernel.recurrence(rate, form)


def _output_row(C: Complex[Array, "c h n"]) -> Float[jax.Array, "c h m"]:
    """Returns the real row with which `Re C s = row [Re s, Im s]`."""
    return jnp.concatenate([C.real, -C.imag], axis=-1)


def _times(row: Float[Array, "c h m"], matrix: Float[Array, "h m m"]) -> Float[jax.Array, "c h m"]:
    return jnp.einsum("chi,hij->chj", row, matrix, precision="highest")
