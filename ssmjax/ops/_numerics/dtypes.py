"""What a computation runs in, also under `jax_numpy_dtype_promotion="strict"`, where jax promotes nothing by itself."""

from typing import Any

import jax.numpy as jnp
import numpy as np

__all__ = ["common_type", "number_type", "real_type"]


def real_type(*arrays: Any) -> np.dtype:
    """Returns the real dtype to compute in: float64 if an array is of double precision, else float32.

    >>> real_type(jnp.ones(1, jnp.bfloat16), jnp.ones(1, jnp.complex64))
    dtype('float32')
    """
    double = any(v.dtype in (np.float64, np.complex128) for v in arrays)
    return np.dtype(np.float64 if double else np.float32)


def number_type(*arrays: Any) -> np.dtype:
    """`real_type`, or the complex dtype of its precision if an array is complex.

    >>> number_type(jnp.ones(1, jnp.bfloat16), jnp.ones(1, jnp.complex64))
    dtype('complex64')
    """
    real = real_type(*arrays)
    if not any(jnp.issubdtype(v.dtype, jnp.complexfloating) for v in arrays):
        return real
    return np.dtype(np.complex128 if real == np.float64 else np.complex64)


def common_type(a: Any, b: Any) -> np.dtype:
    """Returns the dtype of a result of two arrays: their own if they agree, else `number_type`.

    >>> common_type(jnp.ones(1, jnp.bfloat16), jnp.ones(1, jnp.bfloat16)) == jnp.bfloat16
    True
    """
    return a.dtype if a.dtype == b.dtype else number_type(a, b)
