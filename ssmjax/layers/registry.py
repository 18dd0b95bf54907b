"""Which layers there are, each with a way to build a tiny one and an example call, for the registry-wide tests."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssmjax.layers.common.attention import CausalAttention
from ssmjax.layers.common.gates import Gate
from ssmjax.layers.common.norms import BatchNorm, LayerNorm, RMSNorm
from ssmjax.layers.lti.dss import DSS
from ssmjax.layers.lti.lru import LRU
from ssmjax.layers.lti.s4 import S4
from ssmjax.layers.lti.s4d import S4D
from ssmjax.layers.lti.s4nd import S4ND
from ssmjax.layers.lti.s5 import S5
from ssmjax.layers.selective.bimamba import BiMamba
from ssmjax.layers.selective.gated_norm import GatedRMSNorm
from ssmjax.layers.selective.half_mamba import HalfMamba
from ssmjax.layers.selective.mamba import Mamba
from ssmjax.layers.selective.mamba2 import Mamba2
from ssmjax.layers.selective.mamba3 import Mamba3
from ssmjax.layers.sequence_block import SequenceBlock
from ssmjax.layers.vision.depthwise import DepthwiseConv
from ssmjax.layers.vision.hierarchy import Downsample, ImageEmbed
from ssmjax.layers.vision.local_conv import LocalConv
from ssmjax.layers.vision.mlp import MLP
from ssmjax.layers.vision.patch_embed import ConvStem, PatchEmbed
from ssmjax.layers.vision.ss2d import SS2D
from ssmjax.layers.vision.windows import SelfAttention

__all__ = ["LayerEntry", "register_layer", "registered_layers"]


@dataclasses.dataclass(frozen=True)
class LayerEntry:
    """A registered layer.

    Attributes:
        name: Its name, with the variant if it has several.
        build: `build(dtype, rngs)`, a tiny one that computes in `dtype`.
        input_shape: The shape of an example input.
        output_shape: The shape of what the layer makes of it.
    """

    name: str
    build: Callable[[DTypeLike, nnx.Rngs], nnx.Module]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]

    def example(self, key: jax.Array, dtype: DTypeLike = jnp.float32) -> jax.Array:
        """Returns a random input."""
        return jax.random.normal(key, self.input_shape, dtype)


_layers: dict[str, LayerEntry] = {}


def register_layer(
    name: str,
    layer: Callable[..., Any],
    input_shape: tuple[int, ...],
    output_shape: tuple[int, ...],
    /,
    **options: Any,
) -> None:
    """Adds a layer.

    Args:
        name: Its name.
        layer: The class, called as `layer(output_shape[-1], **options, dtype=..., rngs=...)`.
        input_shape: The shape of an example input.
        output_shape: The shape of what the layer makes of it.
        **options: Further arguments of the class.

    >>> from ssmjax.layers import Mamba
    >>> register_layer("WideMamba", Mamba, (2, 5, 8), (2, 5, 8), expand=4)
    """

    def build(dtype, rngs):
        return layer(output_shape[-1], **options, dtype=dtype, rngs=rngs)

    _layers[name] = LayerEntry(name, build, input_shape, output_shape)


def registered_layers() -> tuple[LayerEntry, ...]:
    """Returns every registered layer, sorted by name.

    >>> [entry.name for entry in registered_layers()][:2]
    ['BatchNorm', 'BiMamba(none)']
    """
    return tuple(_layers[name] for name in sorted(_layers))


register_layer("RMSNorm", RMSNorm, (2, 5, 8), (2, 5, 8))
register_layer("LayerNorm", LayerNorm, (2, 5, 8), (2, 5, 8))
register_layer("BatchNorm", BatchNorm, (2, 5, 8), (2, 5, 8))
register_layer("GatedRMSNorm", GatedRMSNorm, (2, 5, 8), (2, 5, 8), group=4)
register_layer("PatchEmbed", PatchEmbed, (2, 8, 12, 3), (2, 6, 8), patch_size=4)
register_layer("LocalConv", LocalConv, (2, 3, 4, 8), (2, 3, 4, 8))
register_layer("ConvStem", ConvStem, (2, 8, 12, 3), (2, 6, 8), stride=4)
register_layer("Mamba", Mamba, (2, 5, 8), (2, 5, 8), d_state=4)
register_layer("Mamba2", Mamba2, (2, 5, 8), (2, 5, 8), d_state=4, head_dim=4, groups=2)
register_layer("Mamba3(siso)", Mamba3, (2, 5, 8), (2, 5, 8), d_state=4, head_dim=4)
register_layer("Mamba3(mimo)", Mamba3, (2, 5, 8), (2, 5, 8), d_state=4, head_dim=4, rank=2, norm=True)
register_layer("CausalAttention", CausalAttention, (2, 5, 8), (2, 5, 8), heads=2)
for _variant in ("none", "v1", "v2"):
    register_layer(f"BiMamba({_variant})", BiMamba, (2, 5, 8), (2, 5, 8), d_state=4, variant=_variant)
for _variant in ("none", "exclusive", "inclusive"):
    register_layer(f"S5({_variant})", S5, (2, 5, 8), (2, 5, 8), d_state=8, blocks=2, bidirectional=_variant)
    register_layer(f"S4D({_variant})", S4D, (2, 5, 8), (2, 5, 8), d_state=4, bidirectional=_variant)
    register_layer(f"LRU({_variant})", LRU, (2, 5, 8), (2, 5, 8), d_state=4, bidirectional=_variant)
for _variant in ("none", "exclusive"):
    register_layer(f"S4({_variant})", S4, (2, 5, 8), (2, 5, 8), d_state=4, l_max=5, bidirectional=_variant)
    register_layer(f"DSS({_variant})", DSS, (2, 5, 8), (2, 5, 8), d_state=4, bidirectional=_variant)
register_layer("S4D(bilinear)", S4D, (2, 5, 8), (2, 5, 8), d_state=4, discretization="bilinear")
register_layer("S4D(real)", S4D, (2, 5, 8), (2, 5, 8), d_state=4, init="diag-real", real=True)
register_layer("S4(rank 2)", S4, (2, 5, 8), (2, 5, 8), d_state=4, l_max=5, init="legt", rank=2)
register_layer("DSS(exp)", DSS, (2, 5, 8), (2, 5, 8), d_state=4, discretization="zoh", parametrization="exp")
register_layer("S4ND", S4ND, (2, 5, 4, 8), (2, 5, 4, 8), d_state=4)
register_layer("S4ND(s4)", S4ND, (2, 3, 5, 4, 8), (2, 3, 5, 4, 8), axes=3, d_state=4, kernel="s4", l_max=5)
for _variant in ("glu", "full_glu", "half_glu1", "half_glu2", "linear", "none"):
    register_layer(f"Gate({_variant})", Gate, (2, 5, 8), (2, 5, 8), kind=_variant)
for _variant in ("layer", "batch"):
    register_layer(f"SequenceBlock({_variant})", SequenceBlock, (2, 5, 8), (2, 5, 8), layer="s5", norm=_variant)
register_layer("DepthwiseConv", DepthwiseConv, (2, 3, 4, 8), (2, 3, 4, 8))
register_layer("MLP", MLP, (2, 5, 8), (2, 5, 8), hidden=16)
register_layer("MLP(gated)", MLP, (2, 5, 8), (2, 5, 8), hidden=128, gated=True)
register_layer("SelfAttention", SelfAttention, (2, 5, 8), (2, 5, 8), heads=2)
register_layer("HalfMamba", HalfMamba, (2, 5, 8), (2, 5, 8))
for _variant in ("patch", "conv"):
    register_layer(f"ImageEmbed({_variant})", ImageEmbed, (2, 8, 12, 3), (2, 2, 3, 8), kind=_variant)
for _variant, _rows in (("merge", 3), ("conv2", 2), ("conv3", 3)):
    register_layer(f"Downsample({_variant})", Downsample, (2, 5, 4, 4), (2, _rows, 2, 8), before=4, kind=_variant)
for _variant in ("cross", "two", "cascade"):
    register_layer(f"SS2D({_variant})", SS2D, (2, 3, 2, 8), (2, 3, 2, 8), d_state=2, directions=_variant)
_ssd = {"core": "ssd", "initialization": "constant", "dt_rank": 2, "gate": "none"}
register_layer("SS2D(ssd)", SS2D, (2, 3, 2, 8), (2, 3, 2, 8), d_state=2, **_ssd)
