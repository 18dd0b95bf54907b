"""The block that S4, S5 and the other linear time-invariant models are stacks of."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssmjax import errors
from ssmjax.layers.common.checks import known_options
from ssmjax.layers.common.gates import Gate
from ssmjax.layers.common.norms import BatchNorm, make_norm
from ssmjax.layers.lti.dss import DSS, DSSKernel
from ssmjax.layers.lti.lru import LRU
from ssmjax.layers.lti.s4 import S4, DPLRKernel
from ssmjax.layers.lti.s4d import S4D, DiagonalKernel
from ssmjax.layers.lti.s4nd import S4ND
from ssmjax.layers.lti.s5 import S5
from ssmjax.shapes import Array, Float, Mask, PRNGKey

__all__ = ["STATE_SPACES", "SequenceBlock", "check_layer_options", "make_state_space"]

STATE_SPACES: Mapping[str, type[nnx.Module]] = {"s4": S4, "s4d": S4D, "dss": DSS, "s4nd": S4ND, "s5": S5, "lru": LRU}
"""The state space layers, by the name that a configuration gives them."""

_KERNELS = {"s4": DPLRKernel, "s4d": DiagonalKernel, "dss": DSSKernel}


class SequenceBlock(nnx.Module):
    """A residual block: norm, state space, gate, and the input added; or the norm last, over the sum.

        prenorm     x + gate(ssm(norm(x)))
        postnorm    norm(x + gate(ssm(x)))

    The layer reads no padding, in either direction; its output there is zero, and the residual passes by.

    Args:
        d_model: The width of a token.
        layer: A key of `STATE_SPACES`.
        layer_options: Arguments of that layer, such as `{"d_state": 64, "bidirectional": "exclusive"}`.
        gate: See `Gate`.
        gelu: See `Gate`.
        dropout: See `Gate`.
        norm: "layer" or "batch".
        norm_options: Arguments of the norm, such as `eps`.
        prenorm: Where the norm is.
        dtype: Of the computation; the residual stream is float32 whatever it is.
        rngs: Source of the initial values.

    Raises:
        ValueError: A name is unknown.

    >>> import jax.numpy as jnp
    >>> block = SequenceBlock(8, layer="s5", layer_options={"d_state": 4}, rngs=nnx.Rngs(0))
    >>> block(jnp.ones((2, 5, 8))).shape
    (2, 5, 8)
    """

    def __init__(
        self,
        d_model: int,
        *,
        layer: str = "s4d",
        layer_options: Mapping[str, Any] = {},
        gate: str = "glu",
        gelu: str = "exact",
        dropout: float = 0.0,
        norm: str = "layer",
        norm_options: Mapping[str, Any] = {},
        prenorm: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        errors.require_flags("SequenceBlock", prenorm=prenorm)
        self.prenorm = prenorm
        self.spatial = layer == "s4nd"
        self.norm = make_norm(norm, d_model, **norm_options, dtype=dtype if prenorm else jnp.float32)
        self.layer = make_state_space(layer, d_model, layer_options, dtype=dtype, rngs=rngs)
        channels = getattr(self.layer, "channels", 1)
        self.gate = Gate(d_model, channels=channels, kind=gate, gelu=gelu, dropout=dropout, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b *s d"],
        *,
        mask: Mask | None = None,
        train: bool = False,
        key: PRNGKey | None = None,
        rate: float | Array = 1.0,
    ) -> Float[jax.Array, "b *s d"]:
        """Runs a block.

        Args:
            x: (b l d), the residual stream; (b *s d) for "s4nd".
            mask: (b l), False at padding.
            train: Whether dropout acts, where there is a key, and a batch norm uses the statistics of the batch.
            key: The random key.
            rate: A factor on the step sizes, see the layers; a Python number for "s4" and with an `l_max`.

        Returns:
            As `x`.
        """
        y = self._normalize(x, mask, train) if self.prenorm else x.astype(self.layer.dtype)
        y = self.layer(y, rate=rate) if self.spatial else self.layer(y, mask=mask, rate=rate)
        y = x + self.gate(y, key=key if train else None).astype(x.dtype)
        return y if self.prenorm else self._normalize(y, mask, train)

    def _normalize(self, x, mask, train):
        return self.norm(x, mask=mask, train=train) if isinstance(self.norm, BatchNorm) else self.norm(x)


def make_state_space(
    name: str, d_model: int, options: Mapping[str, Any], *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
) -> Any:
    """Builds a state space layer by name.

    Args:
        name: A key of `STATE_SPACES`.
        d_model: The width of a token.
        options: Further arguments of the layer.
        dtype: Of the computation.
        rngs: Source of the initial values.

    Raises:
        ValueError: The name or an option is unknown.

    >>> make_state_space("lru", 8, {"d_state": 4}, rngs=nnx.Rngs(0)).d_model
    8
    """
    check_layer_options("make_state_space", name, options)
    return STATE_SPACES[name](d_model, **options, dtype=dtype, rngs=rngs)


def check_layer_options(where: str, name: str, options: Mapping[str, Any]) -> None:
    """Checks the names of the options of a state space layer, those of its kernel included.

    Raises:
        ValueError: The layer or an option is unknown.

    >>> check_layer_options("example", "s5", {"blocks": 4})
    """
    if name not in STATE_SPACES:
        raise ValueError(f"{where}: {errors.unknown_name('layer', name, list(STATE_SPACES))}")
    kernel = options.get("kernel", "s4d") if name == "s4nd" else name
    known = known_options(STATE_SPACES[name], *([_KERNELS[kernel]] if kernel in _KERNELS else []))
    known -= {"dtype", "param_dtype"}
    for option in options:
        if option not in known:
            raise ValueError(f"{where}: {errors.unknown_name(f'option of the layer {name!r}', option, sorted(known))}")
