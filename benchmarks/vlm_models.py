"""Vision-language models of published shapes with random weights, as they run fastest, for what measures them."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import vlmjax
from benchmarks.timing import SAMPLE_MS, back_to_back, bandwidth, in_loop, runs_a_sample, time_in_turns
from vlmjax.models import for_inference
from vlmjax.processing import PackedPatches, pack_patches

__all__ = ["copy_rate", "function_of", "matmul_rate", "milliseconds", "random_model", "random_patches"]

_SHORT_MS = 0.5


def random_model(name: str, dtype: str, **overrides: Any) -> nnx.Module:
    """A model whose every parameter is random and of one dtype, taken apart by `for_inference`.

    No float32 copy of it is ever made, so that a model of 7 billion parameters fits where its weights do.

    Args:
        name: A registered model, such as `"llava_1_5_7b"`.
        dtype: The dtype of parameters and computation.
        **overrides: Further fields of its configuration; dictionaries for nested ones.

    >>> random_model("llava_nano", "float32", text={"depth": 1}).language.config.depth
    1
    """
    nested = {part: {"dtype": dtype, **overrides.pop(part, {})} for part in ("vision", "text")}
    model = nnx.eval_shape(lambda: for_inference(vlmjax.create_model(name, **nested, **overrides), dtype))
    definition, state = nnx.split(model)
    leaves, tree = jax.tree.flatten_with_path(state)
    drawn = []
    for i, (path, x) in enumerate(leaves):
        drawn.append(_draw(jax.random.key(i), x.shape, x.dtype, "scale" in jax.tree_util.keystr(path)))
    return nnx.merge(definition, jax.tree.unflatten(tree, drawn))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _draw(key, shape, dtype, norm):
    """Ones for the scale of a norm; else normal by fan-in, or small where there is one axis."""
    if norm:
        return jnp.ones(shape, dtype)
    spread = 0.02 if len(shape) < 2 else shape[-2] ** -0.5
    return (jax.random.normal(key, shape, jnp.bfloat16) * spread).astype(dtype)


def random_patches(size: int, batch: int = 1, *, patch_size: int = 14, width: int = 1176) -> PackedPatches:
    """Square images of noise as Qwen2-VL reads them, without any padding.

    >>> random_patches(56).patches.shape
    (1, 16, 1176)
    """
    side = size // patch_size
    rng = np.random.default_rng(0)
    one = (rng.standard_normal((side * side, width), np.float32), (1, side, side))
    return pack_patches([one] * batch, length=-1)


def function_of(module: nnx.Module, call: Callable[..., Any]) -> tuple[Callable[..., Any], Any]:
    """`call(module, *args)` as a function of the module's parameters and of arrays, and those parameters."""
    definition, state = nnx.split(module)
    return lambda state, *args: call(nnx.merge(definition, state), *args), state


def milliseconds(function: Callable[..., Any], args: tuple, rounds: int, clock: str = "wall") -> float:
    """The time of a compiled function.

    On an accelerator a sample is many runs: of a short function in one program, without launching; of a longer one
    launched back to back.

    Args:
        function: A function of arrays.
        args: Its arrays.
        rounds: Samples.
        clock: "wall", of which the median counts; or "processor", the time that the CPU spends on this process in all
            of its threads, of which the least counts: on a machine that others use, too, it is what the work takes.
    """
    compiled = jax.jit(function).lower(*args).compile()
    if clock == "processor":
        times = []
        for _ in range(rounds + 1):
            begin = time.process_time()
            jax.block_until_ready(compiled(*args))
            times.append(1e3 * (time.process_time() - begin))
        return min(times[1:])
    runs = runs_a_sample(compiled, args)
    if runs == 1:
        call = compiled
    else:
        call = in_loop(function, args, runs) if SAMPLE_MS / runs < _SHORT_MS else back_to_back(compiled, runs)
    return time_in_turns({"": call}, args, rounds, {"": runs})[""].median


def matmul_rate(dtype: str, sizes: tuple[int, ...] = (4096, 8192), clock: str = "wall") -> float:
    """The best rate, in FLOP/s, of products of random square matrices in a dtype on this device, in this run."""
    best = 0.0
    for size in sizes:
        a = jax.random.normal(jax.random.key(size), (size, size), dtype)  # a GPU's clock falls with what flips its bits
        best = max(best, 2 * size**3 / (1e-3 * milliseconds(lambda a, b: a @ b, (a, a), 5, clock)))
    return best


def copy_rate(clock: str = "wall") -> float:
    """Bytes per second of a large copy, read and write counted."""
    if clock == "processor":
        v = jnp.ones((2**26,), jnp.float32)
        return 2 * v.nbytes / (1e-3 * milliseconds(lambda v: v + 1, (v,), 5, clock))
    return bandwidth(1024 if jax.default_backend() != "cpu" else 256)
