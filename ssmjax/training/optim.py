"""AdamW with warm-up, cosine decay, clipping, and no weight decay where the original recipes have none."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax

from ssmjax.errors import as_int, as_nonnegative, bad_argument

__all__ = ["NO_DECAY", "ParameterGroup", "adamw", "decay_mask", "warmup_cosine"]

NO_DECAY: Mapping[str, str] = {
    "bias": r"(.*_)?bias",
    "norm": r".*norm\d*(_.*)?|bn\d*|scale",
    "A": r"A(_b)?(_log|_real|_imag)?|log_A.*|Lambda.*|(nu|theta)_log",
    "D": r"D(_b)?",
    "dt": r"dt(_.*)?|(log|inv)_(dt|step).*|gamma_log",
    "position and class embedding": r".*(pos|position)_embed.*|(cls|dist|class)_token(_.*)?",
    "layer scale": r"gamma(_\d+)?|layer_scale\d*|ls\d*",
}
"""Parameters without weight decay, by kind: a pattern that one part of the parameter's path matches in full.

Norms and biases as in every recipe; A, D and the step size dt as in Mamba and S4, and what the LRU has in their place,
where decay would pull the state's time constants to those of a parameter of zero; embeddings and layer scale as in Vim
and DeiT.
"""

_NO_DECAY = re.compile("|".join(f"(?:{pattern})" for pattern in NO_DECAY.values()))


@dataclasses.dataclass(frozen=True)
class ParameterGroup:
    """Parameters with a learning rate and a weight decay of their own, such as the state space ones of S4 and S5.

    Attributes:
        pattern: A regular expression that one part of the parameter's path matches in full.
        peak: The peak learning rate; the shape of the schedule is that of all others.
        weight_decay: The weight decay of the whole group.

    Raises:
        ValueError: The pattern is no regular expression, or a rate is negative or no number.
    """

    pattern: str
    peak: float
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern + "")
        except (TypeError, re.error) as error:
            raise bad_argument("ParameterGroup", "pattern", self.pattern, "a regular expression", f"{error}.") from None
        for name in ("peak", "weight_decay"):
            as_nonnegative("ParameterGroup", name, getattr(self, name))


def _parts(path: Sequence[Any]) -> list[str]:
    """The parts of a parameter's path, in a nested tree or in a flat dictionary with dots in its names."""
    return jax.tree_util.keystr(path, simple=True, separator=".").split(".")


def decay_mask(params: Any) -> Any:
    """Says for each parameter whether weight decay applies to it, by the table `NO_DECAY`.

    Args:
        params: A pytree of parameters with the names of the original models.

    Returns:
        The same tree of booleans.

    >>> decay_mask({"mixer": {"A_log": 0, "in_proj": {"kernel": 0, "bias": 0}}})
    {'mixer': {'A_log': False, 'in_proj': {'bias': False, 'kernel': True}}}
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: not any(map(_NO_DECAY.fullmatch, _parts(path))), params)


def warmup_cosine(peak: float, steps: int, warmup_steps: int = 0, end: float = 0.0) -> optax.Schedule:
    """A linear warm-up from 0 to `peak`, then half a cosine down to `end` at the last step.

    Args:
        peak: The highest learning rate.
        steps: How many steps there are in all.
        warmup_steps: How many of them warm up.
        end: The lowest learning rate.

    Raises:
        ValueError: A number of steps is no whole number, the warm-up is as long as the training, or a rate is negative
            or no number.

    >>> [round(float(warmup_cosine(1.0, 10, 2)(step)), 3) for step in (0, 1, 2, 6, 10)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    where = "warmup_cosine"
    steps = as_int(where, "steps", steps, least=1)
    wanted = f"at least 0 and less than steps={steps}"
    warmup_steps = as_int(where, "warmup_steps", warmup_steps, wanted, least=0, most=steps - 1)
    for name, value in {"peak": peak, "end": end}.items():
        as_nonnegative(where, name, value)
    return optax.warmup_cosine_decay_schedule(0.0 if warmup_steps else peak, peak, warmup_steps, steps, end)


def adamw(
    peak: float,
    *,
    steps: int,
    warmup_steps: int = 0,
    end: float = 0.0,
    weight_decay: float = 0.05,
    clip_norm: float | None = 1.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    groups: Sequence[ParameterGroup] = (),
) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019, algorithm 2) with warm-up, cosine decay, clipping and `decay_mask`.

    Args:
        peak: The peak learning rate.
        steps: How many steps there are in all.
        warmup_steps: How many of them warm up linearly.
        end: The learning rate at the end, in proportion to `peak` for groups with a peak of their own.
        weight_decay: The weight decay, scaled by the learning rate as in the paper.
        clip_norm: The largest global norm of the gradient; None does not clip.
        b1: The decay of the first moment.
        b2: The decay of the second moment.
        eps: Added to the root of the second moment.
        groups: Parameters treated otherwise; the first group that matches counts.

    Returns:
        An optax transformation for any pytree of parameters.

    Raises:
        ValueError: As `warmup_cosine`; or another number is negative or none, a moment does not decay, or the groups
            are no `ParameterGroup`s.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.ones(3)}
    >>> optimizer = adamw(0.1, steps=100, clip_norm=None, weight_decay=0.0)
    >>> updates, _ = optimizer.update({"kernel": jnp.full(3, 5.0)}, optimizer.init(params), params)
    >>> [round(float(update), 4) for update in updates["kernel"]]
    [-0.1, -0.1, -0.1]
    """
    for name, value in {"peak": peak, "weight_decay": weight_decay, "end": end, "eps": eps}.items():
        as_nonnegative("adamw", name, value)
    for name, value in {"b1": b1, "b2": b2}.items():
        if not as_nonnegative("adamw", name, value) < 1:
            raise bad_argument("adamw", name, value, "less than 1")
    if clip_norm is not None:
        as_nonnegative("adamw", "clip_norm", clip_norm, positive=True, remedy="None does not clip.")
    if not isinstance(groups, Sequence) or not all(isinstance(group, ParameterGroup) for group in groups):
        raise bad_argument("adamw", "groups", groups, "a sequence of ParameterGroup")

    def one(group_peak: float, decay: float, mask: Any) -> optax.GradientTransformation:
        schedule = warmup_cosine(group_peak, steps, warmup_steps, end * group_peak / peak if peak else end)
        return optax.adamw(schedule, b1, b2, eps, weight_decay=decay, mask=mask)

    transforms = {str(i): one(group.peak, group.weight_decay, None) for i, group in enumerate(groups)}
    default = one(peak, weight_decay, decay_mask)
    chosen = optax.partition({**transforms, "default": default}, _labels(groups)) if groups else default
    return optax.chain(optax.clip_by_global_norm(clip_norm), chosen) if clip_norm is not None else chosen


def _labels(groups: Sequence[ParameterGroup]) -> Any:
    """The function that names the group of each parameter, as `optax.partition` wants it."""

    def label(path: Sequence[Any], _: Any) -> str:
        for i, group in enumerate(groups):
            if any(re.fullmatch(group.pattern, part) for part in _parts(path)):
                return str(i)
        return "default"

    return lambda params: jax.tree_util.tree_map_with_path(label, params)
