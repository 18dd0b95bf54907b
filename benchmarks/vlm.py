"""Times vision-language models of published shapes beside their floors and transformers: `python -m benchmarks.vlm`.

    llava     LLaVA-1.5-7B, 576 visual and 40 text tokens: time to the first token, and a step of decoding
    merged    the same with 64 of the 576: `density_anchors` of a `Merger` that is not trained, beside all of them
    qwen      the tower of Qwen2-VL-2B for one image of 2,044 pixels a side

Random weights in bfloat16. The floor of a time to the first token is the longer of its operations at the best rate of a
matrix product in the same run and of its bytes (weights once) at the rate of a copy; that of a step is the time to read
the weights. With `--peer` transformers (PyTorch, attention by `sdpa`) runs the same shapes in the same process. Records
go to `benchmarks/results/<device>.json`. Set `XLA_PYTHON_CLIENT_PREALLOCATE=false` where PyTorch shares the device.
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro
from flax import nnx

import ssmjax
from benchmarks.ops import stamp
from benchmarks.timing import back_to_back, runs_a_sample, time_in_turns
from benchmarks.vlm_models import copy_rate, function_of, matmul_rate, random_model, random_patches
from ssmjax.models.flops import count_flops
from ssmjax.paths import LocalPaths
from vlmjax.layers import Merger

__all__ = ["Config", "main"]

Row = Literal["llava", "merged", "qwen"]


@dataclasses.dataclass(frozen=True)
class Config(LocalPaths):
    """What to run.

    Attributes:
        rows: llava, merged, qwen: some or all of them.
        batch: Prompts at once, for the times to the first token.
        text: Text tokens in a prompt.
        new: Steps of decoding that are timed.
        budget: The visual tokens that a merge leaves.
        size: The side of the image of Qwen2-VL's tower.
        peer: Whether transformers runs, too.
        rounds: Samples.
        dtype: The dtype of parameters and computation.
        smoke: Tiny models, a check of the plumbing.
        out: Results file; `benchmarks/results/<device>.json` by default.
    """

    rows: tuple[Row, ...] = ("llava", "merged", "qwen")
    batch: tuple[int, ...] = (1, 8)
    text: int = 40
    new: int = 64
    budget: int = 64
    size: int = 2044
    peer: bool = False
    rounds: int = 5
    dtype: str = "bfloat16"
    smoke: bool = False
    out: pathlib.Path | None = None


def main(config: Config) -> list[dict[str, Any]]:
    """Runs the benchmark, writes its records and prints them; returns the records."""
    rates = {"flops": matmul_rate(config.dtype, (512,) if config.smoke else (4096, 8192)), "bytes": copy_rate()}
    print(f"products {rates['flops'] / 1e12:.1f} TFLOP/s, copies {rates['bytes'] / 1e9:.0f} GB/s", flush=True)
    records = []
    for row in config.rows:
        records += {"llava": _llava, "merged": _merged, "qwen": _qwen}[row](config, rates)
    source = stamp()
    records = [record | source for record in records]
    out = config.out or pathlib.Path(__file__).parent / "results" / f"{source['device']}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    old = json.loads(out.read_text()) if out.exists() else []
    names = {record["vlm"] for record in records}
    out.write_text(json.dumps([record for record in old if record.get("vlm") not in names] + records, indent=1) + "\n")
    print(f"Wrote {len(records)} records to {out}")
    return records


def _record(
    name: str, ms: float, floor_ms: float, peer_ms: float | None, config: Config, **more: Any
) -> dict[str, Any]:
    """A record, printed."""
    against = "" if peer_ms is None else f", transformers {peer_ms:.3f} ms ({ms / peer_ms:.2f}x of it)"
    print(f"{name}: {ms:.3f} ms, {ms / floor_ms:.2f}x its floor of {floor_ms:.3f} ms{against}", flush=True)
    return {
        "vlm": name,
        "dtype": config.dtype,
        "ms": round(ms, 4),
        "floor_ms": round(floor_ms, 4),
        "over_floor": round(ms / floor_ms, 4),
        "peer_ms": None if peer_ms is None else round(peer_ms, 4),
        "over_peer": None if peer_ms is None else round(ms / peer_ms, 4),
        **more,
    }


def _llava(config: Config, rates: dict[str, float]) -> list[dict[str, Any]]:
    name = "llava_nano" if config.smoke else "llava_1_5_7b"
    model = random_model(name, config.dtype)
    weights = sum(x.nbytes for x in jax.tree.leaves(nnx.state(model)))
    language = sum(x.nbytes for x in jax.tree.leaves(nnx.state(model.language)))
    table = 0 if model.config.text.tied else model.language.embedding[...].nbytes  # one row of it is read
    size, visual = model.config.vision.img_size, model.config.tokens_per_image
    peer = _peer_llava(model.config, config) if config.peer else None
    records, length = [], visual + config.text

    def first(m, tokens, images):
        return m.prefill(tokens, m.init_cache(len(tokens), length + config.new + 1), images=images)

    function, state = function_of(model, first)
    for batch in config.batch:
        tokens = jnp.concatenate(
            [jnp.full((batch, visual), model.config.image_token), jnp.ones((batch, config.text), jnp.int32)], axis=1
        )
        images = jnp.ones((batch, size, size, 3), jnp.float32)
        flops = count_flops(function, state, tokens, images)
        floor = 1e3 * max(flops / rates["flops"], weights / rates["bytes"])
        theirs = None if peer is None else peer["first"](tokens, images, config.rounds)
        ms = _ours(jax.jit(function).lower(state, tokens, images).compile(), (state, tokens, images), config.rounds)
        shape = f"{visual} + {config.text} tokens, batch {batch}"
        more = {"tflop": round(flops / 1e12, 3), "weights_gb": round(weights / 1e9, 3)}
        records.append(_record(f"{name} first token, {shape}", ms, floor, theirs, config, **more))
        if batch == 1:
            floor = 1e3 * (language - table) / rates["bytes"]
            step = _decode_ms(model, tokens, images, config)
            theirs = None if peer is None else peer["step"](tokens, images, config)
            records.append(_record(f"{name} step of decoding, {shape}", step, floor, theirs, config))
    return records


def _merged(config: Config, rates: dict[str, float]) -> list[dict[str, Any]]:
    """The time to the first token with all visual tokens and with few, in turns."""
    name = "llava_nano" if config.smoke else "llava_1_5_7b"
    model = random_model(name, config.dtype)
    weights = sum(x.nbytes for x in jax.tree.leaves(nnx.state(model)))
    shape, records = model.config, []
    whole, fewer = shape.tokens_per_image, min(config.budget, shape.tokens_per_image // 2)
    merger = Merger(shape.vision.d_model, grid=(shape.vision.side,) * 2, rngs=nnx.Rngs(0))

    def first(visual, merge):
        def run(m, tokens, images):
            cache = m.init_cache(len(tokens), visual + config.text + config.new + 1)
            return m.prefill(tokens, cache, images=images, merge=merge)

        return function_of(model, run)[0]

    _, state = function_of(model, lambda m, tokens, images: m)
    functions = {whole: first(whole, None), fewer: first(fewer, lambda x: merger(x, fewer))}
    for batch in config.batch:
        images = jnp.ones((batch, shape.vision.img_size, shape.vision.img_size, 3), jnp.float32)
        times = {}
        for visual, function in functions.items():
            text = jnp.ones((batch, config.text), jnp.int32)
            tokens = jnp.concatenate([jnp.full((batch, visual), shape.image_token), text], axis=1)
            flops = count_flops(function, state, tokens, images)
            floor = 1e3 * max(flops / rates["flops"], weights / rates["bytes"])
            compiled = jax.jit(function).lower(state, tokens, images).compile()
            times[visual] = _ours(compiled, (state, tokens, images), config.rounds), floor
        (ms, floor), (all_ms, all_floor) = times[fewer], times[whole]
        title = f"{name} first token, {fewer} of {whole} + {config.text} tokens, batch {batch}"
        more = {"unmerged_ms": round(all_ms, 4), "over_unmerged": round(ms / all_ms, 4)}
        print(f"{title}: {ms / all_ms:.3f}x of all tokens' {all_ms:.3f} ms (of floors {floor / all_floor:.3f})")
        records.append(_record(title, ms, floor, None, config, **more, over_unmerged_floor=round(floor / all_floor, 4)))
    return records


def _decode_ms(model: nnx.Module, tokens: jax.Array, images: jax.Array, config: Config) -> float:
    """A step inside `generate`: the time of many new tokens less that of one."""

    def run(new):
        return lambda: ssmjax.generate(model, tokens, max_new_tokens=new, images=images)

    calls = {"many": run(config.new + 1), "one": run(1)}
    times = time_in_turns(calls, (), config.rounds)
    return (times["many"].median - times["one"].median) / config.new


def _qwen(config: Config, rates: dict[str, float]) -> list[dict[str, Any]]:
    name, size = ("qwen2_vl_nano", 112) if config.smoke else ("qwen2_vl_2b", config.size)
    text = {} if config.smoke else {"text": {"depth": 1}}  # only the tower is run
    tower = random_model(name, config.dtype, **text).vision
    images = jax.tree.map(jnp.asarray, random_patches(size))
    function, state = function_of(tower, lambda m, images: m(images))
    flops = count_flops(function, state, images)
    weights = sum(x.nbytes for x in jax.tree.leaves(state))
    floor = 1e3 * max(flops / rates["flops"], weights / rates["bytes"])
    theirs = _peer_qwen(tower.config, images, size, config) if config.peer else None
    ms = _ours(jax.jit(function).lower(state, images).compile(), (state, images), config.rounds)
    return [_record(f"{name} tower, {size} px", ms, floor, theirs, config, tflop=round(flops / 1e12, 3))]


def _ours(call: Callable[..., Any], args: tuple, rounds: int) -> float:
    runs = runs_a_sample(call, args)
    return time_in_turns({"": back_to_back(call, runs)}, args, rounds, {"": runs})[""].median


def _timed(torch: Any, call: Callable[[], Any], rounds: int) -> float:
    """The median time of PyTorch's call, from the first launch to the end."""
    times = []
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    with torch.inference_mode():
        for turn in range(rounds + 2):
            wait()
            begin = time.perf_counter()
            call()
            wait()
            if turn > 1:
                times.append(1e3 * (time.perf_counter() - begin))
    return sorted(times)[len(times) // 2]


def _torch(config: Config) -> tuple[Any, str, Any]:
    import torch

    torch.set_num_threads(2)
    return torch, "cuda" if torch.cuda.is_available() else "cpu", getattr(torch, config.dtype)


def _peer_llava(shape: Any, config: Config) -> dict[str, Callable[..., float]]:
    """transformers' LLaVA of the same shape: the time to the first token, and that of a step."""
    torch, device, dtype = _torch(config)
    import transformers

    from vlmjax.checkpoints import LLAVA

    written = LLAVA.write(shape)
    description = transformers.LlavaConfig(**{k: v for k, v in written.items() if k not in ("architectures",)})
    with torch.device(device):
        torch.set_default_dtype(dtype)
        theirs = transformers.LlavaForConditionalGeneration._from_config(description, attn_implementation="sdpa").eval()
        torch.set_default_dtype(torch.float32)

    def inputs(tokens, images):
        pixels = torch.ones((len(tokens), 3, *images.shape[1:3]), dtype=dtype, device=device)
        return {"input_ids": torch.tensor(tokens.tolist(), device=device), "pixel_values": pixels}

    def first(tokens, images, rounds):
        given = inputs(tokens, images)
        return _timed(torch, lambda: theirs(**given, use_cache=True, logits_to_keep=1), rounds)

    def step(tokens, images, config):
        given = inputs(tokens, images)

        def run(new):
            options = dict(do_sample=False, min_new_tokens=new, max_new_tokens=new, pad_token_id=0)
            return _timed(torch, lambda: theirs.generate(**given, **options), max(1, config.rounds // 2))

        return (run(config.new + 1) - run(1)) / config.new

    return {"first": first, "step": step}


def _peer_qwen(shape: Any, images: Any, size: int, config: Config) -> float:
    """transformers' tower of the same shape."""
    torch, device, dtype = _torch(config)
    from transformers.models.qwen2_vl import modeling_qwen2_vl as theirs
    from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig

    description = Qwen2VLVisionConfig(
        depth=shape.depth,
        embed_dim=shape.d_model,
        hidden_size=shape.d_out,
        num_heads=shape.heads,
        mlp_ratio=shape.d_mlp // shape.d_model,
    )
    with torch.device(device):
        torch.set_default_dtype(dtype)
        tower = theirs.Qwen2VisionTransformerPretrainedModel._from_config(description, attn_implementation="sdpa")
        torch.set_default_dtype(torch.float32)
    tower = tower.eval()
    side = size // shape.patch_size
    grid = torch.tensor([[1, side, side]], device=device)
    pixels = torch.randn(images.patches.shape[1:], dtype=dtype, device=device)
    return _timed(torch, lambda: tower(pixels, grid_thw=grid), config.rounds)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
