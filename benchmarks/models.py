"""Times whole models: `python -m benchmarks.models --model vim_tiny --task train`.

A task is inference (one forward pass of a batch) or training (forward, backward and AdamW, one step of `fit`). Records
go to `benchmarks/results/<device>.json` beside those of the ops, and name the batch, the size of an input, the time of
a step, examples per second, the memory that the compiled program holds at once, and, as a floor, the time that the
step's products take at `--peak-tflops`.
"""

import ast
import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro
from flax import nnx

import ssmjax
from benchmarks.model_peers import ModelPeer, load_model_peer
from benchmarks.ops import stamp
from benchmarks.timing import back_to_back, runs_a_sample, time_in_turns
from ssmjax.models import registry
from ssmjax.models.flops import count_flops
from ssmjax.paths import LocalPaths
from ssmjax.training.losses import softmax_cross_entropy
from ssmjax.training.optim import adamw
from ssmjax.training.state import commit, split_model
from ssmjax.training.step import init_state, make_step

__all__ = ["Config", "example_batch", "held_bytes", "main", "merged", "training_step"]

Task = Literal["infer", "train"]


@dataclasses.dataclass(frozen=True)
class Config(LocalPaths):
    """What to run.

    Attributes:
        model: Registered classifiers.
        task: infer, train, or both.
        batch: Examples a step.
        img_size: The side of the images; None is the model's own.
        depth: The number of layers; None is the model's own.
        dtype: float32, bfloat16 or float16.
        changes: Further fields of the models, such as `unroll_layers=True`.
        implementation: What the ops are computed by, `auto` or a named one such as `xla`; all are timed in turns.
        rounds: Samples.
        peer: A folder with the sources of Vim or VMamba: the opponents of inference in float32 on a CPU, timed in turns
            with ours after both have given the same logits. None for no opponents.
        peak_tflops: The peak of the device in this dtype, for the floor; None leaves it out.
        out: Results file; `benchmarks/results/<device>.json` by default.
    """

    model: tuple[str, ...] = ("vim_tiny",)
    task: tuple[Task, ...] = ("infer", "train")
    batch: int = 64
    img_size: int | None = None
    depth: int | None = None
    dtype: str = "bfloat16"
    changes: tuple[str, ...] = ()
    implementation: tuple[str, ...] = ("auto",)
    rounds: int = 10
    peer: pathlib.Path | None = None
    peak_tflops: float | None = None
    out: pathlib.Path | None = None


def main(config: Config) -> list[dict[str, Any]]:
    """Runs the benchmark, writes its records and prints them; returns the records."""
    records = [record for name in config.model for task in config.task for record in _records(name, task, config)]
    for r in records:
        floor = "" if r["floor_ms"] is None else f", floor {r['floor_ms']:.2f} ms"
        memory = "" if r["peak_gb"] is None else f", {r['peak_gb']:.2f} GB"
        if r["peer_ms"] is not None:
            memory += f", {r['peer']} {r['peer_ms']:.2f} ms, {r['peer_ms'] / r['ms']:.2f} times as long"
        print(
            f"{_label(r):20s} {r['task']:6s} batch {r['batch']} of {r['size']}, {r['dtype']}: {r['ms']:.2f} ms "
            f"+-{r['spread']:.0%}, {r['per_second']:,.0f} a second{memory}{floor}"
        )
    source = stamp()
    out = config.out or pathlib.Path(__file__).parent / "results" / f"{source['device']}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(merged(out, [record | source for record in records]), indent=1) + "\n")
    print(f"Wrote {len(records)} records to {out}")
    return records


def _records(name: str, task: Task, config: Config) -> list[dict[str, Any]]:
    """A record for each implementation, timed in turns."""
    changes = {"img_size": config.img_size, "depth": config.depth}
    changes = {field: value for field, value in changes.items() if value is not None}
    changes |= {field: ast.literal_eval(value) for field, _, value in (text.partition("=") for text in config.changes)}
    model = ssmjax.create_model(name, dtype=config.dtype, **changes)
    family = registry.get_family(registry.family_of(model.config))
    shape, dtype = family.input_shape(model.config, config.batch), family.input_dtype(model.config)
    batch = example_batch(shape, dtype, model.config)
    peer = _opponent(model, task, config)
    steps, runs, temporary = {}, {}, {}
    for implementation in config.implementation:
        with ssmjax.use_implementation(implementation):
            step, temporary[implementation] = (_inference if task == "infer" else _training)(model, batch)
        runs[implementation] = runs_a_sample(step, ())
        steps[implementation] = back_to_back(step, runs[implementation])
    if peer:
        steps[peer.name] = peer.forward
    times = time_in_turns(steps, (), config.rounds, runs)
    theirs = times.pop(peer.name) if peer else None
    return [
        {
            "model": name,
            "changes": " ".join(config.changes),
            "implementation": implementation,
            "task": task,
            "batch": config.batch,
            "size": "x".join(map(str, shape[1:])),
            "dtype": config.dtype,
            "ms": round(found.median, 4),
            "spread": round(found.spread, 3),
            "per_second": round(1e3 * config.batch / found.median, 2),
            "peak_gb": round(temporary[implementation] / 1e9, 3),
            "peer": peer.name if peer else None,
            "peer_ms": round(theirs.median, 4) if theirs else None,
            "floor_ms": _floor_ms(model, shape, task, config.peak_tflops),
            "parameters": sum(x.size for x in jax.tree.leaves(split_model(model)[1])),
            "runs": runs[implementation],
        }
        for implementation, found in times.items()
    ]


def _opponent(model: Any, task: Task, config: Config) -> ModelPeer | None:
    """The opponent, whose weights the model then has, checked to give the same logits."""
    if config.peer is None or task != "infer":
        return None
    if jax.default_backend() != "cpu" or config.dtype != "float32":
        raise ValueError("--peer is for --dtype float32 on a CPU: JAX_PLATFORMS=cpu.")
    peer = load_model_peer(config.peer.expanduser(), model, config.batch)
    error = jnp.max(jnp.abs(model(peer.images) - peer.logits)) / jnp.max(jnp.abs(peer.logits))
    if not error < 1e-3:
        raise ValueError(f"{peer.name}: its logits differ from ours by {error:.1e} of the largest.")
    return peer


def _label(record: dict[str, Any]) -> str:
    """The model, and what is not its default."""
    chosen = record.get("implementation", "auto")
    return " ".join(filter(None, [record["model"], record.get("changes"), chosen if chosen != "auto" else ""]))


def example_batch(shape: tuple[int, ...], dtype: Any, config: Any) -> dict[str, jax.Array]:
    """Random inputs of a model's shape and dtype, and labels."""
    inputs, labels = jax.random.split(jax.random.key(0))
    if jnp.issubdtype(dtype, jnp.integer):
        x = jax.random.randint(inputs, shape, 0, config.vocab_size, dtype)
    else:
        x = jax.random.normal(inputs, shape, dtype)
    return {"inputs": x, "label": jax.random.randint(labels, shape[:1], 0, config.num_classes)}


def _inference(model: Any, batch: dict[str, jax.Array]) -> tuple[Callable[[], Any], int]:
    """A forward pass, and the bytes that it holds at once."""
    layout, params, rest = split_model(model)
    call = jax.jit(lambda params, rest, x: layout.merge(params, rest)(x)).lower(params, rest, batch["inputs"]).compile()
    return lambda: call(params, rest, batch["inputs"]), held_bytes(call)


def training_step(model: Any) -> tuple[Callable[..., Any], Any]:
    """A step of forward, backward and AdamW, to be jitted, and the state that it begins with."""

    def loss(model, batch, key):
        logits = model(batch["inputs"], train=True, key=key)
        return softmax_cross_entropy(logits, batch["label"]).mean(), {}

    layout, params, rest = split_model(model)
    optimizer = adamw(1e-3, steps=1000)
    return make_step(layout, loss, optimizer), init_state(params, rest, optimizer, seed=0, ema=False, layout=layout)


def _training(model: Any, batch: dict[str, jax.Array]) -> tuple[Callable[[], Any], int]:
    """A training step, and the bytes that it holds at once."""
    step, state = training_step(model)
    state = commit(state)
    step = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    kept = [state]

    def run():
        kept[0], metrics = step(kept[0], batch)
        return metrics["loss"]

    return run, held_bytes(step)


def held_bytes(compiled: Any) -> int:
    """Arguments, results and temporaries of a compiled program; a result in an argument's place counts once."""
    found = compiled.memory_analysis()
    held = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
    return held - found.alias_size_in_bytes


def _floor_ms(model: Any, shape: tuple[int, ...], task: Task, peak_tflops: float | None) -> float | None:
    """The time of the products at the device's peak; a training step has three times those of a forward pass."""
    if peak_tflops is None:
        return None
    definition, state = nnx.split(model)
    dtype = registry.get_family(registry.family_of(model.config)).input_dtype(model.config)
    flops = count_flops(lambda s, x: nnx.merge(definition, s)(x), state, jax.ShapeDtypeStruct(shape, dtype))
    return round((3 if task == "train" else 1) * flops / (1e9 * peak_tflops), 4)


def merged(out: pathlib.Path, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records in the file, those measured again replaced."""

    def key(record: dict[str, Any]) -> tuple[Any, ...]:
        fields = {"changes": "", "implementation": "auto"} | dict.fromkeys(("model", "task", "batch", "size", "dtype"))
        return tuple(record.get(field, default) for field, default in fields.items())

    old = json.loads(out.read_text()) if out.exists() else []
    new = {key(record) for record in records}
    return [record for record in old if "model" not in record or key(record) not in new] + records


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
