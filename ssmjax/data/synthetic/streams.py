"""Random streams found by number, so that any batch can be made without the ones before it."""

import numpy as np

from ssmjax.errors import bad_argument

__all__ = ["at_least", "stream"]


def stream(where: str, seed: int, index: int) -> np.random.Generator:
    """The random generator under the key (seed, index): numpy's counter-based Philox (Salmon et al. 2011).

    Args:
        where: The public function, for the message.
        seed: Of the data set, 0 <= seed < 2 ** 64.
        index: Of the batch or block in it, 0 <= index < 2 ** 64.

    Raises:
        ValueError: If one of the two is out of its range.
    """
    for argument, value in (("seed", seed), ("step", index)):
        if not 0 <= value < 2**64:
            raise bad_argument(where, argument, value, "in 0 .. 2 ** 64 - 1")
    return np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64)))


def at_least(where: str, least: int, **arguments: int) -> None:
    """Checks that each of the named integers is `least` or more."""
    for argument, value in arguments.items():
        if value < least:
            raise bad_argument(where, argument, value, f"at least {least}")
