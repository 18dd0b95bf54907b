"""Vision Mamba (Vim, https://arxiv.org/abs/2401.09417): bidirectional Mamba blocks over the patches of an image."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn import initializers

from ssmjax import _compat
from ssmjax.layers.common.drop_path import drop_path, drop_path_rates, dropout
from ssmjax.layers.common.norms import add_norm, make_norm
from ssmjax.layers.common.parameters import parameter, with_kinds
from ssmjax.layers.common.rope import apply_rope, axial_rope_table
from ssmjax.layers.common.stack import apply_stack, make_stack
from ssmjax.layers.selective.bimamba import BiMamba
from ssmjax.layers.vision.patch_embed import ConvStem, PatchEmbed
from ssmjax.models.adapt import adapt_images
from ssmjax.models.inputs import check_images, image_inputs
from ssmjax.models.mode import follows_mode
from ssmjax.models.registry import Family, register_family, register_model
from ssmjax.models.vim_config import VimConfig
from ssmjax.shapes import Array, Float, PRNGKey, Tokens

__all__ = ["Vim", "VimBlock", "VimConfig"]

# Made once: older Flax keeps initializers in a module's static definition, where two equal ones would differ.
_DRAW = initializers.normal(0.02)


class VimBlock(nnx.Module):
    """A norm and a mixer, between which and the next block the residual stream passes: add, normalize, mix.

    Args:
        config: The model's configuration.
        rngs: Source of the initial values.
    """

    def __init__(self, config: VimConfig, *, rngs: nnx.Rngs):
        self.norm = make_norm(config.norm, config.d_model, eps=config.norm_eps, dtype=config.dtype)
        self.mixer = BiMamba(
            config.d_model,
            variant=config.bidirectional,
            divide_out=config.divide_out,
            together=config.scan_together,
            d_state=config.d_state,
            d_conv=config.d_conv,
            expand=config.expand,
            dt_rank=config.dt_rank,
            dt_min=config.dt_min,
            dt_max=config.dt_max,
            dt_init=config.dt_init,
            dt_scale=config.dt_scale,
            dt_floor=config.dt_floor,
            conv_bias=config.conv_bias,
            use_bias=config.mixer_bias,
            out_scale=config.depth**-0.5,
            dtype=config.dtype,
            rngs=rngs,
        )
        scale = config.layer_scale
        self.gamma = None if scale is None else parameter(jnp.full((config.d_model,), scale, jnp.float32), "scale")

    def __call__(self, hidden: Tokens, residual: Tokens) -> tuple[Tokens, Tokens]:
        """The mixer's output for `residual + hidden`, and that sum."""
        x, residual = add_norm(self.norm, hidden, residual)
        hidden = self.mixer(x)
        if self.gamma is not None:
            hidden = hidden * self.gamma[...].astype(hidden.dtype)[None, None]
        return hidden, residual


@follows_mode
class Vim(nnx.Module):
    """Vision Mamba: patches, a class token, position embedding, `depth` blocks, a final norm and a linear head.

    Initial values: `pos_embed`, class tokens and head normal with standard deviation 0.02 (the original's truncation,
    at 100 deviations, has no effect), patch convolution LeCun normal, the blocks as `BiMamba` with `out_proj` scaled by
    `1 / sqrt(depth)`.

    Args:
        config: The configuration.
        rngs: Source of the initial values.

    >>> import jax.numpy as jnp
    >>> config = VimConfig(img_size=8, patch_size=4, d_model=16, depth=2, num_classes=5)
    >>> Vim(config, rngs=nnx.Rngs(0))(jnp.zeros((2, 8, 8, 3))).shape
    (2, 5)
    """

    def __init__(self, config: VimConfig, *, rngs: nnx.Rngs):
        self.config = config
        d, draw = config.d_model, _DRAW
        options = dict(stride=config.step, in_channels=config.in_channels, dtype=config.dtype, rngs=rngs)
        conv = config.stem == "conv"
        self.patch_embed = ConvStem(d, **options) if conv else PatchEmbed(d, patch_size=config.patch_size, **options)
        for name in {"none": (), "double": ("cls_token_head", "cls_token_tail")}.get(
            config.class_token, ("cls_token",)
        ):
            setattr(self, name, parameter(draw(rngs.params(), (1, 1, d)), "token"))
        positions = (1, config.length, d)
        self.pos_embed = parameter(draw(rngs.params(), positions), "position") if config.pos_embed else None
        self.layers = make_stack(lambda rngs: VimBlock(config, rngs=rngs), config.depth, rngs)
        self.norm_f = make_norm(config.norm, d, eps=config.norm_eps)
        head = nnx.Linear(d, config.num_classes, kernel_init=draw, rngs=rngs) if config.num_classes else None
        self.head = None if head is None else with_kinds(head, kernel="head")

    def __call__(
        self, images: Array, *, train: bool | None = None, key: PRNGKey | None = None
    ) -> Float[jax.Array, "b v"] | Float[jax.Array, "b l v"]:
        """Class logits.

        Args:
            images: (b y x d), floating, channels last, normalized.
            train: Whether dropout and stochastic depth act; None: by `model.train()` or `.eval()`.
            key: The random key; needed with `train=True` where one of the two rates is above 0.

        Returns:
            (b num_classes) float32. With `pool="all"` and no class token (b l num_classes). Without a head, features.

        Raises:
            ValueError: The images have another layout, size or dtype, or the key is missing.
        """
        x = self.features(images, train=train, key=key)
        if self.head is None:
            return x
        logits = self.head(x)
        return logits.max(1) if self.config.pool == "max" and self.config.class_token == "none" else logits

    def features(
        self, images: Array, *, train: bool | None = None, key: PRNGKey | None = None
    ) -> Float[jax.Array, "b d"] | Float[jax.Array, "b l d"]:
        """What the head reads: the class token, or the pooled tokens, after the final norm; arguments as for a call.

        Returns:
            (b d) float32. With `pool="max"` or `"all"` and no class token (b l d): the head comes before that pooling.
        """
        config = self.config
        hidden, residual = self._run(images, train, key)
        if config.class_token == "none" and config.pool != "last":
            x, _ = add_norm(self.norm_f, hidden, residual)
            return x.mean(1) if config.pool == "mean" else x
        places = config.class_positions or (config.length - 1,)
        # Slices, whose gradient is a pad; an index array's would be a scatter-add.
        read = (jnp.concatenate([x[:, place : place + 1] for place in places], axis=1) for x in (hidden, residual))
        x, _ = add_norm(self.norm_f, *read)
        return x.mean(1)

    def tokens(self, images: Array) -> Float[jax.Array, "b l d"]:
        """Every token after the final norm, class tokens included (`config.class_positions` says where), float32."""
        return add_norm(self.norm_f, *self._run(images, False, None))[0]

    def _run(self, images: Array, train: bool, key: PRNGKey | None) -> tuple[Tokens, Tokens]:
        """The last block's output and the residual stream, their sum still to be normalized."""
        config = self.config
        check_images("Vim", images, config.size, config.in_channels)
        train = train and max(config.drop_rate, config.drop_path_rate) > 0
        if train and key is None:
            raise ValueError(
                f"Vim: train=True with drop_rate={config.drop_rate} and drop_path_rate={config.drop_path_rate} "
                "needs a random key: model(images, train=True, key=jax.random.key(0))."
            )
        hidden = self._embed(images)
        residual = jnp.zeros_like(hidden, dtype=jnp.float32 if config.float32_residual else hidden.dtype)
        per_block = final_key = None
        if train:
            embed_key, block_key, final_key = jax.random.split(key, 3)
            hidden = dropout(embed_key, hidden, config.drop_rate) if config.pos_embed else hidden
            rates = jnp.asarray(drop_path_rates(config.depth, config.drop_path_rate))
            per_block = rates, jax.random.split(block_key, config.depth)
        hidden, residual = apply_stack(
            self.layers,
            self._pair if config.alternate_layers else self._block,
            (hidden, residual),
            per_block,
            group=2 if config.alternate_layers else 1,
            unroll=config.unroll_layers,
            remat=config.remat,
        )
        if train:
            hidden = drop_path(final_key, hidden, config.drop_path_rate)
        return hidden, residual

    def _embed(self, images: Array) -> Tokens:
        """Patch tokens with class tokens among them and positions added."""
        config = self.config
        x = self.patch_embed(jnp.asarray(images, config.dtype))

        def expand(token):
            token = jnp.broadcast_to(token[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
            return _compat.split_as(token, x)

        if config.class_token == "double":
            x = jnp.concatenate([expand(self.cls_token_head), x, expand(self.cls_token_tail)], axis=1)
        elif config.class_token != "none":
            (place,) = config.class_positions
            x = jnp.concatenate([x[:, :place], expand(self.cls_token), x[:, place:]], axis=1)
        return x if self.pos_embed is None else x + self.pos_embed[...].astype(x.dtype)

    def _block(self, carry, block, drop):
        return block(*self._before_block(*carry, drop))

    def _pair(self, carry, blocks, drops):
        """Two blocks on the same input, the second from its end; the sum of both goes on."""
        hidden, residual = self._rotate(*carry)
        outputs = []
        for block, drop, flipped in zip(blocks, drops, (False, True), strict=True):
            x, r = (jnp.flip(t, 1) if flipped else t for t in (hidden, residual))
            outputs.append([jnp.flip(t, 1) if flipped else t for t in block(_drop(drop, x), r)])
        return tuple(forward + backward for forward, backward in zip(*outputs, strict=True))

    def _before_block(self, hidden, residual, drop):
        hidden, residual = self._rotate(hidden, residual)
        return _drop(drop, hidden), residual

    def _rotate(self, hidden: Tokens, residual: Tokens) -> tuple[Tokens, Tokens]:
        if not self.config.rope:
            return hidden, residual
        angles = _rope_angles(self.config)
        return apply_rope(hidden, angles), apply_rope(residual, angles) if self.config.rope_residual else residual


def _drop(drop, hidden):
    """Drops the output of the block before, at the rate of the block that it enters (None: not in training)."""
    return hidden if drop is None else drop_path(drop[1], hidden, drop[0])


def _rope_angles(config: VimConfig) -> np.ndarray:
    """The angle of every pair of channels of every token, (l d/2); zero for tokens that are not turned."""
    angles = axial_rope_table(*config.grid, config.d_model, pretrained_side=config.rope_pretrained_side)
    skipped = (0,) * config.class_tokens if config.rope_skips == "first" else config.class_positions
    whole = np.zeros((config.length, angles.shape[1]))
    whole[np.setdiff1d(np.arange(config.length), skipped)] = angles
    return whole


register_family(
    Family(
        "vim",
        VimConfig,
        Vim,
        inputs=image_inputs,
        adapt=adapt_images,
        adapts=("num_classes", "img_size"),
        tiny={"num_classes": 5, "img_size": 16, "patch_size": 8, "d_model": 16, "depth": 2, "d_state": 4},
    )
)
for _name, _width in (("vim_tiny", 192), ("vim_small", 384), ("vim_base", 768)):
    register_model(_name, "vim", VimConfig(d_model=_width))
# Ours, for 32-pixel images and machines of two cores.
register_model(
    "vim_nano",
    "vim",
    VimConfig(img_size=32, patch_size=4, stem="conv", num_classes=10, d_model=128, depth=6, d_state=8),
)
