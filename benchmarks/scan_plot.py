"""Time of the selective scan against the length, and how near it is to the floor.

`python -m benchmarks.scan_plot RESULTS` draws what `python -m benchmarks.ops --peer MAMBA_SSM --shapes 8x256x2048x16
8x1024x2048x16 ...` has measured, for the batch and channels with the most lengths. The floor is the longer of moving
arguments and results once and of taking the exponentials, at the rates of the same run.
"""

import collections
import dataclasses
import json
import pathlib

import tyro

from ssmjax.paths import LocalPaths

__all__ = ["Config", "draw", "lines"]

STYLES = {
    "ours": dict(color="#2f5d9e", marker="o"),
    "mamba_ssm": dict(color="#c8553d", marker="s"),
    "floor": dict(color="#777777", linestyle=":"),
}
PASSES = {"forward": "plain", "forward+backward": "with z, bias and softplus"}
"""Of each pass, the variant that is drawn."""


@dataclasses.dataclass(frozen=True)
class Config(LocalPaths):
    """What to draw.

    Attributes:
        results: A results file, such as `benchmarks/results/nvidia_h200.json`.
        figure: The PNG to write; `figures/selective_scan_<device>.png` by default.
    """

    results: tyro.conf.Positional[pathlib.Path]
    figure: pathlib.Path | None = None


def main(config: Config) -> pathlib.Path:
    """Draws the figure; returns where it is."""
    figure = config.figure or pathlib.Path("figures") / f"selective_scan_{config.results.stem}.png"
    draw(json.loads(config.results.read_text()), figure)
    print(figure)
    return figure


def lines(records: list[dict]) -> tuple[str, dict[str, dict[int, dict]]]:
    """The sizes with the most lengths, such as `"8, L, 2048, 16"`, and for each pass its records by length.

    Raises:
        ValueError: Nothing was measured beside mamba_ssm at two lengths or more.
    """
    found: dict[str, dict[str, dict[int, dict]]] = collections.defaultdict(lambda: {which: {} for which in PASSES})
    for r in records:
        if r.get("op") == "selective_scan" and "floor_ms" in r and PASSES.get(r["pass"]) == r["variant"]:
            b, l, e, n = r["shape"].split("x")
            found[f"{b}, L, {e}, {n}"][r["pass"]][int(l)] = r
    name, most = max(found.items(), key=lambda item: len(item[1]["forward"]), default=("", {"forward": {}}))
    if len(most["forward"]) < 2:
        raise ValueError("No batch and channels were measured beside mamba_ssm at two lengths or more.")
    return name, {which: dict(sorted(by_length.items())) for which, by_length in most.items()}


def draw(records: list[dict], figure: pathlib.Path) -> None:
    """Draws time against length for both passes, and the share of the floor in it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    name, passes = lines(records)
    fig, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for ax, (which, by_length) in zip(axes, passes.items(), strict=False):
        for key, label in {"ms": "ours", "peer_ms": "mamba_ssm", "floor_ms": "floor"}.items():
            ax.plot(list(by_length), [r[key] for r in by_length.values()], label=label, **STYLES[label])
        ax.set(title=f"{which}, {PASSES[which]}", ylabel="ms", xscale="log", yscale="log")
        for key, label in {"ms": "ours", "peer_ms": "mamba_ssm"}.items():
            style = STYLES[label] | {"linestyle": "-" if which == "forward" else "--"}
            share = [100 * r["floor_ms"] / r[key] for r in by_length.values()]
            axes[2].plot(list(by_length), share, label=f"{label}, {which}", **style)
    axes[2].set(title="floor / time", ylabel="%", xscale="log", ylim=(0, 100))
    for ax in axes:
        ax.set_xlabel("length L")
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    one = next(iter(passes["forward"].values()))
    fig.suptitle(f"selective scan, (b, l, e, n) = ({name}), {one['dtype']}, {one['device']}, commit {one['commit']}")
    figure.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(figure, dpi=110)
    plt.close(fig)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
