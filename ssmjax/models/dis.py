"""DiS: a denoiser of images for diffusion, a U-shaped stack of bidirectional Mamba blocks over patch tokens.

"Scalable Diffusion Models with State Space Backbone" (https://arxiv.org/abs/2402.05608). Written from the equations.
"""

import dataclasses
from typing import no_type_check

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.nn import initializers

from ssmjax import errors
from ssmjax.layers.common.drop_path import drop_path, drop_path_rates
from ssmjax.layers.common.norms import RMSNorm, add_norm
from ssmjax.layers.common.parameters import parameter, with_kinds
from ssmjax.layers.common.stack import apply_stack, make_stack
from ssmjax.layers.selective.bimamba import BiMamba
from ssmjax.layers.vision.denoising import FinalLayer, TimeEmbed
from ssmjax.layers.vision.patch_embed import PatchEmbed
from ssmjax.models.adapt import adapt_images
from ssmjax.models.config import ComputeDtype, check_fields, require
from ssmjax.models.inputs import check_images, image_inputs
from ssmjax.models.mode import follows_mode
from ssmjax.models.registry import Family, register_family, register_model
from ssmjax.shapes import Array, Float, Images, Int, PRNGKey, Tokens

__all__ = ["DiS", "DiSBlock", "DiSConfig"]

# Made once: older Flax keeps initializers in a module's static definition, where two equal ones would differ.
_DRAW = initializers.normal(0.02)


@no_type_check
@dataclasses.dataclass(frozen=True)
class DiSConfig:
    """Everything that makes a DiS; the defaults are those of DiS-S/2 on images of 32 pixels.

    The original's names are in brackets.

    Attributes:
        img_size: The side of the images (or of the latents) in pixels, or (rows, columns).
        in_channels: Their channels: 3 for images, 4 for the latents of a Stable Diffusion autoencoder [`channels`].
        patch_size: The side of a patch in pixels, which divides the side of the images.
        num_classes: The number of classes to condition on; 0 makes an unconditional model [-1].
        d_model: The width of a token [`embed_dim`].
        depth: The number of blocks on both arms of the U; even. The block between the arms is not counted.
        d_state: The state size of a channel.
        d_conv: The taps of the short convolutions.
        expand: The inner width of a block is `expand * d_model`.
        dt_rank: The rank of the step-size projection; None means `ceil(d_model / 16)`.
        skip: Whether the output of each block of the first arm enters its mirror image on the second.
        learn_sigma: Whether the model predicts the variance of a denoising step beside the noise; its output then has
            twice the channels.
        label_drop_rate: In training, how often a label is replaced by the null class, so that one model learns with and
            without classes (classifier-free guidance).
        norm_eps: Added to the mean square of the RMS norms.
        condition_patches: Whether time and class are added to every patch, too; published: two tokens, and last layer.
        float32_residual: Whether the residual stream is float32 under any compute dtype [`residual_in_fp32`].
        drop_path_rate: The stochastic depth of the last block; see `drop_path_rates`. The original's default is 0.1.
        scan_together: Whether both directions of a mixer run as one scan of twice the channels, see `BiMamba`; for
            speed only.
        dtype: What to compute in. Parameters, scans, norms and the output are float32 in any case.
        unroll_layers: A Python loop over the blocks in place of a scan; compile time then grows with the depth.
        remat: Whether the backward pass recomputes the inside of each block, to save memory.

    Raises:
        ValueError: A field has a value of the wrong type or range, or contradicts another.

    >>> config = DiSConfig(img_size=32, in_channels=4, patch_size=2, num_classes=1000)
    >>> config.grid, config.length, config.out_channels
    ((16, 16), 258, 8)
    """

    img_size: int | tuple[int, int] = 32
    in_channels: int = 3
    patch_size: int = 2
    num_classes: int = 0
    d_model: int = 368
    depth: int = 24
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    dt_rank: int | None = None
    skip: bool = True
    learn_sigma: bool = True
    label_drop_rate: float = 0.1
    norm_eps: float = 1e-5
    condition_patches: bool = False
    float32_residual: bool = True
    drop_path_rate: float = 0.0
    scan_together: bool = False
    dtype: ComputeDtype = "float32"
    unroll_layers: bool = False
    remat: bool = False

    def __post_init__(self):
        check_fields(self)
        for field in ("in_channels", "patch_size", "d_model", "d_state", "d_conv", "expand"):
            require(self, field, getattr(self, field) >= 1, "at least 1")
        require(self, "dt_rank", self.dt_rank is None or self.dt_rank >= 1, "at least 1, or None")
        for field in ("label_drop_rate", "drop_path_rate"):
            require(self, field, 0 <= getattr(self, field) < 1, "in [0, 1)")
        require(self, "num_classes", self.num_classes >= 0, "at least 0 (0 for an unconditional model)")
        require(self, "norm_eps", self.norm_eps > 0, "positive")
        require(self, "d_model", self.d_model % 2 == 0, "even", "Half of the features of a time are cosines.")
        require(self, "depth", self.depth >= 2 and self.depth % 2 == 0, "even and at least 2", "It counts both arms.")
        side, fits = self.patch_size, min(self.size) >= 1 and not any(x % self.patch_size for x in self.size)
        remedy = "Resize the images, or take a patch_size that divides their sides."
        require(self, "img_size", fits, f"a multiple of patch_size={side}", remedy)

    @property
    def size(self) -> tuple[int, int]:
        """The rows and columns of the images."""
        return (self.img_size, self.img_size) if isinstance(self.img_size, int) else self.img_size

    @property
    def grid(self) -> tuple[int, int]:
        """The rows and columns of patches."""
        return self.size[0] // self.patch_size, self.size[1] // self.patch_size

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """The rows, columns and channels of an output."""
        return (*self.size, self.out_channels)

    @property
    def class_positions(self) -> tuple[int, ...]:
        """Where the tokens of the class and the time stand."""
        return tuple(range(self.extra_tokens))

    @property
    def extra_tokens(self) -> int:
        """How many tokens come before those of the patches: one for the class, if there are classes, and the time's."""
        return 2 if self.num_classes else 1

    @property
    def length(self) -> int:
        """The number of tokens."""
        return self.grid[0] * self.grid[1] + self.extra_tokens

    @property
    def out_channels(self) -> int:
        """The channels of the output: the noise, and the interpolation of variances if it is learned."""
        return self.in_channels * (2 if self.learn_sigma else 1)

    @property
    def blocks(self) -> int:
        """The number of all blocks."""
        return self.depth + 1


class DiSBlock(nnx.Module):
    """A norm and a bidirectional mixer (Vim's, whose directions are summed without halving).

    Args:
        config: The model's configuration.
        takes_skip: Whether it is one of the second arm, which merges what its mirror image left.
        rngs: Source of the initial values.
    """

    def __init__(self, config: DiSConfig, *, takes_skip: bool = False, rngs: nnx.Rngs):
        d = config.d_model
        self.norm = RMSNorm(d, eps=config.norm_eps, dtype=config.dtype)
        self.mixer = BiMamba(
            d,
            divide_out=False,
            together=config.scan_together,
            d_state=config.d_state,
            d_conv=config.d_conv,
            expand=config.expand,
            dt_rank=config.dt_rank,
            out_scale=config.blocks**-0.5,
            dtype=config.dtype,
            rngs=rngs,
        )
        options = dict(kernel_init=_DRAW, dtype=config.dtype, rngs=rngs)
        self.skip_linear = with_kinds(nnx.Linear(2 * d, d, **options)) if takes_skip else None

    def __call__(self, hidden: Tokens, residual: Tokens, skip: Tokens | None = None) -> tuple[Tokens, Tokens]:
        """The output of the mixer for `residual + hidden`, and that sum; a `skip` is first merged with `hidden`.

        The residual stream passes by that merger.
        """
        if self.skip_linear is not None:
            hidden = self.skip_linear(jnp.concatenate([hidden, skip], axis=-1))
        x, residual = add_norm(self.norm, hidden, residual)
        return self.mixer(x), residual


@follows_mode
class DiS(nnx.Module):
    """Diffusion with a state space backbone: predicts the noise in an image from the image, the time and the class.

    A token for the class, one for the time and one a patch, with a learned position embedding, pass through the first
    arm of `depth / 2` blocks, a middle block, and the second arm, each of whose blocks also reads what its mirror image
    on the first arm left. The tokens of the patches become pixels again.

    Initial values: the patch convolution LeCun normal, the position embedding zero, the other maps normal with a
    deviation of 0.02, the blocks as `BiMamba` with `out_proj` scaled by `1 / sqrt(blocks)`.

    Args:
        config: The configuration.
        rngs: Source of the initial values.

    >>> import jax.numpy as jnp
    >>> config = DiSConfig(img_size=8, patch_size=4, d_model=16, depth=2, num_classes=10)
    >>> model = DiS(config, rngs=nnx.Rngs(0))
    >>> predict = nnx.jit(lambda model, *inputs: model(*inputs))
    >>> predict(model, jnp.zeros((2, 8, 8, 3)), jnp.array([5, 900]), jnp.array([1, 7])).shape
    (2, 8, 8, 6)
    """

    def __init__(self, config: DiSConfig, *, rngs: nnx.Rngs):
        self.config = config
        d, half = config.d_model, config.depth // 2
        self.patch_embed = PatchEmbed(
            d, patch_size=config.patch_size, in_channels=config.in_channels, dtype=config.dtype, rngs=rngs
        )
        self.time_embed = TimeEmbed(d, dtype=config.dtype, rngs=rngs)
        labels = (config.num_classes + 1, d)
        self.label_embed = parameter(_DRAW(rngs.params(), labels), "embedding") if config.num_classes else None
        self.pos_embed = parameter(jnp.zeros((1, config.length, d)), "position")
        self.in_blocks = make_stack(lambda rngs: DiSBlock(config, rngs=rngs), half, rngs)
        self.mid_block = DiSBlock(config, rngs=rngs)
        self.out_blocks = make_stack(lambda rngs: DiSBlock(config, takes_skip=config.skip, rngs=rngs), half, rngs)
        self.norm_f = RMSNorm(d, eps=config.norm_eps)
        pixels = config.patch_size**2 * config.out_channels
        self.final_layer = FinalLayer(d, pixels, modulated=config.num_classes > 0, rngs=rngs)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The rows, columns and channels of an image."""
        return (*self.config.size, self.config.in_channels)

    @property
    def null_label(self) -> int | None:
        """The label that stands for no class; None for an unconditional model."""
        return self.config.num_classes or None

    @property
    def learn_sigma(self) -> bool:
        """Whether the second half of the output's channels tells the variance of a denoising step."""
        return self.config.learn_sigma

    def __call__(
        self,
        images: Images,
        times: Float[Array, "b"] | Int[Array, "b"],
        labels: Int[Array, "b"] | None = None,
        *,
        train: bool | None = None,
        key: PRNGKey | None = None,
    ) -> Float[jax.Array, "b y x v"]:
        """The noise in each image.

        Args:
            images: (b y x d), noisy images or latents in about [-1, 1], channels last.
            times: (b), the steps of the noise, from 0 (none) to 999; fractions are allowed.
            labels: (b) classes from 0; `num_classes` is the null class, which None stands for.
            train: Whether stochastic depth and the dropping of labels act; None: by `model.train()` or `.eval()`.
            key: The random key; needed with `train=True` where one of the two rates is above 0.

        Returns:
            (b y x channels) float32, the noise; with `learn_sigma` of twice the channels, the second half of which
            places the variance of the step between its two bounds, -1 at the lower and 1 at the upper one.

        Raises:
            ValueError: The images have another layout, size or dtype; there are labels and no classes; the key is
                missing.
        """
        config = self.config
        check_images("DiS", images, config.size, config.in_channels)
        label_key, path_key = self._keys(train, key)
        tokens, condition = self._embed(images, times, self._labels(labels, images.shape[0], label_key))
        x = self._blocks(tokens, path_key)
        x = self.final_layer(x, condition)[:, config.extra_tokens :]
        rows, side = config.grid[0], config.patch_size
        # One axis at a time: a reshape of two has no sharding that jax knows.
        x = rearrange(rearrange(x, "b (y x) e -> b y x e", y=rows), "b y x (i j d) -> b y i x j d", i=side, j=side)
        return rearrange(rearrange(x, "b y i x j d -> b (y i) x j d"), "b y x j d -> b y (x j) d")

    def _keys(self, train: bool, key: PRNGKey | None) -> tuple[PRNGKey | None, PRNGKey | None]:
        """The keys for dropping labels and paths, None for what is not dropped."""
        config = self.config
        drops_labels, drops_paths = config.num_classes and config.label_drop_rate > 0, config.drop_path_rate > 0
        if not train or not (drops_labels or drops_paths):
            return None, None
        if key is None:
            raise ValueError(
                f"DiS: train=True with label_drop_rate={config.label_drop_rate} and "
                f"drop_path_rate={config.drop_path_rate} needs a random key: "
                "model(images, times, labels, train=True, key=jax.random.key(0))."
            )
        label_key, path_key = jax.random.split(key)
        return label_key if drops_labels else None, path_key if drops_paths else None

    def _labels(self, labels: Array | None, batch: int, key: PRNGKey | None) -> Array | None:
        """The classes of a conditional model, some of them replaced by the null class in training."""
        config = self.config
        if not config.num_classes:
            if labels is not None:
                remedy = "This model has no classes: create it with num_classes=..., or leave the labels out."
                raise errors.bad_argument("DiS", "labels", "labels", "None", remedy)
            return None
        if labels is None:
            return jnp.full((batch,), config.num_classes, jnp.int32)
        if jnp.shape(labels) != (batch,):
            raise errors.bad_shape("DiS", "labels", labels, f"(b) = ({batch})", "There is one label an image.")
        if key is None:
            return labels
        return jnp.where(jax.random.bernoulli(key, config.label_drop_rate, (batch,)), config.num_classes, labels)

    def _embed(self, images: Array, times: Array, labels: Array | None) -> tuple[Tokens, jax.Array | None]:
        """The tokens, with positions added, and what the final layer is modulated by."""
        config = self.config
        patches = self.patch_embed(jnp.asarray(images, config.dtype))
        if jnp.shape(times) != (images.shape[0],):
            remedy = "There is one time an image."
            raise errors.bad_shape("DiS", "times", times, f"(b) = ({images.shape[0]})", remedy)
        time, condition = self.time_embed(times), None
        extra = [time]
        if labels is not None:
            # A product in place of a lookup, whose gradient would be a scatter-add.
            chosen = jax.nn.one_hot(labels, config.num_classes + 1, dtype=config.dtype)
            label = chosen @ self.label_embed[...].astype(config.dtype)
            extra, condition = [label, time], time + label
        if config.condition_patches:
            patches += (time if condition is None else condition)[:, None].astype(patches.dtype)
        tokens = jnp.concatenate([x[:, None] for x in extra] + [patches], axis=1)
        return tokens + self.pos_embed[...].astype(tokens.dtype), condition

    def _blocks(self, hidden: Tokens, key: PRNGKey | None) -> Float[jax.Array, "b l d"]:
        """Both arms and the block between them, and the final norm."""
        config, half = self.config, self.config.depth // 2
        drops, final_key = [None, None, None], None
        if key is not None:
            first_key, middle_key, second_key, final_key = jax.random.split(key, 4)
            rates = jnp.asarray(drop_path_rates(config.blocks, config.drop_path_rate))
            keys = jax.random.split(first_key, half), middle_key, jax.random.split(second_key, half)
            drops = list(zip((rates[:half], rates[half], rates[half + 1 :]), keys, strict=True))
        options = dict(unroll=config.unroll_layers, remat=config.remat)

        def first_arm(carry, block, drop):
            carry = block(_drop(drop, carry[0]), carry[1])
            return carry, carry[0]

        def second_arm(carry, block, values):
            drop, skip = values
            return block(_drop(drop, carry[0]), carry[1], skip)

        carry = hidden, jnp.zeros_like(hidden, dtype=jnp.float32 if config.float32_residual else hidden.dtype)
        carry, left = apply_stack(self.in_blocks, first_arm, carry, drops[0], outputs=True, **options)
        carry = self.mid_block(_drop(drops[1], carry[0]), carry[1])
        skips = jnp.flip(left, 0) if config.skip else None  # what was left last is read first
        hidden, residual = apply_stack(self.out_blocks, second_arm, carry, (drops[2], skips), **options)
        if final_key is not None:
            hidden = drop_path(final_key, hidden, config.drop_path_rate)
        return add_norm(self.norm_f, hidden, residual)[0]


def _drop(drop, hidden):
    """Drops the output of the block before, at the rate of the block that it enters (None: not in training)."""
    return hidden if drop is None else drop_path(drop[1], hidden, drop[0])


def _inputs(config: DiSConfig, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The arguments of a call by name."""
    inputs = image_inputs(config, batch) | {"times": jax.ShapeDtypeStruct((batch,), jnp.float32)}
    return inputs | ({"labels": jax.ShapeDtypeStruct((batch,), jnp.int32)} if config.num_classes else {})


register_family(
    Family(
        "dis",
        DiSConfig,
        DiS,
        inputs=_inputs,
        adapt=adapt_images,
        adapts=("img_size",),
        tiny=dict(num_classes=5, img_size=8, in_channels=3, patch_size=4, d_model=16, depth=2, d_state=4),
    )
)
# The published sizes: as they are on images of 32 pixels (CIFAR-10), and on latents of an eighth of an image's side.
_SIZES = {
    "small": DiSConfig(),
    "base": DiSConfig(d_model=768),
    "medium": DiSConfig(d_model=768, depth=48),
    "large": DiSConfig(d_model=1024, depth=48),
    "huge": DiSConfig(d_model=1536, depth=48),
}
for _name, _config in _SIZES.items():
    register_model(f"dis_{_name}", "dis", _config)
    for _pixels in (256, 512):
        _latent = dict(img_size=_pixels // 8, in_channels=4, num_classes=1000)
        register_model(f"dis_{_name}_latent{_pixels}", "dis", dataclasses.replace(_config, **_latent))
_nano = DiSConfig(img_size=16, in_channels=1, num_classes=10, d_model=128, depth=4, d_state=8, condition_patches=True)
register_model("dis_nano", "dis", _nano)  # ours, for small images and machines of two cores
