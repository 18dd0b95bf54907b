"""The parts of a vision-language model as functions of their own: what each computes, moves and takes."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from benchmarks.vlm_models import function_of, milliseconds, random_patches
from ssmjax import ops
from ssmjax.models.flops import count_flops
from ssmjax.ops.attention.cost import attention_cost
from vlmjax.layers.rope import rotate
from vlmjax.layers.transformer import BlockSize, TransformerBlock
from vlmjax.models import LMCache, Qwen2VL

__all__ = ["Part", "Stage", "decode_stage", "measure", "prefill_stage", "tower_stages"]


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a stage.

    Attributes:
        name: Such as "mlp".
        function: What it computes.
        args: The arguments of the function: parameters and arrays.
        count: How often it occurs in a run of the published model.
        flops: The FLOPs of one occurrence; None counts those of the function.
        bytes: That it moves at least; None counts its arguments and results.
    """

    name: str
    function: Callable[..., Any]
    args: tuple
    count: float = 1
    flops: int | None = None
    bytes: int | None = None


class Stage(NamedTuple):
    """A stage of a model.

    Attributes:
        parts: Its parts.
        block: One whole block; None where there is none.
        whole: All of it, with as many blocks as are in memory.
        blocks: How many blocks the published model runs.
        ran: How many run in `whole`.
    """

    parts: list[Part]
    block: Part | None
    whole: Part
    blocks: int = 0
    ran: int = 0


def measure(part: Part, rounds: int, clock: str = "wall") -> dict[str, float]:
    """Milliseconds, floating-point operations and bytes of all of a part's occurrences."""
    out = jax.eval_shape(part.function, *part.args)
    moved = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((part.args, out)))
    flops = count_flops(part.function, *part.args) if part.flops is None else part.flops
    return {
        "ms": part.count * milliseconds(part.function, part.args, rounds, clock),
        "flops": part.count * flops,
        "bytes": part.count * (moved if part.bytes is None else part.bytes),
    }


def tower_stages(model: nnx.Module, size: int, blocks: int) -> tuple[Stage, Stage]:
    """The tower and the projector for one square image.

    Args:
        model: A `Llava` or a `Qwen2VL`, of as many blocks as are to be run for the whole.
        size: The side of the image in pixels.
        blocks: How many blocks of the tower run in the published model.
    """
    tower = model.vision
    config, angles = tower.config, None
    if isinstance(model, Qwen2VL):
        images, projector = random_patches(size), tower.merger
        call = lambda m, images: m.hidden(images)  # noqa: E731
        x = jnp.ones((1, images.patches.shape[1], config.d_model), jnp.float32)
        angles = jnp.ones((1, x.shape[1], config.block.head_width // 2), jnp.float32)
        visual, held = x, [tower.patch_kernel]
        pixels = images.patches
    else:
        images = pixels = jnp.ones((1, size, size, 3), jnp.float32)
        layer, projector = model.config.layers[0] if len(tower.layers) > 1 else -1, model.projector
        call = lambda m, images: m.hidden(images, layer)  # noqa: E731
        x = jnp.ones((1, (size // config.patch_size) ** 2 + config.class_tokens, config.d_model), jnp.float32)
        visual, held = x[:, model.config.dropped :], [tower.patch_kernel, tower.positions]
    embed, state = function_of(tower, lambda m, images: m.embed(images))
    moved = pixels.nbytes + x.nbytes + sum(x[...].nbytes for x in held)
    parts = [Part("patches", embed, (state, images), bytes=moved)]
    parts += block_parts(tower.layers[0], config.block, x, angles, blocks)
    whole, state = function_of(tower, call)
    project, project_state = function_of(projector, lambda m, x: m(x))
    projection = Part("projector", project, (project_state, visual))
    ran = len(tower.layers) + (0 if isinstance(model, Qwen2VL) else 1 + layer)
    one = _block(tower.layers[0], x, angles, blocks)
    return (
        Stage(parts, one, Part("tower", whole, (state, images)), blocks, ran),
        Stage([projection], None, projection),
    )


def prefill_stage(model: nnx.Module, length: int, blocks: int, room: int) -> Stage:
    """Reading a prompt.

    Args:
        model: A `Llava` or a `Qwen2VL`.
        length: Tokens, visual ones among them.
        blocks: How many blocks the published model has.
        room: The slots of the cache behind the prompt.
    """
    language = model.language
    block, size = language.layers[0], language.config.block
    x = jnp.ones((1, length, size.d_model), jnp.float32)
    angles = jnp.ones((1, length, size.head_width // 2), jnp.float32)

    def read(m, x):
        x, cache = m.decode(x, cache=m.init_cache(1, length + room))
        return m.logits(x[:, -1]), cache

    whole, state = function_of(language, read)
    parts = [*block_parts(block, size, x, angles, blocks), _head(language, x[:, -1])]
    one = _block(block, x, angles, blocks)
    return Stage(parts, one, Part("prefill", whole, (state, x)), blocks, len(language.layers))


def decode_stage(model: nnx.Module, length: int, blocks: int) -> Stage:
    """One step behind a prompt. A part runs over all blocks that there are, so that its weights come from memory."""
    language = model.language
    size, layers = language.config.block, language.layers
    dtype, share = jnp.dtype(size.dtype), blocks / len(layers)
    x, angles = jnp.ones((1, 1, size.d_model), jnp.float32), jnp.ones((1, 1, size.head_width // 2), jnp.float32)
    y = jnp.ones((1, 1, size.heads * size.head_width), dtype)
    q = jnp.ones((1, 1, size.heads, size.head_width), dtype)
    empty = ops.empty_cache(1, length + 1, size.groups, size.head_width, dtype=dtype)
    caches = [jax.tree.map(jnp.copy, empty._replace(length=jnp.asarray(length, jnp.int32))) for _ in layers]

    def over_blocks(name, modules, call, *args):
        function, state = function_of(modules, lambda all_, *args: [call(each, *args) for each in all_])
        return Part(name, function, (state, *args), share)

    def attend(q, caches):
        return [ops.attention(q, c.keys, c.values, causal=True, bias=c.bias, offset=c.length) for c in caches]

    parts = [
        over_blocks("q, k, v", [_projections(b) for b in layers], _apply_each, x.astype(dtype)),
        Part("attention", attend, (q, caches), share),
        over_blocks("output", [b.attn.out for b in layers], lambda m, y: m(y), y),
        over_blocks("mlp", [b.mlp for b in layers], lambda m, x: m(x), x.astype(dtype)),
        _head(language, x[:, -1]),
    ]
    function, state = function_of(
        layers,
        lambda blocks, x, caches: [m(x, angles=angles, cache=c) for m, c in zip(blocks, caches, strict=True)],
    )
    block = Part("block", function, (state, x, caches), share)
    whole, state = function_of(language, lambda m, tokens, cache: m.step(tokens, cache))
    cache = LMCache(caches, jnp.asarray([length], jnp.int32))
    step = Part("decode", whole, (state, jnp.zeros((1,), jnp.int32), cache))
    return Stage(parts, block, step, blocks, len(layers))


def block_parts(block: TransformerBlock, size: BlockSize, x: jax.Array, angles: Any, count: int) -> list[Part]:
    """The parts of a transformer block that reads `x` (b l d) at once."""
    b, l, _ = x.shape
    dtype = jnp.dtype(size.dtype)
    small = x.astype(dtype)
    q, k = (jnp.ones((b, l, heads, size.head_width), dtype) for heads in (size.heads, size.groups))
    y = rearrange(q, "b l h p -> b l (h p)")
    cost = attention_cost(
        b, l, l, size.heads, size.head_width, groups=size.groups, causal=size.causal, itemsize=dtype.itemsize
    )

    def part(name, modules, call, *args):
        function, state = function_of(modules, call)
        return Part(name, function, (state, *args), count)

    attend = lambda q, k, v: ops.attention(q, k, v, causal=size.causal)  # noqa: E731
    turn = lambda q, k, angles: (rotate(q, angles), rotate(k, angles))  # noqa: E731
    return [
        part("norms and sums", [block.norm1, block.norm2], _norms, x, small),
        part("q, k, v", _projections(block), _apply_each, small),
        *([] if angles is None else [Part("rope", turn, (q, k, angles), count)]),
        Part("attention", attend, (q, k, k), count, cost.flops, cost.bytes),
        part("output", block.attn.out, lambda m, y: m(y), y),
        part("mlp", block.mlp, lambda m, x: m(x), small),
    ]


def _block(block: TransformerBlock, x: jax.Array, angles: Any, count: int) -> Part:
    function, state = function_of(block, lambda m, x, angles: m(x, angles=angles)[0])
    return Part("block", function, (state, x, angles), count)


def _head(language: nnx.Module, x: jax.Array) -> Part:
    if language.head is not None:
        function, state = function_of(language.head, lambda m, x: m(x))
        return Part("head", function, (state, x))
    dtype = language.config.dtype
    return Part("head", lambda table, x: x.astype(dtype) @ table.astype(dtype).T, (language.embedding[...], x))


def _projections(block: TransformerBlock) -> list[nnx.Module]:
    return [block.attn.q, block.attn.k, block.attn.v] if block.attn.qkv is None else [block.attn.qkv]


def _apply_each(modules: list[nnx.Module], x: jax.Array) -> list[Any]:
    return [module(x) for module in modules]


def _norms(norms: list[nnx.Module], x: jax.Array, y: jax.Array) -> tuple[jax.Array, ...]:
    """The norms of a block and its two sums."""
    x = x + y.astype(x.dtype)
    first, second = (norm(x) for norm in norms)
    return first, second, x + first.astype(x.dtype)
