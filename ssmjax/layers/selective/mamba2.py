"""The Mamba-2 mixer."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssmjax import errors, init, ops
from ssmjax.layers.common.checks import check_segment_ids
from ssmjax.layers.common.mixer import PackedState, check_state, enter, enter_state, leave_state
from ssmjax.layers.common.parameters import parameter
from ssmjax.layers.selective.gated_norm import GatedRMSNorm
from ssmjax.layers.selective.parts import ShortConv, project_out, projection
from ssmjax.ops._half import widen
from ssmjax.ops.ssd.api import final_step_size
from ssmjax.shapes import Array, Float, Int, Mask, SegmentIds, Tokens

__all__ = ["Mamba2", "Mamba2State"]


class Mamba2State(NamedTuple):
    """What a mixer remembers between chunks of a sequence.

    Attributes:
        conv: (b k-1 e+2gn), the last inputs of the convolution, in the compute dtype.
        ssm: (b h p n), the state of the scan, float32 under any compute dtype.
    """

    conv: jax.Array
    ssm: jax.Array


@dataclasses.dataclass(frozen=True)
class _Size:
    """The sizes of a mixer, in the order of the parts of `in_proj`."""

    mlp: int  # e - d_ssm: the width of the gated part beside the scan, usually 0
    ssm: int
    heads: int
    groups: int
    state: int

    @property
    def conv(self) -> int:
        return self.ssm + 2 * self.groups * self.state

    @property
    def cuts(self) -> tuple[int, ...]:
        ends, total = [], 0
        for width in (self.mlp, self.mlp, self.ssm, self.conv):
            total += width
            ends.append(total)
        return tuple(ends)

    @property
    def total(self) -> int:
        return self.cuts[-1] + self.heads


class Mamba2(nnx.Module):
    r"""The mixer of Mamba-2 (https://arxiv.org/abs/2405.21060, figure 6): heads with one decay each.

        z, xBC, dt = split(in_proj(u));  x, B, C = split(silu(conv1d(xBC)));  dt = clip(softplus(dt + dt_bias))
        S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T;   y_t = S_t C_t + D x_t;   out = out_proj(rms(y * silu(z)))

    A sequence may come whole, in chunks (`state=`, `return_state=True`) or token by token (`step`): the outputs are the
    same, limits of the step sizes included, with padding (`mask=`) on either side and with packed sequences
    (`segment_ids=`) too.

    Args:
        d_model: The width of a token.
        d_state: The state size, `n`.
        d_conv: The taps of the short convolution, `k`.
        expand: The inner width `e` is `expand * d_model`.
        head_dim: The width of a head, `p`.
        d_ssm: How many of the inner channels the scan takes; the rest is a gated MLP beside it. None is all.
        groups: The groups `g` of B and C, and of the channels that are normalized together.
        A_range: The range of the initial rates -A, uniform.
        D_per_channel: Whether each channel has a skip of its own, in place of each head.
        norm: Whether there is a gated norm before `out_proj`; otherwise the gate is in the scan.
        norm_before_gate: Whether that norm comes before its gate.
        norm_eps: Added to its mean square.
        dt_min: The smallest initial step size.
        dt_max: The largest initial step size.
        dt_floor: Initial step sizes below it are raised to it.
        dt_limit: The least and the largest step size that the mixer ever takes.
        conv_bias: Whether the convolution has a bias.
        use_bias: Whether `in_proj` and `out_proj` have one.
        chunk: The steps of a chunk of the scan; for speed only.
        out_scale: A factor on the initial `out_proj`; deep stacks pass `1 / sqrt(number of layers)`.
        dtype: The dtype of the computation and the output. The scan's sums and its state are float32 whatever it is.
        param_dtype: The dtype of the parameters.
        rngs: Source of the initial values.

    Raises:
        ValueError: The sizes do not fit one another.

    >>> import jax.numpy as jnp
    >>> mixer = Mamba2(8, d_state=4, head_dim=4, rngs=nnx.Rngs(0))
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
        d_state: int = 128,
        d_conv: int = 4,
        expand: int = 2,
        head_dim: int = 64,
        d_ssm: int | None = None,
        groups: int = 1,
        A_range: tuple[float, float] = (1.0, 16.0),
        D_per_channel: bool = False,
        norm: bool = True,
        norm_before_gate: bool = False,
        norm_eps: float = 1e-5,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_floor: float = 1e-4,
        dt_limit: tuple[float, float] | None = None,
        conv_bias: bool = True,
        use_bias: bool = False,
        chunk: int = 256,
        out_scale: float = 1.0,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        flags = dict(D_per_channel=D_per_channel, norm=norm, conv_bias=conv_bias, use_bias=use_bias)
        errors.require_flags("Mamba2", **flags)
        self.size = size = _checked_size(d_model, d_state, expand, head_dim, d_ssm, groups)
        self.dt_limit, self.chunk, self.taps, self.dtype = dt_limit, chunk, d_conv, dtype
        options = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        h, p = size.heads, head_dim
        self.in_proj = projection(d_model, size.total, use_bias=use_bias, **options)
        self.conv1d = ShortConv(size.conv, d_conv, use_bias=conv_bias, **options)
        draw = init.step_size_bias(dt_min, dt_max, dt_floor)
        self.dt_bias = parameter(draw(rngs.params(), (h,), param_dtype), "dt")
        rates = jax.random.uniform(rngs.params(), (h,), jnp.float32, *A_range)
        self.A_log = parameter(jnp.log(rates).astype(param_dtype), "A")
        self.D = parameter(jnp.ones((h * p if D_per_channel else h,), param_dtype), "D")
        gated = dict(norm_before_gate=norm_before_gate, eps=norm_eps, dtype=dtype, param_dtype=param_dtype)
        self.norm = GatedRMSNorm(size.ssm, group=size.ssm // groups, **gated) if norm else None
        self.out_proj = projection(size.mlp + size.ssm, d_model, scale=out_scale, use_bias=use_bias, **options)

    def __call__(
        self,
        u: Tokens,
        *,
        mask: Mask | None = None,
        segment_ids: SegmentIds | None = None,
        state: Mamba2State | PackedState | None = None,
        return_state: bool = False,
    ) -> Tokens | tuple[Tokens, Mamba2State | PackedState]:
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
        z0, x0, z, conv_in, dt = jnp.split(self.in_proj(u), self.size.cuts, axis=-1)
        xBC, window = self.conv1d(conv_in, state=state.conv, segment_ids=segment_ids, return_state=True)
        dt = final_step_size("Mamba2", dt, self.dt_bias[...], True, self.dt_limit, jnp.float32)
        if padding is not None:
            window = padding.window(conv_in, state.conv, segment_ids)
            dt = jnp.where(padding.mask[..., None], dt, 0)  # after the limits, whose least step would move the state
        x, B, C = self._heads(xBC)
        y, ssm = ops.ssd(
            widen(x),
            dt,
            -jnp.exp(self.A_log[...].astype(jnp.float32)),
            B,
            C,
            D=self._skip(),
            z=z.reshape(x.shape) if self.norm is None else None,
            h0=state.ssm,
            segment_ids=segment_ids,
            chunk=self.chunk,
            return_state=True,
        )
        return entry.leave(self._output(y.reshape(z.shape), z, z0, x0), Mamba2State(window, ssm), return_state)

    def init_state(self, batch: int) -> Mamba2State:
        """The state before the first token: zeros.

        >>> [x.shape for x in Mamba2(8, d_state=4, head_dim=4, rngs=nnx.Rngs(0)).init_state(2)]
        [(2, 3, 24), (2, 4, 4, 4)]
        """
        size = self.size
        ssm = jnp.zeros((batch, size.heads, size.ssm // size.heads, size.state), jnp.float32)
        return Mamba2State(jnp.zeros((batch, self.taps - 1, size.conv), self.dtype), ssm)

    def step(
        self, u: Array, state: Mamba2State | PackedState, *, segment_ids: Int[Array, " b"] | None = None
    ) -> tuple[Float[Array, "b d"], Mamba2State | PackedState]:
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
            remedy = "Call the layer itself for a sequence."
            raise errors.bad_shape("Mamba2.step", "u", u, "(b, d), one token a row", remedy)
        check_segment_ids("Mamba2.step", segment_ids, u.shape[:1])
        check_state(self, state, u.shape[0])
        state, segment = enter_state(state, None if segment_ids is None else segment_ids[:, None])
        z0, x0, z, conv_in, dt = jnp.split(self.in_proj(u), self.size.cuts, axis=-1)
        xBC, window = self.conv1d(conv_in[:, None], state=state.conv, return_state=True)
        x, B, C = (v[:, 0] for v in self._heads(xBC))
        y, ssm = ops.selective_state_update(
            state.ssm,
            widen(x),
            dt,
            -jnp.exp(self.A_log[...].astype(jnp.float32)),
            B,
            C,
            D=self._skip(),
            z=z.reshape(x.shape) if self.norm is None else None,
            dt_bias=self.dt_bias[...],
            dt_softplus=True,
            dt_limit=self.dt_limit,
        )
        return self._output(y.reshape(z.shape), z, z0, x0), leave_state(Mamba2State(window, ssm), segment)

    def _heads(self, xBC):
        """X (b l h p), B and C (b l g n)."""
        size = self.size
        x, B, C = jnp.split(xBC, [size.ssm, size.ssm + size.groups * size.state], axis=-1)
        lead = xBC.shape[:2]
        B, C = (M.reshape(*lead, size.groups, size.state) for M in (B, C))
        return x.reshape(*lead, size.heads, size.ssm // size.heads), B, C

    def _skip(self):
        """D, (h) or (h p)."""
        D, h = self.D[...], self.size.heads
        return D if len(D) == h else D.reshape(h, -1)

    def _output(self, y, z, z0, x0):
        y = y if self.norm is None else self.norm(y, z)
        y = jnp.concatenate([jax.nn.silu(z0) * widen(x0), y], axis=-1) if self.size.mlp else y
        return project_out(self.out_proj, y, self.dtype)


def _checked_size(d_model, d_state, expand, head_dim, d_ssm, groups) -> _Size:
    sizes = dict(d_model=d_model, d_state=d_state, expand=expand, head_dim=head_dim, groups=groups)
    for name, size in sizes.items():
        errors.as_int("Mamba2", name, size, least=1)
    inner = expand * d_model
    d_ssm = inner if d_ssm is None else errors.as_int("Mamba2", "d_ssm", d_ssm, least=1, most=inner)
    if d_ssm % head_dim:
        raise errors.bad_argument("Mamba2", "head_dim", head_dim, f"a divisor of the {d_ssm} channels of the scan")
    heads = d_ssm // head_dim
    if heads % groups:
        raise errors.bad_argument("Mamba2", "groups", groups, f"a divisor of the {heads} heads")
    return _Size(inner - d_ssm, d_ssm, heads, groups, d_state)
