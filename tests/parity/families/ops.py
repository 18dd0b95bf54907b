"""Bundles of op cases. The originals put time last: u (b e l), B (b n l), weights (e k); a state is (b e n) on both
sides.

Gradients of complex arrays are stored as torch has them, the conjugate of what `jax.grad` returns.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat

import ssmjax.ops
from tests.parity.harness import Dump, bundle

Arrays = Mapping[str, jax.Array]


def outputs_and_grads(loss: Callable[[Arrays], tuple[jax.Array, Arrays]], inputs: Arrays) -> tuple[Arrays, Arrays]:
    """Outputs, which `loss` returns beside its value, and gradients by input, complex ones conjugated as in torch."""
    gradients, outputs = jax.grad(loss, has_aux=True)(dict(inputs))
    return outputs, {name: jnp.conj(g) if jnp.iscomplexobj(g) else g for name, g in gradients.items()}


def results(outputs: Mapping[str, jax.Array], gradients: Arrays) -> dict[str, np.ndarray]:
    """Names as in the dumps."""
    named = {f"out/{name}": x for name, x in outputs.items()} | {f"grad/{name}": x for name, x in gradients.items()}
    return {name: np.asarray(x) for name, x in named.items()}


# ---------------------------------------------------------------------------------------------------- selective_scan


@bundle(
    "selective_scan",
    required=("u", "delta", "A", "B", "C", "g_out", "g_state", "meta/softplus"),
    optional=("D", "z", "delta_bias"),
)
def selective_scan(case: Dump) -> dict[str, np.ndarray]:
    inputs = case.section("in/")
    cotangents = inputs.pop("g_out"), inputs.pop("g_state")
    return results(*_scan_and_grads(inputs, cotangents, bool(case.arrays["meta/softplus"])))


@functools.partial(jax.jit, static_argnames="softplus")
def _scan_and_grads(inputs: Arrays, cotangents: tuple[jax.Array, jax.Array], softplus: bool) -> tuple[Arrays, Arrays]:
    def loss(inputs: Arrays) -> tuple[jax.Array, Arrays]:
        y, state = _scan(inputs, softplus)
        return jnp.sum(y * cotangents[0]) + jnp.sum(jnp.real(state * cotangents[1])), {"y": y, "state": state}

    return outputs_and_grads(loss, inputs)


def _scan(inputs: Arrays, softplus: bool) -> tuple[jax.Array, jax.Array]:
    """Our op with the original's layouts, y (b e l) and the last state (b e n)."""

    def time_second(x: jax.Array | None) -> jax.Array | None:
        return None if x is None else rearrange(x, "b e l -> b l e")

    def per_step(x: jax.Array) -> jax.Array:
        if x.ndim == 2:  # fixed, (e n)
            return x
        if jnp.iscomplexobj(inputs["A"]):  # real and imaginary parts take turns along the time axis
            x = rearrange(x, "... (l two) -> ... l two", two=2)
            x = jax.lax.complex(x[..., 0], x[..., 1])
        return rearrange(x, "b n l -> b l n") if x.ndim == 3 else rearrange(x, "b g n l -> b l g n")

    y, state = ssmjax.ops.selective_scan(
        time_second(inputs["u"]),
        time_second(inputs["delta"]),
        inputs["A"],
        per_step(inputs["B"]),
        per_step(inputs["C"]),
        D=inputs.get("D"),
        z=time_second(inputs.get("z")),
        dt_bias=inputs.get("delta_bias"),
        dt_softplus=softplus,
        return_state=True,
    )
    return rearrange(y, "b l e -> b e l"), state


# ----------------------------------------------------------------------------------------------------- causal_conv1d


@bundle("causal_conv1d", required=("x", "w", "gy", "meta/silu"), optional=("b", "init", "gf"))
def causal_conv1d(case: Dump) -> dict[str, np.ndarray]:
    inputs = case.section("in/")
    gy = inputs.pop("gy")
    return results(*_conv_and_grads(inputs, gy, inputs.pop("gf", None), bool(case.arrays["meta/silu"])))


@functools.partial(jax.jit, static_argnames="silu")
def _conv_and_grads(inputs: Arrays, gy: jax.Array, gf: jax.Array | None, silu: bool) -> tuple[Arrays, Arrays]:
    def loss(inputs: Arrays) -> tuple[jax.Array, Arrays]:
        y, final = _conv(inputs, silu)
        return jnp.sum(y * gy) + (0.0 if gf is None else jnp.sum(final * gf)), {"y": y, "final": final}

    return outputs_and_grads(loss, inputs)


def _conv(inputs: Arrays, silu: bool) -> tuple[jax.Array, jax.Array]:
    """Our op with the original's layouts: y (b e l) and the last k - 1 inputs (b e k-1)."""
    initial = inputs.get("init")
    y, final = ssmjax.ops.causal_conv1d(
        rearrange(inputs["x"], "b e l -> b l e"),
        rearrange(inputs["w"], "e k -> k e"),
        inputs.get("b"),
        activation="silu" if silu else None,
        state=None if initial is None else rearrange(initial, "b e k -> b k e"),
        return_state=True,
    )
    return rearrange(y, "b l e -> b e l"), rearrange(final, "b k e -> b e k")


_jitted_conv = jax.jit(_conv, static_argnames="silu")


# ---------------------------------------------------------------------------------------------- causal_conv1d_update


@bundle("causal_conv1d_update", required=("x", "state", "w", "meta/silu"), optional=("b", "cache_seqlens"))
def causal_conv1d_update(case: Dump) -> dict[str, np.ndarray]:
    """A few steps with a buffer that is longer than the k - 1 inputs our state holds.

    With `cache_seqlens` the buffer is a ring, whose next place to write is that number modulo its length. It is put in
    order of time, our op runs from its last k - 1 entries, and the state that our op returns is written back as the
    newest entries.
    """
    inputs = case.section("in/")
    buffer, x, weight = inputs["state"], inputs["x"], inputs["w"]
    taps, length, steps = weight.shape[1], buffer.shape[2], x.shape[2]
    written = inputs.get("cache_seqlens", np.zeros(len(x), np.int32))
    oldest_first = (written[:, None] + np.arange(length)) % length
    if "cache_seqlens" in inputs:
        buffer = np.take_along_axis(buffer, repeat(oldest_first, "b s -> b 1 s"), axis=2)
    start = buffer[:, :, length - (taps - 1) :]
    conv_inputs = {"x": x, "w": weight, "init": start} | ({"b": inputs["b"]} if "b" in inputs else {})
    y, final = _jitted_conv(conv_inputs, silu=bool(case.arrays["meta/silu"]))
    buffer = np.concatenate([buffer, x], axis=2)[:, :, -length:]
    buffer[:, :, length - (taps - 1) :] = final
    if "cache_seqlens" in inputs:  # the newest entry goes to the place before the next one to write
        places = (oldest_first + steps) % length
        ring = np.empty_like(buffer)
        np.put_along_axis(ring, np.broadcast_to(places[:, None], ring.shape), buffer, axis=2)
        buffer = ring
    return results({"y": y, "state": buffer}, {})
