"""AdamW with warm-up, cosine decay, clipping, and no weight decay where the original recipes have none.

What a parameter is, it says itself (`ssmjax.training.parameter_info`); names are for parameters that do not.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax
from flax import nnx

from ssmjax.errors import as_int, as_nonnegative, bad_argument
from ssmjax.training.parameter_info import ParameterInfo, info_at, parameter_info, path_parts

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
"""Parameters without weight decay, for those that do not say what they are: a pattern that one part of the parameter's
path matches in full.

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
        kinds: The kinds of parameters that belong to the group. Where a parameter says what it is, they decide in place
            of the pattern.

    Raises:
        ValueError: The pattern is no regular expression, or a rate is negative or no number.
    """

    pattern: str
    peak: float
    weight_decay: float = 0.0
    kinds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern + "")
        except (TypeError, re.error) as error:
            raise bad_argument("ParameterGroup", "pattern", self.pattern, "a regular expression", f"{error}.") from None
        for name in ("peak", "weight_decay"):
            as_nonnegative("ParameterGroup", name, getattr(self, name))

    def holds(self, parts: Sequence[str], info: ParameterInfo) -> bool:
        """Whether a parameter belongs to it, by its path and what is known of it."""
        if self.kinds and info.kind is not None:
            return info.kind in self.kinds
        return any(re.fullmatch(self.pattern, part) for part in parts)


Known = Mapping[str, ParameterInfo] | None
"""What is known of the parameters, by path; None takes what `fit` says of them."""


def decay_mask(params: Any, known: Known = None) -> Any:
    """Says for each parameter whether weight decay applies to it, by what it says itself, else by the table `NO_DECAY`.

    Args:
        params: A pytree of parameters with the names of the original models; or an `nnx.State`, whose variables say
            what they are.
        known: From `parameter_info`, for a tree of bare arrays.

    Returns:
        The same tree of booleans.

    >>> decay_mask({"mixer": {"A_log": 0, "in_proj": {"kernel": 0, "bias": 0}}})
    {'mixer': {'A_log': False, 'in_proj': {'bias': False, 'kernel': True}}}
    """
    if known is None and isinstance(params, nnx.State):
        known = parameter_info(params)

    def decayed(path: Sequence[Any], _: Any) -> bool:
        parts = path_parts(path)
        decay = info_at(parts, known).decay
        return not any(map(_NO_DECAY.fullmatch, parts)) if decay is None else decay

    return jax.tree_util.tree_map_with_path(decayed, params, is_leaf=_is_variable)


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
    model: nnx.Module | None = None,
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
        model: The model whose parameters it is for, in a loop of your own, where `nnx.Optimizer` runs it. Its
            parameters say what they are. `fit` knows its model, and needs none here.

    Returns:
        An optax transformation for any pytree of parameters.

    Raises:
        ValueError: `warmup_cosine` refuses its arguments; another number is negative or none, a moment does not decay,
            or the groups are not of type `ParameterGroup`.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.ones(3)}
    >>> optimizer = adamw(0.1, steps=100, clip_norm=None, weight_decay=0.0)
    >>> updates, _ = optimizer.update({"kernel": jnp.full(3, 5.0)}, optimizer.init(params), params)
    >>> [round(float(update), 4) for update in updates["kernel"]]
    [-0.1, -0.1, -0.1]
    """
    check_rates("adamw", peak, end, weight_decay, b1, b2, eps, clip_norm, groups)
    known = None if model is None else parameter_info(model)
    adam = AdamParts(peak, steps, warmup_steps, end, b1, b2, eps)
    default = adam.transform(peak, weight_decay, lambda params: bare_mask(params, known))
    chosen = partitioned({"default": default}, lambda parts, info, leaf: "default", adam, groups, known)
    return optax.chain(optax.clip_by_global_norm(clip_norm), chosen) if clip_norm is not None else chosen


@dataclasses.dataclass(frozen=True)
class AdamParts:
    """What the AdamW of each group has in common."""

    peak: float
    steps: int
    warmup_steps: int
    end: float
    b1: float
    b2: float
    eps: float

    def schedule(self, peak: float) -> optax.Schedule:
        """That of a group: the common shape, with its own peak."""
        return warmup_cosine(
            peak, self.steps, self.warmup_steps, self.end * peak / self.peak if self.peak else self.end
        )

    def transform(self, peak: float, decay: float, mask: Any) -> optax.GradientTransformation:
        """AdamW with a peak, a weight decay and a mask of where it applies."""
        return optax.adamw(self.schedule(peak), self.b1, self.b2, self.eps, weight_decay=decay, mask=mask)


def partitioned(
    transforms: Mapping[str, optax.GradientTransformation],
    label: Callable[[Sequence[str], ParameterInfo, Any], str],
    adam: AdamParts,
    groups: Sequence[ParameterGroup],
    known: Known,
) -> optax.GradientTransformation:
    """One transformation for all: that of the first group that holds a parameter, else the one that `label` names."""
    own = {str(i): adam.transform(group.peak, group.weight_decay, None) for i, group in enumerate(groups)}
    everything = {**own, **transforms}
    if len(everything) == 1:
        return next(iter(everything.values()))

    def name(path: Sequence[Any], leaf: Any) -> str:
        parts = path_parts(path)
        info = info_at(parts, known)
        found = (str(i) for i, group in enumerate(groups) if group.holds(parts, info))
        return next(found, None) or label(parts, info, leaf)

    # A variable is labeled as a whole: older Flax cannot hold what stands for an array of another group inside of one.
    return optax.partition(
        everything, lambda params: jax.tree_util.tree_map_with_path(name, params, is_leaf=_is_variable)
    )


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)


def bare_mask(params: Any, known: Known) -> Any:
    """As `decay_mask`, the same with and without variables around the arrays: `nnx.Optimizer` takes them off."""
    return decay_mask(params, {} if known is None and isinstance(params, nnx.State) else known)


def check_rates(
    where: str,
    peak: float,
    end: float,
    weight_decay: float,
    b1: float,
    b2: float,
    eps: float,
    clip_norm: float | None,
    groups: Sequence[ParameterGroup],
) -> None:
    """Raises `ValueError` for a number that is none, or groups that are none."""
    for name, value in {"peak": peak, "weight_decay": weight_decay, "end": end, "eps": eps}.items():
        as_nonnegative(where, name, value)
    for name, value in {"b1": b1, "b2": b2}.items():
        if not as_nonnegative(where, name, value) < 1:
            raise bad_argument(where, name, value, "less than 1")
    if clip_norm is not None:
        as_nonnegative(where, "clip_norm", clip_norm, positive=True, remedy="None does not clip.")
    if not isinstance(groups, Sequence) or not all(isinstance(group, ParameterGroup) for group in groups):
        raise bad_argument(where, "groups", groups, "a sequence of ParameterGroup")
