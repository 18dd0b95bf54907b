"""Selective copying: sixteen tokens among noise, at random places, are to be given back in their order.

The claim: what a state keeps must depend on what it reads. Mamba learns the task, S4D, whose state forgets at fixed
rates, does not (Gu & Dao 2023, arXiv:2312.00752, section 4.1.1 and table 1; published at length 4,096 after 400,000
steps: S4 18.3 %, Mamba 99.8 %).

Recipe (device, minutes a seed, expected accuracy):
    python -m experiments.mamba_selective_copying                    one H100, about 6, Mamba 99 % or more
    python -m experiments.mamba_selective_copying --length 4096 --models mamba --batch-size 16      about 10
    python -m experiments.mamba_selective_copying --smoke

Trained at one length and evaluated at that and longer ones. Published: 400,000 steps of 64 sequences; here 20,000.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from experiments.shared import common, language, parts

NAME, VOCAB, COPIED = "mamba_selective_copying", 16, 16
NOISE, MARK = 0, 1


@dataclasses.dataclass(frozen=True)
class Config(language.Config):
    """Every field is a flag."""

    models: tuple[str, ...] = ("mamba", "mamba2", "s4d", "transformer")
    length: int = 256
    """Tokens before the answer: the sixteen, and noise."""


def draw(key: jax.Array, batch: int, length: int) -> dict[str, jax.Array]:
    """Sequences (b length+16), whose last sixteen places ask for the answer."""
    which, what = jax.random.split(key)
    scores = jax.random.uniform(which, (batch, length))
    chosen = jax.lax.top_k(scores, COPIED)[1].sort(axis=1)  # the places, in order
    values = jax.random.randint(what, (batch, COPIED), 2, VOCAB)
    here = chosen[..., None] == jnp.arange(length)[None, None]
    tokens = NOISE + (here * values[..., None]).sum(1)
    tokens = jnp.concatenate([tokens, jnp.full((batch, COPIED), MARK)], axis=1)
    return {"tokens": tokens, "labels": language.to_labels(tokens, values, slice(length, length + COPIED))}


def main(config: Config = Config()) -> dict[str, Any]:
    """Trains and evaluates; writes the results file and the figure."""
    length = 48 if config.smoke else config.length
    task = functools.partial(draw, length=length)
    sequences, batch = (8, 4) if config.smoke else (1024, 16)
    lengths = [length << k for k in range(2 if config.smoke else 5)]

    def work(kind: str, seed: int, part: parts.Part) -> dict[str, Any]:
        model, run = language.train(language.make_model(kind, config, VOCAB, seed), task, config, seed, part)
        tasks = {n: functools.partial(draw, length=n) for n in lengths}
        found = {f"{kind}_{n}": language.accuracy(model, tasks[n], sequences=sequences, batch=batch) for n in lengths}
        return run | {"metrics": found}

    runs, rest = parts.run_parts(NAME, config, config.models, work)
    plot = {
        "series": {kind: {n: f"{kind}_{n}" for n in lengths} for kind in config.models},
        "x": "length",
        "y": "tokens copied, %",
        "title": f"selective copying, trained at length {length}",
        "log": True,
        "marks": {length: "trained"},
    }
    name = NAME if length in (48, 256) else f"{NAME}_{length}"
    return language.finish(name, config, runs, {"name": name, "sample": language.sample_of(task)}, plot, parts=rest)


if __name__ == "__main__":
    common.run_cli(main, Config)
