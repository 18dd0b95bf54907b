"""One matrix for queries, keys and values, or three? The same function; is there more accuracy in it, and less time?

A published course study put a fused projection into Qwen2-VL's attention and into a small classifier of MNIST, five
epochs of Adam: 65.19 % with separate projections and 70.06 % with a fused one (4.87 points), 1.52 s and 1.49 s. Here:

    1. the same function: in the shapes of Qwen2-VL-2B's language model and tower, the fused form with the separate
       form's weights, values and gradients
    2. the same training: ten seeds of the classifier for each of {separate, fused} x {an initialization that sees the
       width before a matrix alone, one that sees the width after it, too} x learning rates, and fused from the
       separate one's own initial values; the difference of two single runs against the published 4.87 points
    3. the time: forward, and forward with backward, of a stack of attention layers, by width and tokens, on this device

Recipe (device, minutes, what is expected):
    python -m experiments.efficient_attention                    one H200, 6; equal accuracies within noise
    python -m experiments.efficient_attention --size cpu --rows 4 --width 32 --rates 3e-4 1e-3      two CPU cores, 4

The classifier: 28 rows of 28 pixels as tokens (`--rows 1` is the flattened image as one token), one attention layer,
a mean, a linear head.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared import common, plots_projector
from experiments.shared.fused_attention import SHAPES, difference, times, train_classifiers
from ssmjax import errors
from ssmjax.data import load_images
from ssmjax.paths import LocalPaths
from ssmjax.training.report import make_report, render_table, write_report

NAME = "efficient_attention"

PUBLISHED = {"separate": {"accuracy": 65.19, "seconds": 1.52}, "fused": {"accuracy": 70.06, "seconds": 1.49}}

SIZES: dict[str, dict[str, Any]] = {
    "full": dict(
        train=None, test=None, epochs=5, batch=128, widths=(128, 512, 1536, 4096), tokens=(64, 576, 2304), layers=8
    ),
    "cpu": dict(train=4_000, test=2_000, epochs=5, batch=128, widths=(64, 512), tokens=(16, 256), layers=2),
    "smoke": dict(train=64, test=32, epochs=1, batch=32, widths=(16,), tokens=(8,), layers=1),
}

VARIANTS = ("separate", "fused", "separate, fan-out", "fused, fan-out", "fused, separate's values")


@dataclasses.dataclass(frozen=True)
class Config(LocalPaths):
    """Every field is a flag."""

    seeds: tuple[int, ...] = tuple(range(10))
    """All are trained at once."""
    rates: tuple[float, ...] = (1e-5, 1e-4, 1e-3)
    """Learning rates; at the smallest, training ends about where the published accuracies are."""
    rows: int = 28
    """Tokens that an image is cut into."""
    width: int = 64
    size: str = "full"
    """full or cpu."""
    data_dir: Path | None = None
    download_dir: Path | None = None
    out_dir: Path = Path(".")
    smoke: bool = False
    """A check of the plumbing."""


def main(config: Config = Config()) -> dict[str, Any]:
    """Compares, trains, times, writes the results file and the figure, and prints the table.

    Args:
        config: The command line's fields.

    Returns:
        What the results file holds.
    """
    errors.require_known("size", config.size, ["full", "cpu"])
    if 784 % config.rows:
        raise errors.bad_argument("settings", "rows", config.rows, "a divisor of 784")
    common.require_writable("out_dir", config.out_dir)
    size, start = SIZES["smoke" if config.smoke else config.size], time.time()
    train, test, source = _data(config, size)
    same = {name: difference(shape, tokens=8 if config.smoke else 64) for name, shape in SHAPES.items()}
    rates = config.rates[-1:] if config.smoke else config.rates
    found = {}
    for variant in VARIANTS if not config.smoke else VARIANTS[:2]:
        found[variant] = train_classifiers(variant, config.seeds, rates, train, test, config, size)
        shown = {f"{rate:g}": f"{v.mean():.2f} +- {v.std(ddof=1):.2f}" for rate, v in found[variant].items()}
        print(f"{variant}: {shown}", flush=True)
    speed = times(size["widths"], size["tokens"], size["layers"])
    runs = [
        {
            "seed": seed,
            "seconds": (time.time() - start) / len(config.seeds),
            "metrics": {f"{variant}/{rate:g}": by[rate][i] for variant, by in found.items() for rate in by},
        }
        for i, seed in enumerate(config.seeds)
    ]
    report = make_report(
        NAME,
        command=common.command(NAME, config, Config()),
        config=dataclasses.asdict(config) | {"data_dir": "", "download_dir": "", "out_dir": "", "options": size},
        runs=runs,
        data=source,
        published=PUBLISHED,
        same_function=same,
        gaps=gaps(found),
        times=speed,
    )
    results, figure = common.result_paths(config.out_dir, NAME)
    write_report(results, report)
    plots_projector.draw_attention(results, figure)
    print(render_table(report))
    for name, row in report["gaps"].items():
        print(
            f"{name}: mean difference {row['mean']:+.2f} points, 95 % interval +-{row['interval']:.2f}; "
            f"two single runs differ with a standard deviation of {row['single']:.2f}"
        )
    return report


def gaps(found: dict[str, dict[float, np.ndarray]]) -> dict[str, dict[str, float]]:
    """Fused less separate, at each rate and for each initialization: Welch's interval, and what single runs differ by.

    Args:
        found: The accuracies of the seeds, by variant and rate.
    """
    rows = {}
    for ending in ("", ", fan-out"):
        one, other = found.get(f"separate{ending}"), found.get(f"fused{ending}")
        if one is None or other is None:
            continue
        for rate in one:
            a, b = one[rate], other[rate]
            spread = np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
            freedom = spread**4 / max(
                (a.var(ddof=1) / len(a)) ** 2 / (len(a) - 1) + (b.var(ddof=1) / len(b)) ** 2 / (len(b) - 1), 1e-30
            )
            single = float(np.sqrt(a.var(ddof=1) + b.var(ddof=1)))
            pairs = np.abs(b[:, None] - a[None, :])
            rows[f"{rate:g}{ending}"] = {
                "mean": float(b.mean() - a.mean()),
                "interval": float(_quantile(freedom) * spread),
                "single": single,
                "largest": float(pairs.max()),
                "share_of_pairs_as_far_as_published": float((pairs >= 4.87).mean()),
            }
    return rows


def _quantile(freedom: float) -> float:
    """The 97.5 % quantile of Student's distribution (Cornish-Fisher's expansion of the normal one)."""
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _data(config: Config, size) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array], dict[str, Any]]:
    if config.smoke and config.data_dir is None and config.download_dir is None:
        rng = np.random.default_rng(0)  # the plumbing needs no digits
        sets = [(rng.random((96, 28, 28, 1), np.float32) * 255, rng.integers(0, 10, 96)) for _ in range(2)]
        source = {"name": "noise", "sha256": "0" * 64}
    else:
        data = load_images("mnist", data_dir=config.data_dir, download_dir=config.download_dir)
        sets = [(data.train_images, data.train_labels), (data.test_images, data.test_labels)]
        source = {"name": "mnist", "sha256": data.checksum}
    train, test = (
        (jnp.asarray(images[:count], jnp.float32).reshape(-1, config.rows, 784 // config.rows) / 255, labels[:count])
        for (images, labels), count in zip(sets, (size["train"], size["test"]), strict=True)
    )
    train, test = ((images, jnp.asarray(labels, jnp.int32)) for images, labels in (train, test))
    return train, test, source | {"train": len(train[0]), "test": len(test[0])}


if __name__ == "__main__":
    common.run_cli(main, Config)
