"""Forward-mode derivatives of ops whose backward pass is their own: jax has none, and here the error says what does."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import ad, batching, mlir

from ssmjax.ops import backend

__all__ = ["own_backward", "reverse_only"]

Primitive = type(jax.lax.neg_p)  # `jax.extend.core` has it too, and loads Pallas


def own_backward(op: str, function: Callable[..., Any], plain: Callable[..., Any], *args: Any) -> Any:
    """Calls a function with a `jax.custom_vjp`, or the same in plain jax where the reference is asked for.

    The plain one has derivatives of all kinds; the error of `reverse_only` names the way to it.

    >>> with backend.use_implementation("reference"):
    ...     float(jax.jvp(lambda x: own_backward("example", abs, lambda x: 3 * x, x), (1.0,), (1.0,))[1])
    3.0
    """
    return plain(*args) if backend.asked_for(op) == "reference" else reverse_only(op, function, *args)


def reverse_only(op: str, function: Callable[..., Any], *args: Any) -> Any:
    """Calls a function with a `jax.custom_vjp`, whose forward-mode derivative raises an error that names the remedy.

    Reverse mode transposes the derivative of the arguments that are passed on here and never evaluates it. Forward mode
    evaluates it before it meets jax's own error, which names no op; under `jax.jit` when the program is compiled.

    Args:
        op: The public op, for the message.
        function: What to call.
        *args: Its arguments: trees of arrays, and others.

    Raises:
        TypeError: In `jax.jvp`, `jax.jacfwd`, `jax.hessian` and `jax.linearize`.

    >>> float(jax.grad(lambda x: reverse_only("example", lambda x: 3 * x, x))(1.0))
    3.0
    """
    leaves, structure = jax.tree.flatten(args)
    for i, x in enumerate(leaves):  # a derivative comes with a tracer
        if isinstance(x, jax.core.Tracer) and jnp.issubdtype(x.dtype, jnp.inexact):
            leaves[i] = _watched(x, op)
    try:
        return function(*jax.tree.unflatten(structure, leaves))
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        _refuse(op=op)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _watched(x, op):
    return x


@_watched.defjvp
def _watched_jvp(op, primals, tangents):
    return _watched(*primals, op), _evaluated.bind(*tangents, op=op)


def _refuse(*_, op):
    raise TypeError(
        f"{op}: forward-mode derivatives (jax.jvp, jax.jacfwd, jax.hessian) need implementation='reference': trace "
        'the call inside `with ssmjax.use_implementation("reference"):`, or pass it to the op. Reverse mode (jax.grad) '
        "is as it is."
    )


_evaluated = Primitive("ssmjax_reverse_only")
_evaluated.def_impl(_refuse)
_evaluated.def_abstract_eval(lambda tangent, *, op: tangent)
ad.deflinear2(_evaluated, lambda cotangent, _, *, op: [cotangent])
batching.defvectorized(_evaluated)
mlir.register_lowering(_evaluated, lambda ctx, tangent, *, op: _refuse(op=op))
