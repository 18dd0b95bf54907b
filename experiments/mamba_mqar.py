"""Associative recall: many pairs of keys and values, then keys again, each of which asks for its value.

The claim: how much a state can recall grows with its size. Accuracy against width, for Mamba, Mamba-2, Mamba-3 and
attention (Dao & Gu 2024, arXiv:2405.21060, section 9.1 and figure 8; the task of Arora et al. 2023, arXiv:2312.04927).

Recipe (device, minutes a seed, expected accuracy):
    python -m experiments.mamba_mqar            one H200, about 15, Mamba-2 above Mamba at each width
    python -m experiments.mamba_mqar --smoke
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from experiments.shared import common, language, parts

NAME, VOCAB = "mamba_mqar", 1024


@dataclasses.dataclass(frozen=True)
class Config(language.Config):
    """Every field is a flag."""

    widths: tuple[int, ...] = (32, 64, 128)
    pairs: int = 32
    length: int = 256
    steps: int = 8000
    batch_size: int = 128


def draw(key: jax.Array, batch: int, pairs: int, length: int) -> dict[str, jax.Array]:
    """Pairs first, then the keys in another order at random places of the rest; 0 fills it."""
    keys = jax.random.split(key, 4)
    half = VOCAB // 2
    names = jax.vmap(lambda k: jax.random.permutation(k, half - 1)[:pairs] + 1)(jax.random.split(keys[0], batch))
    values = jax.random.randint(keys[1], (batch, pairs), half, VOCAB)
    head = jnp.stack([names, values], axis=2).reshape(batch, 2 * pairs)
    rest = length - 2 * pairs
    where = jax.lax.top_k(jax.random.uniform(keys[2], (batch, rest)), pairs)[1]  # one place for each key
    here = where[..., None] == jnp.arange(rest)[None, None]
    asked, answers = ((here * v[..., None]).sum(1) for v in (names, values))
    tokens = jnp.concatenate([head, asked], axis=1)
    labels = jnp.concatenate([jnp.full(head.shape, -100), jnp.where(here.any(1), answers, -100)], axis=1)
    return {"tokens": tokens, "labels": labels.astype(jnp.int32)}


def main(config: Config = Config()) -> dict[str, Any]:
    """Trains and evaluates; writes the results file and the figure."""
    widths = (32,) if config.smoke else config.widths
    pairs, length = (4, 24) if config.smoke else (config.pairs, config.length)
    task = functools.partial(draw, pairs=pairs, length=length)
    sequences, batch = (8, 4) if config.smoke else (1024, 128)

    def work(which: str, seed: int, part: parts.Part) -> dict[str, Any]:
        kind, width = which.split("_")
        own = dataclasses.replace(config, d_model=int(width))
        model, run = language.train(language.make_model(kind, own, VOCAB, seed), task, config, seed, part)
        return run | {"metrics": {which: language.accuracy(model, task, sequences=sequences, batch=batch)}}

    runs, rest = parts.run_parts(NAME, config, [f"{kind}_{width}" for width in widths for kind in config.models], work)
    plot = {
        "series": {kind: {width: f"{kind}_{width}" for width in widths} for kind in config.models},
        "x": "width",
        "y": "values recalled, %",
        "title": f"associative recall, {pairs} pairs, length {length}",
        "log": True,
    }
    return language.finish(NAME, config, runs, {"name": NAME, "sample": language.sample_of(task)}, plot, parts=rest)


if __name__ == "__main__":
    common.run_cli(main, Config)
