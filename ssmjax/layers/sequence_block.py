"""The block that models of S4, S5, Mamba and the other mixers are stacks of."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssmjax import errors
from ssmjax.layers.common.gates import Gate
from ssmjax.layers.common.norms import BatchNorm, make_norm
from ssmjax.layers.mixers import make_mixer, mixer_arguments
from ssmjax.shapes import Array, Float, Mask, PRNGKey, SegmentIds

__all__ = ["SequenceBlock"]


class SequenceBlock(nnx.Module):
    """A residual block: norm, mixer, gate, and the input added; or the norm last, over the sum.

        prenorm     x + gate(mixer(norm(x)))
        postnorm    norm(x + gate(mixer(x)))

    The layer reads no padding, in either direction; its output there is zero, and the residual passes by.

    Args:
        d_model: The width of a token.
        layer: The name of a mixer, see `registered_mixers`: "s4", "s4d", "dss", "s4nd", "s5", "lru", "mamba", ...
        layer_options: Arguments of that layer, such as `{"d_state": 64, "bidirectional": "exclusive"}`.
        gate: The kind of gate; see `Gate`.
        gelu: The kind of GELU; see `Gate`.
        dropout: The rate of dropout; see `Gate`.
        norm: "layer" or "batch".
        norm_options: Arguments of the norm, such as `eps`.
        prenorm: Where the norm is.
        dtype: The dtype of the computation; the residual stream is float32 whatever it is.
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
        self.mixer = layer
        self.norm = make_norm(norm, d_model, **norm_options, dtype=dtype if prenorm else jnp.float32)
        self.layer = make_mixer(layer, d_model, layer_options, dtype=dtype, rngs=rngs)
        channels = getattr(self.layer, "channels", 1)
        self.gate = Gate(d_model, channels=channels, kind=gate, gelu=gelu, dropout=dropout, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b *s d"],
        *,
        mask: Mask | None = None,
        segment_ids: SegmentIds | None = None,
        train: bool = False,
        key: PRNGKey | None = None,
        rate: float | Array = 1.0,
    ) -> Float[jax.Array, "b *s d"]:
        """Runs a block.

        Args:
            x: (b l d), the residual stream; (b *s d) for "s4nd".
            mask: (b l), False at padding.
            segment_ids: (b l), which of several packed sequences a token belongs to; they do not see each other.
            train: Whether dropout acts, where there is a key, and a batch norm uses the statistics of the batch.
            key: The random key.
            rate: A factor on the step sizes, see the layers; a Python number for "s4" and with an `l_max`.

        Returns:
            As `x`.

        Raises:
            ValueError: The mixer does not take a mask, ids or a rate, and one is given.
        """
        keywords = mixer_arguments("SequenceBlock", self.mixer, mask=mask, segment_ids=segment_ids, rate=rate)
        y = self._normalize(x, mask, train) if self.prenorm else x.astype(self.layer.dtype)
        y = self.layer(y, **keywords)
        y = x + self.gate(y, key=key if train else None).astype(x.dtype)
        return y if self.prenorm else self._normalize(y, mask, train)

    def _normalize(self, x, mask, train):
        return self.norm(x, mask=mask, train=train) if isinstance(self.norm, BatchNorm) else self.norm(x)
