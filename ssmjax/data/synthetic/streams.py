"""Random streams found by number, so that any batch can be made without the ones before it."""

import numpy as np

from ssmjax.errors import as_int

__all__ = ["stream"]


def stream(where: str, seed: int, index: int) -> np.random.Generator:
    """The random generator under the key (seed, index): numpy's counter-based Philox (Salmon et al. 2011).

    Args:
        where: The public function, for the message.
        seed: The seed of the data set, 0 <= seed < 2 ** 64.
        index: The number of the batch or block in it, 0 <= index < 2 ** 64.

    Raises:
        ValueError: If one of the two is not a whole number or is out of its range.
    """
    wanted = "an int in 0 .. 2 ** 64 - 1"
    named = (("seed", seed), ("step", index))
    key = [as_int(where, argument, value, wanted, least=0, most=2**64 - 1) for argument, value in named]
    return np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))
