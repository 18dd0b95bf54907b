"""Where a vision-language model spends its time: operations, bytes and milliseconds of each part, at several sizes.

LLaVA-1.5-7B and Qwen2-VL-2B in their published shapes with random weights: the tower (patches, and of its blocks norms,
projections, rotary positions, the attention itself, output, MLP), the projector, reading the prompt, and a step of
decoding. A course report that profiled Qwen2-VL found 97.9 % of the time in the visual part, most of it in attention;
its images' size is not told. Here the share is a curve over the size.

Each part is compiled and timed on its own, and each stage as a whole. `--blocks 1` times one block of each kind and
multiplies it by the depth: for one free GPU, or two cores. What is in memory is timed as a whole, too, beside what one
block foretells of it. `--clock processor` counts the time that a CPU spends on it, for a machine that others use, too.

Recipe (device, minutes, what is expected):
    python -m experiments.vlm_profile                        one H100 or H200, 8
    python -m experiments.vlm_profile --blocks 2 --sizes 224 336 448 --clock processor     two CPU cores, 20

Expected: the visual part of Qwen2-VL-2B takes more than the language model's at every size, and beyond about 1,000
pixels attention takes most of it; of LLaVA-1.5-7B it takes a twentieth. Times extrapolated from one block are within a
tenth of the whole run's. `--smoke` is a check of the plumbing.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax

from benchmarks.vlm_models import copy_rate, matmul_rate, random_model
from experiments.shared import common, plots_profile, vlm_parts
from ssmjax import errors
from ssmjax.models import registry
from ssmjax.paths import LocalPaths
from ssmjax.training.report import make_report, write_report
from vlmjax.models import LlavaConfig

NAME = "vlm_profile"

PUBLISHED = {"visual_share": 0.979, "source": "course report A, Figure 2: Qwen2-VL, size of the images not told"}

SIZES = {"llava_1_5_7b": (224, 336), "qwen2_vl_2b": (224, 448, 672, 1008, 1344, 2044)}
_ONCE = ("patches", "projector", "head")
"""Parts that are in no block."""

SMOKE = {"llava_nano": (32,), "qwen2_vl_nano": (56,)}


@dataclasses.dataclass(frozen=True)
class Config(LocalPaths):
    """Every field is a flag."""

    models: tuple[str, ...] = tuple(SIZES)
    sizes: tuple[int, ...] = ()
    """Sides of the images in pixels; by default those of each model. A model takes those that it can."""
    text: int = 64
    """Text tokens in the prompt."""
    new: int = 32
    """Tokens of the answer."""
    blocks: int | None = None
    """Time so many blocks of each kind and extrapolate; None runs the whole model."""
    dtype: str | None = None
    """float32 or bfloat16; by default what suits the device."""
    rounds: int = 5
    clock: str = "wall"
    """wall, or processor: the time of all threads of this process."""
    out_dir: Path = Path(".")
    """Where the result and the figure go."""
    smoke: bool = False
    """A check of the plumbing in under a minute."""


def main(config: Config = Config()) -> dict[str, Any]:
    """Measures, writes the results file and the figure, and prints the table.

    Args:
        config: The command line's fields.

    Returns:
        What the results file holds.
    """
    command = common.command(NAME, config, Config())
    began = time.perf_counter()
    dtype = config.dtype or common.accelerator_dtype()
    if config.blocks is not None:
        errors.as_int(NAME, "blocks", config.blocks, least=1)
    errors.require_known("clock", config.clock, ("wall", "processor"))
    for name in config.models:
        registry.model_config(name)
        if not config.sizes and name not in SIZES:
            raise errors.unknown_name("model", name, list(SIZES))
    cpu = jax.default_backend() == "cpu"
    sizes = (512,) if config.smoke else (2048,) if cpu else (4096, 8192)
    rates = {"flops": matmul_rate(dtype, sizes, config.clock), "bytes": copy_rate(config.clock)}
    print(f"{dtype}: products {rates['flops'] / 1e12:.2f} TFLOP/s, copies {rates['bytes'] / 1e9:.0f} GB/s", flush=True)
    cases: dict[str, Any] = {}
    for name in SMOKE if config.smoke else config.models:
        cases |= _model(name, config, dtype)
    metrics = {f"{case}/{key}": value for case, found in cases.items() for key, value in found["summary"].items()}
    report = make_report(
        NAME,
        command=command,
        config=common.identity(config) | {"dtype": dtype},
        runs=[{"seed": 0, "seconds": time.perf_counter() - began, "metrics": metrics}],
        data={"name": "random weights and images", "sha256": "0" * 64},
        rates=rates,
        published=PUBLISHED,
        cases=cases,
    )
    kinds = {"blocks": config.blocks, "cpu": cpu, "smoke": config.smoke}
    parts = [NAME, *(kind for kind, there in kinds.items() if there)]
    results, figure = common.result_paths(config.out_dir, "_".join(parts))
    write_report(results, report)
    plots_profile.draw_profile(results, figure)
    print(f"\n{table(report)}\nresults {results}\nfigure  {figure}")
    return report


def _model(name: str, config: Config, dtype: str) -> dict[str, Any]:
    """The cases of one model."""
    full = registry.model_config(name)
    depths = {part: getattr(full, part).depth for part in ("vision", "text")}
    tower_blocks = depths["vision"] + 1 + full.layers[0] if isinstance(full, LlavaConfig) else depths["vision"]
    run = {part: {"depth": min(depth, config.blocks or depth)} for part, depth in depths.items()}
    sizes = (SMOKE if config.smoke else SIZES)[name] if not config.sizes else config.sizes
    cases: dict[str, Any] = {}
    for size in sizes:
        if isinstance(full, LlavaConfig):
            if size > full.vision.img_size or size % full.vision.patch_size:
                continue
            tokens = (size // full.vision.patch_size) ** 2
            changes = {"vision": {**run["vision"], "img_size": size}, "text": run["text"]}
        else:
            tokens = (size // (full.vision.patch_size * full.vision.merge)) ** 2
            changes = run
        model = random_model(name, dtype, **changes)
        length = tokens + config.text
        tower, projector = vlm_parts.tower_stages(model, size, tower_blocks)
        stages = {
            "tower": tower,
            "projector": projector,
            "prefill": vlm_parts.prefill_stage(model, length, depths["text"], config.new),
            "decode": vlm_parts.decode_stage(model, length, depths["text"]),
        }
        found = {stage: _stage(parts, config) for stage, parts in stages.items()}
        case = f"{name} {size}"
        cases[case] = {"model": name, "size": size, "visual": tokens, "length": length, "stages": found}
        cases[case]["summary"] = _summary(found, config)
        print(f"{case}: {', '.join(f'{key} {value:.3g}' for key, value in cases[case]['summary'].items())}", flush=True)
    return cases


def _stage(stage: vlm_parts.Stage, config: Config) -> dict[str, Any]:
    """Every part, the whole of what is in memory, and what one block foretells of it and of the published model."""
    parts = {part.name: vlm_parts.measure(part, config.rounds, config.clock) for part in stage.parts}
    inside = 0.0
    outside = sum(parts[part.name]["ms"] for part in stage.parts if part.name in _ONCE)
    if stage.block is not None:
        inside = vlm_parts.measure(stage.block, config.rounds, config.clock)["ms"]
    whole = vlm_parts.measure(stage.whole, config.rounds, config.clock)["ms"]
    share = stage.ran / stage.blocks if stage.blocks else 0.0
    return {
        "parts": parts,
        "blocks": stage.blocks,
        "ran": stage.ran,
        "whole_ms": whole,
        "foretold_of_whole": (outside + share * inside) / whole,
        "ms": whole if stage.ran == stage.blocks else outside + inside,
    }


def _summary(stages: dict[str, Any], config: Config) -> dict[str, float]:
    """The numbers that a table shows."""
    ms = {name: stage["ms"] for name, stage in stages.items()}
    visual, first = ms["tower"] + ms["projector"], ms["tower"] + ms["projector"] + ms["prefill"]
    parts = {name: part["ms"] for name, part in stages["tower"]["parts"].items()}
    flops = {name: sum(part["flops"] for part in stage["parts"].values()) for name, stage in stages.items()}
    numbers = {f"{name}_ms": value for name, value in ms.items()}
    numbers |= {
        "visual_share": visual / first,
        "visual_share_of_an_answer": visual / (first + config.new * ms["decode"]),
        "attention_share_of_tower": parts["attention"] / sum(parts.values()),
        "visual_share_of_flops": (flops["tower"] + flops["projector"]) / (sum(flops.values()) - flops["decode"]),
    }
    return numbers | {f"{name}_foretold": stages[name]["foretold_of_whole"] for name in ("tower", "prefill", "decode")}


def table(report: dict[str, Any]) -> str:
    """The cases in Markdown: times of the stages, shares of the visual part and of attention."""
    lines = [
        "| model, pixels | visual tokens | tower, ms | projector, ms | prompt, ms | step, ms | visual part of the "
        "first token, % | attention in the tower, % | foretold by one block / whole: tower, prompt, step |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case, found in report["cases"].items():
        numbers = found["summary"]
        times = [f"{numbers[f'{stage}_ms']:.2f}" for stage in ("tower", "projector", "prefill", "decode")]
        shares = [f"{100 * numbers[name]:.1f}" for name in ("visual_share", "attention_share_of_tower")]
        checked = ", ".join(f"{numbers[f'{stage}_foretold']:.2f}" for stage in ("tower", "prefill", "decode"))
        lines.append(f"| {' | '.join([case, str(found['visual']), *times, *shares, checked])} |")
    share = 100 * report["published"]["visual_share"]
    lines.append(f"\nPublished share of the visual part: {share:.1f} % ({report['published']['source']}).")
    return "\n".join(lines)


if __name__ == "__main__":
    common.run_cli(main, Config)
