"""Key tables: how the names and layouts of a foreign checkpoint become ours. Rules are data and are read both ways.

A rule pairs a foreign name with ours, and names the change of layout:

    Rule("layers.{i}.mixer.in_proj.weight", "layers.mixer.in_proj.kernel", "linear")

A letter in braces stands for an index. One that only the foreign name has is stacked: arrays 0, 1, 2, ... of it become
the leading axis of ours (here the layers). One that both have is the same number in both.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange

from ssmjax import errors
from ssmjax.checkpoints.arrays import Spec, check_arrays, specs
from ssmjax.layers.lti.state_space import INITIAL_LEAST

__all__ = ["LAYOUTS", "KeyTable", "Rule", "check_needed", "check_real_parts"]

LAYOUTS: dict[str, tuple[str, str] | None] = {
    "same": None,
    "linear": ("o i", "i o"),
    "conv1d": ("e 1 k", "k e"),
    "patch_conv": ("d i y x", "y x i d"),
    "column": ("n", "n 1"),
    "row": ("h", "1 h"),
    "one_channel": ("h n parts", "1 h n parts"),
    "transposed": ("n h", "h n"),
    "features_second": ("n h parts", "1 h n parts"),
}
"""Changes of layout: the name, and the einops patterns of the foreign array and of ours."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a key table.

    Attributes:
        source: The foreign name, with indices in braces.
        target: Our name.
        layout: A key of `LAYOUTS`.
    """

    source: str
    target: str
    layout: str = "same"


@dataclasses.dataclass(frozen=True)
class _Match:
    """A rule applied to one of our arrays: the foreign names it is made of, in the order in which they are stacked."""

    layout: str
    sources: tuple[str, ...]
    stacked: bool


@dataclasses.dataclass(frozen=True)
class KeyTable:
    """The whole correspondence between a family's foreign checkpoints and ours.

    Attributes:
        rules: The lines. Those whose target the model lacks are not used.
        ignored: Foreign names that hold no parameter (tables that a model computes), accepted and not read.
        required: Foreign names that hold no parameter and must be there (lengths), which the caller reads.

    >>> import jax, numpy as np
    >>> table = KeyTable((Rule("blocks.{i}.fc.weight", "blocks.fc.kernel", "linear"),))
    >>> ours = table.to_ours({"blocks.0.fc.weight": np.ones((3, 2)), "blocks.1.fc.weight": np.zeros((3, 2))},
    ...                      {"blocks.fc.kernel": jax.ShapeDtypeStruct((2, 2, 3), "float64")})
    >>> ours["blocks.fc.kernel"].shape
    (2, 2, 3)
    >>> sorted(table.to_source(ours))
    ['blocks.0.fc.weight', 'blocks.1.fc.weight']
    """

    rules: Sequence[Rule]
    ignored: Sequence[str] = ()
    required: Sequence[str] = ()

    def source_specs(self, ours: Mapping[str, Any]) -> dict[str, Spec]:
        """The foreign names, shapes and dtypes that a model with these arrays (or specs) of ours corresponds to."""
        wanted = {}
        for name, x in ours.items():
            match = self._match(name, x.shape)
            shape = x.shape[1:] if match.stacked else x.shape
            placeholder = np.broadcast_to(np.int8(0), shape)  # only its shape is used; it takes no memory
            spec = Spec(_to_source(placeholder, match.layout).shape, x.dtype)
            wanted |= dict.fromkeys(match.sources, spec)
        return wanted

    def to_ours(
        self, source: Mapping[str, np.ndarray], ours: Mapping[str, Any], where: str = "to_ours"
    ) -> dict[str, np.ndarray]:
        """Converts a foreign checkpoint.

        Args:
            source: Foreign arrays by name.
            ours: The model's arrays, or their specs, by name: what must result.
            where: The checkpoint's name, for the message.

        Returns:
            Arrays with the names, shapes and dtypes of `ours`.

        Raises:
            ValueError: A foreign name is unknown or missing, or has another shape, or a dtype that ours cannot hold
                exactly; one message lists them all.
        """
        wanted = self.source_specs(ours)
        wanted |= {name: Spec((), np.int64) for name in self.required if name not in source}  # to be listed as missing
        source = {name: x for name, x in source.items() if name not in (*self.ignored, *self.required)}
        check_arrays(where, {name: _as_held(x, wanted.get(name)) for name, x in source.items()}, wanted)
        result = {}
        for name, x in ours.items():
            match = self._match(name, x.shape)
            parts = [_to_ours(source[key], match.layout) for key in match.sources]
            result[name] = np.asarray(np.stack(parts) if match.stacked else parts[0], dtype=x.dtype, order="C")
        return result

    def to_source(self, ours: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Converts back: arrays of ours (parameters, or their gradients) to foreign names and layouts.

        Raises:
            ValueError: No rule has the name of one of the arrays.
        """
        result = {}
        for name, x in ours.items():
            match = self._match(name, x.shape)
            parts = np.asarray(x) if match.stacked else [np.asarray(x)]
            for key, part in zip(match.sources, parts, strict=True):
                result[key] = np.asarray(_to_source(part, match.layout), order="C")
        return result

    def _match(self, name: str, shape: Sequence[int]) -> _Match:
        for rule in self.rules:
            found = re.fullmatch(_pattern(rule.target), name)
            if found is None:
                continue
            indices = found.groupdict()
            stacked = [letter for letter in _letters(rule.source) if letter not in indices]
            if not stacked:
                return _Match(rule.layout, (rule.source.format(**indices),), stacked=False)
            (letter,) = stacked
            names = (rule.source.format(**indices, **{letter: i}) for i in range(shape[0]))
            return _Match(rule.layout, tuple(names), stacked=True)
        raise ValueError(f"No rule of the key table has {name!r} as its target.")


def check_needed(
    where: str, found: Mapping[str, Any], needed: Iterable[str], names: Iterable[str], ignored: Iterable[str] = ()
) -> None:
    """Checks that the arrays are there off which a layer's arguments are read.

    Args:
        where: What is being read, the beginning of the message.
        found: The foreign arrays by name.
        needed: The names that are going to be read.
        names: Every name that such a checkpoint has, for the message.
        ignored: Those that it may have.

    Raises:
        ValueError: One of `needed` is missing; the one message lists every name that is unknown or missing.

    >>> check_needed("example", {"B": np.ones(2)}, ["B"], ["B", "C"])
    """
    if any(name not in found for name in needed):
        there, missing = specs(found), Spec((), np.float32)  # shapes are not known yet, and not compared
        wanted = {name: there.get(name, missing) for name in names}
        check_arrays(where, there, wanted | {name: there[name] for name in ignored if name in there})


def check_real_parts(where: str, A_real: np.ndarray | None, transform: str) -> None:
    """Raises `ValueError` if real parts are stored as they are, and one is not below what "clip" holds them to."""
    if transform == "clip" and A_real is not None and np.min(A_real, initial=np.inf) < INITIAL_LEAST:
        wanted = f"-{INITIAL_LEAST} at most, which our layers hold it to"
        remedy = "A mode with a larger real part does not decay, and cannot be converted."
        raise errors.bad_argument(where, "the real part of A", -float(np.min(A_real)), wanted, remedy)


def _letters(name: str) -> list[str]:
    return re.findall(r"\{(\w+)\}", name)


def _pattern(name: str) -> str:
    """A regular expression for a name with indices in braces."""
    parts = re.split(r"\{(\w+)\}", name)
    return "".join(re.escape(part) if i % 2 == 0 else rf"(?P<{part}>\d+)" for i, part in enumerate(parts))


def _to_ours(x: np.ndarray, layout: str) -> np.ndarray:
    patterns = LAYOUTS[layout]
    return x if patterns is None else rearrange(x, f"{patterns[0]} -> {patterns[1]}")


def _to_source(x: np.ndarray, layout: str) -> np.ndarray:
    patterns = LAYOUTS[layout]
    return x if patterns is None else rearrange(x, f"{patterns[1]} -> {patterns[0]}")


def _as_held(x: np.ndarray, wanted: Spec | None) -> Spec:
    """The spec of a foreign array, with our dtype where ours holds every value of it (float16 in float32)."""
    floats = wanted is not None and jnp.issubdtype(x.dtype, jnp.floating) and jnp.issubdtype(wanted.dtype, jnp.floating)
    exact = floats and np.can_cast(x.dtype, wanted.dtype, casting="safe")
    return Spec(x.shape, wanted.dtype if exact else x.dtype)
