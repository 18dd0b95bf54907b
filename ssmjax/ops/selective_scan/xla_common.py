"""What the XLA forms of the selective scan share: their inputs, the time-major chunked layout and the step's terms."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

__all__ = [
    "Form",
    "Plan",
    "ScanInputs",
    "Steps",
    "batch_major",
    "over_chunks",
    "step_terms",
    "time_major",
    "to_steps",
]

Form = Literal["sequential", "chunked", "triton"]


class ScanInputs(NamedTuple):
    """One call of the scan, its channels cut into (g f): the groups of B and C, and the channels that share one.

    Attributes:
        x: (b l g f).
        dt: (b l g f), after bias and softplus.
        A: (g n f).
        B: (b l g n) where it varies with time, or fixed (g n f): their ranks tell them apart.
        C: (b l g n), or fixed (g n f).
        h0: (b g n f), float32 or complex64.
        keep: (b l) bool, False where the state is reset before the step; None if it never is.
    """

    x: jax.Array
    dt: jax.Array
    A: jax.Array
    B: jax.Array
    C: jax.Array
    h0: jax.Array
    keep: jax.Array | None


class Steps(NamedTuple):
    """What changes with time, time first: (q b ...), or (c q b ...) in chunks. B and C are None if they are fixed."""

    x: jax.Array
    dt: jax.Array
    B: jax.Array | None
    C: jax.Array | None
    keep: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """Static facts of one call.

    Attributes:
        reverse: Whether the scan runs against time.
        chunk: Steps between the stored states.
        unroll: Unrolling of the sequential form's time loop, or None to choose.
        form: The form for every platform, or None to choose; "triton" is for NVIDIA GPUs, and others choose.
        tile: Numbers in the state of one tile of the sequential form on a CPU.
        free: Whether the chunk was not asked for, so that a forward pass alone may take another one.
        keep_decays: Whether the sequential backward pass keeps a chunk's decays beside its states: on a CPU it is
            cheaper to read them than to compute the exponential again.
    """

    reverse: bool
    chunk: int
    unroll: int | None
    form: Form | None
    tile: int
    free: bool = False
    keep_decays: bool = False


def time_major(v: jax.Array, chunk: int, padding: int = 0) -> jax.Array:
    """(b l ...) to (c q b ...). A padded step leaves the state alone: dt and x are 0 there, and it resets nothing."""
    after_end = (0, -v.shape[1] % chunk)
    v = jnp.pad(v, ((0, 0), after_end) + ((0, 0),) * (v.ndim - 2), constant_values=padding)
    # Two steps: XLA lays out the result of a single "b (c q) ... -> c q b ..." so that every loop copies it again.
    return rearrange(v.swapaxes(0, 1), "(c q) ... -> c q ...", q=chunk)


def batch_major(v: jax.Array, l: int) -> jax.Array:
    """(c q b ...) to (b l ...): the inverse of `time_major`."""
    return rearrange(v, "c q ... -> (c q) ...").swapaxes(0, 1)[:, :l]


def to_steps(plan: Plan, inputs: ScanInputs) -> Steps:
    """Returns the chunks (c q b ...) of what changes with time, in the dtypes they came in."""
    return Steps(
        x=time_major(inputs.x, plan.chunk),
        dt=time_major(inputs.dt, plan.chunk),
        B=time_major(inputs.B, plan.chunk) if inputs.B.ndim == 4 else None,
        C=time_major(inputs.C, plan.chunk) if inputs.C.ndim == 4 else None,
        keep=None if inputs.keep is None else time_major(inputs.keep, plan.chunk, padding=True),
    )


def over_chunks(body: Callable, carry: Any, chunks: Any, *, reverse: bool) -> tuple[Any, Any]:
    """`lax.scan` over chunks (c ...). A single one needs no loop, whose slices would cost a copy of everything."""
    if jax.tree.leaves(chunks)[0].shape[0] > 1:
        return jax.lax.scan(body, carry, chunks, reverse=reverse)
    carry, out = body(carry, jax.tree.map(lambda v: v[0], chunks))
    return carry, jax.tree.map(lambda v: v[None], out)


def step_terms(inputs: ScanInputs, steps: Steps) -> tuple[jax.Array, ...]:
    """Returns the step's `a = exp(dt A)`, `u = dt x`, `B`, `C` and `x`, `dt`, all (... b g n f) up to broadcasting.

    The leading axes of `steps` are kept, so that it serves one step (b ...) and a chunk (q b ...). From here on
    all is float32.
    """
    number, real = inputs.h0.dtype, inputs.h0.real.dtype
    lead = (None,) * (steps.x.ndim - 2)  # broadcasts (g n f) over time and batch
    # A real B or C that varies stays real under a complex A: half the multiplications.
    B, C = (
        fixed[lead].astype(number) if M is None else M[..., None].astype(number if jnp.iscomplexobj(M) else real)
        for M, fixed in ((steps.B, inputs.B), (steps.C, inputs.C))
    )
    x, dt = (v[..., None, :].astype(real) for v in (steps.x, steps.dt))
    a = jnp.exp(dt * inputs.A[lead].astype(number))
    if steps.keep is not None:
        a = jnp.where(steps.keep[..., None, None, None], a, 0)
    return a, dt * x, B, C, x, dt
