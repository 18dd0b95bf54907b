"""What the discretization of `x' = A x + B u` does: its error, where it is unstable, and what a classifier makes of it.

Four rules, as every diagonal layer has them by name: Euler, bilinear (trapezoidal), zero-order hold (zoh), and the
impulse rule, A_bar = exp(dt A) and B_bar = dt B, which Mamba uses.

1. Error against the exact solution as dt grows, for an input that is held over each step and for a smooth one.
2. Where Euler turns unstable, found by running the recurrence, against the bound |1 + dt A| = 1.
3. The accuracy of the same S4D classifier under each rule and range of dt. The images are read pixel by pixel.

Recipe (device, minutes a seed, what is expected):
    python -m experiments.discretisation_study                  one H100, under 6; equal accuracies where stable
    python -m experiments.discretisation_study --data digits    two CPU cores, under 15, no download

Expected: zoh is exact for a held input, zoh and bilinear are of second order for a smooth one, Euler and impulse of
first; Euler is unstable from dt = -2 Re A / |A|^2 on, and its classifier with it. `--smoke` is a check of the plumbing.
"""

import dataclasses
import functools
import statistics
import time
from typing import Any

from experiments.discretization_error import RULES, errors, order_text, stability
from experiments.shared import classifier, common, plots_studies, sequence
from ssmjax.errors import bad_argument
from ssmjax.training.compilation import enable_compilation_cache
from ssmjax.training.guards import TrainingDiverged
from ssmjax.training.report import make_report, write_report

NAME = "discretisation_study"

RECIPES = {
    "mnist": {"epochs": 2, "batch_size": 128, "learning_rate": 4e-3, "d_model": 64, "depth": 2, "d_state": 16},
    "digits": {"epochs": 20, "batch_size": 64, "learning_rate": 4e-3, "d_model": 32, "depth": 2, "d_state": 16},
}


@dataclasses.dataclass(frozen=True)
class Config(sequence.Config):
    """Every field is a flag; a field that is None takes the recipe's value for the data set."""

    data: str = "mnist"
    """mnist, or digits (embedded, no download)."""
    layer: str = "s4d"
    largest_steps: tuple[float, ...] = (0.01, 0.1, 1.0)
    """The upper ends of the ranges of dt that the classifiers start from."""


def main(config: Config = Config()) -> dict[str, Any]:
    """Runs the three parts, writes the results file and the figure, and prints the table.

    Args:
        config: The command line's fields; `main(Config(data="digits", smoke=True))` works in a notebook.

    Returns:
        What the results file holds.
    """
    command = common.command(NAME, config, Config())
    claim = functools.partial(sequence.resolve, NAME, recipes=RECIPES)
    config = claim(config)
    if config.layer != "s4d":
        remedy = "The other layers do not have all four rules."
        raise bad_argument(NAME, "layer", config.layer, "'s4d', whose classifier is trained under each rule", remedy)
    enable_compilation_cache()
    task = sequence.pixel_task(config)
    classifier.announce(task.data, f"{config.layer}_classifier", config.dtype)
    began = time.perf_counter()
    error, bounds = (
        (errors(steps=(2**-7, 2**-6, 2**-5)), stability(4, 256)) if config.smoke else (errors(), stability())
    )
    theory = time.perf_counter() - began
    runs = [_run(config, task, seed, theory) for seed in range(config.seed, config.seed + config.seeds)]
    asked = Config(data=config.data, seed=config.seed, dtype=config.dtype)
    parts = [NAME, *([] if config.data == Config().data else [config.data])]
    report = make_report(
        NAME,
        command=command,
        config=common.identity(config),
        runs=runs,
        data=sequence.describe(task.data),
        errors=error,
        stability=bounds,
        diverged=[run["diverged"] for run in runs],
    )
    result = classifier.result_name(parts, config, claim(asked))
    results, figure = common.result_paths(config.out_dir, result)
    write_report(results, report)
    plots_studies.draw_discretization(results, figure)
    print(f"\n{table(report)}\nresults {results}\nfigure  {figure}")
    return report


def _run(config: Config, task: sequence.Task, seed: int, theory: float) -> dict[str, Any]:
    """Trains the classifier under each rule and range; one that diverges is named, with the accuracy of chance."""
    metrics, diverged, seconds = {}, [], theory
    for largest in config.largest_steps[-1:] if config.smoke else config.largest_steps:
        for rule in ("euler", "zoh") if config.smoke else RULES:
            name = _metric(rule, largest)
            options = {"init": "diag-lin", "discretization": rule, "dt_min": largest / 100, "dt_max": largest}
            job = sequence.job(NAME, config, task, seed, layer_options=options)
            job = dataclasses.replace(job, run_dir=job.run_dir / name, identity={**job.identity, "run": name})
            try:
                done = classifier.train(job, config, seed)
            except TrainingDiverged:
                diverged.append(name)
                metrics[name] = 1 / task.data.num_classes
            else:
                metrics[name] = done["metrics"]["test_accuracy"]
                seconds += done["seconds"]
    return {"seed": seed, "seconds": seconds, "metrics": metrics, "diverged": diverged}


def _metric(rule: str, largest: float) -> str:
    return f"{rule}_dt{largest:g}"


def table(report: dict[str, Any]) -> str:
    """The accuracy of each rule (rows) and largest dt (columns), in Markdown, and the slopes of the errors."""
    largest = [value for value in report["config"]["largest_steps"] if _metric("zoh", value) in report["metrics"]]
    columns = [f"test accuracy, %, dt up to {value:g}" for value in largest]
    lines = [f"| rule | order, held input | order, smooth input | {' | '.join(columns)} |"]
    lines.append("|---" * (3 + len(largest)) + "|")
    for rule in RULES:
        cells = [order_text(report["errors"][kind], rule) for kind in ("held", "smooth")]
        for value in largest:
            name = _metric(rule, value)
            if name not in report["metrics"]:  # a smoke run has some of them only
                cells.append("")
                continue
            found = report["metrics"][name]
            spread = f" ± {100 * found['spread']:.2f}" if found["spread"] is not None else ""
            gone = [name in diverged for diverged in report["diverged"]]
            ended = [100 * value for value, lost in zip(found["values"], gone, strict=True) if not lost]
            if any(gone):  # mean and spread would mix what was measured with chance
                left = f"{statistics.fmean(ended):.2f}; " if ended else ""
                cells.append(f"{left}{sum(gone)} of {len(gone)} diverged" if len(gone) > 1 else "diverged")
            else:
                cells.append(f"{100 * found['mean']:.2f}{spread}")
        lines.append(f"| {rule} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    common.run_cli(main, Config)
