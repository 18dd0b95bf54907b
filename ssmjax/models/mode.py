"""`model.train()` and `model.eval()` of Flax NNX decide what a call does where its `train` is left out."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from flax import nnx

__all__ = ["follows_mode"]

Class = TypeVar("Class", bound=type[nnx.Module])


def follows_mode(model: Class) -> Class:
    """Makes the methods of a class that have an argument `train` follow its mode where it is None.

    The mode is the attribute `deterministic`, which `model.train()` and `model.eval()` set; it is True at first. A
    `train` that is given counts whatever the mode.

    >>> @follows_mode
    ... class Noisy(nnx.Module):
    ...     def __call__(self, x, *, train=None):
    ...         return -x if train else x
    >>> model = Noisy()
    >>> model.train()
    >>> model(1), model(1, train=False)
    (-1, 1)
    >>> model.eval()
    >>> model(1)
    1
    """
    model.deterministic = True
    for name, method in list(vars(model).items()):
        public = name == "__call__" or not name.startswith("_")
        if public and inspect.isfunction(method) and "train" in inspect.signature(method).parameters:
            setattr(model, name, _following(method))
    return model


def _following(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, *args: Any, train: Any = None, **options: Any) -> Any:
        return method(self, *args, train=not self.deterministic if train is None else train, **options)

    return call
