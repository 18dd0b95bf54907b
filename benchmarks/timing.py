"""Timing: compiled functions of arrays, in turns; median, spread and minimum.

An accelerator runs a short function in less time than it takes to launch it from Python. There a sample is many runs:
in one compiled loop (`in_loop`), or, of what is no JAX function, launched back to back (`back_to_back`).
"""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

__all__ = ["Compiled", "Times", "back_to_back", "bandwidth", "compile_all", "in_loop", "runs_a_sample", "time_in_turns"]

SAMPLE_MS = 20.0
"""How long a sample on an accelerator lasts, at least."""

MOST_RUNS = 1000


class Compiled(NamedTuple):
    """A compiled function and the bytes of its temporary buffers."""

    call: Callable[..., Any]
    temp_bytes: int


class Times(NamedTuple):
    """Milliseconds of repeated runs: the median, the interquartile range over the median, and the least."""

    median: float
    spread: float
    least: float


def compile_all(functions: Mapping[str, Callable], args: tuple) -> dict[str, Compiled]:
    """Compiles each function for `args`, which enter as arguments, never as constants."""
    compiled = {}
    for name, function in functions.items():
        call = jax.jit(function).lower(*args).compile()
        compiled[name] = Compiled(call, int(call.memory_analysis().temp_size_in_bytes))
    return compiled


def in_loop(function: Callable, args: tuple, runs: int) -> Callable[..., jax.Array]:
    """Compiles one program that runs a function `runs` times on the same arrays.

    Args:
        function: A function of arrays.
        args: Its arrays, arguments of the program.
        runs: How often it is run.

    Returns:
        The program, a function of the arrays; what it returns depends on every run.
    """

    def program(*args):
        def once(_, total):
            # The barriers make each run's inputs depend on the run before, and keep all of its outputs: the compiler
            # can neither take the function out of the loop nor leave a part of it out.
            held, total = jax.lax.optimization_barrier((args, total))
            outputs = jax.lax.optimization_barrier(function(*held))
            first = jax.tree.leaves(outputs)[0]
            return total + jnp.real(first[(0,) * first.ndim]).astype(jnp.float32)

        return jax.lax.fori_loop(0, runs, once, jnp.zeros((), jnp.float32))

    return jax.jit(program).lower(*args).compile()


def back_to_back(call: Callable, runs: int) -> Callable[..., Any]:
    """A function that launches another `runs` times without waiting for it, and returns the last result."""

    def many(*args):
        for _ in range(runs - 1):
            call(*args)
        return call(*args)

    return many


def runs_a_sample(call: Callable, args: tuple) -> int:
    """How often a call is to run in a sample: once on a CPU, and elsewhere for `SAMPLE_MS` at least."""
    if jax.default_backend() == "cpu":
        return 1
    jax.block_until_ready(call(*args))
    start = time.perf_counter()
    jax.block_until_ready(back_to_back(call, 10)(*args))
    each = 1e3 * (time.perf_counter() - start) / 10
    return max(1, min(MOST_RUNS, round(SAMPLE_MS / each)))


def time_in_turns(
    calls: Mapping[str, Callable], args: tuple, rounds: int, runs: Mapping[str, int] = {}
) -> dict[str, Times]:
    """Times each call.

    The calls take turns, so that a disturbance of the machine meets all of them, in an order drawn for each round, so
    that none always follows one that empties the caches. The first round does not count.

    Args:
        calls: By name.
        args: The arguments of all of them.
        rounds: How many samples are taken.
        runs: How many runs of its function a call makes, by name, if it makes several.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in random.sample(list(calls.items()), len(calls)):
            start = time.perf_counter()
            jax.block_until_ready(call(*args))
            if turn:
                times[name].append(1e3 * (time.perf_counter() - start) / runs.get(name, 1))
    return {name: _summary(samples) for name, samples in times.items()}


def _summary(samples: list[float]) -> Times:
    median = statistics.median(samples)
    low, _, high = statistics.quantiles([*samples, median], n=4, method="inclusive")
    return Times(median, (high - low) / median, min(samples))


def bandwidth(megabytes: int = 256) -> float:
    """Bytes per second of a large copy on the default device, read and write counted."""
    v = jnp.ones((megabytes * 2**18,), jnp.float32)
    copy = jax.jit(lambda v: v + 1).lower(v).compile()
    return 2 * v.nbytes / (1e-3 * time_in_turns({"copy": copy}, (v,), 5)["copy"].least)
