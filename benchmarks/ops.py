"""Times ops and layers against other forms of them: `python -m benchmarks.ops`.

Every variant is first checked against a reference, outputs and gradients; one that is wrong stops the run. Then
forward, and forward with backward, are timed in turns. `--peer FOLDER` times the original implementations too, from the
user's copy of their sources. What is compared and how: benchmarks/README.md.
"""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import tyro

from benchmarks import peers, scan_peer
from benchmarks.cases import CASES as OP_CASES
from benchmarks.cases import Case
from benchmarks.layer_cases import LAYER_CASES
from benchmarks.timing import back_to_back, bandwidth, compile_all, in_loop, runs_a_sample, time_in_turns
from ssmjax import errors
from ssmjax.paths import LocalPaths

__all__ = ["Config", "main", "stamp"]

CASES = OP_CASES | LAYER_CASES
"""For each op and layer its case and its default shapes."""

GATE = {"forward": {"float32": 1e-4, "bfloat16": 5e-2}, "forward+backward": {"float32": 1e-3, "bfloat16": 1e-1}}
"""Largest relative error that passes the gate, by pass and dtype."""

PEER_GATE = 1e-3
"""Of an original implementation, whose own float32 error is up to 2e-4 (S4's kernel at 4,096 steps)."""


@dataclasses.dataclass(frozen=True)
class Config(LocalPaths):
    """What to run.

    Attributes:
        op: Ops and layers to time; by default all, or with `peer` the layers that have one.
        shapes: Shapes such as `2x1024x256x16` (b l e n); each op's default otherwise.
        peer: A folder with sources of the original implementations, which are timed in turns with ours; with a built
            mamba_ssm only the selective scan is, in bfloat16 on a GPU.
        dtype: float32 or bfloat16.
        rounds: Timed runs of each variant.
        memory_length: Length at which the selective scan's peak memory is compiled, not run; 0 for none.
        out: Results file; `benchmarks/results/<device>.json` by default.
    """

    op: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    peer: pathlib.Path | None = None
    dtype: str = "float32"
    rounds: int = 15
    memory_length: int = 8192
    out: pathlib.Path | None = None


def main(config: Config) -> list[dict]:
    """Runs the benchmark, writes its records and prints its tables; returns the records."""
    for op in config.op:
        if op not in CASES:
            raise errors.unknown_name("benchmark", op, list(CASES))
    scan = scan_peer.find(config.peer) if config.peer else None
    if scan:
        return _write(config, scan_peer.run(scan, config.shapes or scan_peer.SHAPES, config.rounds))
    sources = peers.find_sources(config.peer) if config.peer else {}
    chosen = config.op or tuple(sources) or tuple(CASES)
    bytes_per_second = bandwidth()
    records = []
    for op in chosen:
        make_case, default_shapes = CASES[op]
        for shape in config.shapes or default_shapes:
            sizes = tuple(map(int, shape.split("x")))
            case = make_case(sizes, jnp.dtype(config.dtype))
            peer = _checked_peer(op, sources[op], sizes, case) if op in sources else None
            timed = _time(op, shape, case, config, bytes_per_second, peer)
            records += timed
            _print_table(op, shape, timed)
    if config.memory_length and "selective_scan" in chosen:
        shape = f"2x{config.memory_length}x256x16"
        measured = _measure_memory(shape)
        records += measured
        _print_memory(shape, measured)
    return _write(config, records)


def _write(config: Config, records: list[dict]) -> list[dict]:
    """Adds where the numbers come from, and puts the records in the results file."""
    source = stamp()
    records = [record | source for record in records]
    out = config.out or pathlib.Path(__file__).parent / "results" / f"{source['device']}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(_merged(out, records), indent=1) + "\n")
    print(f"Wrote {len(records)} records to {out}")
    return records


def _passes(case: Case, function) -> dict:
    """The two passes of a variant as functions of the case's arrays and the cotangent of y."""

    def forward(*args):
        return function(*args[:-1])

    def both(*args):
        y, vjp = jax.vjp(function, *args[:-1])
        return y, vjp(args[-1])

    return {"forward": forward, "forward+backward": both}


def _checked_peer(op: str, source: pathlib.Path, sizes: tuple[int, ...], case: Case) -> peers.Peer:
    """The original implementation, once our layer has given its outputs and gradients with its weights."""
    peer = peers.load_peer(op, source, sizes)
    for which, error in peers.mismatch(case, peer).items():
        if not error <= PEER_GATE:
            raise SystemExit(f"{op} {which}: ours differs from {peer.name!r} by {error:.1e}. Nothing was timed.")
        print(f"{op} {which}: ours gives what {peer.name!r} gives with its weights, relative error {error:.1e}")
    return peer


def _time(
    op: str, shape: str, case: Case, config: Config, bytes_per_second: float, peer: peers.Peer | None = None
) -> list[dict]:
    """Records of one op at one shape: all variants, both passes."""
    dy = jax.random.normal(jax.random.key(1), jax.eval_shape(case.reference, *case.args).shape, config.dtype)
    args = *case.args, dy
    functions = {**case.opponents, **case.ours}
    records = []
    for which in ("forward", "forward+backward"):
        passes = {name: _passes(case, f)[which] for name, f in functions.items()}
        compiled = compile_all(passes, args)
        wanted = jax.jit(_passes(case, case.reference)[which])(*args)
        found = {name: _error(c.call(*args), wanted) for name, c in compiled.items()}
        for name, error in found.items():
            if not error <= GATE[which][config.dtype]:
                raise SystemExit(
                    f"{op} {shape} {which}: {name!r} is wrong, relative error {error:.1e}. Nothing was timed."
                )
        calls = {name: c.call for name, c in compiled.items()}
        if peer:
            calls[peer.name] = lambda *_, run=peer.passes[which]: run()
        runs = {name: runs_a_sample(call, args) for name, call in calls.items()}
        for name, count in runs.items():
            if count > 1:
                loops = name in passes
                calls[name] = in_loop(passes[name], args, count) if loops else back_to_back(calls[name], count)
        for name, times in time_in_turns(calls, args, config.rounds, runs).items():
            records.append(
                {
                    "op": op,
                    "shape": shape,
                    "dtype": config.dtype,
                    "pass": which,
                    "variant": name,
                    "ms": round(times.median, 4),
                    "spread": round(times.spread, 3),
                    "ms_least": round(times.least, 4),
                    "runs": runs[name],
                    "floor_ms": round(1e3 * case.cost.bytes / bytes_per_second, 4) if which == "forward" else None,
                    "error": found.get(name),
                    "temp_mb": round(compiled[name].temp_bytes / 1e6, 3) if name in compiled else None,
                }
            )
    return records


def _error(got, wanted) -> float:
    """Largest error over a tree's arrays, each relative to the array's largest entry."""

    def one(g, w):
        g, w = g.astype(jnp.float32), w.astype(jnp.float32)
        return float(jnp.max(jnp.abs(g - w)) / jnp.maximum(jnp.max(jnp.abs(w)), 1e-6))

    return max(jax.tree.leaves(jax.tree.map(one, got, wanted)))


def _measure_memory(shape: str) -> list[dict]:
    """Peak temporary memory of forward+backward of every selective scan, from the compiler; nothing runs."""
    case = CASES["selective_scan"][0](tuple(map(int, shape.split("x"))), jnp.dtype("float32"))
    args = *case.args, case.args[0]
    functions = {n: _passes(case, f)["forward+backward"] for n, f in {**case.opponents, **case.ours}.items()}
    compiled = compile_all(functions, args)
    keys = {"op": "selective_scan", "shape": shape, "dtype": "float32", "pass": "forward+backward, memory only"}
    return [keys | {"variant": name, "temp_mb": round(c.temp_bytes / 1e6, 3)} for name, c in compiled.items()]


def _print_table(op: str, shape: str, records: list[dict]) -> None:
    for which in ("forward", "forward+backward"):
        rows = [r for r in records if r["pass"] == which]
        best = min((r["ms_least"] for r in rows if not r["variant"].startswith("ours")), default=None)
        print(f"\n{op} {shape} {rows[0]['dtype']}, {which}")
        for r in sorted(rows, key=lambda r: r["ms_least"]):
            ratio = f"{r['ms_least'] / best:6.2f}x best opponent" if best else ""
            time = f"{r['ms']:9.2f} ms +-{r['spread']:4.0%}, least {r['ms_least']:9.2f}"
            memory = "" if r["temp_mb"] is None else f"{r['temp_mb']:.1f} MB"
            print(f"  {r['variant']:52s} {time}  {memory:>11s}  {ratio}")
        _print_peer(rows)


def _print_peer(rows: list[dict]) -> None:
    ours = next(r for r in rows if r["variant"] == "ours: auto")
    for theirs in (r for r in rows if r["variant"].startswith("peer: ")):
        print(
            f"  ours {ours['ms_least']:.1f} ms, theirs {theirs['ms_least']:.1f} ms, "
            f"ratio {theirs['ms_least'] / ours['ms_least']:.2f} (of the medians {theirs['ms'] / ours['ms']:.2f})"
        )


def _print_memory(shape: str, records: list[dict]) -> None:
    whole = next(r["temp_mb"] for r in records if r["variant"] == "associative, materialized")
    print(f"\nselective_scan {shape}, peak temporary memory of forward+backward")
    for r in sorted(records, key=lambda r: r["temp_mb"]):
        print(f"  {r['variant']:52s} {r['temp_mb']:10.1f} MB  1/{whole / r['temp_mb']:.0f} of the materialized form")


def stamp() -> dict:
    """Where numbers come from: device, cores, commit, versions."""
    device = jax.devices()[0].device_kind.lower().replace(" ", "_")
    command = ["git", "describe", "--always", "--dirty"]
    git = subprocess.run(command, capture_output=True, text=True, cwd=pathlib.Path(__file__).parent, check=False)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    versions["python"] = sys.version.split()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"device": device, "cores": cores, "commit": git.stdout.strip() or "uncommitted", "versions": versions}


def _merged(out: pathlib.Path, records: list[dict]) -> list[dict]:
    """The records in the file, those measured again replaced."""

    def key(record):
        return tuple(record[k] for k in ("op", "shape", "dtype", "pass", "variant"))

    old = json.loads(out.read_text()) if out.exists() else []
    new = {key(record) for record in records}
    return [record for record in old if "op" not in record or key(record) not in new] + records


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
