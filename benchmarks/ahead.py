"""Compiles ahead of time for hardware that is not here, and says what the compilers say.

    python -m benchmarks.ahead tpu    every op in XLA, forward and with gradients, and three training steps, for TPU v5e
                                      and v6e, with their memory; needs `pip install "jax[tpu]"`, no TPU
    python -m benchmarks.ahead gpu    the scan's kernels for a Hopper GPU, with registers and spilled bytes; needs
                                      `pip install "jax[cuda13]"`, no GPU

Nothing runs. What does not compile is listed, and then the exit status is 1. Records go to
`benchmarks/results/ahead_tpu.json` and `ahead_gpu.json`. `make test-tpu-compile` is the first command.
"""

import dataclasses
import functools
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal

os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported: nothing may look for devices

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import ssmjax
from benchmarks.models import example_batch, training_step
from benchmarks.ops import stamp
from benchmarks.scan_peer import SHAPES
from ssmjax import ops
from ssmjax.models import registry
from ssmjax.ops.selective_scan.call import ScanCall
from ssmjax.ops.selective_scan.pallas_mosaic import selective_scan_mosaic
from ssmjax.paths import LocalPaths

__all__ = ["Config", "main"]

TPUS = {"TPU v5e": "v5e:2x2", "TPU v6e": "v6e:2x2"}
MODELS = {"vim_tiny": 64, "s5_classifier": 32, "s4d_classifier": 32}
"""Models whose training steps are compiled, and their batches."""

HOPPER = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3350000000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 80000000000 shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 } device_description_str: "NVIDIA H100"
"""


@dataclasses.dataclass(frozen=True)
class Config(LocalPaths):
    """What to compile.

    Attributes:
        platform: tpu or gpu.
        only: Names that contain this text.
        out: Results file; `benchmarks/results/ahead_<platform>.json` by default.
    """

    platform: tyro.conf.Positional[Literal["tpu", "gpu"]]
    only: str = ""
    out: pathlib.Path | None = None


def main(config: Config) -> int:
    """Compiles, prints and writes; returns 1 if something did not compile."""
    if config.platform == "gpu" and "MOSAIC_GPU_DUMP_PTXAS" not in os.environ:
        return _with_ptxas(config)
    records = []
    targets = {"H100": None} if config.platform == "gpu" else TPUS
    for target, topology in targets.items():
        place = _place(topology)
        for name, lower in _programs(config.platform, place):
            if config.only not in name:
                continue
            print(f"{target}: {name}", flush=True)
            records.append({"target": target, "program": name} | _compiled(lower))
            print(f"    {_line(records[-1])}", flush=True)
    failed = [r for r in records if r["error"]]
    for r in failed:
        print(f"FAILED {r['target']}: {r['program']}: {r['error']}")
    print(f"{len(records) - len(failed)} compiled, {len(failed)} failed")
    if config.platform == "tpu":
        _write(config, records)
    return bool(failed)


def _with_ptxas(config: Config) -> int:
    """Runs this module again, with an assembler that reports, and adds what it says to the records."""
    command = [sys.executable, "-m", "benchmarks.ahead", "gpu", "--only", config.only]
    done = subprocess.run(
        command, env=os.environ | {"MOSAIC_GPU_DUMP_PTXAS": "1"}, capture_output=True, text=True, check=False
    )
    if "compiled," not in done.stdout:
        print(done.stdout, done.stderr, sep="\n")
        return 1
    records: list[dict[str, Any]] = []
    for line in (done.stdout + "\n").splitlines():
        if line.startswith("H100: "):
            records.append({"target": "H100", "program": line.removeprefix("H100: "), "kernels": []})
        elif found := re.search(r"(\d+) bytes spill stores", line):
            spilled = int(found[1])
        elif found := re.search(r"Used (\d+) registers", line):
            records[-1]["kernels"].append({"registers": int(found[1]), "spilled_bytes": spilled})
    for r in records:
        print(f"{r['program']}: " + ", ".join("{registers} ({spilled_bytes})".format(**k) for k in r["kernels"]))
    print("registers of each kernel, and bytes that it spills, in parentheses\n" + done.stdout.splitlines()[-1])
    _write(config, records)
    return done.returncode


def _write(config: Config, records: list[dict[str, Any]]) -> None:
    source = {k: v for k, v in stamp().items() if k in ("commit", "versions")}
    out = config.out or pathlib.Path(__file__).parent / "results" / f"ahead_{config.platform}.json"
    out.write_text(json.dumps([r | source for r in records], indent=1) + "\n")
    print(f"Wrote {len(records)} records to {out}")


def _place(topology: str | None) -> Any:
    """A sharding on one device of a topology that is not here."""
    from jax.experimental import topologies

    if topology is None:
        described = topologies.get_topology_desc(platform="cuda", target_config=HOPPER, topology="1x1x1")
    else:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    return jax.sharding.SingleDeviceSharding(described.devices[0])


def _programs(platform: str, place: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Names of programs, and what lowers them for a place."""
    if platform == "gpu":
        for shape in SHAPES:
            for full in (False, True):
                more = ", z, bias and softplus" if full else ""
                yield f"selective_scan {shape}{more}", functools.partial(_lower_scan, shape, full, place)
        return
    for op in ops.registered_ops():
        for which in ("forward", "gradients"):
            yield f"{op.name}, {which}", functools.partial(_lower_op, op, which, place)
    for name, batch in MODELS.items():
        yield f"{name}, training step of {batch}", functools.partial(_lower_training, name, batch, place)


def _at(place: Any, tree: Any) -> Any:
    def one(x):
        return jax.ShapeDtypeStruct(
            jnp.shape(x), x.dtype if hasattr(x, "dtype") else jnp.result_type(x), sharding=place
        )

    return jax.tree.map(one, tree)


def _lower_op(op: Any, which: str, place: Any) -> Any:
    call = op.example(jax.random.key(0))
    leaves, structure = jax.tree.flatten(call, is_leaf=lambda x: isinstance(x, list | str) or x is None)
    moving = [
        isinstance(x, jax.Array | np.ndarray) and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in leaves
    ]
    arrays = [jnp.asarray(x) for x, moves in zip(leaves, moving, strict=True) if moves]
    chosen = {"implementation": "xla"} if "xla" in op.implementations else {}

    def run(arrays):
        given = iter(arrays)
        args, options = jax.tree.unflatten(
            structure, [next(given) if m else x for x, m in zip(leaves, moving, strict=True)]
        )
        return op.function(*args, **options, **chosen)

    def total(inexact, others):
        given = {**dict(inexact), **dict(others)}
        found = jax.tree.leaves(run([given[i] for i in range(len(arrays))]))
        return sum(jnp.sum(jnp.abs(x.astype(x.dtype)) ** 2) for x in found if jnp.issubdtype(x.dtype, jnp.inexact))

    if which == "forward":
        return jax.jit(run).lower(_at(place, arrays))
    inexact = {i: x for i, x in enumerate(arrays) if jnp.issubdtype(x.dtype, jnp.inexact)}
    others = {i: x for i, x in enumerate(arrays) if i not in inexact}
    return jax.jit(jax.grad(total)).lower(_at(place, inexact), _at(place, others))


def _lower_training(name: str, batch: int, place: Any) -> Any:
    model = ssmjax.create_model(name, dtype="bfloat16")
    family = registry.get_family(registry.family_of(model.config))
    shape, dtype = family.input_shape(model.config, batch), family.input_dtype(model.config)
    example = jax.eval_shape(lambda: example_batch(shape, dtype, model.config))
    step, state = training_step(model)
    return jax.jit(step, donate_argnums=0).lower(_at(place, state), _at(place, example))


def _lower_scan(shape: str, full: bool, place: Any) -> Any:
    b, l, e, n = map(int, shape.split("x"))
    low = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16, sharding=place)
    wide = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32, sharding=place)
    arrays = {"x": low((b, l, e)), "dt": low((b, l, e)), "B": low((b, l, n)), "C": low((b, l, n))}
    arrays |= {"A": wide((e, n)), "D": wide((e,))} | ({"z": low((b, l, e)), "dt_bias": wide((e,))} if full else {})

    def scan(arrays):
        return selective_scan_mosaic(ScanCall(**arrays, dt_softplus=full, return_state=False))[0]

    def both(arrays, dy):
        y, vjp = jax.vjp(scan, arrays)
        return y, vjp(dy)

    return jax.jit(both).lower(arrays, low((b, l, e)))


def _compiled(lower: Callable[[], Any]) -> dict[str, Any]:
    try:
        found = lower().compile().memory_analysis()
    except Exception as error:  # whatever a compiler says is a result
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}", "peak_mb": None}
    held = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
    return {"error": None, "peak_mb": round((held - found.alias_size_in_bytes) / 1e6, 3)}


def _line(record: dict[str, Any]) -> str:
    return record["error"] or f"{record['peak_mb']:,.1f} MB"


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
