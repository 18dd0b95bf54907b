"""The mixer of MambaVision: a selective scan on half of the channels beside a plain convolution on the others."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jax.typing import DTypeLike

from ssmjax import init, ops
from ssmjax.layers.common.parameters import parameter, with_kinds
from ssmjax.layers.selective.parts import MixerSize, scan_inputs, state_log
from ssmjax.shapes import Expanded, Float, Tokens

__all__ = ["HalfMamba"]

# Made once: older Flax keeps initializers in a module's static definition, where two equal ones would differ.
_DRAW = initializers.normal(0.02)


class HalfMamba(nnx.Module):
    r"""Half of the channels go through a selective scan, the other half only through a convolution.

        x, z = split(in_proj(u));    x, z = silu(conv_x(x)), silu(conv_z(z))
        out_proj(concat(scan(x), z))

    MambaVision (https://arxiv.org/abs/2407.08083), equations 6 and 7: `z` is not a gate but the second half of the
    output. The convolutions look both ways. As in the published models the bias of `dt_proj` enters twice, once in
    `dt_proj` and once in the scan, and it begins at zero.

    Args:
        d_model: The width of a token; the inner width of the scan is `expand * d_model / 2`.
        d_state: The state size of a channel, `n`.
        d_conv: The taps of the convolutions.
        expand: The inner width of both halves by `d_model`.
        dt_rank: The rank of the step-size projection; None means `ceil(d_model / 16)`.
        dtype: The dtype of the computation and the output. The scan is float32 whatever it is.
        param_dtype: The dtype of the parameters.
        rngs: Source of the initial values (linear maps normal with standard deviation 0.02, as the published recipe
            leaves them).

    >>> import jax.numpy as jnp
    >>> HalfMamba(8, rngs=nnx.Rngs(0))(jnp.ones((2, 5, 8))).shape
    (2, 5, 8)
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 8,
        d_conv: int = 3,
        expand: int = 1,
        dt_rank: int | None = None,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        e = expand * d_model // 2
        rank = -(-d_model // 16) if dt_rank is None else dt_rank
        options = dict(kernel_init=_DRAW, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        draw = init.uniform(d_conv**-0.5)
        self.dtype = dtype
        self.in_proj = with_kinds(nnx.Linear(d_model, 2 * e, use_bias=False, **options))
        self.conv1d_x = parameter(draw(rngs.params(), (d_conv, e), param_dtype), "filter")
        self.conv1d_z = parameter(draw(rngs.params(), (d_conv, e), param_dtype), "filter")
        self.x_proj = with_kinds(nnx.Linear(e, rank + 2 * d_state, use_bias=False, **options))
        self.dt_proj = with_kinds(nnx.Linear(rank, e, **options), kernel="dt", bias="dt")
        self.A_log = state_log(MixerSize(e, d_state, expand=1), param_dtype)
        self.D = parameter(jnp.ones((e,), param_dtype), "D")
        self.out_proj = with_kinds(nnx.Linear(2 * e, d_model, use_bias=False, **options))

    def __call__(self, u: Tokens) -> Float[jax.Array, "b l d"]:
        """Mixes (b l d)."""
        x, z = jnp.split(self.in_proj(u), 2, axis=-1)
        x, z = (_convolve(v, kernel[...]) for v, kernel in ((x, self.conv1d_x), (z, self.conv1d_z)))
        dt, B, C = scan_inputs(x, self.x_proj, self.dt_proj)
        bias = self.dt_proj.bias[...].astype(jnp.float32)
        A = -jnp.exp(self.A_log[...].astype(jnp.float32))
        # The published models add the bias in the projection and again in the scan.
        y = ops.selective_scan(x, dt, A, B, C, D=self.D[...], dt_bias=2 * bias, dt_softplus=True)
        return self.out_proj(jnp.concatenate([y, z], axis=-1))


def _convolve(x: Expanded, kernel: Float[jax.Array, "k e"]) -> Float[jax.Array, "b l e"]:
    """A depthwise convolution that keeps the length and looks both ways (an even filter: one further ahead), SiLU.

    The causal convolution of the padded sequence does it: what it gives `ahead` steps later has looked so far ahead.
    """
    k = kernel.shape[0]
    ahead = k - 1 - (k - 1) // 2
    padded = jnp.pad(x, ((0, 0), (0, ahead), (0, 0)))
    return ops.causal_conv1d(padded, kernel.astype(x.dtype), activation="silu")[:, ahead:]
