"""Finds launch parameters of the selective scan on this GPU: `python -m benchmarks.tune`.

For each case of `mosaic.plan.case_of` a helper is tried and left out, in turns, and what was faster goes into
`ssmjax/ops/selective_scan/mosaic/tiles.json` under the kind of GPU. Everything else follows from sizes.
"""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import tyro

from benchmarks.timing import time_in_turns
from ssmjax.ops.selective_scan.call import ScanCall
from ssmjax.ops.selective_scan.mosaic.plan import case_of, choose_tiles
from ssmjax.ops.selective_scan.pallas_mosaic import TABLE, selective_scan_mosaic
from ssmjax.paths import LocalPaths

__all__ = ["Config", "main"]

LAUNCHES = 10


@dataclasses.dataclass(frozen=True)
class Config(LocalPaths):
    """What to run.

    Attributes:
        shapes: One with a program for each multiprocessor at most and one with more, (b l e n).
        rounds: Samples, of which the median counts.
        out: The table.
    """

    shapes: tuple[str, ...] = ("8x2048x2048x16", "128x197x384x16")
    rounds: int = 7
    out: pathlib.Path = TABLE


def main(config: Config) -> dict:
    """Measures, prints, and writes the table; returns what it has for this GPU."""
    found = {}
    for shape in config.shapes:
        for more in (False, True):
            b, l, e, n = map(int, shape.split("x"))
            widths = dict.fromkeys(("x", "dt", "B", "C", "z")[: 4 + more], 2)
            case = case_of(b * e // 128, widths, more)
            arrays = _arrays((b, l, e, n), more)
            found[case] = {}
            for kernel in ("forward", "backward"):
                tiles = {}
                for helper in (False, True):
                    helpers = {case: {"forward": False, "backward": False} | {kernel: helper}}
                    pair = choose_tiles(b, l, e, n, widths, changes_dt=more, helpers=helpers)
                    tiles[helper] = dict(zip(("forward", "backward"), pair, strict=True))
                if tiles[False] == tiles[True]:
                    found[case][kernel] = False
                    continue
                calls = {helper: _call(kernel, arrays, more, tiles[helper]) for helper in tiles}
                times = time_in_turns(calls, (arrays,), config.rounds, dict.fromkeys(calls, LAUNCHES))
                found[case][kernel] = times[True].median < times[False].median
                ms = {helper: round(t.median, 4) for helper, t in times.items()}
                print(f"{shape} {case}, {kernel}: {ms[False]} ms alone, {ms[True]} ms with a helper", flush=True)
    table = json.loads(config.out.read_text()) | {jax.devices()[0].device_kind: found}
    config.out.write_text(json.dumps(table, indent=1) + "\n")
    return found


def _arrays(sizes, more: bool) -> dict:
    b, l, e, n = sizes
    keys = iter(jax.random.split(jax.random.key(0), 8))
    wide = {k: jax.random.normal(next(keys), (b, l, e)).astype(jnp.bfloat16) for k in ("x", "dt", "z")[: 2 + more]}
    arrays = wide | {k: jax.random.normal(next(keys), (b, l, n)).astype(jnp.bfloat16) for k in ("B", "C")}
    arrays["dt"] = arrays["dt"] - 4 if more else jax.nn.softplus(arrays["dt"] - 4)
    return arrays | {"A": -jnp.exp(jax.random.normal(next(keys), (e, n))), "D": jax.random.normal(next(keys), (e,))}


def _call(kernel: str, arrays: dict, more: bool, tiles: dict):
    """Compiled launches that wait for each other."""

    def scan(arrays):
        return selective_scan_mosaic(ScanCall(**arrays, dt_softplus=more, return_state=False), **tiles)[0]

    def several(arrays):
        for _ in range(LAUNCHES):
            if kernel == "forward":
                link = scan(arrays)[0, 0].astype(jnp.float32)
            else:
                y, vjp = jax.vjp(scan, arrays)
                link = vjp(y)[0]["D"]
            arrays = arrays | {"D": arrays["D"] + 0 * link}
        return link

    return functools.partial(jax.jit(several).lower(arrays).compile())


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
