"""State tracking: the parity of bits, or a sum modulo a number, after every token, far beyond the trained length.

The claim: a state that only decays cannot count, one that turns can. Trained at lengths up to 40, Mamba-3, whose state
turns by angles that depend on the data, tells the parity at lengths 41 to 256; Mamba and Mamba-2 guess (Mamba-3,
arXiv:2603.15569, table 4; published after length 256: parity Mamba-3 100 %, Mamba-2 0.9 %, scaled to chance).

Recipe (device, minutes a seed, expected accuracy at lengths 41 to 256):
    python -m experiments.mamba_state_tracking               one H200, about 6, Mamba-3 >= 99 %, Mamba-2 <= 55 %
    python -m experiments.mamba_state_tracking --modulus 5   the same for sums modulo 5
    python -m experiments.mamba_state_tracking --smoke
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.shared import common, language, parts

NAME, TRAINED, LONGEST = "mamba_state_tracking", 40, 256
RANGES = ((1, 40), (41, 80), (81, 128), (129, 192), (193, 256), (41, 256))
STEPS = {"dt_min": 0.1, "dt_max": 1.0}
MIXERS = {"mamba": STEPS, "mamba2": STEPS, "mamba3": STEPS | {"norm": True}}
"""A state turns by at most pi times its step size, so that parity needs steps of 1 or more: they start near it, in all
three models alike. From the usual 0.001 to 0.1 Mamba-3 learns lengths up to 40 in part only. Its heads are normalized
before their gates, so that a sum that decays keeps its sign and its size does not matter."""


@dataclasses.dataclass(frozen=True)
class Config(language.Config):
    """Every field is a flag."""

    models: tuple[str, ...] = ("mamba", "mamba2", "mamba3")
    modulus: int = 2
    """2 is parity."""
    steps: int = 10000
    batch_size: int = 256
    depth: int = 1
    weight_decay: float = 0.01


def draw(key: jax.Array, batch: int, modulus: int, length: int = TRAINED) -> dict[str, jax.Array]:
    """Digits (b length+1) after a token that begins them, and at each digit the sum so far."""
    digits = jax.random.randint(key, (batch, length), 0, modulus)
    tokens = jnp.pad(digits, ((0, 0), (1, 0)), constant_values=modulus)
    sums = jnp.cumsum(digits, axis=1) % modulus
    return {"tokens": tokens, "labels": language.to_labels(tokens, sums, slice(1, length + 1))}


def by_length(model: Any, config: Config, sequences: int) -> np.ndarray:
    """The share (%) of right answers at each length from 1 to 256."""
    definition, state = nnx.split(model)

    @jax.jit
    def right(state, key):
        drawn = draw(key, sequences, config.modulus, LONGEST)
        return (nnx.merge(definition, state)(drawn["tokens"]).argmax(-1) == drawn["labels"])[:, 1:].mean(0)

    return 100 * np.asarray(right(state, jax.random.key(10**6)))


def main(config: Config = Config()) -> dict[str, Any]:
    """Trains and evaluates; writes the results file and the figure."""
    task = functools.partial(draw, modulus=config.modulus)

    def work(kind: str, seed: int, part: parts.Part) -> dict[str, Any]:
        model = language.make_model(kind, config, config.modulus + 1, seed, mixer_options=MIXERS.get(kind, {}))
        model, run = language.train(model, task, config, seed, part)
        found = by_length(model, config, 8 if config.smoke else 1024)
        metrics = {f"{kind}_{a}_{b}": float(found[a - 1 : b].mean()) for a, b in RANGES}
        return run | {"metrics": metrics, "by_length": [round(float(x), 2) for x in found]}

    runs, rest = parts.run_parts(NAME, config, config.models, work)
    plot = {
        "series": {kind: {(a + b) // 2: f"{kind}_{a}_{b}" for a, b in RANGES[:-1]} for kind in config.models},
        "x": "length (middle of a range)",
        "y": "right answers, %",
        "title": ("parity" if config.modulus == 2 else f"sums modulo {config.modulus}") + ", trained up to 40",
        "marks": {TRAINED: "longest trained"},
    }
    name = NAME if config.modulus == 2 else f"{NAME}_{config.modulus}"
    data = {"name": name, "sample": language.sample_of(task)}
    return language.finish(name, config, runs, data, plot, parts=rest)


if __name__ == "__main__":
    common.run_cli(main, Config)
