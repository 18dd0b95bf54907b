"""Times language models: `python -m benchmarks.language --model mamba_130m --task decode --batch 1 8`.

Tasks: `decode`, new tokens after a short prompt, by `ssmjax.generate`, in milliseconds a step; `prefill`, the logits
after a prompt; `train`, forward, backward and AdamW, with the loss in chunks of tokens; `memory`, that training step as
it is compiled, without running it: the bytes that it holds, and the largest array that has the vocabulary as an axis.

`--peer transformers mamba_ssm` times these in turns with ours, in one process, where they are installed: transformers
with our weights, so that its tokens are compared with ours, too; mamba_ssm with random weights, as what it computes is
in the parity tests. Neither is needed. Without `mamba_ssm`'s kernels transformers runs its slow path. Records go to
`benchmarks/results/<device>.json`.
"""

import ast
import dataclasses
import json
import math
import pathlib
import re
import tempfile
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

import ssmjax
from benchmarks import language_peers as peers
from benchmarks.models import held_bytes, merged
from benchmarks.ops import stamp
from benchmarks.timing import time_in_turns
from ssmjax.paths import LocalPaths
from ssmjax.training.losses import chunked_cross_entropy, mean_over_labels
from ssmjax.training.optim import adamw
from ssmjax.training.state import commit, split_model
from ssmjax.training.step import init_state, make_step

__all__ = ["Config", "main", "vocabulary_arrays"]

Task = Literal["decode", "prefill", "train", "memory"]


@dataclasses.dataclass(frozen=True)
class Config(LocalPaths):
    """What to run.

    Attributes:
        model: Registered language models.
        task: decode, prefill, train, memory.
        batch: Rows, for each of which all tasks run.
        prompt: Tokens before the new ones.
        tokens: New tokens.
        length: Tokens of a prefill or of a training example.
        loss_chunk: Tokens whose logits exist at once in training.
        dtype: float32 or bfloat16. Weights of `decode` and `prefill` are stored in it, those of `train` in float32.
        changes: Further fields of the models, such as `unroll_layers=True`.
        peer: transformers, mamba_ssm.
        rounds: Samples.
        out: Results file; `benchmarks/results/<device>.json` by default.
    """

    model: tuple[str, ...] = ("mamba_130m",)
    task: tuple[Task, ...] = ("decode",)
    batch: tuple[int, ...] = (1,)
    prompt: int = 16
    tokens: int = 64
    length: int = 2048
    loss_chunk: int = 2048
    dtype: str = "float32"
    changes: tuple[str, ...] = ()
    peer: tuple[Literal["transformers", "mamba_ssm"], ...] = ()
    rounds: int = 5
    out: pathlib.Path | None = None


def main(config: Config) -> list[dict[str, Any]]:
    """Runs the benchmark, writes its records and prints them; returns the records."""
    records = []
    for name in config.model:
        for task in config.task:
            for batch in config.batch:
                records.append(_memory(name, batch, config) if task == "memory" else _timed(name, task, batch, config))
                print(" ".join(f"{key}={value}" for key, value in records[-1].items() if value is not None), flush=True)
    source = stamp()
    out = config.out or pathlib.Path(__file__).parent / "results" / f"{source['device']}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(merged(out, [record | source for record in records]), indent=1) + "\n")
    print(f"Wrote {len(records)} records to {out}")
    return records


def _timed(name: str, task: Task, batch: int, config: Config) -> dict[str, Any]:
    """The record of one task, ours and the peers' in turns."""
    model = _model(name, config)
    length = config.prompt if task == "decode" else config.length
    tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, (batch, length)).astype(np.int32)
    calls: dict[str, Callable[[], Any]] = {}
    if task == "decode":
        stored = _stored_in(model, config.dtype)
        calls["ours"] = lambda: ssmjax.generate(stored, tokens, max_new_tokens=config.tokens)
        held = None
    else:
        calls["ours"], held = (_prefill if task == "prefill" else _training)(model, tokens, config)
    job = peers.Job(task, tokens, config.tokens, config.dtype)
    with tempfile.TemporaryDirectory() as folder:
        for peer in config.peer:
            calls[peer] = getattr(peers, peer)(model, job, pathlib.Path(folder))
    agreement = None
    if task == "decode" and "transformers" in calls:
        agreement = float((np.asarray(calls["ours"]()) == np.asarray(calls["transformers"]())).mean())
    times = time_in_turns(calls, (), config.rounds)
    steps = config.tokens if task == "decode" else 1
    ms = {who: round(found.median / steps, 4) for who, found in times.items()}
    ours = ms.pop("ours")
    first = next(iter(ms), None)
    each = batch * (1 if task == "decode" else length)
    return _record(name, task, batch, config) | {
        "ms": ours,
        "spread": round(times["ours"].spread, 3),
        "per_second": round(1e3 * each / ours, 2),
        "peak_gb": None if held is None else round(held / 1e9, 3),
        "peer": first,
        "peer_ms": ms.get(first) if first else None,
        "peers": ms,
        "ratio": round(ms[first] / ours, 3) if first else None,
        "same_tokens": agreement,
        "floor_ms": None,
    }


def _record(name: str, task: Task, batch: int, config: Config) -> dict[str, Any]:
    size = f"{config.prompt}+{config.tokens}" if task == "decode" else str(config.length)
    chosen = {"model": name, "changes": " ".join(config.changes), "implementation": "auto"}
    return chosen | {"task": task, "batch": batch, "size": size, "dtype": config.dtype}


def _model(name: str, config: Config) -> Any:
    pairs = (text.partition("=") for text in config.changes)
    changes = {field: ast.literal_eval(value) for field, _, value in pairs}
    return ssmjax.create_model(name, dtype=config.dtype, **changes)


def _stored_in(model: Any, dtype: str) -> Any:
    """The same model with its matrices in a dtype; what is small (A, D, norms, biases) stays float32."""
    definition, state = nnx.split(model)
    flat = {
        path: x.replace(x[...].astype(dtype)) if path[-1] in ("kernel", "embedding") else x
        for path, x in nnx.to_flat_state(state)
    }
    return nnx.merge(definition, nnx.from_flat_state(flat))


def _prefill(model: Any, tokens: np.ndarray, config: Config) -> tuple[Callable[[], Any], int]:
    """The logits after a prompt, and the bytes that are held for it."""
    definition, state = nnx.split(_stored_in(model, config.dtype))

    def run(state, tokens):
        model = nnx.merge(definition, state)
        return model.prefill(tokens, model.init_cache(*tokens.shape))[0]

    call = jax.jit(run).lower(state, tokens).compile()
    tokens = jax.device_put(tokens)
    return lambda: call(state, tokens), held_bytes(call)


def _train_step(model: Any, config: Config) -> tuple[Callable, Any, Any, Any]:
    """The step, and what its first state is made of."""

    def loss(model, batch, key):
        del key
        features = model.features(batch["tokens"])
        losses = chunked_cross_entropy(features, model.head_kernel, batch["labels"], chunk=config.loss_chunk)
        return mean_over_labels(losses, batch["labels"]), {}

    layout, params, rest = split_model(model)
    optimizer = adamw(1e-4, steps=1000)
    first = lambda params, rest: init_state(params, rest, optimizer, seed=0, ema=False, layout=layout)  # noqa: E731
    return make_step(layout, loss, optimizer), first, params, rest


def _training(model: Any, tokens: np.ndarray, config: Config) -> tuple[Callable[[], Any], int]:
    """A training step, and the bytes that it holds at once."""
    step, first, params, rest = _train_step(model, config)
    kept = [commit(first(params, rest))]
    batch = jax.device_put({"tokens": tokens, "labels": np.roll(tokens, -1, axis=1)})
    call = jax.jit(step, donate_argnums=0).lower(kept[0], batch).compile()

    def run():
        kept[0], metrics = call(kept[0], batch)
        return metrics["loss"]

    return run, held_bytes(call)


def _memory(name: str, batch: int, config: Config) -> dict[str, Any]:
    """What the compiler says of a training step that is never run, so that it needs room for the parameters alone."""
    model = _model(name, config)
    step, first, params, rest = _train_step(model, config)
    state = jax.eval_shape(first, params, rest)
    spec = jax.ShapeDtypeStruct((batch, config.length), jnp.int32)
    call = jax.jit(step, donate_argnums=0).lower(state, {"tokens": spec, "labels": spec}).compile()
    rows = model.config.vocab_rows
    found = vocabulary_arrays(call.as_text(), rows)
    logits = batch * config.length * rows
    return _record(name, "memory", batch, config) | {
        "peak_gb": round(held_bytes(call) / 1e9, 3),
        "logits_gb": round(4 * logits / 1e9, 3),
        "largest_with_vocabulary": max(found, key=math.prod, default=()),
        "whole_logits": any(math.prod(shape) >= logits for shape in found),
        "ms": None,
    }


def vocabulary_arrays(program: str, rows: int) -> set[tuple[int, ...]]:
    """The shapes of all arrays of a compiled program that have an axis of so many rows.

    >>> sorted(vocabulary_arrays("f32[16,100]{1,0} add(f32[16,100] a, bf16[100] b)", 100))
    [(16, 100), (100,)]
    """
    shapes = (tuple(map(int, text.split(","))) for text in set(re.findall(r"\w+\[([\d,]+)\]", program)))
    return {shape for shape in shapes if rows in shape}


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
