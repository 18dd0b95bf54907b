"""The mixers by name: what a block or a model may be built of, each added with one line at the end of this file."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from ssmjax import errors
from ssmjax.layers.lti.dss import DSS, DSSKernel
from ssmjax.layers.lti.lru import LRU
from ssmjax.layers.lti.s4 import S4, DPLRKernel
from ssmjax.layers.lti.s4d import S4D, DiagonalKernel
from ssmjax.layers.lti.s4nd import S4ND
from ssmjax.layers.lti.s5 import S5
from ssmjax.layers.selective.bimamba import BiMamba
from ssmjax.layers.selective.mamba import Mamba
from ssmjax.layers.selective.mamba2 import Mamba2
from ssmjax.layers.selective.mamba3 import Mamba3

__all__ = [
    "MixerEntry",
    "check_mixer_options",
    "find_mixer",
    "make_mixer",
    "mixer_arguments",
    "register_mixer",
    "registered_mixers",
]


@dataclasses.dataclass(frozen=True)
class MixerEntry:
    """A registered mixer.

    Attributes:
        name: The name that a configuration gives it.
        build: The class, called as `build(d_model, **options, dtype=..., rngs=...)`.
        kernels: Classes whose arguments it takes too, as a function of the options.
        spatial: Whether it mixes the pixels of images, (b *s d), in place of tokens.
    """

    name: str
    build: Callable[..., Any]
    kernels: Callable[[Mapping[str, Any]], tuple[type, ...]]
    spatial: bool

    def options(self, given: Mapping[str, Any]) -> set[str]:
        """Returns the names of the options that it takes, beside some given ones."""
        kinds = (self.build, *self.kernels(given))
        names = {name for kind in kinds for name in _parameters(kind)}
        return names - {"self", "d_model", "rngs", "options", "dtype", "param_dtype"}

    @property
    def keywords(self) -> frozenset[str]:
        """The keyword arguments of a call, such as `mask`, `segment_ids` and `rate`."""
        return frozenset(inspect.signature(self.build.__call__).parameters) - {"self"}


_mixers: dict[str, MixerEntry] = {}


def register_mixer(
    name: str,
    build: Callable[..., Any],
    kernels: Callable[[Mapping[str, Any]], tuple[type, ...]] = lambda options: (),
    *,
    spatial: bool = False,
) -> None:
    """Adds a mixer, so that blocks and models can be built of it by name; the arguments are the fields of `MixerEntry`.

    >>> from ssmjax.layers import Mamba
    >>> register_mixer("my_mamba", Mamba)
    >>> make_mixer("my_mamba", 8, {"d_state": 4}, rngs=nnx.Rngs(0)).size.d_state
    4
    """
    _mixers[name] = MixerEntry(name, build, kernels, spatial)


def registered_mixers() -> tuple[MixerEntry, ...]:
    """Returns every registered mixer, sorted by name.

    >>> [entry.name for entry in registered_mixers()][:3]
    ['bimamba', 'dss', 'lru']
    """
    return tuple(_mixers[name] for name in sorted(_mixers))


def find_mixer(where: str, name: str) -> MixerEntry:
    """Returns the entry of a mixer; raises `ValueError` if the name is unknown."""
    if name not in _mixers:
        raise ValueError(f"{where}: {errors.unknown_name('layer', name, list(_mixers))}")
    return _mixers[name]


def make_mixer(
    name: str, d_model: int, options: Mapping[str, Any] = {}, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
) -> nnx.Module:
    """Builds a mixer by name.

    Args:
        name: One of `registered_mixers`: "s4", "s4d", "dss", "s4nd", "s5", "lru", "mamba", "bimamba", ...
        d_model: The width of a token.
        options: Further arguments of the mixer.
        dtype: The dtype of the computation.
        rngs: Source of the initial values.

    Raises:
        ValueError: The name or an option is unknown.

    >>> make_mixer("lru", 8, {"d_state": 4}, rngs=nnx.Rngs(0)).d_model
    8
    """
    check_mixer_options("make_mixer", name, options)
    return _mixers[name].build(d_model, **options, dtype=dtype, rngs=rngs)


def check_mixer_options(where: str, name: str, options: Mapping[str, Any]) -> None:
    """Checks the name of a mixer and those of its options.

    Raises:
        ValueError: The mixer or an option is unknown.

    >>> check_mixer_options("example", "s5", {"blocks": 4})
    """
    known = find_mixer(where, name).options(options)
    for option in options:
        if option not in known:
            raise ValueError(f"{where}: {errors.unknown_name(f'option of the layer {name!r}', option, sorted(known))}")


def mixer_arguments(where: str, name: str, **keywords: Any) -> dict[str, Any]:
    """Of the keywords of a call those that a mixer names; one that it does not may only be left out.

    Args:
        where: The public class, for the message.
        name: The mixer.
        **keywords: None, and a rate of 1, count as left out.

    Raises:
        ValueError: A keyword is given that the mixer does not have.

    >>> mixer_arguments("example", "mamba", mask=None, rate=1.0)
    {'mask': None}
    """
    own = find_mixer(where, name).keywords
    for keyword, value in keywords.items():
        missing = value is None or (keyword == "rate" and isinstance(value, int | float) and value == 1)
        if keyword not in own and not missing:
            remedy = f"It takes {', '.join(sorted(own - {'u', 'x'}))}."
            raise errors.bad_argument(where, keyword, errors.shape_of(value), f"left out with layer={name!r}", remedy)
    return {keyword: value for keyword, value in keywords.items() if keyword in own}


def _parameters(kind: Any) -> list[str]:
    return list(inspect.signature(kind.__init__ if isinstance(kind, type) else kind).parameters)


register_mixer("s4", S4, lambda options: (DPLRKernel,))
register_mixer("s4d", S4D, lambda options: (DiagonalKernel,))
register_mixer("dss", DSS, lambda options: (DSSKernel,))
register_mixer(
    "s4nd", S4ND, lambda options: (DPLRKernel if options.get("kernel") == "s4" else DiagonalKernel,), spatial=True
)
register_mixer("s5", S5)
register_mixer("lru", LRU)
register_mixer("mamba", Mamba)
register_mixer("mamba2", Mamba2)
register_mixer("mamba3", Mamba3)
register_mixer("bimamba", BiMamba)
