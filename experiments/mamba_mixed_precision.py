"""Memory, time and error of a language model in float32, float16 and bfloat16, in inference and in training.

A study measured Mamba-130M at length 32 and batch 2 without gradients: 1747.43 MB in full and 1741.29 MB in mixed
precision. At that size the weights, which stay float32, are nearly all of it; this asks where the difference appears.

Recipe (device, minutes):
    python -m experiments.mamba_mixed_precision            one H200, about 10
    python -m experiments.mamba_mixed_precision --smoke    two cores, a minute

Modes: `float32`; `float16` and `bfloat16` compute in two bytes with float32 parameters, scans, norms, residuals and
logits (training in float16 scales the loss); `bfloat16_all` has parameters, states between chunks and residual in
bfloat16, too. Memory is what the compiler reserves (arguments, results and temporaries), with the analytic size of
parameters, gradients and moments beside it; error is that of the logits against float32, relative to their largest.
"""

import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import ssmjax
from experiments.shared import common, language
from ssmjax.paths import LocalPaths
from ssmjax.training.optim import adamw
from ssmjax.training.state import commit, split_model
from ssmjax.training.step import init_state, make_step

NAME = "mamba_mixed_precision"
MODES = ("float32", "float16", "bfloat16", "bfloat16_all")
STUDY = {"model": "Mamba-130M", "length": 32, "batch": 2, "full_mb": 1747.43, "mixed_mb": 1741.29}


@dataclasses.dataclass(frozen=True)
class Config(LocalPaths):
    """Every field is a flag."""

    model: str = "mamba_130m"
    lengths: tuple[int, ...] = (32, 512, 2048)
    batches: tuple[int, ...] = (2, 8)
    seeds: int = 1
    repeats: int = 10
    smoke: bool = False
    progress: bool = True
    out_dir: Path = Path(".")


def make(config: Config, mode: str) -> nnx.Module:
    """The model in a mode, the same parameters in all."""
    sizes = {"vocab_size": 100, "d_model": 32, "depth": 2} if config.smoke else {}
    dtype = mode.removesuffix("_all")
    whole = {"float32_residual": False} if mode.endswith("_all") else {}
    model = ssmjax.create_model(config.model, dtype=dtype, **sizes, **whole)
    if mode.endswith("_all"):
        definition, state = nnx.split(model)
        model = nnx.merge(definition, jax.tree.map(lambda x: x.astype(jnp.bfloat16), state))
    return model


def measured(function: Any, arguments: tuple, repeats: int, carry: bool) -> dict[str, float]:
    """Peak megabytes by the compiler's account, and the median milliseconds of a call."""
    compiled = jax.jit(function, donate_argnums=(0,) if carry else ()).lower(*arguments).compile()
    memory = compiled.memory_analysis()
    used = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        out = jax.block_until_ready(compiled(*arguments))
        times.append(1e3 * (time.perf_counter() - start))
        arguments = (out[0], *arguments[1:]) if carry else arguments
    return {"mb": (used - memory.alias_size_in_bytes) / 1e6, "ms": statistics.median(times[2:])}


def inference(config: Config, mode: str, tokens: np.ndarray, exact: np.ndarray | None) -> dict[str, Any]:
    """The logits of a batch."""
    definition, state = nnx.split(make(config, mode))
    run = lambda state, tokens: nnx.merge(definition, state)(tokens)  # noqa: E731
    row = measured(run, (state, tokens), config.repeats, False)
    logits = np.asarray(jax.jit(run)(state, tokens), np.float32)
    row["parameters_mb"] = sum(x.nbytes for x in jax.tree.leaves(state)) / 1e6
    row["error"] = 0.0 if exact is None else float(np.abs(logits - exact).max() / np.abs(exact).max())
    return row | {"logits": logits if exact is None else None}


def training(config: Config, mode: str, tokens: np.ndarray) -> dict[str, Any]:
    """One step of AdamW; logits exist for some of the tokens at a time."""
    layout, params, rest = split_model(make(config, mode))
    optimizer, scaling = adamw(1e-4, steps=100), mode == "float16"
    step = make_step(layout, language.next_token_loss, optimizer)
    state = init_state(params, rest, optimizer, seed=0, ema=False, layout=layout, loss_scaling=scaling)
    batch = {"tokens": tokens, "labels": np.roll(tokens, -1, axis=1)}
    row = measured(step, (commit(state), batch), config.repeats, True)
    row["parameters_mb"] = 4 * sum(x.nbytes for x in jax.tree.leaves(params)) / 1e6  # with gradients and two moments
    return row


def main(config: Config = Config()) -> dict[str, Any]:
    """Measures; writes the results file and the figure."""
    lengths, batches = ((32, 64), (2,)) if config.smoke else (config.lengths, config.batches)
    repeats = 1 if config.smoke else config.repeats
    config = dataclasses.replace(config, lengths=lengths, batches=batches, repeats=repeats)
    metrics, start, sample = {}, time.monotonic(), None
    for length in lengths:
        for batch in batches:
            tokens = np.random.default_rng(0).integers(0, 96, (batch, length)).astype(np.int32)
            sample, exact = tokens, None
            for mode in MODES:
                found = {"inference": inference(config, mode, tokens, exact)}
                exact = found["inference"].pop("logits") if exact is None else exact
                found["inference"].pop("logits", None)
                found["training"] = training(config, mode, tokens)
                for task, row in found.items():
                    metrics |= {f"{task}_{mode}_b{batch}_l{length}_{key}": value for key, value in row.items()}
                print(length, batch, mode, found, flush=True)
    runs = [{"seed": 0, "seconds": time.monotonic() - start, "metrics": metrics}]
    batch = batches[-1]
    plot = {
        "series": {
            f"{task}, {mode}": {n: f"{task}_{mode}_b{batch}_l{n}_mb" for n in lengths}
            for task in ("inference", "training")
            for mode in MODES
        },
        "x": "length",
        "y": "memory, MB",
        "title": f"{config.model}, batch {batch}",
        "log": True,
    }
    return language.finish(NAME, config, runs, {"name": "random tokens", "sample": sample}, plot, study=STUDY)


if __name__ == "__main__":
    common.run_cli(main, Config)
