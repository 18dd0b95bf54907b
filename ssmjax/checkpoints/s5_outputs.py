"""The output matrices of an S5 layer of two directions: one joint array in some layouts, two in ours."""

from collections.abc import Mapping

import numpy as np

__all__ = ["join_outputs", "split_outputs"]


def split_outputs(parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parts every joint `C` (h 2p 2) of two directions into `C1` and `C2`; what stands before the name stays.

    >>> sorted(split_outputs({"layers_0/seq/C": np.ones((3, 4, 2))}))
    ['layers_0/seq/C1', 'layers_0/seq/C2']
    """
    parted = {}
    for name, x in parameters.items():
        if name.split("/")[-1].split(".")[-1] == "C" and x.ndim == 3 and x.shape[1] % 2 == 0:
            parted[f"{name}1"], parted[f"{name}2"] = np.split(np.asarray(x), 2, axis=1)
        else:
            parted[name] = x
    return parted


def join_outputs(parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `split_outputs`; layers of one direction are left as they are."""
    joint = {}
    for name, x in parameters.items():
        if name.endswith("C1") and f"{name[:-1]}2" in parameters:
            joint[name[:-1]] = np.concatenate([x, parameters[f"{name[:-1]}2"]], axis=1)
        elif not (name.endswith("C2") and f"{name[:-1]}1" in parameters):
            joint[name] = x
    return joint
