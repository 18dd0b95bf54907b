"""The selective scan beside mamba_ssm's CUDA kernel, in turns in one process: `python -m benchmarks.ops --peer FOLDER`.

FOLDER holds mamba_ssm with its extension built in place (`python setup.py build_ext --inplace`). Inputs are bfloat16,
each library in its own layout. A sample is many launches, one after the other, from the first to the end of the last;
ours are one compiled program whose launches depend on each other, theirs are launched from Python ahead of the device,
as both are used. Before that, outputs and gradients of both are compared with ours in float32, which `make test-gpu`
compares with float64.
"""

import functools
import importlib
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import bandwidth
from ssmjax import ops

__all__ = ["SHAPES", "find", "run"]

SHAPES = ("8x2048x2048x16", "8x2048x5120x16", "1x16384x1536x16", "2x65536x1536x16", "64x192x384x16", "128x197x384x16")
"""Shapes (b l e n)."""

LAUNCHES = 20
GATE = 1e-2
"""Largest relative error, of norms, that passes the gate: 1.7e-3 is the rounding of a bfloat16 result."""


def find(folder: pathlib.Path) -> pathlib.Path | None:
    """The folder with the built extension, itself or one below."""
    for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        if list(place.glob("selective_scan_cuda*.so")):
            return place
    return None


def run(folder: pathlib.Path, shapes: tuple[str, ...], rounds: int) -> list[dict]:
    """Records of all shapes: forward alone, and forward with backward, each plain and with z, bias and softplus."""
    import torch  # before the extension, which needs its libraries

    sys.path.insert(0, str(folder))
    cuda = importlib.import_module("selective_scan_cuda")
    copy, exponentials = bandwidth(), _exponentials_per_second()
    records = []
    for shape in shapes:
        for full in (False, True):
            sizes = tuple(map(int, shape.split("x")))
            arrays = _arrays(sizes, full)
            for which in ("forward", "forward+backward"):
                mine = _ours(arrays, full, which)
                theirs = _theirs(torch, cuda, arrays, full, which)
                error = _gate(arrays, full, which, mine, theirs, shape)
                times = _in_turns({"ours": mine, "peer": lambda call=theirs: _launches(torch, call)}, rounds)
                ours, peer = times["ours"], times["peer"]
                records.append(
                    {
                        "op": "selective_scan",
                        "shape": shape,
                        "dtype": "bfloat16",
                        "pass": which,
                        "variant": "with z, bias and softplus" if full else "plain",
                        "ms": round(ours[0], 4),
                        "spread": round(ours[1], 3),
                        "peer_ms": round(peer[0], 4),
                        "peer_spread": round(peer[1], 3),
                        "ratio": round(ours[0] / peer[0], 3),
                        "floor_ms": round(_floor(sizes, full, which, copy, exponentials), 4),
                        "error": error,
                    }
                )
                print(
                    "{shape} {variant}, {pass}: ours {ms} ms +-{spread:.1%}, theirs {peer_ms} ms +-{peer_spread:.1%}, "
                    "ratio {ratio}, floor {floor_ms} ms, error {error:.1e}".format(**records[-1]),
                    flush=True,
                )
    return records


def _arrays(sizes, full: bool) -> dict:
    b, l, e, n = sizes
    keys = iter(jax.random.split(jax.random.key(0), 10))
    normal = lambda *shape: jax.random.normal(next(keys), shape)  # noqa: E731
    low = functools.partial(jnp.asarray, dtype=jnp.bfloat16)
    dt = normal(b, l, e) - 4
    arrays = {
        "x": low(normal(b, l, e)),
        "dt": low(dt if full else jax.nn.softplus(dt)),
        "A": -jnp.exp(0.5 * normal(e, n)),
        "B": low(normal(b, l, n)),
        "C": low(normal(b, l, n)),
        "D": normal(e),
        "dy": low(normal(b, l, e)),
    }
    return arrays | ({"z": low(normal(b, l, e)), "dt_bias": 0.1 * normal(e)} if full else {})


def _scan(full: bool, arrays: dict, **options):
    arrays = {k: v for k, v in arrays.items() if k != "dy"}
    return ops.selective_scan(**arrays, dt_softplus=full, **options)


def _pass(full: bool, which: str, arrays: dict, **options):
    """y, and the gradients by name."""
    inputs = {k: v for k, v in arrays.items() if k != "dy"}
    if which == "forward":
        return _scan(full, inputs, **options), {}
    y, vjp = jax.vjp(functools.partial(_scan, full, **options), inputs)
    return y, vjp(arrays["dy"])[0]


def _ours(arrays: dict, full: bool, which: str):
    """A function without arguments: the launches of a sample, one waiting for the other; returns the last results."""

    @jax.jit
    def several(arrays):
        small = []
        for _ in range(LAUNCHES):
            y, grads = _pass(full, which, arrays)
            small.append({k: v for k, v in grads.items() if k not in ("x", "dt", "z")})  # results: nobody drops them
            link = grads["D"] if grads else y[0, 0].astype(jnp.float32)
            arrays = arrays | {"D": arrays["D"] + 0 * link}  # of floats, so that the compiler cannot drop it
        return (y, grads), small

    compiled = several.lower(arrays).compile()
    return lambda: jax.block_until_ready(compiled(arrays))[0]


def _theirs(torch, cuda, arrays: dict, full: bool, which: str):
    """One launch of theirs; returns y and the gradients by name, channels first."""

    def give(v, channels_first=False):
        v = jax.dlpack.to_dlpack(v) if not hasattr(v, "__dlpack__") else v
        v = torch.from_dlpack(v)
        return v.transpose(1, 2).contiguous() if channels_first else v

    t = {k: give(v, k in ("x", "dt", "z", "B", "C", "dy")) for k, v in arrays.items()}
    t |= {k: t[k][:, None] for k in ("B", "C")}
    args = (t["x"], t["dt"], t["A"], t["B"], t["C"], t["D"], t.get("z"), t.get("dt_bias"))

    def call():
        out, states, *gated = cuda.fwd(*args, full)
        y = gated[0] if gated else out
        if which == "forward":
            return y, {}
        grads = cuda.bwd(*args, t["dy"], states, out if full else None, None, full, False)
        names = ("x", "dt", "A", "B", "C", "D", "dt_bias", "z")
        return y, {k: v for k, v in zip(names, grads, strict=False) if k in arrays}

    return call


def _launches(torch, call):
    for _ in range(LAUNCHES):
        call()
    torch.cuda.synchronize()


def _in_turns(calls: dict, rounds: int) -> dict:
    """Median milliseconds of a launch, and the interquartile range over it; the first round does not count."""
    samples = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if turn:
                samples[name].append(1e3 * (time.perf_counter() - began) / LAUNCHES)

    def summary(times):
        median = statistics.median(times)
        low, _, high = statistics.quantiles(times, n=4, method="inclusive")
        return median, (high - low) / median

    return {name: summary(times) for name, times in samples.items()}


def _gate(arrays, full, which, mine, theirs, shape) -> float:
    """The largest error of ours; stops where ours or theirs is wrong."""
    up = {k: v.astype(jnp.float32) for k, v in arrays.items()}
    wanted = jax.jit(functools.partial(_pass, full, which))(up)
    y, grads = theirs()
    back = {k: v.float().cpu().numpy() for k, v in grads.items()}
    back = {k: v[:, 0].swapaxes(1, 2) if k in "BC" else v.swapaxes(1, 2) if v.ndim == 3 else v for k, v in back.items()}
    found = {"ours": mine(), "theirs": (y.float().cpu().numpy().swapaxes(1, 2), back)}
    worst = {}
    for name, (y, grads) in found.items():
        pairs = [(y, wanted[0])] + [(grads[k], wanted[1][k]) for k in grads]
        worst[name] = max(float(_relative(g, w)) for g, w in pairs)
        if not worst[name] <= GATE:
            raise SystemExit(
                f"selective_scan {shape} {which}: {name} is wrong by {worst[name]:.1e}. Nothing was timed."
            )
    return worst["ours"]


def _relative(got, wanted):
    got = jnp.asarray(np.asarray(got, np.float32)) if not isinstance(got, jax.Array) else got.astype(jnp.float32)
    return jnp.linalg.norm((got - wanted).ravel()) / jnp.linalg.norm(wanted.ravel())


def _exponentials_per_second() -> float:
    """Of a large array, many to a number, so that memory does not count."""
    many = 64

    @jax.jit
    def run(v):
        for _ in range(many):
            v = jnp.exp2(-v)
        return v

    v = jnp.ones((2**24,), jnp.float32)
    jax.block_until_ready(run(v))
    began = time.perf_counter()
    for _ in range(10):
        v = run(v)
    jax.block_until_ready(v)
    return 10 * many * v.size / (time.perf_counter() - began)


def _floor(sizes, full: bool, which: str, copy: float, exponentials: float) -> float:
    """Milliseconds: the larger of the arrays moved once and of one exponential (backward: one more) for each state."""
    b, l, e, n = sizes
    wide = 3 + full if which == "forward" else 3 + full + 4 + 2 * full
    moved = 2 * b * l * (wide * e + 2 * n * (1 if which == "forward" else 3))
    return 1e3 * max(moved / copy, (1 if which == "forward" else 2) * b * l * e * n / exponentials)
