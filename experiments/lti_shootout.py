"""All layers of the LTI family in the same classifier: accuracy, parameters, step time and memory, against the length.

Each layer is trained for the same few epochs of sequential MNIST, at the same width, depth and state size; then one
training step (forward, backward, optimizer) on random sequences of growing length is timed, and its temporary memory
read from the compiled program.

Recipe (device, minutes a seed, what is expected):
    python -m experiments.lti_shootout                  one H100, under 9; 98 to 99 %, the LRU lowest
    python -m experiments.lti_shootout --data digits    two CPU cores, under 15, no download

S4, S4D and DSS are long convolutions, S5 and the LRU are scans with one state for all features, which is why they have
other numbers of parameters. `--smoke` is a check of the plumbing, not a result.
"""

import dataclasses
import statistics
import time
from typing import Any

import jax
import numpy as np

from experiments.shared import classifier, common, plots_studies, sequence
from ssmjax.training.compilation import enable_compilation_cache
from ssmjax.training.report import make_report, write_report
from ssmjax.training.state import commit, split_model
from ssmjax.training.step import init_state, make_step

NAME = "lti_shootout"

RECIPES = {
    "mnist": {"epochs": 3, "batch_size": 64, "learning_rate": 4e-3, "d_model": 128, "depth": 4, "d_state": 64},
    "digits": {"epochs": 20, "batch_size": 32, "learning_rate": 4e-3, "d_model": 32, "depth": 2, "d_state": 32},
}


SAME = {"gate": "glu", "gelu": "exact", "final_norm": True}
"""What is around the layers: that of S4's block, where the papers of some have another one."""


@dataclasses.dataclass(frozen=True)
class Config(sequence.Config):
    """Every field is a flag; a field that is None takes the recipe's value for the data set."""

    data: str = "mnist"
    """mnist, or digits (embedded, no download)."""
    layers: tuple[str, ...] = sequence.LAYERS
    """The layers to compare."""
    lengths: tuple[int, ...] | None = None
    """The lengths at which a training step is timed; by default up to 16,384 on a GPU, and 4,096 on a CPU."""
    cost_batch: int = 8
    """Sequences in the timed step."""


def main(config: Config = Config()) -> dict[str, Any]:
    """Trains and times all layers, writes the results file and the figure, and prints the table.

    Args:
        config: The command line's fields; `main(Config(data="digits", smoke=True))` works in a notebook.

    Returns:
        What the results file holds.
    """
    command = common.command(NAME, config, Config())
    config = _resolve(config)
    enable_compilation_cache()
    task = sequence.pixel_task(config)
    classifier.announce(task.data, ", ".join(config.layers), config.dtype)
    runs = [_run(config, task, seed) for seed in range(config.seed, config.seed + config.seeds)]
    costs = {layer: [_cost(config, task, layer, length) for length in config.lengths or ()] for layer in config.layers}
    report = make_report(
        NAME,
        command=command,
        config=common.identity(config),
        runs=runs,
        data=sequence.describe(task.data),
        layers={layer: {"parameters": runs[0]["parameters"][layer], "costs": costs[layer]} for layer in config.layers},
    )
    asked = Config(data=config.data, seed=config.seed, dtype=config.dtype, lengths=config.lengths)
    parts = [NAME, *([] if config.data == Config().data else [config.data])]
    result = classifier.result_name(parts, config, _resolve(asked))
    results, figure = common.result_paths(config.out_dir, result)
    write_report(results, report)
    plots_studies.draw_shootout(results, figure)
    print(f"\n{table(report)}\nresults {results}\nfigure  {figure}")
    return report


def _resolve(config: Config) -> Config:
    for layer in config.layers:
        sequence.resolve(NAME, dataclasses.replace(config, layer=layer), RECIPES)
    config = sequence.resolve(NAME, config, RECIPES)
    if config.smoke:
        return dataclasses.replace(config, layers=config.layers[1:4:2], lengths=(64,), cost_batch=2)
    lengths = (256, 1024, 4096) if jax.default_backend() == "cpu" else (256, 2048, 16384)
    return config if config.lengths else dataclasses.replace(config, lengths=lengths)


def _run(config: Config, task: sequence.Task, seed: int) -> dict[str, Any]:
    """Trains every layer."""
    metrics, parameters, seconds = {}, {}, 0.0
    for layer in config.layers:
        own = dataclasses.replace(config, layer=layer)
        done = classifier.train(sequence.job(NAME, own, task, seed, **SAME), own, seed)
        metrics[f"{layer}_accuracy"] = done["metrics"]["test_accuracy"]
        metrics[f"{layer}_seconds"] = done["seconds"]
        parameters[layer] = done["parameters"]
        seconds += done["seconds"]
    return {"seed": seed, "seconds": seconds, "metrics": metrics, "parameters": parameters}


def _cost(config: Config, task: sequence.Task, layer: str, length: int, repeats: int = 10) -> dict[str, Any]:
    """The time and the temporary memory of one training step on random sequences of a length."""
    own = dataclasses.replace(config, layer=layer)
    longest = {"l_max": length} if layer == "s4" else {}
    layout, params, rest = split_model(sequence.build(own, task, 0, **SAME, **longest))
    optimizer = sequence.optimizer(own, 1000)
    step = make_step(layout, sequence.make_loss(0.0), optimizer)
    state = commit(init_state(params, rest, optimizer, seed=0, ema=False, layout=layout))
    rng = np.random.default_rng(0)
    features = task.data.train["inputs"].shape[-1]
    batch = jax.device_put(
        {
            "inputs": rng.standard_normal((config.cost_batch, length, features)).astype(np.float32),
            "label": rng.integers(0, task.data.num_classes, config.cost_batch).astype(np.int32),
        }
    )
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    milliseconds = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, batch))
        milliseconds.append(1e3 * (time.perf_counter() - began))
    return {
        "length": length,
        "milliseconds": statistics.median(milliseconds[2:]),
        "spread": statistics.stdev(milliseconds[2:]),
        "gigabytes": compiled.memory_analysis().temp_size_in_bytes / 1e9,
    }


def table(report: dict[str, Any]) -> str:
    """One row for each layer, in Markdown."""
    lengths = report["config"]["lengths"]
    columns = [f"ms, L = {length:,}" for length in lengths] + [f"GB, L = {lengths[-1]:,}"]
    lines = [f"| layer | parameters | test accuracy, % | training, s | {' | '.join(columns)} |"]
    lines.append("|---" * (4 + len(columns)) + "|")
    for layer, row in report["layers"].items():
        found, spread = report["metrics"][f"{layer}_accuracy"], ""
        if found["spread"] is not None:
            spread = f" ± {100 * found['spread']:.2f}"
        cells = [layer, f"{row['parameters']:,}", f"{100 * found['mean']:.2f}{spread}"]
        cells.append(f"{report['metrics'][f'{layer}_seconds']['mean']:.0f}")
        cells += [f"{cost['milliseconds']:.1f}" for cost in row["costs"]] + [f"{row['costs'][-1]['gigabytes']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    common.run_cli(main, Config)
