"""Induction heads: a token that once followed a special one is asked for when that one returns, far later.

The claim: a Mamba of two layers that is trained at length 256 answers at lengths up to 2^20, which it reads in pieces
with its state carried (Gu & Dao 2023, arXiv:2312.00752, section 4.1.2 and table 11; published: 100 % at all of them).

Recipe (device, minutes a seed, expected accuracy):
    python -m experiments.mamba_induction_heads       one H200, 1.5, 100 % at 256 and 4,096
    python -m experiments.mamba_induction_heads --smoke

The paper's task: 16 tokens, of which one is special; it stands once at a random place, is followed by the token to be
remembered, and stands again at the end. Published: 204,800 steps of 8 sequences at a rate that stays; here 20,000 of 64
at one that falls to nothing, which answers all lengths up to 4,096 and 34 % at 2^20 (one seed): what each of a million
tokens leaves in the state must be less than the loss at length 256 can tell. Nearer to what is published, and not yet
run: `--steps 50000 --batch-size 32 --end 1e-3`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.shared import common, language, parts

NAME, VOCAB, TRAINED = "mamba_induction_heads", 16, 256


@dataclasses.dataclass(frozen=True)
class Config(language.Config):
    """Every field is a flag."""

    models: tuple[str, ...] = ("mamba", "transformer")
    lengths: tuple[int, ...] = tuple(2**k for k in range(6, 21, 2))
    """Where to evaluate; a transformer is evaluated up to 2^12."""
    sequences: int = 128
    """How many sequences of each length."""


def draw(key: jax.Array, batch: int, length: int = TRAINED) -> dict[str, jax.Array]:
    """Sequences (b length), and a label at the last place."""
    keys = jax.random.split(key, 3)
    special = VOCAB - 1
    tokens = jax.random.randint(keys[0], (batch, length), 0, special)
    place = jax.random.randint(keys[1], (batch, 1), 0, length - 3)
    answer = jax.random.randint(keys[2], (batch, 1), 0, special)
    where = jnp.arange(length)[None]
    tokens = jnp.where(where == place, special, jnp.where(where == place + 1, answer, tokens))
    tokens = jnp.where(where == length - 1, special, tokens)
    return {"tokens": tokens, "labels": language.to_labels(tokens, answer, slice(length - 1, length))}


def recall(model: Any, length: int, sequences: int) -> float:
    """The share (%) of sequences of a length that are answered, read in pieces of at most 4,096 tokens."""
    definition, state = nnx.split(model)
    batch = max(1, min(sequences, 2**22 // length))

    @jax.jit
    def right(state, key):
        drawn, model = draw(key, batch, length), nnx.merge(definition, state)
        logits, _ = model.prefill(drawn["tokens"], model.init_cache(batch, length))
        return (logits.argmax(-1) == drawn["labels"][:, -1]).mean()

    keys = jax.random.split(jax.random.key(10**6), -(-sequences // batch))
    return 100 * float(np.mean([right(state, key) for key in keys]))


def main(config: Config = Config()) -> dict[str, Any]:
    """Trains and evaluates; writes the results file and the figure."""
    lengths = (64, 300) if config.smoke else config.lengths
    places = {kind: [n for n in lengths if kind != "transformer" or n <= 2**12] for kind in config.models}

    def work(kind: str, seed: int, part: parts.Part) -> dict[str, Any]:
        model, run = language.train(language.make_model(kind, config, VOCAB, seed), draw, config, seed, part)
        sequences = 4 if config.smoke else config.sequences
        return run | {"metrics": {f"{kind}_{n}": recall(model, n, sequences) for n in places[kind]}}

    runs, rest = parts.run_parts(NAME, config, config.models, work)
    plot = {
        "series": {kind: {n: f"{kind}_{n}" for n in places[kind]} for kind in config.models},
        "x": "length",
        "y": "sequences answered, %",
        "title": "induction heads, trained at 256",
        "log": True,
        "marks": {TRAINED: "trained"},
    }
    return language.finish(NAME, config, runs, {"name": NAME, "sample": language.sample_of(draw)}, plot, parts=rest)


if __name__ == "__main__":
    common.run_cli(main, Config)
