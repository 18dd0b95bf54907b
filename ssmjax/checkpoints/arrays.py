"""A model's arrays under dotted names, and the safetensors bytes of such a dictionary."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx, traverse_util

from ssmjax.checkpoints.safetensors_file import parse_safetensors

__all__ = [
    "Spec",
    "aligned_empty",
    "check_arrays",
    "model_arrays",
    "parameter_names",
    "read_safetensors",
    "set_model_arrays",
    "specs",
    "write_safetensors",
]

Spec = jax.ShapeDtypeStruct

_ALIGNMENT = 64  # bytes; XLA's on a CPU


def model_arrays(model: nnx.Module) -> dict[str, Any]:
    """Every variable of a model (parameters and statistics) under its dotted path, sorted by name.

    Those of an abstract model (`nnx.eval_shape`) are specs in place of arrays.

    >>> from flax import nnx
    >>> sorted(model_arrays(nnx.Linear(2, 3, rngs=nnx.Rngs(0))))
    ['bias', 'kernel']
    """
    tree = traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(model)))
    return {name: tree[path] for name, path in sorted((_dotted(path), path) for path in tree)}


def set_model_arrays(model: nnx.Module, arrays: Mapping[str, Any], wanted: Mapping[str, Spec] | None = None) -> None:
    """Puts arrays, named as `model_arrays` names them, into a model.

    Args:
        model: Changed in place.
        arrays: One for every variable of the model, of its shape and dtype.
        wanted: The shapes and dtypes to compare with, where the model is to have other dtypes than now.

    Raises:
        ValueError: A name is unknown or missing, or a shape or dtype differs; lists them all.
    """
    state = nnx.state(model)
    paths = {_dotted(path): path for path in traverse_util.flatten_dict(nnx.to_pure_dict(state))}
    check_arrays("set_model_arrays", arrays, specs(model_arrays(model)) if wanted is None else wanted)
    new = {
        path: x if isinstance(x := arrays[name], jax.Array) else jax.numpy.asarray(x) for name, path in paths.items()
    }
    nnx.replace_by_pure_dict(state, traverse_util.unflatten_dict(new))
    nnx.update(model, state)


def parameter_names(model: nnx.Module) -> frozenset[str]:
    """The names, among those of `model_arrays`, of what is trained: not of statistics.

    >>> sorted(parameter_names(nnx.BatchNorm(3, rngs=nnx.Rngs(0))))
    ['bias', 'scale']
    """
    return frozenset(map(_dotted, traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(model, nnx.Param)))))


def specs(arrays: Mapping[str, Any]) -> dict[str, Spec]:
    """The shape and dtype of each array."""
    return {name: Spec(x.shape, x.dtype) for name, x in arrays.items()}


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array to be filled, at an address that jax takes over on a CPU, without a copy.

    >>> aligned_empty((2, 3), np.float32).ctypes.data % _ALIGNMENT
    0
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def check_arrays(where: str, found: Mapping[str, Any], wanted: Mapping[str, Spec], remedy: str = "") -> None:
    """Compares names, shapes and dtypes.

    Args:
        where: What is being loaded, the beginning of the message.
        found: The arrays, or their specs.
        wanted: What they must be.
        remedy: What to do; a full sentence.

    Raises:
        ValueError: They differ; the one message lists every difference.
    """
    problems = _listed("unknown", sorted(found.keys() - wanted.keys()))
    problems += _listed("missing", sorted(wanted.keys() - found.keys()))
    for name in sorted(found.keys() & wanted.keys()):
        got, want = found[name], wanted[name]
        if tuple(got.shape) != tuple(want.shape) or got.dtype != want.dtype:
            problems.append(f"{name}: got {tuple(got.shape)} {got.dtype}, wanted {tuple(want.shape)} {want.dtype}")
    if problems:
        end = f"\n{remedy}" if remedy else ""
        raise ValueError(f"{where}: the arrays do not fit the model:\n  " + "\n  ".join(problems) + end)


def write_safetensors(arrays: Mapping[str, Any]) -> bytes:
    """The bytes of a safetensors file with these arrays."""
    from safetensors.numpy import save

    return save({name: np.asarray(x, order="C") for name, x in arrays.items()})


def read_safetensors(data: bytes, where: str) -> dict[str, np.ndarray]:
    """The arrays in the bytes of a safetensors file, bfloat16 included.

    Args:
        data: The bytes.
        where: The file's name, for the message.

    Raises:
        ValueError: These are not the bytes of a safetensors file, or it holds a dtype that numpy lacks.
    """
    return parse_safetensors(data, where)


def _dotted(path: Iterable[object]) -> str:
    return ".".join(str(part) for part in path)


def _listed(kind: str, names: list[str]) -> list[str]:
    return [f"{kind}: {', '.join(names)}"] if names else []
