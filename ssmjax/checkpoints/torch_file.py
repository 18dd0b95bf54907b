"""Reads the tensors of a PyTorch checkpoint, as numpy arrays.

A `.safetensors` file needs no PyTorch. Every other file is a pickle, which can run code when it is opened: it is read
only if the caller says so, and then through PyTorch's `weights_only=True`, which allows tensors and plain containers.
"""

import pathlib
import pickle
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from ssmjax.checkpoints.arrays import read_safetensors
from ssmjax.paths import local_path

__all__ = ["read_torch_file", "strip_prefix", "unwrap"]

_WRAPPERS = ("model", "state_dict")


def read_torch_file(path: str | pathlib.Path, *, allow_pickle: bool = False) -> dict[str, np.ndarray]:
    """The state dict in a checkpoint file, without its wrappers.

    Training scripts save `{"model": state_dict, "optimizer": ...}`, and data-parallel ones put `module.` before every
    name; both are taken off.

    Args:
        path: A `.safetensors` file, or one that `torch.save` wrote.
        allow_pickle: Whether a file of the second kind may be read at all.

    Returns:
        Arrays by their names in the state dict.

    Raises:
        ValueError: The file is missing, damaged, or a pickle without `allow_pickle`, or it holds no state dict.
        ImportError: PyTorch is needed and not installed.
    """
    path = local_path("read_torch_file", "path", path)
    if not path.is_file():
        raise ValueError(f"read_torch_file: there is no file {str(path)!r}.")
    if path.suffix == ".safetensors":
        return strip_prefix(read_safetensors(path.read_bytes(), str(path)))
    if not allow_pickle:
        raise ValueError(
            f"read_torch_file: {str(path)!r} is a pickle, which can run code when it is opened. If you trust where it "
            "came from, pass allow_pickle=True; a .safetensors file needs no trust."
        )
    return strip_prefix(_numpy_arrays(unwrap(_load_pickle(path), str(path)), str(path)))


def unwrap(content: Any, where: str = "checkpoint") -> Mapping[str, Any]:
    """The state dict inside what a training script saved: itself, or under `model` or `state_dict`.

    Raises:
        ValueError: There is none.

    >>> unwrap({"model": {"head.bias": 0}, "epoch": 3})
    {'head.bias': 0}
    """
    for _ in range(len(_WRAPPERS)):
        inner = [
            content[key] for key in _WRAPPERS if isinstance(content, Mapping) and isinstance(content.get(key), Mapping)
        ]
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(
            f"{where}: wanted a state dict (a mapping of names to tensors), got a {type(content).__name__}."
        )
    return content


def strip_prefix(state: Mapping[str, Any], prefix: str = "module.") -> dict[str, Any]:
    """Takes a prefix off every name; names are left alone unless all of them have it.

    >>> strip_prefix({"module.head.bias": 0})
    {'head.bias': 0}
    """
    if not all(name.startswith(prefix) for name in state):
        return dict(state)
    return {name.removeprefix(prefix): x for name, x in state.items()}


def _load_pickle(path: pathlib.Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"Reading {str(path)!r} needs PyTorch: pip install torch --index-url https://download.pytorch.org/whl/cpu "
            "(or convert the file to .safetensors, which does not)."
        ) from error
    try:
        # Training scripts save their parsed command line beside the weights; a namespace is as plain as a dict.
        with torch.serialization.safe_globals([Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{str(path)!r} is damaged, or it holds more than tensors and plain containers: {error}"
        ) from error


def _numpy_arrays(state: Mapping[str, Any], where: str) -> dict[str, np.ndarray]:
    import torch

    foreign = sorted(str(name) for name, x in state.items() if not (isinstance(name, str) and torch.is_tensor(x)))
    if foreign:
        raise ValueError(f"{where}: these entries of the state dict are no tensors: {', '.join(foreign)}.")
    return {name: _numpy_array(x.detach()) for name, x in state.items()}


def _numpy_array(x: Any) -> np.ndarray:
    """A tensor's values, bfloat16 (which numpy lacks) through its bits."""
    import torch

    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()
