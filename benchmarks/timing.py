"""Timing: compiled functions of arrays, in turns; median, spread and minimum."""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

__all__ = ["Compiled", "Times", "bandwidth", "compile_all", "time_in_turns"]


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


def time_in_turns(calls: Mapping[str, Callable], args: tuple, rounds: int) -> dict[str, Times]:
    """Times each call.

    The calls take turns, so that a disturbance of the machine meets all of them, in an order drawn for each round, so
    that none always follows one that empties the caches. The first round does not count.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in random.sample(list(calls.items()), len(calls)):
            start = time.perf_counter()
            jax.block_until_ready(call(*args))
            if turn:
                times[name].append(1e3 * (time.perf_counter() - start))
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
