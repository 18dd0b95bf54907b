"""The two-dimensional selective scan of VMamba (https://arxiv.org/abs/2401.10166)."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.nn import initializers
from jax.typing import DTypeLike

from ssmjax import errors, init, ops
from ssmjax.layers.common.norms import LayerNorm
from ssmjax.layers.common.parameters import parameter, with_kinds
from ssmjax.layers.vision.depthwise import DepthwiseConv
from ssmjax.ops import scan_order
from ssmjax.shapes import Array, Float, Images

__all__ = ["SS2D", "Activation", "Directions", "OutputNorm", "scan_directions"]

Directions = Literal["cross", "rows", "rows_both_ways", "two", "cascade"]
"""Which ways an image is read, see `SS2D`."""

OutputNorm = Literal["layer", "conv", "layer_conv", "softmax", "sigmoid", "none"]
"""What follows the sum of the directions, see `SS2D`."""

Activation = Literal["silu", "gelu", "relu", "sigmoid"]
"""The function after the convolution, and on the gate."""

Initialization = Literal["mamba", "normal", "constant"]
"""How A, D and the step sizes begin, see `SS2D`."""

_DRAW = initializers.normal(0.02)
_ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
}


def scan_directions(kind: Directions, y: int, x: int) -> tuple[scan_order.Order, ...]:
    """Returns the scan orders of a grid of y rows and x columns, one for each set of parameters.

    Args:
        kind: The kind of scan, as in `SS2D`; "cascade", which reads single rows and columns, has none.
        y: The rows.
        x: The columns.

    >>> [len(scan_directions(kind, 2, 2)) for kind in ("cross", "rows_both_ways", "two")]
    [4, 4, 2]
    """
    rows, columns, rows_back, columns_back = scan_order.cross_orders(y, x)
    return {
        "cross": (rows, columns, rows_back, columns_back),
        "rows": (rows,) * 4,
        "rows_both_ways": (rows, rows, rows_back, rows_back),
        "two": (rows, rows_back),
    }[kind]


class SS2D(nnx.Module):
    r"""Reads an image in several directions by selective scans, and sums what they give.

    With `k` directions, each with its own `x_proj`, step sizes, `A` and `D`,

        x, z = in_proj(u);    x = act(conv(x))
        dt_k, B_k, C_k = x_proj_k(x);    dt_k = softplus(dt_proj_k(dt_k) + bias_k)
        y = norm(sum_k back_k(scan(order_k(x), order_k(dt_k), A_k, order_k(B_k), order_k(C_k), D_k)))
        out_proj(y * act(z)),

    where `order_k` puts the pixels into the k-th order and `back_k` undoes it. `directions`, with the original's names:

    * `"cross"`: rows, columns, and both from their ends; four sets of parameters (v01 to v05, v0).
    * `"rows"`: rows, by four sets of parameters (v051d).
    * `"rows_both_ways"`: rows by two sets, reversed rows by two others (v052d). With four sets it has the layout of
      `"cross"`, and it is what the original's ablation calls two directions.
    * `"two"`: rows and reversed rows, one set each: half of the scans and of their parameters.
    * `"cascade"`: each row on its own in both ways, then each column (v052dc), with a norm without parameters before
      either. As published, what was read from the end is added without being turned round again.

    `core="ssd"` (m0) has one decay a head, as Mamba-2: the step sizes are the first `r` outputs of `x_proj` themselves,
    one for each of `r` heads.

    Args:
        d_model: The width of a pixel.
        directions: See above.
        core: `"scan"`, Mamba's, or `"ssd"`, Mamba-2's.
        gate: `"activated"`: `y * act(z)`; `"linear"` (nozact): `y * z`; `"none"` (noz): there is no z.
        out_norm: After the sum: `"layer"`; `"conv"`, a depthwise 3x3 convolution (ondwconv3); `"layer_conv"`, both
            (oncnorm); `"softmax"` over the pixels; `"sigmoid"`; `"none"`.
        out_gelu: Whether a GELU follows it (oact).
        d_state: The state size of a channel, `n`.
        ratio: The inner width `e` is `int(ratio * d_model)`.
        dt_rank: The rank `r`; None means `ceil(d_model / 16)`.
        d_conv: The rows and columns of the depthwise convolution; 1 means there is none.
        conv_bias: Whether it has a bias.
        activation: After the convolution, and on the gate.
        initialization: `"mamba"` (v0): `A = -(1..n)`, step sizes log-uniform in [0.001, 0.1]; `"normal"` (v1):
            `log(-A)` normal, `dt_proj` normal times 0.1; `"constant"` (v2): `A = -1`, `dt_proj` uniform in [0, 0.1].
        dtype: The dtype of the computation and the output. Scans and the sum of directions are float32 whatever it is.
        param_dtype: The dtype of the parameters.
        rngs: Source of the initial values.

    Raises:
        ValueError: A name is unknown, or the heads of "ssd" do not divide the inner width.

    >>> import jax.numpy as jnp
    >>> SS2D(8, d_state=4, rngs=nnx.Rngs(0))(jnp.ones((2, 4, 3, 8))).shape
    (2, 4, 3, 8)
    """

    def __init__(
        self,
        d_model: int,
        *,
        directions: Directions = "cross",
        core: Literal["scan", "ssd"] = "scan",
        gate: Literal["activated", "linear", "none"] = "activated",
        out_norm: OutputNorm = "layer",
        out_gelu: bool = False,
        d_state: int = 16,
        ratio: float = 2.0,
        dt_rank: int | None = None,
        d_conv: int = 3,
        conv_bias: bool = True,
        activation: Activation = "silu",
        initialization: Initialization = "mamba",
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        _check(directions, core, gate, out_norm, activation, initialization)
        e = int(ratio * d_model)
        self.directions, self.core, self.gate, self.out_gelu = directions, core, gate, out_gelu
        self.rank = -(-d_model // 16) if dt_rank is None else dt_rank
        self.d_state, self.activation, self.dtype = d_state, activation, dtype
        self.out_softmax, self.out_sigmoid = out_norm == "softmax", out_norm == "sigmoid"
        if core == "ssd" and (e % self.rank or initialization == "mamba"):
            wanted = f"a divisor of the inner width {e} with core='ssd', and initialization 'normal' or 'constant'"
            raise errors.bad_argument("SS2D", "dt_rank", self.rank, wanted)
        options = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        linear = dict(use_bias=False, kernel_init=_DRAW, **options)
        self.in_proj = with_kinds(nnx.Linear(d_model, e if gate == "none" else 2 * e, **linear))
        self.conv2d = DepthwiseConv(e, taps=d_conv, use_bias=conv_bias, **options) if d_conv > 1 else None
        for name, value in self._scan_parameters(e, initialization, param_dtype, rngs).items():
            setattr(self, name, value)
        self.norm = LayerNorm(e) if out_norm in ("layer", "layer_conv") else None
        self.norm_conv = DepthwiseConv(e, use_bias=False, **options) if out_norm in ("conv", "layer_conv") else None
        self.out_proj = with_kinds(nnx.Linear(e, d_model, **linear))

    def _scan_parameters(self, e, initialization, param_dtype, rngs):
        """The parameters that each direction has of its own, along a leading axis (k), or (k e) as one."""
        k, r, n = 2 if self.directions == "two" else 4, self.rank, self.d_state
        heads = (k, r) if self.core == "ssd" else (k * e, n)

        def draw(initializer, shape):
            return initializer(rngs.params(), shape, param_dtype)

        decay = {
            "mamba": lambda: jnp.broadcast_to(jnp.asarray(init.s4d_real_log(n), param_dtype)[None], heads),
            "normal": lambda: draw(initializers.normal(1.0), heads),
            "constant": lambda: jnp.zeros(heads, param_dtype),
        }[initialization]
        first = {"mamba": init.uniform(r**-0.5), "normal": initializers.normal(0.1)}
        bias = {"mamba": init.step_size_bias(), "normal": initializers.normal(0.1)}
        weight_of = first.get(initialization, initializers.uniform(0.1))
        bias_of = bias.get(initialization, initializers.uniform(0.1))
        ssd = self.core == "ssd"
        parameters = {
            "x_proj": parameter(draw(init.uniform(e**-0.5), (k, e, r + 2 * n)), "weight"),
            "dt_bias": parameter(draw(bias_of, (k, r if ssd else e)), "dt"),
            "A_log": parameter(decay(), "A"),
            "D": parameter(jnp.ones((k, r, e // r) if ssd else (k * e,), param_dtype), "D"),
        }
        return parameters if ssd else {"dt_proj": parameter(draw(weight_of, (k, r, e)), "dt"), **parameters}

    def __call__(self, u: Images) -> Float[jax.Array, "b y x d"]:
        """Mixes the pixels of (b y x d)."""
        act = _ACTIVATIONS[self.activation]
        x = self.in_proj(u)
        x, z = (x, None) if self.gate == "none" else jnp.split(x, 2, axis=-1)
        x = act(x if self.conv2d is None else self.conv2d(x))
        y = self._normalize(self._cascade(x) if self.directions == "cascade" else self._all_directions(x))
        y = jax.nn.gelu(y, approximate=False) if self.out_gelu else y
        if z is not None:
            y = y * (act(z) if self.gate == "activated" else z).astype(jnp.float32)
        return self.out_proj(y.astype(self.dtype))

    def _all_directions(self, x: Images) -> Float[jax.Array, "b y x e"]:
        """Returns the sum over the directions, float32."""
        rows, columns = x.shape[1:3]
        orders = scan_directions(self.directions, rows, columns)
        x = rearrange(x, "b y x e -> b (y x) e")
        # Projected before they are put into order: one product in place of k, and then only its few outputs move.
        inputs = scan_order.cross_scan(self._project(x[:, :, None], slice(None)), orders, each=True)
        y = self._scan(scan_order.cross_scan(x, orders), inputs, slice(None))
        return rearrange(scan_order.cross_merge(y, orders), "b (y x) e -> b y x e", y=rows)

    def _cascade(self, x: Images) -> Float[jax.Array, "b y x e"]:
        """Returns each row on its own, in both ways, and then each column."""
        for half in (slice(0, 2), slice(2, 4)):
            x = _normalized(x).astype(self.dtype)
            lines = rearrange(x, "b y x e -> (b y) x e")
            both = jnp.stack([lines, lines[:, ::-1]], axis=2)
            y = self._scan(both, self._project(both, half), half).sum(2)
            x = rearrange(y, "(b y) x e -> b x y e", b=x.shape[0])  # columns are the rows of the second pass
        return x

    def _project(self, x: Float[Array, "b l one_or_k e"], which: slice) -> Float[jax.Array, "b l k c"]:
        """The low-rank step sizes, B and C of some directions, beside each other; `x` may have one for all of them."""
        weights = self.x_proj[...][which].astype(self.dtype)
        if x.shape[2] == 1:
            return jnp.einsum("ble,kec->blkc", x[:, :, 0], weights)
        return jnp.einsum("blke,kec->blkc", x, weights)

    def _scan(self, x, inputs, which):
        """Scans some directions, (b l k e), as groups of one scan; float32."""
        k = x.shape[2]
        dt, B, C = jnp.split(inputs, [self.rank, self.rank + self.d_state], axis=-1)
        A, D, bias = -jnp.exp(self.A_log[...].astype(jnp.float32)), self.D[...], self.dt_bias[...][which].reshape(-1)
        if self.core == "ssd":
            x = rearrange(x, "b l k (h p) -> b l (k h) p", h=self.rank)
            A, D = A[which].reshape(-1), D[which].reshape(-1, D.shape[-1])
            y = ops.ssd(x, rearrange(dt, "b l k h -> b l (k h)"), A, B, C, D=D, dt_bias=bias, dt_softplus=True)
            return rearrange(y, "b l (k h) p -> b l k (h p)", k=k).astype(jnp.float32)
        dt = jnp.einsum("blkr,kre->blke", dt, self.dt_proj[...][which].astype(self.dtype))
        x, dt = (rearrange(v, "b l k e -> b l (k e)") for v in (x, dt))
        A, D = (
            rearrange(v, "(k e) ... -> k e ...", e=x.shape[-1] // k)[which].reshape(-1, *v.shape[1:]) for v in (A, D)
        )
        y = ops.selective_scan(x, dt, A, B, C, D=D, dt_bias=bias, dt_softplus=True)
        return rearrange(y, "b l (k e) -> b l k e", k=k).astype(jnp.float32)

    def _normalize(self, y: Float[Array, "b y x e"]) -> Float[jax.Array, "b y x e"]:
        y = y if self.norm is None else self.norm(y)
        y = y if self.norm_conv is None else self.norm_conv(y)
        y = jax.nn.softmax(y, axis=(1, 2)) if self.out_softmax else y
        return jax.nn.sigmoid(y) if self.out_sigmoid else y


def _normalized(x):
    """A layer norm without parameters, in float32."""
    x = x.astype(jnp.float32)
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5)


def _check(directions, core, gate, out_norm, activation, initialization):
    for name, value, known in (
        ("directions", directions, get_args(Directions)),
        ("core", core, ("scan", "ssd")),
        ("gate", gate, ("activated", "linear", "none")),
        ("out_norm", out_norm, get_args(OutputNorm)),
        ("activation", activation, get_args(Activation)),
        ("initialization", initialization, get_args(Initialization)),
    ):
        if value not in known:
            raise ValueError(f"SS2D: {errors.unknown_name(name, value, known)}")
