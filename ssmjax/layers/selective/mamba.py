"""The Mamba-1 mixer."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssmjax import errors, ops
from ssmjax.layers.common.checks import check_segment_ids
from ssmjax.layers.common.mixer import PackedState, check_state, enter, enter_state, leave_state
from ssmjax.layers.selective.parts import MixerSize, branch_parts, project_out, projection, scan_inputs, state_log
from ssmjax.ops._half import widen
from ssmjax.ops.selective_scan.api import scan_call
from ssmjax.ops.selective_scan.call import ScanCall
from ssmjax.shapes import Array, Float, Int, Mask, SegmentIds, Tokens

__all__ = ["Mamba", "MambaState"]


class MambaState(NamedTuple):
    """What a mixer remembers between chunks of a sequence.

    Attributes:
        conv: (b k-1 e), the last inputs of the convolution, in the compute dtype.
        ssm: (b e n), the state of the scan, float32 under any compute dtype.
    """

    conv: jax.Array
    ssm: jax.Array


class Mamba(nnx.Module):
    r"""A selective state space mixer (https://arxiv.org/abs/2312.00752, figure 3 and algorithm 2).

        x, z = split(in_proj(u));  x = silu(conv1d(x));  dt, B, C = split(x_proj(x));  dt = softplus(dt_proj(dt))
        h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t;   y_t = C_t h_t + D x_t;   out = out_proj(y * silu(z))

    A sequence may come whole, in chunks (`state=`, `return_state=True`) or token by token (`step`): the outputs are the
    same, with padding (`mask=`) on either side and with packed sequences (`segment_ids=`) too.

    Args:
        d_model: The width of a token.
        d_state: The state size of a channel, `n`.
        d_conv: The taps of the short convolution, `k`.
        expand: The inner width `e` is `expand * d_model`.
        dt_rank: The rank of the step-size projection; None means `ceil(d_model / 16)`.
        dt_min: The smallest initial step size.
        dt_max: The largest initial step size.
        dt_floor: Initial step sizes below it are raised to it.
        dt_init: How the kernel of the step-size projection starts: `"random"`, uniform in `[-s, s]`, or `"constant"`,
            all `s`, with `s = dt_scale / sqrt(dt_rank)`.
        dt_scale: The factor in that `s`.
        conv_bias: Whether the convolution has a bias.
        use_bias: Whether `in_proj` and `out_proj` have one.
        rms_eps: If given, the low-rank dt, B and C are divided by their root mean squares, to whose squares it is added
            (Falcon Mamba, https://arxiv.org/abs/2410.05355, section 3).
        out_scale: A factor on the initial `out_proj`; deep stacks pass `1 / sqrt(number of layers)`.
        dtype: The dtype of the computation and the output. The scan and its state are float32 whatever it is.
        param_dtype: The dtype of the parameters.
        rngs: Source of the initial values.

    >>> import jax.numpy as jnp
    >>> mixer = Mamba(8, d_state=4, rngs=nnx.Rngs(0))
    >>> u = jnp.ones((2, 6, 8))
    >>> whole = mixer(u)
    >>> first, state = mixer(u[:, :4], return_state=True)
    >>> second, state = mixer(u[:, 4:], state=state, return_state=True)
    >>> bool(jnp.allclose(whole, jnp.concatenate([first, second], axis=1), atol=1e-6))
    True
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | None = None,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_floor: float = 1e-4,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        conv_bias: bool = True,
        use_bias: bool = False,
        rms_eps: float | None = None,
        out_scale: float = 1.0,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        errors.require_flags("Mamba", conv_bias=conv_bias, use_bias=use_bias)
        size = MixerSize(d_model, d_state, d_conv, expand, dt_rank, dt_min, dt_max, dt_floor, dt_init, dt_scale)
        options = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.size = size
        self.rms_eps = rms_eps
        self.dtype = dtype
        self.in_proj = projection(d_model, 2 * size.inner, use_bias=use_bias, **options)
        for name, part in branch_parts(size, conv_bias=conv_bias, **options).items():
            setattr(self, name, part)
        self.A_log = state_log(size, param_dtype)
        self.out_proj = projection(size.inner, d_model, scale=out_scale, use_bias=use_bias, **options)

    def __call__(
        self,
        u: Tokens,
        *,
        mask: Mask | None = None,
        segment_ids: SegmentIds | None = None,
        state: MambaState | PackedState | None = None,
        return_state: bool = False,
    ) -> Tokens | tuple[Tokens, MambaState | PackedState]:
        """Mixes a sequence, or the next chunk of one.

        Args:
            u: (b l d), any `l >= 0`.
            mask: (b l), False at padding, which may be on the left, on the right or anywhere. Padding leaves the state
                as it is, and its outputs are zero.
            segment_ids: (b l), which of several packed sequences a token belongs to; a change resets the state. The
                state that is returned carries the last id, see `PackedState`.
            state: The state to continue from; None starts anew.
            return_state: Whether to return the state after the last (real) token too.

        Returns:
            (b l d) in the compute dtype, with the new state if `return_state`.
        """
        entry = enter(self, u, mask=mask, segment_ids=segment_ids, state=state)
        u, segment_ids, state, _, padding = entry

        conv_in, z = jnp.split(self.in_proj(u), 2, axis=-1)
        x, window = self.conv1d(conv_in, state=state.conv, segment_ids=segment_ids, return_state=True)
        dt, B, C = scan_inputs(x, self.x_proj, self.dt_proj, self.rms_eps)
        if padding is not None:
            window = padding.window(conv_in, state.conv, segment_ids)
            x, dt = padding.silence(x, dt)
        A, D, dt_bias = -jnp.exp(self.A_log[...].astype(jnp.float32)), self.D[...], self.dt_proj.bias[...]
        y, ssm = scan_call(ScanCall(widen(x), dt, A, B, C, D, z, dt_bias, True, state.ssm, segment_ids))
        return entry.leave(project_out(self.out_proj, y, self.dtype), MambaState(window, ssm), return_state)

    def init_state(self, batch: int) -> MambaState:
        """The state before the first token: zeros.

        >>> [x.shape for x in Mamba(8, rngs=nnx.Rngs(0)).init_state(2)]
        [(2, 3, 16), (2, 16, 16)]
        """
        e, n, k = self.size.inner, self.size.d_state, self.size.d_conv
        return MambaState(jnp.zeros((batch, k - 1, e), self.dtype), jnp.zeros((batch, e, n), jnp.float32))

    def step(
        self, u: Array, state: MambaState | PackedState, *, segment_ids: Int[Array, " b"] | None = None
    ) -> tuple[Float[Array, "b d"], MambaState | PackedState]:
        """Mixes one token.

        Args:
            u: (b d), the token.
            state: The state before it, from `init_state`, from `step` or from a call with `return_state=True`.
            segment_ids: (b), the packed sequence that the token belongs to; another one than that of the state starts
                anew.

        Returns:
            (b d) and the state after it.

        Raises:
            ValueError: `u` is not one token a row.
        """
        if u.ndim != 2:
            raise errors.bad_shape(
                "Mamba.step", "u", u, "(b, d), one token a row", "Call the layer itself for a sequence."
            )
        check_segment_ids("Mamba.step", segment_ids, u.shape[:1])
        check_state(self, state, u.shape[0])
        state, segment = enter_state(state, None if segment_ids is None else segment_ids[:, None])
        conv_in, z = jnp.split(self.in_proj(u), 2, axis=-1)
        x, window = self.conv1d(conv_in[:, None], state=state.conv, return_state=True)
        dt, B, C = scan_inputs(x, self.x_proj, self.dt_proj, self.rms_eps)
        y, ssm = ops.selective_state_update(
            state.ssm,
            widen(x[:, 0]),
            dt[:, 0],
            -jnp.exp(self.A_log[...].astype(jnp.float32)),
            B[:, 0],
            C[:, 0],
            D=self.D[...],
            z=z,
            dt_bias=self.dt_proj.bias[...],
            dt_softplus=True,
        )
        y = project_out(self.out_proj, y, self.dtype)
        return y, leave_state(MambaState(window, ssm), segment)
