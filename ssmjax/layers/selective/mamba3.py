"""The Mamba-3 mixer."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike

from ssmjax import errors, init, ops
from ssmjax.layers.common.checks import check_segment_ids
from ssmjax.layers.common.mixer import PackedState, enter
from ssmjax.layers.common.norms import RMSNorm
from ssmjax.layers.common.padding import Compaction
from ssmjax.layers.common.parameters import parameter
from ssmjax.layers.selective.gated_norm import gated_rms_norm
from ssmjax.layers.selective.parts import project_out, projection
from ssmjax.layers.selective.rotation import accumulate_angles, rotate
from ssmjax.ops._half import widen
from ssmjax.shapes import Array, Float, Int, Mask, SegmentIds, Tokens

__all__ = ["Mamba3", "Mamba3State"]


class Mamba3State(NamedTuple):
    """What a mixer remembers between chunks of a sequence, all float32 but `x`.

    Attributes:
        angle: (b h s), how far each head has turned, from 0 to 2 pi.
        ssm: (b h p n), the state of the scan.
        B: (b r h n), the last input vectors, turned.
        x: (b h p), the last input, in the compute dtype.
    """

    angle: jax.Array
    ssm: jax.Array
    B: jax.Array
    x: jax.Array


class Mamba3(nnx.Module):
    r"""The mixer of Mamba-3 (https://arxiv.org/abs/2603.15569): trapezoidal steps, a rotating state, inputs of rank r.

        z, x, B, C, dt, a, blend, angle = split(in_proj(u));   dt = softplus(dt + dt_bias);   A = -f(a)
        theta_t = theta_{t-1} + pi tanh(angle_t) dt_t;   M_t = turn(theta_t, rms(M_t) + M_bias)   for M = B and M = C
        S_t = exp(dt_t A_t) (S_{t-1} + (1 - blend_t) dt_t x_{t-1} B_{t-1}^T) + blend_t dt_t x_t B_t^T
        y_t = S_t C_t + D x_t;   out = out_proj(y * silu(z))

    with `f(a) = 1 + a` for a >= 0 and `1 / (1 - a)` below, and `blend` after a sigmoid. There is no convolution. The
    rotation is what lets a state count (parity, modular sums), which real, positive decays cannot. With a `rank` above
    one (the paper's MIMO) x and z are expanded to it by learned factors, and the outputs summed by others.

    A sequence may come whole, in chunks (`state=`, `return_state=True`) or token by token (`step`): the outputs are the
    same, with padding (`mask=`) on either side and with packed sequences (`segment_ids=`) too.

    Args:
        d_model: The width of a token.
        d_state: The state size, `n`.
        expand: The inner width `e` is `expand * d_model`.
        head_dim: The width of a head, `p`.
        groups: The groups `g` of B and C.
        rank: None for inputs of rank one without further parameters (SISO), else the rank `r` of MIMO.
        rope_fraction: The share of the state that turns, 0.5 or 1.
        rotation: Which channels turn together: `"pairs"`, neighbors; `"halves"`, i and i + n/2. None is what the
            original does: neighbors without a rank, halves with one.
        norm: Whether each head is normalized before its gate.
        dt_min: The smallest initial step size.
        dt_max: The largest initial step size.
        dt_floor: Initial step sizes below it are raised to it.
        A_floor: The least rate -A.
        chunk: The steps of a chunk of the scan; for speed only. None is 64, divided by the rank.
        out_scale: A factor on the initial `out_proj`; deep stacks pass `1 / sqrt(number of layers)`.
        dtype: The dtype of the computation and the output. The scan's sums and its state are float32 whatever it is.
        param_dtype: The dtype of the parameters.
        rngs: Source of the initial values.

    Raises:
        ValueError: The sizes do not fit one another.

    >>> import jax.numpy as jnp
    >>> mixer = Mamba3(8, d_state=4, head_dim=4, rank=2, rngs=nnx.Rngs(0))
    >>> u = jnp.ones((2, 6, 8))
    >>> whole = mixer(u)
    >>> first, state = mixer(u[:, :1], return_state=True)
    >>> second, state = mixer(u[:, 1:], state=state, return_state=True)
    >>> bool(jnp.allclose(whole, jnp.concatenate([first, second], axis=1), atol=1e-5))
    True
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 128,
        expand: int = 2,
        head_dim: int = 64,
        groups: int = 1,
        rank: int | None = None,
        rope_fraction: float = 0.5,
        rotation: Literal["pairs", "halves"] | None = None,
        norm: bool = False,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_floor: float = 1e-4,
        A_floor: float = 1e-4,
        chunk: int | None = None,
        out_scale: float = 1.0,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        errors.require_flags("Mamba3", norm=norm)
        inner = expand * d_model
        self.rotation = ("pairs" if rank is None else "halves") if rotation is None else rotation
        _check(inner, d_state, head_dim, groups, rank, rope_fraction, self.rotation)
        self.heads, self.head_dim, self.state_size, self.groups = inner // head_dim, head_dim, d_state, groups
        self.rank, self.turned = rank or 1, int(d_state * rope_fraction) // 2
        self.A_floor, self.chunk, self.dtype = A_floor, chunk or max(1, 64 // self.rank), dtype
        h, r, n = self.heads, self.rank, d_state
        self.widths = (inner, inner, r * groups * n, r * groups * n, h, h, h, self.turned)
        self.in_proj = projection(d_model, sum(self.widths), dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        draw = init.step_size_bias(dt_min, dt_max, dt_floor)
        self.dt_bias = parameter(draw(rngs.params(), (h,), param_dtype), "dt")
        self.B_norm = RMSNorm(n, param_dtype=param_dtype, rngs=rngs)
        self.C_norm = RMSNorm(n, param_dtype=param_dtype, rngs=rngs)
        self.B_bias = parameter(jnp.ones((h, r, n), param_dtype), "bias")
        self.C_bias = parameter(jnp.ones((h, r, n), param_dtype), "bias")
        self.D = parameter(jnp.ones((h,), param_dtype), "D")
        for name, value in (("mimo_x", 1 / r), ("mimo_z", 1.0), ("mimo_o", 1 / r)):
            full = jnp.full((h, r, head_dim), value, param_dtype)
            setattr(self, name, None if rank is None else parameter(full, "weight", decay=False))
        self.norm_scale = parameter(jnp.ones((inner,), param_dtype), "norm") if norm else None
        self.out_proj = projection(inner, d_model, scale=out_scale, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def __call__(
        self,
        u: Tokens,
        *,
        mask: Mask | None = None,
        segment_ids: SegmentIds | None = None,
        state: Mamba3State | PackedState | None = None,
        return_state: bool = False,
    ) -> Tokens | tuple[Tokens, Mamba3State | PackedState]:
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
        cuts = [sum(self.widths[:i]) for i in range(1, len(self.widths))]
        z, x, B, C, dt, a, blend, angle = jnp.split(self.in_proj(u), cuts, axis=-1)
        dt = jax.nn.softplus(dt.astype(jnp.float32) + self.dt_bias[...].astype(jnp.float32)[None, None])
        dt = dt if padding is None else jnp.where(padding.mask[..., None], dt, 0)
        a = a.astype(jnp.float32)
        rate = jnp.maximum(jnp.where(a >= 0, 1 + a, 1 / (1 + jnp.abs(a))), self.A_floor)
        turns = jnp.pi * jnp.tanh(angle.astype(jnp.float32))[:, :, None] * dt[..., None]
        theta = accumulate_angles(turns, state.angle, segment_ids)
        B, C = (self._vectors(*v, theta) for v in ((B, self.B_norm, self.B_bias), (C, self.C_norm, self.C_bias)))
        x, z = (rearrange(v, "b l (h p) -> b l 1 h p", h=self.heads) for v in (x, z))
        ranked = _expanded(widen(x), self.mimo_x)
        before = ops.TrapezoidalState(state.ssm, _expanded(widen(state.x)[:, None, None], self.mimo_x)[:, 0], state.B)
        y, after = ops.trapezoidal_ssd(
            ranked,
            dt,
            -rate * dt,
            jax.nn.sigmoid(blend.astype(jnp.float32)),
            B,
            C,
            before,
            segment_ids,
            chunk=self.chunk,
            return_state=True,
        )
        y = self._output(y + self.D[...].astype(y.dtype)[None, None, None, :, None] * ranked.astype(y.dtype), z)
        if not return_state:
            return entry.leave(y, None, False)
        last = [_last(v, old, padding) for v, old in ((theta, state.angle), (B, state.B), (x[:, :, 0], state.x))]
        return entry.leave(y, Mamba3State(last[0], after.ssm, last[1], last[2]), True)

    def init_state(self, batch: int) -> Mamba3State:
        """The state before the first token: zeros.

        >>> [x.shape for x in Mamba3(8, d_state=4, head_dim=4, rngs=nnx.Rngs(0)).init_state(2)]
        [(2, 4, 1), (2, 4, 4, 4), (2, 1, 4, 4), (2, 4, 4)]
        """
        h, p, n = self.heads, self.head_dim, self.state_size
        shapes = (batch, h, self.turned), (batch, h, p, n), (batch, self.rank, h, n)
        return Mamba3State(*(jnp.zeros(shape, jnp.float32) for shape in shapes), jnp.zeros((batch, h, p), self.dtype))

    def step(
        self, u: Array, state: Mamba3State | PackedState, *, segment_ids: Int[Array, " b"] | None = None
    ) -> tuple[Float[Array, "b d"], Mamba3State | PackedState]:
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
            raise errors.bad_shape("Mamba3.step", "u", u, "(b, d), one token a row", remedy)
        check_segment_ids("Mamba3.step", segment_ids, u.shape[:1])
        ids = None if segment_ids is None else segment_ids[:, None]
        y, state = self(u[:, None], segment_ids=ids, state=state, return_state=True)
        return y[:, 0], state

    def _vectors(self, M, norm, bias, theta):
        """B or C (b l r h n): normalized, one for each head, and turned."""
        M = norm(rearrange(M, "b l (r g n) -> b l r g n", r=self.rank, g=self.groups))
        M = jnp.repeat(M, self.heads // self.groups, axis=3)
        M = M + bias[...].astype(M.dtype).swapaxes(0, 1)[None, None]
        return rotate(M, theta[:, :, None], self.rotation)

    def _output(self, y, z):
        """(b l r h p) to (b l d): norm and gate of each rank, the sum over ranks, and the projection."""
        scale = None if self.norm_scale is None else self.norm_scale[...].reshape(self.heads, self.head_dim)
        if scale is not None:
            y = gated_rms_norm(y, jnp.ones_like(scale[0])) * scale.astype(y.dtype)[None, None, None]
        y = y * jax.nn.silu(_expanded(z.astype(y.dtype), self.mimo_z))
        if self.mimo_o is not None:
            y = y * self.mimo_o[...].astype(y.dtype).swapaxes(0, 1)[None, None]
        return project_out(self.out_proj, rearrange(y.sum(2), "b l h p -> b l (h p)"), self.dtype)


def _expanded(v, weight):
    """(b l 1 h p) to (b l r h p), by a weight (h r p) if there is one."""
    return v if weight is None else v * weight[...].astype(v.dtype).swapaxes(0, 1)[None, None]


def _last(v, before, padding: Compaction | None):
    """What `v` (b l ...) is at the last real token (`padding` has moved them to the front); `before` without any."""
    history = jnp.concatenate([before[:, None].astype(v.dtype), v], axis=1)
    if padding is None:
        return history[:, -1]
    # A product with a one-hot row, as the gradient of an index would be a scatter.
    chosen = jnp.arange(history.shape[1])[None] == padding.lengths[:, None]
    return jnp.where(chosen.reshape(*chosen.shape, *(1,) * (v.ndim - 2)), history, 0).sum(1)


def _check(inner, d_state, head_dim, groups, rank, rope_fraction, rotation):
    for name, size in {"d_state": d_state, "head_dim": head_dim, "groups": groups, "rank": rank or 1}.items():
        errors.as_int("Mamba3", name, size, least=1)
    if inner % head_dim:
        raise errors.bad_argument("Mamba3", "head_dim", head_dim, f"a divisor of the {inner} inner channels")
    if (inner // head_dim) % groups:
        raise errors.bad_argument("Mamba3", "groups", groups, f"a divisor of the {inner // head_dim} heads")
    if rope_fraction not in (0.5, 1.0):
        raise errors.bad_argument("Mamba3", "rope_fraction", rope_fraction, "0.5 or 1")
    if int(d_state * rope_fraction) < 2 or d_state % 2:
        raise errors.bad_argument("Mamba3", "d_state", d_state, "even, and 4 or more with rope_fraction=0.5")
    errors.require_known("rotation", rotation, ["pairs", "halves"])
