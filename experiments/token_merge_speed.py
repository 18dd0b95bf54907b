"""What fewer visual tokens save at real sizes: times and operations of each part of a block, out of place.

One block of the vision tower, the projector and one block of the language model of LLaVA-1.5-7B or Qwen2-VL-2B, with
random weights and random tokens: queries, keys and values; attention; its output; the MLP; the norms; a step of
decoding; and the merge itself, at 576, 192, 128, 64 and 32 visual tokens beside 64 of text, batch 1. What the whole
model takes is extrapolated from its number of blocks: "model" is a prompt whose tokens merge behind the tower; "inside"
one whose tokens merge after a quarter of the tower's blocks (in Qwen2-VL cells of 2 x 2 patches, one visual
token each); "decode" a step, without the head; "cache MB" what the keys and values of the prompt take.

Recipe (device, minutes, what is expected):
    python -m experiments.token_merge_speed                                one H200, 4; the merge is below 0.1 ms
    python -m experiments.token_merge_speed --model qwen2_vl_2b            one H200, 4
    python -m experiments.token_merge_speed --dtypes float32 --repeats 5   two CPU cores, 3

Times are medians, by call; the function is compiled, and its arrays are arguments. On a GPU 20 calls are queued before
`block_until_ready`, so that what is timed is the work and not the way to it. "eager" is the merge without `jax.jit`.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.shared import common, plots_vlm
from ssmjax import errors, ops
from ssmjax.paths import LocalPaths
from ssmjax.training.report import make_report, render_table, write_report
from vlmjax.layers import BlockSize, Merger, Projector, TransformerBlock, rope_angles
from vlmjax.models import PatchMerger, QwenVisionConfig

NAME = "token_merge_speed"

TEXT = 64


@dataclasses.dataclass(frozen=True)
class Shape:
    """The blocks of a model: sizes of the tower's and the language model's, and how many of each run."""

    tower: BlockSize
    tower_blocks: int
    language: BlockSize
    language_blocks: int
    patches: int = 1
    """The tower's tokens for one visual token of the language model."""

    @property
    def inside(self) -> int:
        """How many of the tower's blocks run before a merge inside it."""
        return max(1, self.tower_blocks // 4)


_CAUSAL = dict(norm="rms", activation="silu", gated=True, causal=True, out_bias=False, mlp_bias=False)
SHAPES = {
    "llava_1_5_7b": Shape(
        BlockSize(1024, 16, 4096, activation="quick_gelu"),
        23,  # the last block of 24 does not run
        BlockSize(4096, 32, 11008, qkv_bias=False, **_CAUSAL),
        32,
    ),
    "qwen2_vl_2b": Shape(
        BlockSize(1280, 16, 5120, activation="quick_gelu"),
        32,
        BlockSize(1536, 12, 8960, kv_heads=2, **_CAUSAL),
        28,
        4,
    ),
    "smoke": Shape(BlockSize(64, 4, 128), 2, BlockSize(64, 4, 128, **_CAUSAL), 2, 4),
}


@dataclasses.dataclass(frozen=True)
class Config(LocalPaths):
    """Every field is a flag."""

    model: str = "llava_1_5_7b"
    """llava_1_5_7b or qwen2_vl_2b."""
    blocks: int = 1
    """Blocks that are timed one behind the other."""
    tokens: int = 576
    budgets: tuple[int, ...] = (192, 128, 64, 32)
    dtypes: tuple[str, ...] = ("float32", "float16", "bfloat16")
    """What is computed in."""
    repeats: int = 30
    out_dir: Path = Path(".")
    smoke: bool = False
    """A check of the plumbing."""


def main(config: Config = Config()) -> dict[str, Any]:
    """Times every part, writes the results file and the figure, and prints the table.

    Args:
        config: The command line's fields.

    Returns:
        What the results file holds.
    """
    errors.require_known("model", config.model, SHAPES)
    common.require_writable("out_dir", config.out_dir)
    shape, start = SHAPES["smoke" if config.smoke else config.model], time.time()
    timer = functools.partial(_milliseconds, repeats=2 if config.smoke else config.repeats)
    metrics, flops = {}, {}
    for dtype in config.dtypes:
        found, flops = _times(shape, config, dtype, timer)
        metrics |= {f"{dtype}/{name}": value for name, value in (found | _whole(shape, found, config, dtype)).items()}
        print(f"{dtype}: {time.time() - start:.0f} s", flush=True)
    name = f"{NAME}_{config.model}" + ("_cpu" if jax.devices()[0].platform == "cpu" else "")
    report = make_report(
        name,
        command=common.command(NAME, config, Config()),
        config=dataclasses.asdict(config) | {"out_dir": ""},
        runs=[{"seed": 0, "seconds": time.time() - start, "metrics": metrics}],
        data={"name": "random", "sha256": "0" * 64},
        flops=flops,
    )
    results, figure = common.result_paths(config.out_dir, name)
    write_report(results, report)
    plots_vlm.draw_merge_speed(results, figure)
    print(render_table(report))
    return report


def _times(shape: Shape, config: Config, dtype: str, timer: Callable) -> tuple[dict[str, float], dict[str, int]]:
    """Milliseconds and operations of every part at every number of tokens."""
    found, flops = {}, {}
    for count in (config.tokens, *config.budgets):
        for part, (block, tokens) in {
            "tower": (shape.tower, count * shape.patches),
            "language": (shape.language, count + TEXT),
        }.items():
            size = dataclasses.replace(block, dtype=dtype)
            for name, (run, arrays, work) in _parts(size, tokens, config.blocks).items():
                found[f"{part}/{name} {count}"] = timer(run, *arrays)
                flops[f"{part}/{name} {count}"] = work
        found[f"projector {count}"], flops[f"projector {count}"] = _projector(shape, count, dtype, timer)
        size = dataclasses.replace(shape.language, dtype=dtype)
        found[f"language/step {count}"] = timer(*_step(size, count + TEXT))
        if count < config.tokens:
            behind = shape.tower.d_model if shape.patches == 1 else shape.language.d_model
            for name, value in _merge(behind, config.tokens, dtype, count, timer).items():
                found[f"merge/{name} {count}"] = value
            if shape.patches > 1:  # whole cells merge
                cells = _merge(shape.patches * shape.tower.d_model, config.tokens, dtype, count, timer)
                found[f"merge/inside {count}"] = cells["compiled"]
    return found, flops


def _step(size: BlockSize, before: int) -> tuple[Callable, TransformerBlock, jax.Array, jax.Array, ops.KVCache]:
    """One token through a block of the language model, with so many in the cache: a function and its arguments."""
    block, rng = _cast(TransformerBlock(size, rngs=nnx.Rngs(0)), size.dtype), np.random.default_rng(0)
    k, v = (jnp.asarray(rng.standard_normal((1, before, size.groups, size.head_width)), size.dtype) for _ in range(2))
    cache = ops.append_keys(ops.empty_cache(1, before + 1, size.groups, size.head_width, dtype=size.dtype), k, v)
    x = jnp.asarray(rng.standard_normal((1, 1, size.d_model)), size.dtype)
    angles = rope_angles(jnp.full((1, 1), before), size.head_width)
    return _jit(lambda block, x, angles, cache: block(x, angles=angles, cache=cache)[0]), block, x, angles, cache


def _parts(size: BlockSize, tokens: int, blocks: int) -> dict[str, tuple[Callable, tuple, int]]:
    """The parts of a block and the whole: a function, its arguments, and its operations."""
    dtype = size.dtype
    block = _cast(TransformerBlock(size, rngs=nnx.Rngs(0)), dtype)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((1, tokens, size.d_model)), dtype)
    h, g, p, d = size.heads, size.groups, size.head_width, size.d_model
    q, k, v = (jnp.asarray(rng.standard_normal((1, tokens, n, p)), dtype) for n in (h, g, g))
    mixed = jnp.asarray(rng.standard_normal((1, tokens, h * p)), dtype)
    angles = rope_angles(jnp.arange(tokens)[None], p) if size.causal else None
    pairs = tokens * (tokens + 1) // 2 if size.causal else tokens * tokens
    work = {
        "qkv": 2 * tokens * d * (h + 2 * g) * p,
        "attention": 4 * pairs * h * p,
        "output": 2 * tokens * d * h * p,
        "mlp": 2 * tokens * d * size.d_mlp * (3 if size.gated else 2),
        "norms": 0,
    }

    def chained(block, x, angles):
        for _ in range(blocks):
            x = block(x, angles=angles)[0]
        return x

    runs = {
        "qkv": (_jit(lambda attn, x, angles: attn.project(x, angles)), (block.attn, x, angles)),
        "attention": (jax.jit(functools.partial(ops.attention, causal=size.causal)), (q, k, v)),
        "output": (_jit(lambda out, x: out(x)), (block.attn.out, mixed)),
        "mlp": (_jit(lambda mlp, x: mlp(x)), (block.mlp, x)),
        "norms": (_jit(lambda one, two, x: (one(x), two(x))), (block.norm1, block.norm2, x)),
        "block": (_jit(chained), (block, x, angles)),
    }
    work["block"] = blocks * sum(work.values())
    return {name: (run, arrays, work[name]) for name, (run, arrays) in runs.items()}


def _projector(shape: Shape, tokens: int, dtype: str, timer: Callable) -> tuple[float, int]:
    d_in, d_out = shape.tower.d_model, shape.language.d_model
    if shape.patches > 1:
        size = QwenVisionConfig(d_model=d_in, d_out=d_out, heads=shape.tower.heads, dtype=dtype)
        merger, wide = _cast(PatchMerger(size, rngs=nnx.Rngs(0)), dtype), d_in * shape.patches
        x = jnp.ones((1, tokens * shape.patches, d_in), dtype)
        return timer(_jit(lambda merger, x: merger(x)), merger, x), 2 * tokens * wide * (wide + d_out)
    projector = _cast(Projector("mlp2x_gelu", d_in, d_out, dtype=dtype, rngs=nnx.Rngs(0)), dtype)
    x = jnp.ones((1, tokens, d_in), dtype)
    return timer(_jit(lambda projector, x: projector(x)), projector, x), 2 * tokens * d_out * (d_in + d_out)


def _merge(d_model: int, tokens: int, dtype: str, m: int, timer: Callable) -> dict[str, float]:
    """The merge of ours, compiled and not."""
    side = round(tokens**0.5)
    merger = Merger(d_model, grid=(side, side), rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, tokens, d_model)), dtype)
    compiled = timer(_jit(lambda merger, x: merger(x, m)[:3]), merger, x)
    return {"compiled": compiled, "eager": timer(lambda x: merger(x, m)[:3], x)}


def _whole(shape: Shape, found: dict[str, float], config: Config, dtype: str) -> dict[str, float]:
    """What the model takes: every block, the projector and the merge, from the parts that were timed."""
    totals = {}
    tower = shape.tower_blocks * found[f"tower/block {config.tokens}"] / config.blocks
    pairs = 2 * shape.language_blocks * shape.language.groups * shape.language.head_width
    for count in (config.tokens, *config.budgets):
        language = shape.language_blocks * found[f"language/block {count}"] / config.blocks
        merge = found.get(f"merge/compiled {count}", 0.0)
        totals[f"model {count}"] = tower + merge + found[f"projector {count}"] + language
        totals[f"decode {count}"] = shape.language_blocks * found[f"language/step {count}"]
        totals[f"cache MB {count}"] = pairs * (count + TEXT) * jnp.dtype(dtype).itemsize / 1e6
        if count < config.tokens:
            merge = found.get(f"merge/inside {count}", merge)
            fewer = (shape.tower_blocks - shape.inside) * found[f"tower/block {count}"] / config.blocks
            rest = merge + fewer + found[f"projector {count}"] + language
            totals[f"inside {count}"] = tower * shape.inside / shape.tower_blocks + rest
    return totals


def _cast(module: nnx.Module, dtype: str) -> nnx.Module:
    definition, state = nnx.split(module)
    return nnx.merge(definition, jax.tree.map(lambda x: x.astype(dtype), state))


def _jit(function: Callable) -> Callable:
    """Compiles a function of modules and arrays; parameters are arguments, never constants."""

    @functools.partial(jax.jit, static_argnums=0)
    def run(definitions, states, arrays):
        return function(*(nnx.merge(*pair) for pair in zip(definitions, states, strict=True)), *arrays)

    def call(*arguments):
        modules = [each for each in arguments if isinstance(each, nnx.Module)]
        pairs = [nnx.split(module) for module in modules]
        definitions, states = tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
        arrays = tuple(each for each in arguments if not isinstance(each, nnx.Module))
        return lambda: run(definitions, states, arrays)

    call.bound = True  # type: ignore[attr-defined]
    return call


def _milliseconds(run: Callable, *arguments: Any, repeats: int) -> float:
    """The median over calls, after two that warm up."""
    call = run(*arguments) if getattr(run, "bound", False) else functools.partial(run, *arguments)
    queued, times = 1 if jax.devices()[0].platform == "cpu" else 20, []
    for _ in range(repeats + 2):
        begin = time.perf_counter()
        jax.block_until_ready([call() for _ in range(queued)])
        times.append(1e3 * (time.perf_counter() - begin) / queued)
    return float(np.median(times[2:]))


if __name__ == "__main__":
    common.run_cli(main, Config)
