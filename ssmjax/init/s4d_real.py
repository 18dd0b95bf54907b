"""The state matrix that Mamba starts from."""

import numpy as np

__all__ = ["s4d_real_log"]


def s4d_real_log(n: int) -> np.ndarray:
    """The logarithm of S4D-Real, `log(-A_n) = log(n + 1)` for `n = 0, 1, ...`: decay rates 1, 2, ..., `n`.

    "On the Parameterization and Initialization of Diagonal State Space Models", section 4 (https://arxiv.org/abs/2206.11893);
    Mamba uses it for every channel (section 3.6, https://arxiv.org/abs/2312.00752).

    Args:
        n: The state size.

    Returns:
        (n), float64. Computed on the host, since it holds no randomness.

    >>> s4d_real_log(3).round(3).tolist()
    [0.0, 0.693, 1.099]
    """
    return np.log(np.arange(1, n + 1, dtype=np.float64))
