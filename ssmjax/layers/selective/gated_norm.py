"""The norm with a gate that Mamba-2 and Mamba-3 have before their output projection."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssmjax import errors
from ssmjax.layers.common.parameters import parameter
from ssmjax.ops._numerics.dtypes import real_type
from ssmjax.shapes import Array, Float

__all__ = ["GatedRMSNorm", "gated_rms_norm"]


def gated_rms_norm(
    x: Float[Array, "*b e"],
    scale: Float[Array, "e"],
    z: Float[Array, "*b e"] | None = None,
    bias: Float[Array, "e"] | None = None,
    *,
    group: int | None = None,
    norm_before_gate: bool = True,
    eps: float = 1e-5,
) -> Float[jax.Array, "*b e"]:
    """Normalizes groups of channels by their root mean square, and multiplies by a gate before or after.

        norm_before_gate    (rms(x) * scale + bias) * silu(z)
        otherwise            rms(x * silu(z)) * scale + bias

    (Dao & Gu 2024, arXiv:2405.21060, section 7.1.) Everything is computed in float32.

    Args:
        x: (*b e).
        scale: (e).
        z: The gate, as `x`; None is no gate.
        bias: (e).
        group: How many neighboring channels are normalized together; None is all of them.
        norm_before_gate: The order.
        eps: Added to the mean square.

    Returns:
        (*b e) in the dtype of `x`.

    Raises:
        ValueError: The group does not divide the channels.

    >>> import jax.numpy as jnp
    >>> gated_rms_norm(jnp.array([3.0, 3.0, 1.0, 1.0]), jnp.ones(4), group=2).round(3).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    e = x.shape[-1]
    size = e if group is None else group
    if size < 1 or e % size:
        raise errors.bad_argument("gated_rms_norm", "group", group, f"a divisor of the {e} channels")
    real = real_type(x)
    gate = None if z is None else jax.nn.silu(z.astype(real))
    y = x.astype(real)
    y = y if gate is None or norm_before_gate else y * gate
    grouped = y.reshape(*y.shape[:-1], e // size, size)
    y = (grouped * jax.lax.rsqrt(jnp.square(grouped).mean(-1, keepdims=True) + eps)).reshape(y.shape)
    lead = (None,) * (x.ndim - 1)
    y = y * scale.astype(real)[lead]
    y = y if bias is None else y + bias.astype(real)[lead]
    return (y * gate if gate is not None and norm_before_gate else y).astype(x.dtype)


class GatedRMSNorm(nnx.Module):
    """`gated_rms_norm` with its scale as a parameter, initially one.

    Args:
        width: The channels.
        group: How many neighboring channels are normalized together; None is all of them.
        norm_before_gate: The order of norm and gate.
        eps: Added to the mean square.
        dtype: The dtype of the output.
        param_dtype: The dtype of the scale.
        rngs: Not used: there is nothing random.

    >>> import jax.numpy as jnp
    >>> GatedRMSNorm(4)(jnp.ones((1, 2, 4)), jnp.ones((1, 2, 4))).shape
    (1, 2, 4)
    """

    def __init__(
        self,
        width: int,
        *,
        group: int | None = None,
        norm_before_gate: bool = False,
        eps: float = 1e-5,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: Any = None,
    ):
        del rngs
        errors.require_flags("GatedRMSNorm", norm_before_gate=norm_before_gate)
        self.options = (group, norm_before_gate, eps)
        self.dtype = dtype
        self.scale = parameter(jnp.ones((width,), param_dtype), "norm")

    def __call__(self, x: Float[Array, "*b e"], z: Float[Array, "*b e"] | None = None) -> Float[jax.Array, "*b e"]:
        """Normalizes (*b e), gated by `z` if it is given."""
        group, before, eps = self.options
        y = gated_rms_norm(
            jnp.asarray(x, real_type(x)),
            self.scale[...],
            z,
            group=group,
            norm_before_gate=before,
            eps=eps,
        )
        return y.astype(self.dtype)
