"""What the Mamba mixers are made of: projections, the short convolution, and the inputs of a scan."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssmjax import errors, init
from ssmjax.layers.common.parameters import parameter, with_kinds
from ssmjax.ops._half import narrow
from ssmjax.ops.causal_conv1d.api import convolve_causally
from ssmjax.shapes import Array, Expanded, Float, SegmentIds

__all__ = ["MixerSize", "ShortConv", "branch_parts", "project_out", "projection", "scan_inputs", "state_log"]


@dataclasses.dataclass(frozen=True)
class MixerSize:
    """The sizes and the initial step sizes of a Mamba mixer.

    Attributes:
        d_model: The width of a token.
        d_state: The state size of a channel, `n`.
        d_conv: The taps of the short convolution, `k`.
        expand: The inner width is `expand * d_model`.
        dt_rank: The rank `r` of the step-size projection; None means `ceil(d_model / 16)`.
        dt_min: The smallest initial step size.
        dt_max: The largest initial step size.
        dt_floor: Initial step sizes below it are raised to it.
        dt_init: How the kernel of the step-size projection starts: `"random"`, uniform in `[-s, s]`, or `"constant"`,
            all `s`, with `s = dt_scale / sqrt(r)`.
        dt_scale: The factor in that `s`.
    """

    d_model: int
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    dt_rank: int | None = None
    dt_min: float = 1e-3
    dt_max: float = 0.1
    dt_floor: float = 1e-4
    dt_init: str = "random"
    dt_scale: float = 1.0

    def __post_init__(self):
        if self.dt_init not in ("random", "constant"):
            raise errors.bad_argument("Mamba", "dt_init", self.dt_init, "'random' or 'constant'")
        for name in ("d_model", "d_state", "d_conv", "expand", "rank"):
            if getattr(self, name) < 1:
                raise errors.bad_argument("Mamba", name, getattr(self, name), "at least 1")
        if not 0 < self.dt_min <= self.dt_max:
            raise errors.bad_argument(
                "Mamba", "(dt_min, dt_max)", (self.dt_min, self.dt_max), "positive and increasing"
            )

    @property
    def inner(self) -> int:
        """The inner width `e`."""
        return self.expand * self.d_model

    @property
    def rank(self) -> int:
        """The rank `r` of the step-size projection."""
        return -(-self.d_model // 16) if self.dt_rank is None else self.dt_rank


class ShortConv(nnx.Module):
    """The causal depthwise convolution of a mixer, with SiLU after it.

    Args:
        width: The number of channels `e`, each with taps of its own.
        taps: The taps `k`.
        use_bias: Whether there is a bias.
        dtype: The dtype of the computation and the output.
        param_dtype: The dtype of the parameters.
        rngs: Source of the initial values: uniform in `[-s, s]`, `s = 1 / sqrt(k)`, for the taps and the bias.
    """

    def __init__(
        self,
        width: int,
        taps: int,
        *,
        use_bias: bool = True,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        draw = init.uniform(taps**-0.5)
        self.kernel = parameter(draw(rngs.params(), (taps, width), param_dtype), "filter")
        self.bias = parameter(draw(rngs.params(), (width,), param_dtype), "bias") if use_bias else None
        self.dtype = dtype

    def __call__(
        self,
        x: Expanded,
        *,
        state: Float[Array, "b taps e"] | None = None,
        segment_ids: SegmentIds | None = None,
        reverse: bool = False,
        return_state: bool = False,
    ) -> Expanded | tuple[Expanded, Float[Array, "b taps e"]]:
        """Convolves (b l e); the options are those of `ssmjax.ops.causal_conv1d`, which the mixer has checked."""
        return convolve_causally(
            x.astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            None if self.bias is None else self.bias[...].astype(self.dtype),
            "silu",
            state,
            segment_ids,
            reverse=reverse,
            return_state=return_state,
        )


def projection(
    before: int, after: int, *, scale: float = 1.0, use_bias: bool = False, dtype, param_dtype, rngs: nnx.Rngs
) -> nnx.Linear:
    """A linear map with Mamba's initial values: uniform by fan-in times `scale`, and a zero bias if any."""
    options = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
    return with_kinds(nnx.Linear(before, after, use_bias=use_bias, kernel_init=init.fan_in_uniform(scale), **options))


def project_out(layer: nnx.Linear, y: Float[Array, "*b e"], dtype: DTypeLike) -> Float[jax.Array, "*b d"]:
    """Applies the last projection; for float16 in float32, as what a scan returns does not fit into its range."""
    if jnp.dtype(dtype) != jnp.float16:
        return layer(y.astype(dtype))
    y = y.astype(jnp.float32) @ layer.kernel[...].astype(jnp.float32)
    bias = None if layer.bias is None else layer.bias[...].astype(jnp.float32)[(None,) * (y.ndim - 1)]
    return narrow(y if bias is None else y + bias, dtype)


def state_log(size: MixerSize, param_dtype: DTypeLike) -> nnx.Param:
    """The parameter `A_log` (e n): `log(1..n)` in every channel. The scan uses `A = -exp(A_log)`."""
    rates = jnp.asarray(init.s4d_real_log(size.d_state), param_dtype)
    return parameter(jnp.broadcast_to(rates[None], (size.inner, size.d_state)), "A")


def branch_parts(
    size: MixerSize, *, conv_bias: bool, dtype, param_dtype, rngs: nnx.Rngs
) -> dict[str, nnx.Module | nnx.Param]:
    """What one direction of a mixer owns, by the names that the original gives them (it appends `_b` backwards)."""
    e, options = size.inner, dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
    draw = init.uniform if size.dt_init == "random" else _constant
    dt_proj = nnx.Linear(
        size.rank,
        e,
        kernel_init=draw(size.dt_scale * size.rank**-0.5),
        bias_init=init.step_size_bias(size.dt_min, size.dt_max, size.dt_floor),
        **options,
    )
    return {
        "conv1d": ShortConv(e, size.d_conv, use_bias=conv_bias, **options),
        "x_proj": projection(e, size.rank + 2 * size.d_state, **options),
        "dt_proj": with_kinds(dt_proj, kernel="dt", bias="dt"),
        "D": parameter(jnp.ones((e,), param_dtype), "D"),
    }


# Made once for each value: older Flax keeps initializers in a module's static definition, where two equal ones differ.
_constant = functools.cache(jax.nn.initializers.constant)


def scan_inputs(
    x: Expanded, x_proj: nnx.Linear, dt_proj: nnx.Linear, rms_eps: float | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The input-dependent `dt` (b l e), `B` and `C` (b l n) of a scan.

    `dt` is before its bias and softplus: both belong to the scan, which computes them in float32. With `rms_eps` the
    low-rank `dt`, B and C are divided by their root mean squares.
    """
    rank = dt_proj.in_features
    n = (x_proj.out_features - rank) // 2
    low_rank, B, C = jnp.split(x_proj(x), [rank, rank + n], axis=-1)
    if rms_eps is not None:
        low_rank, B, C = (_over_rms(v, rms_eps) for v in (low_rank, B, C))
    return low_rank @ dt_proj.kernel[...].astype(low_rank.dtype), B, C


def _over_rms(v, eps):
    wide = v.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + eps)).astype(v.dtype)
