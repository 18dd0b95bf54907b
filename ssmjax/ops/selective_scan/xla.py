"""The selective scan in XLA: the form for each platform, and the custom VJP that the forms share.

The gate, the skip and the bias and softplus of `dt` are elementwise and left to XLA. The scan itself,

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t,    y_t = sum_n C_t h_t    (2 Re of the sum with a complex A),

keeps for its backward pass the inputs and the state at every chunk boundary, and recomputes the states of one chunk at
a time; nothing of size (b l e n) is ever kept (Gu & Dao 2023, arXiv:2312.00752, section 3.3.2). With `s_t` the
cotangent of `h_t`,

    s_t = C_t dy_t + exp(dt_{t+1} A) s_{t+1},

from which every gradient follows by products and sums. Gradients of complex arrays follow JAX's convention, which needs
no conjugates here.
"""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jax.ad_checkpoint import checkpoint_name
from jax.export import is_symbolic_dim

from ssmjax import _compat
from ssmjax.ops._numerics.derivatives import reverse_only
from ssmjax.ops._numerics.dtypes import number_type, real_type
from ssmjax.ops.selective_scan import xla_chunked, xla_sequential
from ssmjax.ops.selective_scan.call import STATES, ScanCall
from ssmjax.ops.selective_scan.xla_common import Form, Plan, ScanInputs
from ssmjax.ops.selective_scan.xla_tiles import backward_in_tiles, forward_in_tiles

__all__ = ["at_once", "choose", "chunk_length", "selective_scan_xla", "supports"]


MANY_STATES = 500_000
"""From this size of the state, b e n, a GPU is kept busy by one time step at a time (see `choose`)."""


def choose(platform: str, b: int, e: int, n: int) -> Form:
    """Returns the form that is fastest on a platform, `"cpu"`, `"gpu"` or `"tpu"`.

    CPU: sequential for every shape measured, 5 to 12 times faster than the associative forms (benchmarks/README.md).
    GPU: a step of the sequential form is a kernel of about 4 us, unrolled, however small its state, and
    `associative_scan` moves the states of all steps about six times through memory; the two meet at `MANY_STATES`.
    Forward+backward on an H100 at (b l e n) = (512 64 256 8): 2.1 ms against 3.1 to 4.0 in chunks and 7.0 materialized.
    TPU: chunked, as no other form was timed there.
    """
    if platform == "gpu":
        many = not is_symbolic_dim(b) and b * e * n >= MANY_STATES  # a symbol, as in `jax.export`, counts as few
        return "sequential" if many else "chunked"
    return "sequential" if platform == "cpu" else "chunked"


MOST_WHOLE = 2**31
"""Bytes of the states of all steps, (b l e n) in float32, up to which a GPU's forward pass takes them at once."""


def at_once(b: int, l: int, e: int, n: int) -> bool:
    """Whether a GPU runs the chunked form on the whole sequence as one chunk where no backward pass follows.

    It moves the same bytes as in chunks, and waits for fewer kernels. Forward on an H200 at (b l e n) = (8 2048 2048
    16), (1 16384 1536 16) and (64 192 384 16): 3.65, 2.72 and 0.64 ms; one step or one chunk after the other took 6.9,
    13.5 and 1.06. The memory is that of inference: training keeps its chunks.
    """
    return not is_symbolic_dim(b) and not is_symbolic_dim(l) and 4 * b * l * e * n <= MOST_WHOLE


def chunk_length(l: int, target: int = 64) -> int:
    """Returns the chunk nearest to `target` that cuts `l` into equal parts (up to rounding), so that little is padded.

    >>> [chunk_length(l) for l in (1, 65, 197, 1024)]
    [1, 65, 66, 64]
    """
    return -(-l // max(1, round(l / target)))


def supports(call: ScanCall) -> str | None:
    """Why the XLA form does not take a call, or None if it does."""
    return "an axis has size 0" if 0 in call.x.shape or 0 in call.A.shape else None


def selective_scan_xla(call: ScanCall, *, form=None, chunk=None, unroll=None, tile=8192):
    """Returns `y` (b l e) in the dtype of `x` and the last state (b e n).

    What follows the call tunes it: `form` forces "sequential" or "chunked" on every platform instead of what `choose`
    says, or "triton" on NVIDIA GPUs; `chunk` is the steps between the stored states, by default about 64, and 16 with
    `MANY_STATES`;
    `unroll` is that of the sequential form's time loop, by default 1 on a CPU, where more is slower, and the chunk
    elsewhere; `tile` is how many numbers the state of one tile holds on a CPU.
    """
    x, dt, A, B, C, D, z, dt_bias, dt_softplus, h0, segment_ids, reverse, _ = call
    real = real_type(x)
    dt = dt.astype(real)
    if dt_bias is not None:
        dt = dt + dt_bias.astype(real)[None, None]
    if dt_softplus:
        dt = jax.nn.softplus(dt)
    free = chunk is None
    if chunk is None:  # one for all platforms, because what is stored for the backward pass is of its size
        many = choose("gpu", x.shape[0], *A.shape) == "sequential"
        chunk = chunk_length(x.shape[1], 16 if many else 64)
    plan = Plan(reverse, min(chunk, x.shape[1]), unroll, form, tile, free)
    inputs = _compat.vary_alike(_scan_inputs(x, dt, A, B, C, h0, segment_ids, reverse))
    y, state = reverse_only("selective_scan", functools.partial(_scan, plan), inputs)
    y = rearrange(y, "b l g f -> b l (g f)")
    if jnp.iscomplexobj(A):  # of each conjugate pair one is kept
        y = 2 * y
    if D is not None:
        y = y + x.astype(real) * D.astype(real)[None, None]
    if z is not None:
        y = y * jax.nn.silu(z.astype(real))
    return y.astype(x.dtype), rearrange(state, "b g n f -> b (g f) n")


def _scan_inputs(x, dt, A, B, C, h0, segment_ids, reverse) -> ScanInputs:
    """Returns the public arguments in the layout of `ScanInputs`."""
    g = next((M.shape[2] for M in (B, C) if M.ndim == 4), 1)
    number = number_type(A, dt)
    if h0 is None:
        h0 = _compat.zeros((x.shape[0], *A.shape), number, x)
    keep = None
    if segment_ids is not None:
        same = segment_ids[:, 1:] == segment_ids[:, :-1]
        keep = jnp.pad(same, ((0, 0), (0, 1) if reverse else (1, 0)), constant_values=True)
    x, dt = (rearrange(v, "b l (g f) -> b l g f", g=g) for v in (x, dt))
    h0 = rearrange(h0.astype(number), "b (g f) n -> b g n f", g=g)
    B, C = (repeat(M, "b l n -> b l g n", g=g) if M.ndim == 3 else M for M in (B, C))
    A, B, C = (rearrange(M, "(g f) n -> g n f", g=g) if M.ndim == 2 else M for M in (A, B, C))
    return ScanInputs(x, dt, A, B, C, h0, keep)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(plan: Plan, inputs: ScanInputs):
    return _by_platform("forward", plan, inputs, keep_states=False)


def _scan_fwd(plan: Plan, inputs: ScanInputs):
    y, state, boundaries = _by_platform("forward", plan, inputs)
    return (y, state), (inputs, checkpoint_name(boundaries, STATES))


def _scan_bwd(plan: Plan, saved, cotangents):
    inputs, boundaries = saved
    grads = _by_platform("backward", plan, inputs, boundaries, *cotangents)
    return (ScanInputs(*map(_like, grads[:-1], inputs[:-1]), keep=None),)


_scan.defvjp(_scan_fwd, _scan_bwd)


def _like(grad: jax.Array, primal: jax.Array) -> jax.Array:
    """Returns a gradient in its primal's dtype: real B and C under a complex A take the real part."""
    if jnp.iscomplexobj(grad) and not jnp.iscomplexobj(primal):
        grad = grad.real
    return grad.astype(primal.dtype)


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames="keep_states")  # or each eager call would compile
def _by_platform(direction: str, plan: Plan, inputs: ScanInputs, *args, keep_states: bool = True):
    """Runs `forward` or `backward` of the form that the plan, else the platform compiled for, asks for.

    Without `keep_states` the boundary states are left out, and all steps are one chunk in the sequential form on a CPU,
    where one loop is faster than two, and in the chunked form on a GPU if memory allows (`at_once`).
    """
    b, l, g, f = inputs.x.shape
    sizes = b, g * f, inputs.A.shape[1]
    in_tiles = {"forward": forward_in_tiles, "backward": backward_in_tiles}[direction]
    fits = not is_symbolic_dim(b) and inputs.h0.size <= plan.tile
    branches = {}  # platforms that run alike have one program, which is traced once

    def branch(platform: str):
        form = choose(platform, *sizes) if plan.form in (None, "triton") else plan.form
        unroll = plan.unroll or (1 if platform == "cpu" else plan.chunk)
        module = xla_sequential if form == "sequential" else xla_chunked
        in_caches = platform == "cpu" and form == "sequential"
        whole = in_caches or (platform == "gpu" and form == "chunked" and plan.free and at_once(b, l, *sizes[1:]))
        chunk = l if whole and not keep_states else plan.chunk
        settled = dataclasses.replace(plan, form=form, unroll=unroll, chunk=chunk, keep_decays=in_caches)
        run = functools.partial(getattr(module, direction), settled)
        run = functools.partial(in_tiles, run, plan.tile) if in_caches and not fits else run
        return branches.setdefault(settled, run if keep_states else lambda *args: run(*args)[:2])

    cuda = gpu = branch("gpu")
    if plan.form == "triton":
        cuda = _triton_kernels(direction, plan, keep_states)
    return jax.lax.platform_dependent(inputs, *args, cpu=branch("cpu"), cuda=cuda, rocm=gpu, default=branch("tpu"))


def _triton_kernels(direction: str, plan: Plan, keep_states: bool):
    """`forward` or `backward` of the Triton kernels, which are loaded where they are asked for."""
    run = importlib.import_module(f"ssmjax.ops.selective_scan.triton.{direction}")
    run = functools.partial(getattr(run, direction), plan)
    return run if keep_states else lambda *args: run(*args)[:2]
