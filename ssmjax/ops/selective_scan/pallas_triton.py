"""The selective scan on GPUs of compute capability 8.0 and newer: kernels in Pallas Triton, one form of `xla.py`.

For an A100 or an L4, and for a Hopper GPU under a jax without Pallas Mosaic GPU. JAX deprecates its Triton backend
(0.11): where its module is gone, `supports` says so. Nothing of Pallas is loaded before a kernel is traced.
"""

import importlib.util
import math

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim

from ssmjax import _compat
from ssmjax.ops.selective_scan.call import ScanCall
from ssmjax.ops.selective_scan.xla import chunk_length, selective_scan_xla

__all__ = ["selective_scan_triton", "supports"]

MOST_STATES = 32
MOST_NUMBERS = 2**31
DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)
CHUNK = 32
"""About how many steps lie between stored states: as many a program of the backward kernel lays down."""


def supports(call: ScanCall) -> str | None:
    """Why the kernels do not take a call, or None if they do."""
    if jnp.iscomplexobj(call.A):
        return "A is complex"
    if call.B.ndim == 2 or call.C.ndim == 2:
        return "B or C is fixed over time"
    if call.A.shape[1] > MOST_STATES:
        return f"n = {call.A.shape[1]} states, more than {MOST_STATES}"
    if 0 in call.x.shape or 0 in call.A.shape:
        return "an axis has size 0"
    if not any(map(is_symbolic_dim, call.x.shape)) and math.prod(call.x.shape) >= MOST_NUMBERS:
        return f"x has {MOST_NUMBERS} numbers or more"
    for name in ("x", "dt", "B", "C"):
        if getattr(call, name).dtype not in DTYPES:
            return f"{name} is {getattr(call, name).dtype}"
    if _compat.varies([v for v in call if hasattr(v, "dtype")]):
        return "it is inside a shard_map that checks varying axes (check_vma=False lets kernels in)"
    if importlib.util.find_spec("jax.experimental.pallas.triton") is None:
        return f"jax {jax.__version__} has no Pallas Triton"
    return None


def selective_scan_triton(call: ScanCall):
    """Returns `y` (b l e) in the dtype of `x` and the last state (b e n)."""
    chunk = chunk_length(call.x.shape[1], CHUNK)
    return selective_scan_xla(call, form="triton", chunk=8 * -(-chunk // 8))  # whole eights can be written out
