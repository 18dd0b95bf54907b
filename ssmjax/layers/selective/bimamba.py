"""The bidirectional Mamba mixer of Vision Mamba."""

from typing import Any, Literal, NoReturn

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssmjax import errors, ops
from ssmjax.layers.common.checks import check_array, check_segment_ids
from ssmjax.layers.common.padding import Compaction, compact
from ssmjax.layers.selective.parts import MixerSize, branch_parts, project_out, projection, scan_inputs, state_log
from ssmjax.ops._half import widen
from ssmjax.ops.selective_scan.call import STATES
from ssmjax.shapes import Expanded, Mask, SegmentIds, Tokens

__all__ = ["BiMamba"]


class BiMamba(nnx.Module):
    """A Mamba mixer that reads the sequence in both directions (Vim, https://arxiv.org/abs/2401.09417, algorithm 1).

    Variants, with the original's names:

    * `"v2"`: the directions share `in_proj`, the gate and `out_proj`; each has its own convolution, projections, `A`
      and `D`: `out_proj((forward(x) + backward(x)) * silu(z) / 2)`, where the backward convolution and scan run from
      the end.
    * `"v1"`: only `A` differs. The convolution and the projections run once, forwards, and a second scan from the end
      reuses what they gave. Both scans add `D x`, so that it counts twice; their sum is never halved.
    * `"none"`: one direction, as `Mamba`.

    Nothing is flipped in memory: the backward direction runs the ops with `reverse=True`. `together=True` flips it and
    runs one scan for both, which halves the number of steps that a sequential scan launches on a GPU.

    Args:
        d_model: The width of a token.
        variant: `"v2"`, `"v1"` or `"none"`.
        divide_out: Whether `"v2"` halves the sum of its directions.
        together: Whether both scans run as one of twice the channels (not with `segment_ids`). The outputs are the
            same.
        d_state: The state size of a channel, `n`.
        d_conv: The taps of the short convolution, `k`.
        expand: The inner width `e` is `expand * d_model`.
        dt_rank: The rank of the step-size projection; None means `ceil(d_model / 16)`.
        dt_min: The smallest initial step size, in both directions. (The original zeroes the backward bias by accident,
            which starts that direction at a step size of 0.69.)
        dt_max: The largest initial step size.
        dt_floor: Initial step sizes below it are raised to it.
        dt_init: How the kernel of the step-size projection starts: `"random"`, uniform in `[-s, s]`, or `"constant"`,
            all `s`, with `s = dt_scale / sqrt(dt_rank)`.
        dt_scale: The factor in that `s`.
        conv_bias: Whether the convolutions have a bias.
        use_bias: Whether `in_proj` and `out_proj` have one.
        out_scale: A factor on the initial `out_proj`; deep stacks pass `1 / sqrt(number of layers)`.
        dtype: The dtype of the computation and the output. The scans and the sum of the directions are float32
            whatever it is; with bfloat16 the sum is rounded once before the gate.
        param_dtype: The dtype of the parameters.
        rngs: Source of the initial values.

    >>> import jax.numpy as jnp
    >>> BiMamba(8, d_state=4, rngs=nnx.Rngs(0))(jnp.ones((2, 6, 8))).shape
    (2, 6, 8)
    """

    def __init__(
        self,
        d_model: int,
        *,
        variant: Literal["v2", "v1", "none"] = "v2",
        divide_out: bool = True,
        together: bool = False,
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
        out_scale: float = 1.0,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        flags = dict(divide_out=divide_out, together=together, conv_bias=conv_bias, use_bias=use_bias)
        errors.require_flags("BiMamba", **flags)
        size = MixerSize(d_model, d_state, d_conv, expand, dt_rank, dt_min, dt_max, dt_floor, dt_init, dt_scale)
        options = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.variant = variant
        self.divide_out = divide_out
        self.together = together
        self.dtype = dtype
        self.in_proj = projection(d_model, 2 * size.inner, use_bias=use_bias, **options)
        for name, part in branch_parts(size, conv_bias=conv_bias, **options).items():
            setattr(self, name, part)
        self.A_log = state_log(size, param_dtype)
        if variant == "v2":
            for name, part in branch_parts(size, conv_bias=conv_bias, **options).items():
                setattr(self, f"{name}_b", part)
        if variant != "none":
            self.A_b_log = state_log(size, param_dtype)
        self.out_proj = projection(size.inner, d_model, scale=out_scale, use_bias=use_bias, **options)

    def __call__(
        self,
        u: Tokens,
        *,
        mask: Mask | None = None,
        segment_ids: SegmentIds | None = None,
        state: None = None,
        return_state: bool = False,
    ) -> Tokens:
        """Mixes whole sequences.

        Args:
            u: (b l d).
            mask: (b l), False at padding, which may be anywhere; its outputs are zero.
            segment_ids: (b l), which of several packed sequences a token belongs to; they do not see each other.
            state: None: the direction from the end needs the whole sequence.
            return_state: False.

        Returns:
            (b l d) in the compute dtype.

        Raises:
            ValueError: A state is given or asked for.
        """
        if state is not None or return_state:
            self._refuse_state()
        check_array("BiMamba", "u", u, (None, None, None), "(b, l, d)", "Features are last, time is second.")
        check_segment_ids("BiMamba", segment_ids, u.shape[:2])
        padding = None
        if mask is not None:
            padding = compact(mask)
            u = padding.apply(u)
            segment_ids = padding.ids(segment_ids)
        x, z = jnp.split(self.in_proj(u), 2, axis=-1)
        if padding is not None:  # a bias of in_proj must not reach real tokens through the convolution from the end
            x = jnp.where(padding.mask[..., None], x, 0)

        def mix(x):
            return self._both_directions(x, padding, segment_ids)

        def gate(y, z):
            return project_out(self.out_proj, y * jax.nn.silu(z.astype(jnp.float32)), self.dtype)

        # Training is bound by memory traffic: convolutions, step sizes and gates cost less to compute again than to
        # write and read. The barriers that `prevent_cse` sets would keep them from fusing with what is beside them.
        y = jax.checkpoint(mix, policy=_SCANNED, prevent_cse=False)(x)
        y = y.astype(jnp.bfloat16) if jnp.dtype(self.dtype) == jnp.bfloat16 else y
        y = jax.checkpoint(gate, prevent_cse=False)(y, z)
        return y if padding is None else padding.undo(y)

    def init_state(self, batch: int) -> Any:
        """Raises `ValueError`, as does `step`: the direction from the end needs the whole sequence."""
        self._refuse_state()

    def step(self, u: Any, state: Any, *, segment_ids: Any = None) -> Any:
        """Raises `ValueError`, see `init_state`."""
        self._refuse_state()

    def _refuse_state(self) -> NoReturn:
        remedy = "The reverse direction needs the whole sequence at once; `Mamba` carries a state."
        raise errors.bad_argument("BiMamba", "state", "a state to carry", "left out in both directions", remedy)

    def _both_directions(self, x: Expanded, padding: Compaction | None, segment_ids: SegmentIds | None) -> Expanded:
        """The sum of the directions before the gate, which they share, in float32."""
        forward = self._scan_inputs(x, "", padding, segment_ids)
        first = (*forward, *self._scan_parameters(self.A_log, ""))
        if self.variant == "none":
            return _scan(*first, segment_ids=segment_ids)
        if self.variant == "v1":
            second = (*forward, *self._scan_parameters(self.A_b_log, ""))
        else:
            backward = self._scan_inputs(x, "_b", padding, segment_ids, reverse=True)
            second = (*backward, *self._scan_parameters(self.A_b_log, "_b"))
        if self.together and segment_ids is None:
            y = _scan_together(first, second)
        else:
            y = _scan(*first, segment_ids=segment_ids) + _scan(*second, segment_ids=segment_ids, reverse=True)
        return y / 2 if self.divide_out and self.variant == "v2" else y

    def _scan_inputs(self, x, suffix, padding, segment_ids, reverse=False):
        """x, dt, B and C of one direction."""
        x = getattr(self, f"conv1d{suffix}")(x, segment_ids=segment_ids, reverse=reverse)
        dt, B, C = scan_inputs(x, getattr(self, f"x_proj{suffix}"), getattr(self, f"dt_proj{suffix}"))
        if padding is not None:
            x, dt = padding.silence(x, dt)
        return x, dt, B, C

    def _scan_parameters(self, A_log, suffix):
        """A, D and the bias of dt of one direction."""
        A = -jnp.exp(A_log[...].astype(jnp.float32))
        return A, getattr(self, f"D{suffix}")[...], getattr(self, f"dt_proj{suffix}").bias[...]


_SCANNED = jax.checkpoint_policies.save_only_these_names(STATES)
"""Of a mixer, the backward pass gets the inputs and the states of its scans, and computes the rest again."""


def _scan(x, dt, B, C, A, D, dt_bias, **options):
    y = ops.selective_scan(widen(x), dt, A, B, C, D=D, dt_bias=dt_bias, dt_softplus=True, **options)
    return y.astype(jnp.float32)


def _scan_together(forward, backward):
    """The sum of both scans, run as one of twice the channels with a group of B and C each."""
    parts = [(a, jnp.flip(b, 1)) for a, b in zip(forward[:4], backward[:4], strict=True)]
    x, dt = (jnp.concatenate(pair, axis=2) for pair in parts[:2])
    B, C = (jnp.stack(pair, axis=2) for pair in parts[2:])
    parameters = (jnp.concatenate(pair) for pair in zip(forward[4:], backward[4:], strict=True))
    y_forward, y_backward = jnp.split(_scan(x, dt, B, C, *parameters), 2, axis=2)
    return y_forward + jnp.flip(y_backward, 1)
