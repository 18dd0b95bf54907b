"""Muon for matrices, AdamW for everything else."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ssmjax.errors import as_int, as_nonnegative, bad_argument
from ssmjax.shapes import Array, Float
from ssmjax.training.optim import AdamParts, ParameterGroup, bare_mask, check_rates, partitioned
from ssmjax.training.parameter_info import ParameterInfo, parameter_info

__all__ = ["muon", "orthogonalize"]

COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Of the quintic iteration of Muon: it takes all singular values to about 0.7 .. 1.2 in five steps."""

_NO_MATRIX = re.compile(r".*(embed|head|conv|norm|scale|bias).*|[ABCDPW](_.*)?|dt.*|Lambda.*|kernels?_?\d+")


def orthogonalize(x: Float[Array, "*stack m n"], steps: int = 5) -> Float[jax.Array, "*stack m n"]:
    """The orthogonal factor of matrices, approximately: U V^T of x = U S V^T.

    Each step is `x <- a x + b (x x^T) x + c (x x^T)^2 x` (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon),
    of the matrix divided by its Frobenius norm. Singular values come near 1, not to it.

    Args:
        x: (*stack m n); the matrices are the last two axes.
        steps: How often it is iterated.

    Returns:
        (*stack m n) of the same dtype.

    >>> orthogonalize(jnp.array([[0.0, 3.0], [-0.1, 0.0]])).round(1).tolist()
    [[0.0, 0.7], [-1.1, 0.0]]
    """
    a, b, c = COEFFICIENTS
    wide = x.shape[-2] <= x.shape[-1]
    y = x if wide else jnp.swapaxes(x, -1, -2)
    y = y / (jnp.linalg.norm(y, axis=(-2, -1), keepdims=True) + 1e-7)
    for _ in range(steps):
        gram = y @ jnp.swapaxes(y, -1, -2)
        y = a * y + (b * gram + c * gram @ gram) @ y
    return y if wide else jnp.swapaxes(y, -1, -2)


def muon(
    peak: float,
    *,
    steps: int,
    warmup_steps: int = 0,
    end: float = 0.0,
    weight_decay: float = 0.1,
    clip_norm: float | None = 1.0,
    momentum: float = 0.95,
    iterations: int = 5,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    groups: Sequence[ParameterGroup] = (),
    model: nnx.Module | None = None,
) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for the matrices inside of a network, AdamW for all other parameters.

    A matrix is a parameter of the kind "weight"; heads, embeddings, filters, biases and all of a state space belong to
    AdamW. In stacked layers each layer's matrix is treated on its own: matrices are the last two axes. The update is
    `0.2 sqrt(max(m, n)) orthogonalize(momentum)`, as large as AdamW's (Liu et al. 2025, arXiv:2502.16982, section 2.2),
    so that one learning rate and one weight decay serve both.

    Args:
        peak: The peak learning rate.
        steps: How many steps there are in all.
        warmup_steps: How many of them warm up linearly.
        end: The learning rate at the end, in proportion to `peak` for groups with a peak of their own.
        weight_decay: The weight decay, where a parameter has one.
        clip_norm: The largest global norm of the gradient; None does not clip.
        momentum: The decay of Muon's momentum, which is Nesterov's.
        iterations: How many iterations of `orthogonalize`.
        b1: The decay of AdamW's first moment.
        b2: The decay of AdamW's second moment.
        eps: Added to the root of the second moment.
        groups: Parameters treated otherwise, by AdamW; the first group that matches counts.
        model: The model, as in `adamw`.

    Returns:
        An optax transformation for any pytree of parameters.

    Raises:
        ValueError: An argument is refused as by `adamw`.

    >>> from ssmjax.models.vim import Vim, VimConfig
    >>> model = Vim(VimConfig(img_size=8, patch_size=4, d_model=16, depth=2), rngs=nnx.Rngs(0))
    >>> optimizer = nnx.Optimizer(model, muon(1e-3, steps=100, model=model), wrt=nnx.Param)
    """
    check_rates("muon", peak, end, weight_decay, b1, b2, eps, clip_norm, groups)
    as_int("muon", "iterations", iterations, least=1)
    if not as_nonnegative("muon", "momentum", momentum) < 1:
        raise bad_argument("muon", "momentum", momentum, "less than 1")
    known = None if model is None else parameter_info(model)

    def mask(params: Any) -> Any:
        return bare_mask(params, known)

    adam = AdamParts(peak, steps, warmup_steps, end, b1, b2, eps)
    matrices = optax.chain(
        optax.trace(momentum, nesterov=True),
        _orthogonalized(iterations),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(adam.schedule(peak)),
    )
    transforms = {"muon": matrices, "adamw": adam.transform(peak, weight_decay, mask)}
    chosen = partitioned(transforms, _label, adam, groups, known)
    return optax.chain(optax.clip_by_global_norm(clip_norm), chosen) if clip_norm is not None else chosen


def _orthogonalized(iterations: int) -> optax.GradientTransformation:
    def one(x: jax.Array) -> jax.Array:
        return 0.2 * max(x.shape[-2:]) ** 0.5 * orthogonalize(x, iterations)

    return optax.stateless_with_tree_map(lambda update, _: one(update))


def _label(parts: Sequence[str], info: ParameterInfo, leaf: Any) -> str:
    """Whether a parameter is a matrix for Muon."""
    if info.kind is not None:
        matrix = info.kind == "weight" and info.decay is not False  # small factors and scales are not decayed
    else:
        matrix = parts[-1] in ("kernel", "weight") and not any(map(_NO_MATRIX.fullmatch, parts))
    value = leaf[...] if isinstance(leaf, nnx.Variable) else leaf
    return "muon" if matrix and getattr(value, "ndim", 0) >= 2 else "adamw"
