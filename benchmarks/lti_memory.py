"""Memory of training S4D against the length: `python -m benchmarks.lti_memory`.

The compiler's figure for the temporary buffers of one forward and backward pass, at several state sizes; nothing runs.
Beside it the form that writes the Vandermonde product out over modes and times. Results go to
`benchmarks/results/lti_memory.json`, and from there to `figures/lti_memory.png`. Four minutes of one core, compiling.
"""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import tyro
from flax import nnx

from benchmarks.lti_forms import dense_vandermonde
from benchmarks.ops import stamp
from ssmjax.layers import S4D
from ssmjax.paths import LocalPaths

__all__ = ["Config", "draw", "main"]

ROOT = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Config(LocalPaths):
    """What to compile.

    Attributes:
        lengths: Sequence lengths.
        states: Full state sizes N.
        features: Width of the layer.
        batch: Sequences.
        out: Results file.
        figure: Where it is drawn.
    """

    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
    states: tuple[int, ...] = (16, 64, 256)
    features: int = 64
    batch: int = 4
    out: pathlib.Path = ROOT / "results" / "lti_memory.json"
    figure: pathlib.Path = ROOT.parent / "figures" / "lti_memory.png"


def main(config: Config) -> list[dict]:
    """Compiles every size, prints the table, writes the results and draws them; returns the records."""
    records = [
        {"form": name, "n": n, "l": l, "h": config.features, "b": config.batch, "temp_mb": _temp_mb(form, n, l, config)}
        for name, form in {"ours": None, "written out": dense_vandermonde}.items()
        for n in config.states
        for l in config.lengths
    ]
    print(f"Temporary memory of S4D forward+backward, MB; batch {config.batch}, {config.features} features")
    print(f"{'':22s}" + "".join(f"{l:>10,d}" for l in config.lengths))
    for (name, n), of_length in _rows(records).items():
        print(f"{name + f', N={n}':22s}" + "".join(f"{of_length[l]:10.1f}" for l in config.lengths))
    config.out.parent.mkdir(parents=True, exist_ok=True)
    config.out.write_text(json.dumps([r | stamp() for r in records], indent=1) + "\n")
    draw(config.out, config.figure)
    print(f"Wrote {config.out} and {config.figure}")
    return records


def _temp_mb(form, n: int, l: int, config: Config) -> float:
    layer = nnx.eval_shape(lambda: S4D(config.features, d_state=n, init="diag-lin", rngs=nnx.Rngs(0)))
    definition, state = nnx.split(layer)
    x = jax.ShapeDtypeStruct((config.batch, l, config.features), jnp.float32)

    def both(state, x, dy):
        def run(state, x):
            layer = nnx.merge(definition, state)
            return layer(x) if form is None else form(layer, x)

        y, pullback = jax.vjp(run, state, x)
        return y, pullback(dy)

    compiled = jax.jit(both).lower(state, x, x).compile()
    return round(compiled.memory_analysis().temp_size_in_bytes / 1e6, 3)


def _rows(records: list[dict]) -> dict[tuple[str, int], dict[int, float]]:
    rows: dict[tuple[str, int], dict[int, float]] = {}
    for r in records:
        rows.setdefault((r["form"], r["n"]), {})[r["l"]] = r["temp_mb"]
    return rows


def draw(results: pathlib.Path, figure: pathlib.Path) -> None:
    """Draws memory against length, a line for each form and state size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records = json.loads(results.read_text())
    fig, ax = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    styles = {"ours": dict(marker="o"), "written out": dict(marker="s", linestyle="--")}
    colors: dict[int, str] = {}
    for (name, n), of_length in _rows(records).items():
        color = colors.setdefault(n, f"C{len(colors)}")
        ax.plot(list(of_length), list(of_length.values()), color=color, label=f"{name}, N = {n}", **styles[name])
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xlabel("length L")
    ax.set_ylabel("temporary memory, MB")
    ax.set_title(f"S4D forward and backward, batch {records[0]['b']}, {records[0]['h']} features")
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")
    figure.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(figure, dpi=150)
    plt.close(fig)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
