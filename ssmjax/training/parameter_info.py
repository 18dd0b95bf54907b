"""What the parameters of a model say of themselves, brought to an optimizer that sees arrays by their paths.

`ssmjax.layers.common.parameters` marks each parameter with its kind where it is made. An optax transformation gets bare
arrays. `fit` says what they are while it calls the optimizer (`described`); a loop of one's own passes the model to
`adamw` or `muon`. A parameter of which nothing is known is judged by its name.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx

__all__ = ["ParameterInfo", "described", "info_at", "parameter_info", "path_parts"]


class ParameterInfo(NamedTuple):
    """What a parameter is; None where it does not say.

    Attributes:
        kind: A `ParameterKind`.
        decay: Whether weight decay applies to it.
    """

    kind: str | None = None
    decay: bool | None = None


_Known = Mapping[str, ParameterInfo] | None
_described: contextvars.ContextVar[_Known] = contextvars.ContextVar("_described", default=None)


def parameter_info(model: Any) -> dict[str, ParameterInfo]:
    """Reads what the parameters of a model are.

    Args:
        model: An NNX module, or an `nnx.State` of one.

    Returns:
        The kind and the decay of each parameter, by its path, with dots between the parts.

    >>> from ssmjax.layers import RMSNorm
    >>> parameter_info(RMSNorm(8))
    {'scale': ParameterInfo(kind='norm', decay=False)}
    """
    state = model if isinstance(model, nnx.State) else nnx.state(model, nnx.Param)
    return {".".join(map(str, path)): _of(variable) for path, variable in nnx.to_flat_state(state)}


@contextlib.contextmanager
def described(info: Mapping[str, ParameterInfo]) -> Iterator[None]:
    """Within it, the masks and labels of this package's optimizers know these parameters.

    Args:
        info: From `parameter_info`.

    >>> with described({"w": ParameterInfo("A", False)}):
    ...     info_at(["w"])
    ParameterInfo(kind='A', decay=False)
    """
    token = _described.set(info)
    try:
        yield
    finally:
        _described.reset(token)


def path_parts(path: Sequence[Any]) -> list[str]:
    """The parts of a parameter's path, in a nested tree or in a flat dictionary with dots in its names.

    >>> jax.tree_util.tree_map_with_path(lambda path, _: path_parts(path), {"layers.mixer": {"A_log": 0}})
    {'layers.mixer': {'A_log': ['layers', 'mixer', 'A_log']}}
    """
    return jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value").split(".")


def info_at(parts: Sequence[str], known: _Known = None) -> ParameterInfo:
    """What is known of the parameter at a path.

    Args:
        parts: From `path_parts`.
        known: From `parameter_info`; None takes what `described` says.

    >>> info_at(["A_log"])
    ParameterInfo(kind=None, decay=None)
    """
    known = _described.get() if known is None else known
    return (known or {}).get(".".join(parts), ParameterInfo())


def _of(variable: Any) -> ParameterInfo:
    return ParameterInfo(getattr(variable, "kind", None), getattr(variable, "decay", None))
