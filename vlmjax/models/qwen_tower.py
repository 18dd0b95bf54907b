"""The vision towers of Qwen2-VL and Qwen2.5-VL: images and videos of any size, positions in two dimensions."""

import dataclasses
from collections.abc import Callable
from typing import Literal, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.nn import initializers

from ssmjax import errors
from ssmjax.layers import LayerNorm, RMSNorm
from ssmjax.layers.common.parameters import parameter
from ssmjax.layers.common.stack import apply_stack, make_stack
from ssmjax.models.config import ComputeDtype, check_fields, require
from ssmjax.ops._numerics.permute import permute
from ssmjax.shapes import Array, Float, Tokens
from vlmjax.layers.transformer import BlockSize, TransformerBlock, linear
from vlmjax.ops.token_merge import MergeState
from vlmjax.processing.patches import PackedPatches

__all__ = ["PatchMerger", "QwenVisionConfig", "QwenVisionTower"]

_PATCHES = initializers.lecun_normal()
_MOST_WINDOWS = 1024  # along a side of a frame, and at most 2047 frames: a window's number is an int32


@no_type_check
@dataclasses.dataclass(frozen=True)
class QwenVisionConfig:
    """The vision side of Qwen2-VL (https://arxiv.org/abs/2409.12191, section 2.1) or, with a window, of Qwen2.5-VL.

    The defaults are those of Qwen2-VL with 2 billion parameters.

    Attributes:
        d_model: The width of a patch's token.
        d_out: The width of a visual token, that of the language model.
        depth: The number of blocks.
        heads: The heads of attention; a multiple of 4 channels each.
        d_mlp: The inner width of the MLPs.
        activation: The activation of the MLPs.
        gated: Whether the MLPs have a gate.
        norm: "layer" or "rms".
        eps: The epsilon of the norms.
        patch_size: The side of a patch.
        frames: The frames of a patch.
        merge: The patches along a side of the cell that becomes one visual token.
        rope_base: The base of the rotary wavelengths.
        window: The side, in pixels, of the windows of attention; 0 for whole frames (https://arxiv.org/abs/2502.13923).
        full_blocks: The blocks that attend to whole frames where there is a window.
        dtype: What to compute in; parameters, norms and the residual stream are float32 in any case.
        unroll_layers: A Python loop over the blocks in place of a scan.
        remat: Whether the backward pass recomputes the inside of each block.

    Raises:
        ValueError: A field has a value of the wrong type or range.

    >>> QwenVisionConfig().patch_width
    1176
    """

    d_model: int = 1280
    d_out: int = 1536
    depth: int = 32
    heads: int = 16
    d_mlp: int = 5120
    activation: Literal["gelu", "gelu_tanh", "quick_gelu", "silu"] = "quick_gelu"
    gated: bool = False
    norm: Literal["layer", "rms"] = "layer"
    eps: float = 1e-6
    patch_size: int = 14
    frames: int = 2
    merge: int = 2
    rope_base: float = 10000.0
    window: int = 0
    full_blocks: tuple[int, ...] = ()
    dtype: ComputeDtype = "float32"
    unroll_layers: bool = False
    remat: bool = False

    def __post_init__(self):
        check_fields(self)
        for field in ("d_model", "d_out", "depth", "heads", "d_mlp", "patch_size", "frames", "merge"):
            require(self, field, getattr(self, field) >= 1, "at least 1")
        fits = self.d_model % self.heads == 0 and self.d_model // self.heads % 4 == 0
        require(self, "heads", fits, f"a divisor of d_model = {self.d_model} that leaves a multiple of 4 channels each")
        cell = self.patch_size * self.merge
        require(self, "window", self.window >= 0 and self.window % cell == 0, f"0 or a multiple of {cell} pixels")
        known = all(0 <= block < self.depth for block in self.full_blocks)
        require(self, "full_blocks", known, f"numbers of blocks, below {self.depth}")

    @property
    def patch_width(self) -> int:
        """The numbers in a patch."""
        return 3 * self.frames * self.patch_size**2

    @property
    def block(self) -> BlockSize:
        """The size of a block."""
        return BlockSize(
            self.d_model,
            self.heads,
            self.d_mlp,
            norm=self.norm,
            eps=self.eps,
            activation=self.activation,
            gated=self.gated,
            out_scale=(2 * self.depth) ** -0.5,
            dtype=self.dtype,
        )


class PatchMerger(nnx.Module):
    """A cell of patches to one visual token: `W_2 gelu(W_1 [norm x_1, ..., norm x_4])`.

    Args:
        config: The tower's configuration.
        rngs: Source of the initial values.

    >>> import jax.numpy as jnp
    >>> config = QwenVisionConfig(d_model=8, d_out=6, depth=1, heads=2, d_mlp=16)
    >>> PatchMerger(config, rngs=nnx.Rngs(0))(jnp.ones((1, 12, 8))).shape
    (1, 3, 6)
    """

    def __init__(self, config: QwenVisionConfig, *, rngs: nnx.Rngs):
        norm = RMSNorm if config.norm == "rms" else LayerNorm
        wide = config.d_model * config.merge**2
        self.cell = config.merge**2
        self.norm = norm(config.d_model, eps=config.eps, dtype=config.dtype)
        self.first = linear(wide, wide, use_bias=True, dtype=config.dtype, rngs=rngs)
        self.second = linear(wide, config.d_out, use_bias=True, dtype=config.dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b l d"]) -> Float[jax.Array, "b m e"]:
        """Merges (b l d) to (b l/4 e)."""
        cells = rearrange(self.norm(x), "b (m c) d -> b m (c d)", c=self.cell)
        return self.second(jax.nn.gelu(self.first(cells), approximate=False))


class QwenVisionTower(nnx.Module):
    """A vision transformer over packed patches, with rotary positions (row, column) and attention within each frame.

    What stands at padding, NaN too, changes no bit of the output.

    Args:
        config: A `QwenVisionConfig`.
        rngs: Source of the initial values.

    >>> import numpy as np
    >>> from vlmjax.processing import image_patches, pack_patches
    >>> config = QwenVisionConfig(d_model=8, d_out=6, depth=2, heads=2, d_mlp=16)
    >>> packed = pack_patches([image_patches(np.zeros((60, 90, 3), np.uint8))])
    >>> QwenVisionTower(config, rngs=nnx.Rngs(0))(packed).shape
    (16, 6)
    """

    def __init__(self, config: QwenVisionConfig, *, rngs: nnx.Rngs):
        self.config = config
        shape = (config.patch_width, config.d_model)
        self.patch_kernel = parameter(_PATCHES(rngs.params(), shape, jnp.float32), "filter")
        self.layers = make_stack(lambda rngs: TransformerBlock(config.block, rngs=rngs), config.depth, rngs)
        self.merger = PatchMerger(config, rngs=rngs)

    def __call__(self, images: PackedPatches) -> Float[jax.Array, "m e"]:
        """The visual tokens of all images, one after the other, and zeros behind them.

        Args:
            images: Patches as `pack_patches` returns them.

        Returns:
            (m d_out) float32, `m` = b l / merge**2.

        Raises:
            ValueError: The patches have another size than the configuration's.
        """
        merged = self.merger(self.hidden(images)).astype(jnp.float32)
        b, m = merged.shape[:2]
        real = jnp.arange(m)[None] < jnp.asarray(images.lengths)[:, None] // self.config.merge**2
        tokens = rearrange(jnp.where(real[..., None], merged, 0), "b m e -> (b m) e")
        if b == 1:
            return tokens
        order = jnp.argsort(~real.reshape(-1), stable=True)
        return permute(tokens, order, jnp.argsort(order), 0)

    def merged(self, images: PackedPatches, merge: Callable, at: int) -> MergeState:
        """The visual tokens of fewer cells: those of a frame merge after `at` of the blocks.

        A merged cell is the mean of its members' patches, corner by corner. It keeps the place of its anchor, and as
        keys its patches get the logarithm of its size.

        Args:
            images: Patches without padding, each frame in a row of its own.
            merge: `merge(x) -> MergeState` for x of (b n 4d), the cells of each frame.
            at: How many blocks run before.

        Returns:
            The visual tokens (b m d_out), with sizes and positions of cells.
        """
        cell = self.config.merge**2
        x = self._run(images, stop=at)[0]
        state = merge(rearrange(x, "b (n c) d -> b n (c d)", c=cell))
        places = rearrange(jnp.asarray(images.places), "b (n c) i -> b n (c i)", c=cell)
        places = jnp.take_along_axis(places, state.position[..., None], axis=1)
        places = rearrange(places, "b m (c i) -> b (m c) i", c=cell)
        bias = jnp.repeat(jnp.log(jnp.maximum(state.size, 1e-9)), cell, axis=1)
        fewer = images._replace(places=places, lengths=jnp.full(x.shape[:1], places.shape[1]))
        x = rearrange(state.tokens, "b m (c d) -> b (m c) d", c=cell)
        x = self._run(fewer, x=x, bias=bias, start=at)[0]
        return state._replace(tokens=self.merger(x).astype(jnp.float32))

    def hidden(self, images: PackedPatches) -> Float[jax.Array, "b l d"]:
        """The output of the last block, float32."""
        return self._run(images)[0]

    def hidden_states(self, images: PackedPatches) -> Float[jax.Array, "s b l d"]:
        """What enters the first block, then the output of each: (depth+1 b l d)."""
        return jnp.concatenate([self.embed(images)[None], self._run(images, every=True)[1]])

    def embed(self, images: PackedPatches) -> Float[jax.Array, "b l d"]:
        """What enters the first block, float32."""
        config, patches = self.config, jnp.asarray(images.patches)
        if patches.ndim != 3 or patches.shape[-1] != config.patch_width or patches.shape[1] % config.merge**2:
            wanted = f"(b l {config.patch_width}) with l a multiple of {config.merge**2}"
            raise errors.bad_shape("QwenVisionTower", "patches", patches, wanted, "pack_patches makes them.")
        real = jnp.arange(patches.shape[1])[None] < jnp.asarray(images.lengths)[:, None]
        patches = jnp.where(real[..., None], patches, 0).astype(config.dtype)
        return (patches @ self.patch_kernel[...].astype(config.dtype)).astype(jnp.float32)

    def _run(
        self, images: PackedPatches, *, x=None, bias=None, start=0, stop=None, every=False
    ) -> tuple[Tokens, jax.Array | None]:
        """The output of the last of some blocks, or of every one; `x` enters the first where it is not the start."""
        config = self.config
        angles = _angles(jnp.asarray(images.places), config.block.head_width, config.rope_base)
        lengths = jnp.asarray(images.lengths)
        frames = None if images.segments is None else jnp.asarray(images.segments)
        windows = self._windows(images) if config.window else None
        whole = jnp.asarray(np.isin(np.arange(config.depth), config.full_blocks) | (not config.window))

        def step(x, block, whole):
            segments = frames
            if windows is not None:
                segments = jnp.where(whole, 0 if frames is None else frames, windows)
            x, _ = block(x, angles=angles, lengths=lengths, segment_ids=segments, bias=bias)
            return x, x if every else None

        return apply_stack(
            self.layers,
            step,
            self.embed(images) if x is None else x,
            whole[start:stop],
            start=start,
            stop=stop,
            outputs=True,
            unroll=config.unroll_layers,
            remat=config.remat,
        )

    def _windows(self, images: PackedPatches) -> jax.Array:
        """The number of each patch's window, unlike in all frames of a row."""
        side = self.config.window // self.config.patch_size
        places = jnp.asarray(images.places) // side
        frames = 0 if images.segments is None else jnp.maximum(jnp.asarray(images.segments), 0)
        return (frames * _MOST_WINDOWS + places[..., 0]) * _MOST_WINDOWS + places[..., 1]


def _angles(places: jax.Array, width: int, base: float) -> jax.Array:
    """(b l p/2): the first half of the angles is by the row, the second by the column, with the same wavelengths."""
    frequencies = jnp.asarray(base ** (-np.arange(0, width // 2, 2) / (width // 2)), jnp.float32)
    turned = places[..., None].astype(jnp.float32) * frequencies.reshape(1, 1, 1, -1)
    return rearrange(turned, "b l c f -> b l (c f)")
