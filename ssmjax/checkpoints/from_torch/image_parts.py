"""What the converters of image models share: norms with statistics, and PyTorch's counters of batches."""

from collections.abc import Mapping

import numpy as np

from ssmjax.checkpoints.mapping import Rule

__all__ = ["linear_rules", "norm_rules", "with_counters", "without_counters"]

_COUNTER = ".num_batches_tracked"


def norm_rules(source: str, target: str) -> tuple[Rule, ...]:
    """The rules of a norm: scale and bias, and the statistics that a batch norm has."""
    pairs = (("weight", "scale"), ("bias", "bias"), ("running_mean", "mean"), ("running_var", "var"))
    return tuple(Rule(f"{source}.{theirs}", f"{target}.{ours}") for theirs, ours in pairs)


def linear_rules(source: str, target: str, layout: str = "linear") -> tuple[Rule, ...]:
    """The rules of a linear map or a convolution with a bias."""
    return Rule(f"{source}.weight", f"{target}.kernel", layout), Rule(f"{source}.bias", f"{target}.bias")


def without_counters(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state dict without the counters of batch norms, which only a plain (not an exponential) average reads.

    >>> sorted(without_counters({"norm.running_mean": np.ones(2), "norm.num_batches_tracked": np.array(7)}))
    ['norm.running_mean']
    """
    counters = {name.removesuffix("running_mean") + _COUNTER[1:] for name in state if name.endswith(".running_mean")}
    return {name: x for name, x in state.items() if name not in counters}


def with_counters(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state dict with a counter, zero, beside the statistics of each batch norm, as PyTorch's strict loader wants."""
    counters = (name.removesuffix(".running_mean") + _COUNTER for name in state if name.endswith(".running_mean"))
    return {**state, **{name: np.zeros((), np.int64) for name in counters}}
