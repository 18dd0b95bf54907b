"""What follows the state space map of a block: an activation, and a gate that mixes the features of a token."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssmjax import errors
from ssmjax.layers.common.drop_path import shared_dropout
from ssmjax.layers.common.parameters import with_kinds
from ssmjax.shapes import Array, Float, PRNGKey

__all__ = ["Gate", "GateKind", "Gelu"]

GateKind = Literal["glu", "full_glu", "half_glu1", "half_glu2", "linear", "none"]
"""See `Gate`."""

Gelu = Literal["exact", "tanh"]
"""GELU by the error function, as PyTorch has it, or by its tanh approximation, as Flax's older models have it."""


class Gate(nnx.Module):
    r"""The nonlinear part of a block, of each token alone.

    With `g = dropout(gelu(y))` and the logistic `s`:

        glu        a * s(b),    (a, b) = split(out(g))      S4
        full_glu   out1(g) * s(out2(g))                     S5
        half_glu1  g * s(out2(g))                           S5
        half_glu2  y * s(out2(g))                           S5
        linear     out(g)                                   DSS
        none       g

    and a dropout after it. All dropout is tied: one draw a feature, shared by all tokens of a sequence.

    Args:
        d_model: The width of a token.
        channels: The width of the input is `channels * d_model`; only the gates "glu" and "linear" take more than one.
        kind: One of these names, see `GateKind`.
        gelu: "exact" or "tanh", see `Gelu`.
        dropout: The probability.
        dtype: The dtype of the computation and the output.
        param_dtype: The dtype of the parameters.
        rngs: Source of the initial values.

    Raises:
        ValueError: A name is unknown, or the gate does not take several channels.

    >>> import jax.numpy as jnp
    >>> Gate(8, kind="glu", rngs=nnx.Rngs(0))(jnp.ones((2, 5, 8))).shape
    (2, 5, 8)
    """

    def __init__(
        self,
        d_model: int,
        *,
        channels: int = 1,
        kind: str = "glu",
        gelu: str = "exact",
        dropout: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, value, known in (("kind", kind, GateKind), ("gelu", gelu, Gelu)):
            if value not in get_args(known):
                raise ValueError(f"Gate: {errors.unknown_name(name, value, get_args(known))}")
        if channels > 1 and kind not in ("glu", "linear"):
            raise errors.bad_argument("Gate", "channels", channels, f"1 with kind={kind!r}", "'glu' takes several.")
        self.kind, self.gelu, self.dropout = kind, gelu, dropout
        outputs = {"glu": {"out": 2}, "full_glu": {"out1": 1, "out2": 1}, "linear": {"out": 1}, "none": {}}
        for name, factor in outputs.get(kind, {"out2": 1}).items():
            options = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
            setattr(self, name, with_kinds(nnx.Linear(channels * d_model, factor * d_model, **options)))

    def __call__(self, y: Float[Array, "b *s e"], *, key: PRNGKey | None = None) -> Float[Array, "b *s d"]:
        """Applies it to (b *s channels*d); with a `key`, dropout acts."""
        first, second = (None, None) if key is None else jax.random.split(key)
        g = shared_dropout(first, nnx.gelu(y, approximate=self.gelu == "tanh"), self.dropout)
        if self.kind == "glu":
            a, b = jnp.split(self.out(g), 2, axis=-1)
            y = a * jax.nn.sigmoid(b)
        elif self.kind == "full_glu":
            y = self.out1(g) * jax.nn.sigmoid(self.out2(g))
        elif self.kind == "half_glu1":
            y = g * jax.nn.sigmoid(self.out2(g))
        elif self.kind == "half_glu2":
            y = y * jax.nn.sigmoid(self.out2(g))
        else:
            y = self.out(g) if self.kind == "linear" else g
        # Without a gate there is one place for dropout, not two.
        return y if self.kind == "none" else shared_dropout(second, y, self.dropout)
