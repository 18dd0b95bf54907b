"""Attention with one matrix for queries, keys and values, beside the library's with three: values, training, times."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange
from flax import nnx
from jax.nn import initializers

from vlmjax.layers import BlockSize, rope_angles, rotate
from vlmjax.layers.transformer import Attention

__all__ = ["SHAPES", "FusedAttention", "difference", "fused", "times", "train_classifiers"]

SHAPES = {
    "qwen2_vl_2b language model": BlockSize(1536, 12, 8960, kv_heads=2, causal=True, out_bias=False),
    "qwen2_vl_2b tower": BlockSize(1280, 16, 5120),
}
"""Of Qwen2-VL-2B: grouped heads with a causal mask and rotary positions, and the tower's."""

TORCH = initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""PyTorch's default for a linear map, which sees the width before it alone."""

GLOROT = initializers.glorot_uniform()
"""Sees both widths; so it starts a fused matrix, which is wider, with smaller values."""


class FusedAttention(Attention):
    """The library's attention with one matrix for queries, keys and values.

    Args:
        size: The block's size.
        rngs: Source of the initial values.
    """

    def __init__(self, size: BlockSize, *, rngs: nnx.Rngs):
        super().__init__(size, rngs=rngs)
        parts = [self.q, self.k, self.v]
        del self.q, self.k, self.v
        self.fused_qkv = nnx.Linear(
            size.d_model, sum(part.out_features for part in parts), use_bias=size.qkv_bias, dtype=size.dtype, rngs=rngs
        )

    def project(self, x: jax.Array, angles: jax.Array | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries (b l h p), keys and values (b l g p), cut out of one product."""
        p, heads, groups = self.size.head_width, self.size.heads, self.size.groups
        y = rearrange(self.fused_qkv(x), "b l (h p) -> b l h p", p=p)
        q, k, v = y[:, :, :heads], y[:, :, heads : heads + groups], y[:, :, heads + groups :]
        return (q, k, v) if angles is None else (rotate(q, angles), rotate(k, angles), v)


def fused(attention: Attention) -> FusedAttention:
    """The fused form of an attention, with its values."""
    found = FusedAttention(attention.size, rngs=nnx.Rngs(0))
    parts = (attention.q, attention.k, attention.v)
    found.fused_qkv.kernel[...] = jnp.concatenate([part.kernel[...] for part in parts], axis=1)
    if attention.size.qkv_bias:
        found.fused_qkv.bias[...] = jnp.concatenate([part.bias[...] for part in parts])
    found.out = attention.out
    return found


def difference(size: BlockSize, *, tokens: int) -> dict[str, float]:
    """The largest relative difference between the two forms, of the output and of the gradient of the input."""
    separate = Attention(size, rngs=nnx.Rngs(0))
    one = fused(separate)
    x = jax.random.normal(jax.random.key(1), (1, tokens, size.d_model))
    weight = jax.random.normal(jax.random.key(2), x.shape)
    angles = rope_angles(jnp.arange(tokens)[None], size.head_width)

    def value(attention, x):
        y = attention(x, angles=angles)[0]
        return (y * weight).sum(), y

    found = []
    with jax.default_matmul_precision("highest"):
        for attention in (separate, one):
            definition, state = nnx.split(attention)
            run = jax.jit(jax.grad(lambda state, x, d=definition: value(nnx.merge(d, state), x), 1, has_aux=True))
            found.append(run(state, x))
    (g1, y1), (g2, y2) = found
    relative = lambda a, b: float(jnp.abs(a - b).max() / jnp.abs(a).max())  # noqa: E731
    return {"output": relative(y1, y2), "gradient": relative(g1, g2)}


class Classifier(nnx.Module):
    """Rows of pixels, one attention layer, a mean, a linear head.

    Args:
        pixels: The pixels of a token.
        tokens: The tokens of an image.
        width: The width of a token in the attention.
        fuse: Whether queries, keys and values come out of one matrix.
        init: The initial values of the attention's input matrices.
        rngs: Source of the initial values.
    """

    def __init__(self, pixels: int, tokens: int, width: int, *, fuse: bool, init: Any, rngs: nnx.Rngs):
        self.embed = nnx.Linear(pixels, width, kernel_init=TORCH, rngs=rngs)
        self.places = nnx.Param(0.02 * jax.random.normal(rngs.params(), (tokens, width)))
        self.attn = (FusedAttention if fuse else Attention)(BlockSize(width, 4, width), rngs=rngs)
        for part in [self.attn.fused_qkv] if fuse else [self.attn.q, self.attn.k, self.attn.v]:
            part.kernel[...] = init(rngs.params(), part.kernel.shape, jnp.float32)
        self.attn.out.kernel[...] = TORCH(rngs.params(), self.attn.out.kernel.shape, jnp.float32)
        self.head = nnx.Linear(width, 10, kernel_init=TORCH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(b l pixels) to the logits (b 10)."""
        x = self.embed(x) + self.places[...][None]
        return self.head((x + self.attn(x)[0]).mean(1))


def classifier(variant: str, tokens: int, pixels: int, width: int, seed: int) -> Classifier:
    """A fresh classifier of a variant."""
    init = GLOROT if variant.endswith("fan-out") else TORCH
    fuse = variant in ("fused", "fused, fan-out")
    model = Classifier(pixels, tokens, width, fuse=fuse, init=init, rngs=nnx.Rngs(seed + 1000 * fuse))
    if variant.startswith("fused, separate"):
        model.attn = fused(model.attn)
    return model


def train_classifiers(variant: str, seeds: Sequence[int], rates: Sequence[float], train, test, config, size):
    """Adam for some epochs, all seeds at all rates at once: for each rate the seeds' test accuracies, in percent."""
    images, labels = train
    models = [nnx.split(classifier(variant, *images.shape[1:], config.width, seed)) for _ in rates for seed in seeds]
    definition = models[0][0]
    state = jax.tree.map(lambda *x: jnp.stack(x), *(state for _, state in models))
    each_rate = jnp.repeat(jnp.asarray(rates), len(seeds))
    each_seed = jnp.tile(jnp.asarray(seeds), len(rates))
    steps = len(images) // size["batch"]
    adam = optax.scale_by_adam()

    def one(state, moments, rate, rows, images, labels):
        def loss(state):
            logits = nnx.merge(definition, state)(images[rows])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()

        grads = jax.grad(loss)(state)
        updates, moments = adam.update(grads, moments)
        return jax.tree.map(lambda p, u: p - rate * u, state, updates), moments

    @jax.jit
    def epoch(state, moments, images, labels, number):
        keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), number))(each_seed)
        order = jax.vmap(lambda key: jax.random.permutation(key, len(images))[: steps * size["batch"]])(keys)
        order = rearrange(order, "r (s b) -> s r b", s=steps)

        def step(carry, rows):
            return jax.vmap(one, in_axes=(0, 0, 0, 0, None, None))(*carry, each_rate, rows, images, labels), None

        return jax.lax.scan(step, (state, moments), order)[0]

    @jax.jit
    def right(state, images, labels):
        def of_one(state):
            parts = images.reshape(-1, len(images) // 4, *images.shape[1:])
            logits = jax.lax.map(nnx.merge(definition, state), parts)
            return (logits.reshape(len(images), -1).argmax(-1) == labels).mean()

        return jax.lax.map(of_one, state)

    moments = jax.vmap(adam.init)(state)
    for number in range(size["epochs"]):
        state, moments = epoch(state, moments, images, labels, number)
    accuracy = 100 * np.asarray(right(state, *test), np.float64).reshape(len(rates), len(seeds))
    return dict(zip(rates, accuracy, strict=True))


def times(widths: Sequence[int], tokens: Sequence[int], layers: int) -> list[dict[str, Any]]:
    """Milliseconds a layer of both forms, forward and with the backward pass, heads of 64 channels, batch 1.

    The forms take turns, and `ratio` is the median over the rounds of separate's time over fused's, so that what else
    the machine does falls on both; `spread` is half the range of the middle half of the rounds.
    """
    dtype = "bfloat16" if jax.default_backend() != "cpu" else "float32"
    rows = []
    for width in widths:
        size = BlockSize(width, max(1, width // 64), width, causal=True, dtype=dtype)
        for length in tokens:
            row: dict[str, Any] = {"width": width, "tokens": length, "dtype": dtype}
            separate, one = (_layer_runs(kind, size, length, layers) for kind in (Attention, FusedAttention))
            for part in separate:
                found = _taking_turns(separate[part], one[part]) * 1e3 / layers
                ratios = found[:, 0] / found[:, 1]
                row[f"separate_{part}"], row[f"fused_{part}"] = np.median(found, axis=0).tolist()
                row[f"ratio_{part}"] = float(np.median(ratios))
                row[f"spread_{part}"] = float(np.subtract(*np.percentile(ratios, [75, 25])) / 2)
            rows.append(row)
            print(row, flush=True)
    return rows


def _layer_runs(kind: type, size: BlockSize, length: int, layers: int) -> dict[str, Callable]:
    """Compiled calls without arguments of a stack of layers: forward, and forward with backward."""
    modules = [nnx.split(kind(size, rngs=nnx.Rngs(i))) for i in range(layers)]
    definition, states = modules[0][0], [state for _, state in modules]
    states = jax.tree.map(lambda x: x.astype(size.dtype), states)
    x = jax.random.normal(jax.random.key(0), (1, length, size.d_model), jnp.dtype(size.dtype))

    def forward(states, x):
        for state in states:
            x = x + nnx.merge(definition, state)(x)[0]
        return x

    both = jax.jit(jax.grad(lambda states, x: forward(states, x).astype(jnp.float32).sum()))
    runs = {"forward": jax.jit(forward), "train": both}
    return {name: functools.partial(run, states, x) for name, run in runs.items()}


def _taking_turns(*runs: Callable, rounds: int = 15) -> np.ndarray:
    """Seconds of a call of each: (rounds, runs), each round the mean of as many calls as take about 20 ms."""
    for run in runs:
        jax.block_until_ready(run())
    begin = time.perf_counter()
    jax.block_until_ready(runs[0]())
    count = max(1, min(100, int(0.02 / max(1e-6, time.perf_counter() - begin))))
    found = np.zeros((rounds, len(runs)))
    for i in range(rounds):
        for j, run in enumerate(runs):
            begin = time.perf_counter()
            for _ in range(count):
                y = run()
            jax.block_until_ready(y)
            found[i, j] = (time.perf_counter() - begin) / count
    return found
