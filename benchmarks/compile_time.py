"""Compile time of one training step against the depth of the model: `python -m benchmarks.compile_time`.

The blocks of a model are one `lax.scan`, so that the compiler sees one of them whatever the depth. Each depth is
traced, lowered and compiled anew in every round, with no compilation cache; the medians and their ratio are printed.
"""

import dataclasses
import statistics
import time

import jax
import numpy as np
import tyro

import ssmjax
from ssmjax.training.losses import softmax_cross_entropy
from ssmjax.training.optim import adamw
from ssmjax.training.state import commit, split_model
from ssmjax.training.step import init_state, make_step

__all__ = ["Config", "main"]


@dataclasses.dataclass(frozen=True)
class Config:
    """What to compile.

    Attributes:
        model: A registered image classifier.
        depths: Numbers of layers; the ratio is that of the last to the first.
        img_size: The side of the images.
        batch: Images a step.
        rounds: Compilations of each depth.
    """

    model: str = "vim_tiny"
    depths: tuple[int, ...] = (4, 24)
    img_size: int = 64
    batch: int = 2
    rounds: int = 3


def main(config: Config) -> float:
    """Prints the seconds of each depth, and returns the ratio of the last to the first."""
    jax.config.update("jax_enable_compilation_cache", False)
    seconds = {depth: [] for depth in config.depths}
    for _ in range(config.rounds):
        for depth in config.depths:
            seconds[depth].append(_seconds(config, depth))
    medians = {depth: statistics.median(times) for depth, times in seconds.items()}
    for depth, median in medians.items():
        spread = max(seconds[depth]) - min(seconds[depth])
        print(f"{config.model}, {depth:2d} layers: {median:6.2f} s to trace, lower and compile (range {spread:.2f} s)")
    ratio = medians[config.depths[-1]] / medians[config.depths[0]]
    print(f"ratio {ratio:.2f} on {jax.devices()[0].device_kind}")
    return ratio


def _seconds(config: Config, depth: int) -> float:
    model = ssmjax.create_model(config.model, img_size=config.img_size, depth=depth)
    layout, params, rest = split_model(model)
    optimizer = adamw(1e-3, steps=100)
    state = commit(init_state(params, rest, optimizer, seed=0, ema=False))
    shape = (config.batch, config.img_size, config.img_size, model.config.in_channels)
    batch = {"image": np.zeros(shape, np.float32), "label": np.zeros(config.batch, np.int32)}

    def loss(model, batch, key):
        return softmax_cross_entropy(model(batch["image"], train=True, key=key), batch["label"]).mean(), {}

    step = jax.jit(make_step(layout, loss, optimizer), donate_argnums=0)
    jax.clear_caches()
    began = time.perf_counter()
    step.lower(state, batch).compile()
    return time.perf_counter() - began


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
